"""The prediction log under kill -9, tampering, a full disk, and the law."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prodml.bundle.bundle import open_bundle
from prodml.bundle.sign import new_key
from prodml.core.errors import InputError
from prodml.serve import audit as audit_module
from prodml.serve import log as log_module
from prodml.serve.audit import ACTS, Erased, acts_of, erase, export, heads, merged, read_anchor, recorded, replay, retain, show, verify, write_anchor
from prodml.serve.log import INDEX, LogSettings, PredictionLog, find, read_chain, read_frames
from prodml.serve.log_format import Keyring, Record, add_key, bundle_hash, chain_folders, pack_features, read_keyring, segment_paths
from prodml.serve.problems import Problem

DAY_US = 86_400_000_000


def record(number: int, **other) -> Record:
    """An answer to a passenger."""
    told = {"id": f"a{number}", "at_us": time.time_ns() // 1000, "model": "small", "version": "1", "route": "predict", "caller": "gate", "inputs": {"delay": number * 0.1, "passenger": f"Person {number % 5}"}, "output": 0.25}
    return Record(**told | other)


def write(folder: Path, numbers, **policy) -> PredictionLog:
    """A log with these answers, closed."""
    log = PredictionLog(LogSettings(str(folder), **policy))
    for number in numbers:
        log.append(record(number))
    log.close()
    return log


def contents(folder: Path, keyring=None) -> list:
    """What the log holds, all chains."""
    return [entered.content for entered in merged(folder, keyring) if entered.frame.kind in ("prediction", "feedback")]


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# kill -9

WRITER = """
import os, sys, threading, time
from prodml.serve.log import LogSettings, PredictionLog
from prodml.serve.log_format import Record
from prodml.serve.problems import Problem
folder, name, told = sys.argv[1], sys.argv[2], os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
log, last = PredictionLog(LogSettings(folder, flush_ms=20, segment_mb=1, queue=2000)), -1
def label():
    while True:
        if last >= 0:
            own = f"{name}-{last}"
            if log.feedback(own, 1, 0):
                os.write(told, f"F {own}\\n".encode())
for _ in range(3):
    threading.Thread(target=label, daemon=True).start()
while True:
    durable, number = log.written, last + 1
    os.write(told, f"W {durable}\\n".encode())
    try:
        log.append(Record(f"{name}-{number}", time.time_ns() // 1000, "small", "1", "predict", "gate", {"delay": 0.5, "carrier": "UA"}, 0.25))
        last = number
        os.write(told, f"P {number}\\n".encode())
    except Problem:
        time.sleep(0.002)
    if number % 100 == 99:
        time.sleep(0.001)
"""


def start_writer(folder: Path, name: str) -> tuple[subprocess.Popen, Path]:
    told = folder.parent / f"{name}.told"
    root = Path(__file__).resolve().parent.parent
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(told)], cwd=root), told


def told_of(path: Path) -> dict[str, list[str]]:
    """What a writer said before it died, by the letter; the last line may be half."""
    lines = [line.split() for line in path.read_text().split("\n")[:-1]]
    return {kind: [value for letter, value in lines if letter == kind] for kind in "FPW"}


def kill_and_check(folder: Path, turn: int, chance: random.Random) -> int:
    """Two writers, killed in the middle; how many labels were acknowledged."""
    writers = {f"w{turn}-{number}": start_writer(folder, f"w{turn}-{number}") for number in range(2)}
    until = time.monotonic() + 60
    while not all(told.exists() and b"F" in told.read_bytes() for _, told in writers.values()):
        assert time.monotonic() < until and all(process.poll() is None for process, _ in writers.values()), "a writer did not get going"
        time.sleep(0.01)
    time.sleep(chance.random() * 0.3)
    for process, _ in writers.values():
        process.send_signal(signal.SIGKILL)
    for process, _ in writers.values():
        process.wait()
    for one in [PredictionLog(LogSettings(str(folder))) for _ in range(2)]:  # what a restart does
        one.close()
    report = verify(folder)
    assert report.sound, report.findings[:3]
    kept = {name: set() for name in writers}
    labelled = set()
    for entered in merged(folder):
        name, _, number = (entered.content.id if entered.frame.kind in ("prediction", "feedback") else "").rpartition("-")
        if entered.frame.kind == "feedback":
            labelled.add(entered.content.id)
        elif name in kept:
            kept[name].add(int(number))
    acknowledged = 0
    for name, (_, told) in writers.items():
        said = told_of(told)
        assert set(said["F"]) <= labelled, "an acknowledged label is lost"
        assert kept[name] == set(range(len(kept[name]))), "what is lost is the newest alone"
        assert len(kept[name]) >= int(said["W"][-1]), "what was said to be on the disk is lost"
        assert len(said["P"]) - len(kept[name]) <= 2000, "more is lost than the queue holds"
        acknowledged += len(said["F"])
    return acknowledged


def test_two_writers_are_killed_in_the_middle_of_load(tmp_path):
    """What a whole server loses is seen in tests/test_serve_kill.py."""
    chance, turns = random.Random(3), 3
    assert sum(kill_and_check(tmp_path / "log", turn, chance) for turn in range(turns)) >= turns
    assert not list((tmp_path / "log").rglob("*.torn")), "no crash leaves what does not look torn"


def test_every_cut_of_the_tail_is_repaired(tmp_path):
    """A crash may end a file at any byte; what was whole before stays."""
    write(tmp_path / "log", range(3))
    path = segment_paths(tmp_path / "log" / "worker-00")[0]
    data, ends = path.read_bytes(), [frame.end for frame in read_frames(path)]
    for size in range(1, len(data), 23):
        folder = tmp_path / f"cut-{size}" / "worker-00"
        folder.mkdir(parents=True)
        (folder / path.name).write_bytes(data[:size])
        PredictionLog(LogSettings(str(folder.parent))).close()
        assert verify(folder.parent).sound, size
        whole = sum(end <= size for end in ends)
        assert len(contents(folder.parent)) == max(whole - 1, 0), size
        repairs = [entered.content for entered in read_chain(folder) if entered.frame.kind == "repair"]
        assert [repair.bytes for repair in repairs] == ([] if size in ends else [size - max([end for end in ends if end <= size], default=0)])


def test_a_long_frame_that_was_cut_off_is_known_by_its_head(tmp_path):
    """A record of megabytes may be half there when the process is killed: no damage, unless its head was changed."""
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    log.append(record(1, inputs={"text": "x" * 300_000}))
    log.close()
    path = segment_paths(tmp_path / "log" / "worker-00")[-1]
    os.truncate(path, path.stat().st_size - 1000)
    shutil.copytree(tmp_path / "log", tmp_path / "other")
    PredictionLog(LogSettings(str(tmp_path / "log"))).close()
    assert verify(tmp_path / "log").sound and not list((tmp_path / "log").rglob("*.torn"))
    other = tmp_path / "other" / "worker-00" / path.name
    data, start = bytearray(other.read_bytes()), list(read_frames(other))[-1].end
    data[start + 6] ^= 1
    other.write_bytes(data)
    PredictionLog(LogSettings(str(tmp_path / "other"))).close()
    assert {finding.what for finding in verify(tmp_path / "other").findings} == {"damaged"}


def test_a_tail_that_no_crash_leaves_is_set_aside(tmp_path):
    write(tmp_path / "log", range(3))
    path = segment_paths(tmp_path / "log" / "worker-00")[0]
    frame = list(read_frames(path))[1]
    data = bytearray(path.read_bytes())
    data[frame.start] = 0xFF
    path.write_bytes(data)
    PredictionLog(LogSettings(str(tmp_path / "log"))).close()
    (torn,) = (tmp_path / "log" / "worker-00").glob("*.torn")
    assert torn.read_bytes() == bytes(data[frame.start:])
    assert "damaged" in {finding.what for finding in verify(tmp_path / "log").findings}


# tampering


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A log of two segments with labels, and its files."""
    folder = tmp_path_factory.mktemp("honest") / "log"
    for numbers in (range(8), range(8, 16)):
        log = PredictionLog(LogSettings(str(folder)))
        for number in numbers:
            log.append(record(number))
        log.feedback(f"a{numbers[0]}", 1, 0)
        log.close()
    assert verify(folder).sound
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), segment=st.integers(0, 1))
def test_no_bit_can_be_turned_unseen(honest, place, bit, segment):
    path = segment_paths(honest / "worker-00")[segment]
    data = path.read_bytes()
    changed = bytearray(data)
    changed[int(place * len(data))] ^= 1 << bit
    try:
        path.write_bytes(changed)
        report = verify(honest)
        assert not report.sound and report.findings[0].start <= int(place * len(data)), "the first broken record is the one that was changed"
    finally:
        path.write_bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_no_other_order_of_records_is_taken(honest, order):
    """Removed, doubled, moved: whatever is not the honest order is noticed, with an anchor."""
    path = segment_paths(honest / "worker-00")[0]
    data, anchor = path.read_bytes(), {"date": "today", "chains": heads(honest)}
    pieces = [data[frame.start:frame.end] for frame in read_frames(path)]
    assert len(pieces) == 10
    try:
        path.write_bytes(b"".join(pieces[place] for place in order))
        assert verify(honest, [anchor]).sound == (order == list(range(10)))
    finally:
        path.write_bytes(data)


def test_a_segment_that_is_gone_swapped_or_of_another_chain_is_noticed(honest, tmp_path):
    def tampered(change):
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        shutil.copytree(honest, tmp_path / "log")
        change(tmp_path / "log" / "worker-00", *segment_paths(tmp_path / "log" / "worker-00"))
        return [finding.what for finding in verify(tmp_path / "log", [{"date": "today", "chains": heads(honest)}]).findings]

    def swap(folder, first, second):
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)

    assert tampered(lambda folder, first, second: None) == []
    assert tampered(lambda folder, first, second: first.unlink())[0] == "removed"
    assert "truncated" in tampered(lambda folder, first, second: second.unlink())
    assert tampered(swap)
    assert tampered(lambda folder, first, second: shutil.rmtree(folder) or (folder.parent / ACTS).mkdir(exist_ok=True) or shutil.copytree(honest / "worker-00", folder.with_name("worker-01"))) != []


def test_a_writer_that_is_alive_is_not_taken_for_damage(tmp_path):
    log = PredictionLog(LogSettings(str(tmp_path / "log"), flush_ms=1))
    stop = threading.Event()

    def load():
        number = 0
        while not stop.is_set():
            if log.pending < 5000:
                log.append(record(number))
                number += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(5):
            report = verify(tmp_path / "log")
            assert report.sound, report.findings[:2]
    finally:
        stop.set()
        thread.join()
        log.close()
    assert verify(tmp_path / "log").sound


def test_an_anchor_is_signed_and_sees_a_shorter_chain(tmp_path):
    write(tmp_path / "log", range(5))
    public = new_key(tmp_path / "key")
    write_anchor(tmp_path / "log", tmp_path / "anchor.json", tmp_path / "key")
    anchor = read_anchor(tmp_path / "anchor.json", public)
    write(tmp_path / "log", range(5, 8))
    assert verify(tmp_path / "log", [anchor]).sound
    first, second = segment_paths(tmp_path / "log" / "worker-00")
    second.unlink()
    frame = list(read_frames(first))[-1]
    os.truncate(first, frame.start)
    shutil.rmtree(tmp_path / "log" / ACTS)
    assert verify(tmp_path / "log").sound
    assert {finding.what for finding in verify(tmp_path / "log", [anchor]).findings} == {"truncated"}
    with pytest.raises(InputError, match="none of the"):
        read_anchor(tmp_path / "anchor.json", new_key(tmp_path / "other"))


# erasure, retention


@pytest.mark.parametrize("policy", [{}, {"encrypt": True}, {"redact": ("passenger",)}, {"inputs": "hash", "subject": ("passenger",)}, {"inputs": "none", "subject": ("passenger",), "encrypt": True}])
def test_a_person_is_erased_and_the_chain_verifies(tmp_path, policy):
    ring = add_key(tmp_path / "keys", "one") if policy else None
    log = PredictionLog(LogSettings(str(tmp_path / "log"), keys=str(tmp_path / "keys") if policy else "", **policy))
    other = PredictionLog(log.settings)
    for number in range(50):
        (log, other)[number % 2].append(record(number))
    assert log.feedbacks([("a2", 1, 0), ("a7", 0, 0), ("a3", 0, 0)]) == [True] * 3
    anchor = {"date": "today", "chains": heads(tmp_path / "log")}
    # Both writers live on.
    assert erase(tmp_path / "log", "passenger", "Person 2", "request 1", ring) == Erased(10, 2, 0)
    for number in range(50, 60):
        log.append(record(number))
    log.close()
    other.close()
    report = verify(tmp_path / "log", [anchor])
    assert report.sound and sum(chain.erased for chain in report.chains) == 12
    assert sum(one is None for one in contents(tmp_path / "log", ring)) == 12
    assert find(tmp_path / "log", "a2", ring)[0].content is None and find(tmp_path / "log", "a3", ring)[0].content.id == "a3"
    left = {int(one.id[1:]) for one in contents(tmp_path / "log", ring) if one and int(one.id[1:]) % 5 == 2}
    assert left == {52, 57}, "those that came after"


def test_many_records_are_erased_by_several_acts(tmp_path, monkeypatch):
    """An act must fit a frame."""
    monkeypatch.setattr(audit_module, "MOST_ERASED", 7)
    write(tmp_path / "log", range(100))
    assert erase(tmp_path / "log", "passenger", "Person 1", "request 6").predictions == 20
    report = verify(tmp_path / "log")
    assert report.sound and sum(chain.erased for chain in report.chains) == 20
    assert [len(act.details["records"]["worker-00"]) for _, act in acts_of(tmp_path / "log")] == [7, 7, 6]


def test_feedback_for_an_erased_prediction_is_refused(tmp_path):
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    log.append(record(1))
    log.flush()
    erase(tmp_path / "log", "passenger", "Person 1", "request 2")
    assert not log.feedback("a1", 1, 0)
    log.close()


def test_retention_lets_go_what_is_old_and_the_rest_verifies(tmp_path, monkeypatch):
    now = time.time_ns()
    for day in range(6):
        monkeypatch.setattr(time, "time_ns", lambda day=day: now - (5 - day) * DAY_US * 1000)
        log = PredictionLog(LogSettings(str(tmp_path / "log")))
        for number in range(day * 10, day * 10 + 10):
            log.append(record(number))
        log.close()
    anchor = {"date": "then", "chains": heads(tmp_path / "log")}
    erase(tmp_path / "log", "passenger", "Person 0", "request 3")
    done = retain(tmp_path / "log", 2.5, "policy")
    assert done.segments == 3 and {int(one.id[1:]) for one in contents(tmp_path / "log") if one} == {number for number in range(30, 60) if number % 5}
    assert verify(tmp_path / "log", [anchor]).sound
    with pytest.raises(InputError, match="no prediction"):
        replay(tmp_path / "log", "a5", [])
    write(tmp_path / "log", range(60, 70))
    assert verify(tmp_path / "log", [anchor]).sound and find(tmp_path / "log", "a31")


def test_a_segment_is_begun_on_a_new_day(tmp_path, monkeypatch):
    now = time.time_ns()
    log = PredictionLog(LogSettings(str(tmp_path / "log"), flush_ms=5))
    log.append(record(1))
    log.flush()
    monkeypatch.setattr(time, "time_ns", lambda: now + DAY_US * 1000)
    log.append(record(2))
    log.flush()
    assert len(segment_paths(tmp_path / "log" / "worker-00")) == 2
    assert retain(tmp_path / "log", 0.5, "policy").segments == 1, "the writer lives, its old segment goes"
    log.close()
    assert verify(tmp_path / "log").sound


# encryption and policy


def test_nothing_is_in_plain_when_encrypted(tmp_path):
    ring = add_key(tmp_path / "keys", "2026-10")
    write(tmp_path / "log", range(20), encrypt=True, keys=str(tmp_path / "keys"))
    data = all_bytes(tmp_path / "log")
    assert not any(word in data for word in (b"passenger", b"Person 1", b"gate", b"small"))
    assert len(contents(tmp_path / "log", ring)) == 20 and verify(tmp_path / "log").sound, "the chain is verified without a key"
    with pytest.raises(InputError, match="not the one that encrypted"):
        contents(tmp_path / "log", Keyring({"2026-10": os.urandom(32)}))
    with pytest.raises(InputError, match="does not hold"):
        contents(tmp_path / "log", Keyring({"other": os.urandom(32)}))
    with pytest.raises(InputError, match="no keyring was given"):
        contents(tmp_path / "log")


def test_a_new_key_opens_old_and_new(tmp_path):
    old = add_key(tmp_path / "keys", "2026-10")
    write(tmp_path / "log", range(5), encrypt=True, keys=str(tmp_path / "keys"))
    add_key(tmp_path / "keys", "2026-11")
    write(tmp_path / "log", range(5, 10), encrypt=True, keys=str(tmp_path / "keys"))
    assert len(contents(tmp_path / "log", read_keyring(tmp_path / "keys"))) == 10
    with pytest.raises(InputError, match="2026-11"):
        contents(tmp_path / "log", old)
    both = read_keyring(tmp_path / "keys").keys
    with pytest.raises(InputError, match="2026-10"):
        contents(tmp_path / "log", Keyring({"2026-11": both["2026-11"]}))  # shredded


@pytest.mark.parametrize("policy", [{"inputs": "hash"}, {"inputs": "none", "subject": ("passenger",)}, {"redact": ("passenger", "delay")}])
def test_what_is_not_kept_is_nowhere(tmp_path, policy):
    add_key(tmp_path / "keys", "one")
    log = PredictionLog(LogSettings(str(tmp_path / "log"), keys=str(tmp_path / "keys"), **policy))
    for number in range(20):
        log.append(record(number, inputs={"delay": 0.125, "passenger": "Ada Lovelace"}, features=b"what the graph was given", explanation={"shares": [{"column": "passenger", "value": "Ada Lovelace"}]}))
    log.close()
    data = all_bytes(tmp_path / "log")
    assert b"Ada" not in data and b"what the graph" not in data and len(contents(tmp_path / "log")) == 20


def test_a_strange_record_does_not_stop_the_log(tmp_path):
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    deep = {"a": None}
    for _ in range(3000):
        deep = {"a": deep}
    strange = [{"a": 10**40}, {"a": "\ud800"}, {"a": object()}, {"a": deep}, {"a": {1, 2}}, {"a": float("nan")}, {"a": np.float32(0.1)}, {"a": np.array([1.5])}, {1: 2}, {"a": b"\xff"}]
    for number, inputs in enumerate(strange):
        log.append(record(number, inputs=inputs))
    log.append(record(99, id="half \ud800 a sign"))
    log.append(record(100))
    log.flush()
    log.close()
    assert log.written == len(strange) + 2 and verify(tmp_path / "log").sound
    assert {one.id for one in contents(tmp_path / "log")} >= {"a5", "a100"}


@pytest.mark.parametrize("policy", [{}, {"encrypt": True}, {"redact": ("passenger",)}])
def test_a_huge_record_does_not_break_the_chain(small_bundle, tmp_path, policy):
    """What no frame can hold goes without inputs; what is behind it is there."""
    ring = add_key(tmp_path / "keys", "one") if policy else None
    log = PredictionLog(LogSettings(str(tmp_path / "log"), keys=str(tmp_path / "keys") if policy else "", **policy))
    numbers, codes = np.array([[0.5, np.nan]], np.float32), np.array([[1]])
    output = float(open_bundle(small_bundle, unsigned=True).predict_encoded(numbers, codes)[0])
    log.append(record(1, inputs={"text": "x" * 10_000_000}))
    log.append(record(2, inputs={"text": "x" * 2**24, "passenger": "Ada"}, explanation={"text": 0.5}, output=output, features=pack_features(numbers, codes), bundle=bundle_hash(small_bundle)))
    log.append(record(3))
    assert log.feedbacks([("a1", 1, 0), ("a2", 1, 0), ("a3", 1, 0)]) == [True] * 3
    log.close()
    assert verify(tmp_path / "log").sound
    large, huge = (find(tmp_path / "log", own, ring)[0].content for own in ("a1", "a2"))
    assert len(large.inputs["text"]) == 10_000_000 and not huge.inputs and "too large" in show(recorded(tmp_path / "log", "a2", ring))
    assert replay(tmp_path / "log", "a2", [small_bundle], ring, unsigned=True).verdict == ("impossible" if "redact" in policy else "identical")


# a disk that is full, slow or broken

FULL = """
import os, resource, sys, time
from prodml.serve.audit import verify
from prodml.serve.log import LogSettings, PredictionLog, segment_paths
from prodml.serve.log_format import Record
from prodml.serve.problems import Problem
from pathlib import Path
folder = sys.argv[1]
log = PredictionLog(LogSettings(folder, flush_ms=5, queue=200))
one = lambda number: Record(f"a{number}", 0, "small", "1", "predict", "gate", {"delay": 0.5}, 0.25)
log.append(one(0))
assert log.feedback("a0", 1, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
refused = 0
for number in range(1, 400):
    try:
        log.append(one(number))
    except Problem as problem:
        assert problem.status == 503 and problem.headers["Retry-After"]
        refused += 1
try:
    log.feedback("a0", 0, 0)
    raise SystemExit("a label was acknowledged on a full disk")
except Problem as problem:
    assert problem.status == 503, problem
assert refused >= 150 and log.trouble, (refused, log.trouble)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.flush()
assert log.feedback("a0", 1, 0) and not log.trouble
log.close()
assert verify(folder).sound
print(refused, log.written)
"""


def test_a_full_disk_is_told_and_survived(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "log")], capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, written = map(int, done.stdout.split())
    kept = [one for one in contents(tmp_path / "log") if hasattr(one, "output")]
    assert refused + written == 400 and [one.id for one in kept] == [f"a{number}" for number in range(written)], "all that was taken is there, once, in its order"


GROWING = """
import resource, sys
from prodml.serve.log import LogSettings, PredictionLog
from prodml.serve.log_format import Record
log = PredictionLog(LogSettings(sys.argv[1], flush_ms=5))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for number in range(300):
    log.append(Record(f"a{number}", 0, "small", "1", "predict", "gate", {"delay": 0.5}, 0.25))
    if number % 20 == 0:
        log.flush()
log.close()
"""


def test_a_limit_on_a_file_begins_another(tmp_path):
    done = subprocess.run([sys.executable, "-c", GROWING, str(tmp_path / "log")], capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    assert done.returncode == 0, done.stderr
    assert len(segment_paths(tmp_path / "log" / "worker-00")) > 2 and verify(tmp_path / "log").sound
    assert len(contents(tmp_path / "log")) == 300 and find(tmp_path / "log", "a299"), "found although the index could not grow"


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_disk_that_fails_once_loses_and_doubles_nothing(tmp_path, monkeypatch, call):
    log = PredictionLog(LogSettings(str(tmp_path / "log"), flush_ms=5))
    log.append(record(0))
    log.flush()
    real, failures = getattr(os, call), []

    def failing(handle, *data):
        if threading.current_thread().name == "prediction log" and len(failures) < 3:
            failures.append(handle)
            if data:
                real(handle, bytes(data[0])[: len(data[0]) // 2])
            raise OSError(5, "Input/output error")
        return real(handle, *data)

    monkeypatch.setattr(log_module.os, call, failing)
    with pytest.raises(Problem) as refusal:
        log.feedback("a0", 1, 0)
    assert refusal.value.status == 503
    for number in range(1, 20):
        log.append(record(number))
    until = time.monotonic() + 30
    while log.pending and time.monotonic() < until:
        time.sleep(0.01)
    assert log.feedback("a0", 0, 0)
    log.close()
    kept = contents(tmp_path / "log")
    assert len(failures) == 3 and verify(tmp_path / "log").sound
    assert sorted(one.id for one in kept) == sorted([f"a{number}" for number in range(20)] + ["a0"]), "the refused label is not there"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_dies_is_no_secret(tmp_path, monkeypatch):
    log = PredictionLog(LogSettings(str(tmp_path / "log"), flush_ms=5, when_full="drop"))
    monkeypatch.setattr(log._policy, "content", lambda record: 1 // 0)
    log.append(record(1))
    log._writer.join(10)
    with pytest.raises(Problem):
        log.append(record(2))
    with pytest.raises(Problem, match="writer ended"):
        log.flush()
    with pytest.raises(InputError, match="1 records could not be written"):
        log.close()


def test_what_is_dropped_is_counted_in_the_chain(tmp_path):
    log = PredictionLog(LogSettings(str(tmp_path / "log"), queue=10, flush_ms=60_000, when_full="drop"))
    for number in range(30):
        log.append(record(number))
    log.close()
    report = verify(tmp_path / "log")
    assert report.sound and sum(chain.lost for chain in report.chains) == log.lost == 20


def test_a_folder_that_cannot_be_written_refuses_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        PredictionLog(LogSettings(str(tmp_path / "file" / "log")))


# finding and labels


@pytest.mark.parametrize("change", ["DELETE FROM places WHERE start = (SELECT start FROM places ORDER BY start LIMIT 1 OFFSET 7)", "UPDATE places SET start = start + 1 WHERE start = (SELECT max(start) FROM places)", "UPDATE reached SET byte = byte + 1000000, segment = segment + 1; DELETE FROM places WHERE start > 1000"])
def test_an_index_that_hides_a_record_is_noticed(tmp_path, change):
    write(tmp_path / "log", range(20))
    assert verify(tmp_path / "log").sound
    with sqlite3.connect(tmp_path / "log" / "worker-00" / INDEX) as database:
        database.executescript(change)
    database.close()
    (finding,) = verify(tmp_path / "log").findings
    assert finding.what == "damaged" and finding.segment == INDEX and "Remove it" in finding.text
    for path in (tmp_path / "log" / "worker-00").glob(f"{INDEX}*"):
        path.unlink()
    PredictionLog(LogSettings(str(tmp_path / "log"))).close()
    assert verify(tmp_path / "log").sound and all(find(tmp_path / "log", f"a{number}") for number in range(20))


@pytest.mark.parametrize("harm", ["gone", "broken", "behind"])
def test_the_index_is_made_again(tmp_path, harm):
    write(tmp_path / "log", range(50))
    index = tmp_path / "log" / "worker-00" / INDEX
    kept = index.read_bytes()
    write(tmp_path / "log", range(50, 100))
    for path in index.parent.glob(f"{INDEX}*"):
        path.unlink()
    if harm != "gone":
        index.write_bytes(kept if harm == "behind" else kept[:100] + os.urandom(len(kept) - 100))
    assert find(tmp_path / "log", "a99")[0].content.id == "a99"
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    assert all(log.feedbacks([(f"a{number}", 1, 0) for number in range(100)]))
    log.close()
    assert len(find(tmp_path / "log", "a42")) == 2


def test_labels_come_from_many_threads_and_to_another_worker(tmp_path):
    one, other = PredictionLog(LogSettings(str(tmp_path / "log"))), PredictionLog(LogSettings(str(tmp_path / "log")))
    answers = []

    def send(thread):
        for number in range(20):
            own = thread * 20 + number
            one.append(record(own))
            answers.append((one, other)[own % 2].feedback(f"a{own}", own, 0))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 160 and other.feedbacks([("nobody", 1, 0), ("a1", 2, 0)]) == [False, True]
    one.close()
    other.close()
    assert sorted(one.label for one in contents(tmp_path / "log") if hasattr(one, "label")) == sorted([*range(160), 2])
    assert verify(tmp_path / "log").sound


# replay, export


def test_an_answer_is_had_again_bit_for_bit(small_bundle, tmp_path):
    bundle = open_bundle(small_bundle, unsigned=True)
    chance = np.random.default_rng(0)
    columns = {"delay": chance.normal(size=64).tolist(), "wind": [None, *chance.normal(size=63).tolist()], "carrier": [["AA", "UA", "nobody", None][place % 4] for place in range(64)]}
    numbers, codes = bundle._encode(columns)
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    for place, probability in enumerate(bundle.predict_encoded(numbers, codes)):
        row = {name: values[place] for name, values in columns.items()}
        own = {"output": float(probability), "bundle": bundle_hash(small_bundle)}
        log.append(record(place, inputs=row, **own))
        log.append(record(place + 100, inputs={"delay": row["delay"]}, features=pack_features(numbers[place], codes[place]), **own))
        log.append(record(place + 200, inputs={"delay": row["delay"]}, **own))
    log.append(record(1000, inputs=row, output=0.123, bundle=own["bundle"]))
    log.append(record(1001, inputs=row, output=0.123, bundle="0" * 64))
    log.close()
    answers = {number: replay(tmp_path / "log", f"a{number}", [small_bundle.parent], unsigned=True) for number in [*range(64), *range(100, 164), 200, 1000, 1001]}
    assert {answers[number].verdict for number in [*range(64), *range(100, 164)]} == {"identical"}
    assert answers[200].verdict == "impossible" and "wind" in answers[200].text
    assert answers[1000].verdict == "different" and answers[1001].verdict == "impossible"


def test_an_explanation_is_had_again(small_bundle, tmp_path):
    bundle = open_bundle(small_bundle, unsigned=True)
    row = {"delay": 0.4, "wind": None, "carrier": "UA"}
    shares = dict(zip(bundle.explaining["columns"], bundle.explain({name: [value] for name, value in row.items()}).shares[0].tolist()))
    output = float(bundle.predict({name: [value] for name, value in row.items()})[0])
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    for number, told in enumerate((shares, shares | {"wind": shares["wind"] + 1e-9})):
        log.append(record(number, inputs=row, output=output, explanation=told, route="explain", bundle=bundle_hash(small_bundle)))
    log.close()
    same, apart = (replay(tmp_path / "log", own, [small_bundle], unsigned=True) for own in ("a0", "a1"))
    assert same.verdict == "identical" and "the explanation too" in same.text
    assert apart.verdict == "different" and "differs in wind." in apart.text


def test_a_changed_record_is_not_shown_as_the_truth(tmp_path):
    write(tmp_path / "log", range(5))
    path = segment_paths(tmp_path / "log" / "worker-00")[0]
    path.write_bytes(path.read_bytes().replace(b"Person 3", b"Person 4"))
    with pytest.raises(InputError, match="was changed"):
        find(tmp_path / "log", "a3")
    assert erase(tmp_path / "log", "passenger", "Person 1", "request 4").predictions == 1, "others are erased all the same"


def test_the_table_holds_what_the_log_holds(tmp_path):
    log = PredictionLog(LogSettings(str(tmp_path / "log")))
    for number in range(30):
        log.append(record(number, inputs={"delay": number, "mixed": number if number % 2 else "text", "passenger": f"Person {number % 5}"}, degraded=["wind"] if number == 3 else []))
    log.feedbacks([("a1", 0, 5), ("a1", 1, 7)])
    log.close()
    erase(tmp_path / "log", "passenger", "Person 0", "request 5")
    assert export(tmp_path / "log", tmp_path / "table.parquet") == 24
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert table[0]["label"] == "1" and table[0]["input.delay"] == 1.0 and table[0]["input.mixed"] == "1" and table[2]["degraded"] == ["wind"]
    assert [row["id"] for row in table] == [f"a{number}" for number in range(30) if number % 5]
    assert len(chain_folders(tmp_path / "log")) == 2


# the command


def test_the_command_reads_the_servers_settings(tmp_path, capsys):
    import argparse

    from prodml.serve.audit import audit_arguments, run_audit

    def audit(*words):
        parser = argparse.ArgumentParser()
        audit_arguments(parser)
        code = run_audit(parser.parse_args([str(word) for word in words]))
        return code, capsys.readouterr().out

    assert audit("new-key", tmp_path / "keys")[0] == 0
    write(tmp_path / "log", range(10), encrypt=True, keys=str(tmp_path / "keys"))
    (tmp_path / "serve.toml").write_text(f'[log]\nfolder = "{tmp_path / "log"}"\nencrypt = true\nkeys = "{tmp_path / "keys"}"\n')
    settings = ("--settings", tmp_path / "serve.toml")
    code, said = audit("show", "a3", *settings)
    assert code == 0 and "passenger  Person 3" in said
    code, said = audit("show", "a3", "--json", *settings)
    assert code == 0 and json.loads(said)["inputs"]["passenger"] == "Person 3"
    assert audit("erase", "passenger=Person 3", "--why", "request 9", *settings)[1] == "erased: predictions 2, labels 0\n"
    code, said = audit("show", "a3", *settings)
    assert code == 0 and "request 9" in said and "Person" not in said
    assert audit("verify", *settings)[0] == 0
    path = segment_paths(tmp_path / "log" / "worker-00")[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, said = audit("verify", *settings)
    assert code == 1 and "BROKEN worker-00/00000001.seg, record 10" in said and "edited" in said


def test_the_log_and_its_auditor_import_nothing_heavy():
    code = "import sys, prodml.serve.audit; print(sorted({'torch', 'pandas', 'ibis', 'duckdb', 'scipy', 'pyarrow', 'onnx', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
