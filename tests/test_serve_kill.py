"""The real server is killed in the middle of load: what was acknowledged is there, what is lost is within the bound, and it starts again by itself."""

import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from killing import QUEUE, ROWS, Load, ask, check, connection, kept_in, killed_under_load, place_in, start

from prodml.serve.audit import recorded, replay
from prodml.serve.log_format import chain_folders, segment_paths


def test_a_server_that_is_killed_loses_no_label(small_bundle, tmp_path):
    """Three times on one folder; `bench/log.py --kill 50` does it fifty times."""
    place, chance = place_in(tmp_path, small_bundle), random.Random(7)
    fates = [killed_under_load(place, chance) for _ in range(3)]
    assert all(fate.answers > fate.labels >= 3 for fate in fates)
    kept = kept_in(place.log)
    for own in sorted(kept.answers)[:10]:
        assert replay(place.log, own, [small_bundle], unsigned=True).verdict == "identical"


def test_a_server_that_cannot_record_is_not_ready_until_it_can(small_bundle, tmp_path):
    """No file may grow, as on a disk that is full: labels are refused at once, answers when the queue is full, and all that was answered is kept."""
    place = place_in(tmp_path, small_bundle)
    process = start(place)
    try:
        caller, unlimited = connection(place), resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        first = ask(caller, "POST", "/v1/predict", ROWS[0])[1]["id"]
        assert ask(caller, "POST", "/v1/feedback", {"id": first, "label": 1})[0] == 200
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
        assert ask(caller, "POST", "/v1/feedback", {"id": first, "label": 0})[0] == 503
        status, told = ask(caller, "GET", "/health/ready")
        assert status == 503 and "File too large" in told["detail"] and ask(caller, "GET", "/health/live")[0] == 200
        told, status = [], 200
        while status == 200:
            status, answer = ask(caller, "POST", "/v1/predict", ROWS)
            told += [one["id"] for one in answer.get("predictions", [])]
        assert status == 503 and answer["title"] == "The prediction log cannot be written" and len(told) <= QUEUE
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        until = time.monotonic() + 30
        while ask(caller, "GET", "/health/ready")[0] != 200:
            assert time.monotonic() < until, "it does not come back by itself"
            time.sleep(0.05)
        assert ask(caller, "POST", "/v1/feedback", {"id": told[-1], "label": 0})[0] == 200
        kept = kept_in(place.log)
        assert {first, *told} <= kept.answers and kept.labels == {first, told[-1]}
    finally:
        process.terminate()
    assert process.wait(30) == 0


def test_every_route_is_recorded_and_had_again(small_bundle, tmp_path):
    """What is answered is what is recorded, by whichever route; a label is kept for what is known, and for nothing else."""
    place, answers = place_in(tmp_path, small_bundle), {}
    process = start(place)
    try:
        caller, columns = connection(place), {name: [row[name] for row in ROWS] for name in ROWS[0]}
        with ThreadPoolExecutor(16) as crew:
            one = [answer for _, answer in crew.map(lambda row: ask(connection(place), "POST", "/v1/predict", row), ROWS)]
        for told in [one, *(ask(caller, "POST", "/v1/predict", body)[1]["predictions"] for body in (ROWS, columns)), ask(caller, "POST", "/v1/explain", ROWS[:3])[1]["explanations"]]:
            answers |= {answer["id"]: answer["probability"] for answer in told}
        tensors = [{"name": name, "shape": [len(ROWS)], "datatype": "BYTES" if name == "carrier" else "FP64", "data": values if name != "wind" else [value or 0.0 for value in values]} for name, values in columns.items()]
        outputs = {output["name"]: output["data"] for output in ask(caller, "POST", f"/v2/models/{ask(caller, 'GET', '/v1/model')[1]['name']}/infer", {"inputs": tensors})[1]["outputs"]}
        answers |= dict(zip(outputs["prediction_id"], outputs["probability"]))
        assert len(answers) == 4 * len(ROWS) + 3
        known = one[0]["id"]
        for body, status in (({"id": known, "label": 1}, 200), ({"id": known, "label": 0}, 200), ({"id": "f" * 24, "label": 1}, 404), ({"id": "x" * 100_000, "label": 1}, 404), ({"id": known, "label": 2}, 422), ({"id": known, "label": None}, 422), ({"id": "\ud800", "label": 1}, 400)):
            assert ask(caller, "POST", "/v1/feedback", body)[0] == status, (body, status)
        assert ask(caller, "POST", "/v1/feedback", [{"id": known, "label": 1}, {"id": "nobody", "label": 1}])[1] == {"accepted": 1, "unknown": ["nobody"]}
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert set(answers) == kept_in(place.log).answers
    for own, probability in answers.items():
        again = replay(place.log, own, [small_bundle], unsigned=True)
        assert again.verdict == "identical" and np.float32(again.logged) == np.float32(probability), again
    found = recorded(place.log, known)
    assert [about.get("label") for about in found] == [None, 1, 0, 1] and found[0]["inputs"] == ROWS[0] and found[0]["caller"]


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def segments(log: Path) -> int:
    return sum(len(segment_paths(chain)) for chain in chain_folders(log))


def wait_for_segments(log: Path, count: int) -> None:
    """Every process that starts begins a segment."""
    until = time.monotonic() + 60
    while segments(log) < count:
        assert time.monotonic() < until, "a worker did not start"
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_replaced_and_its_chain_goes_on(small_bundle, tmp_path):
    place = place_in(tmp_path, small_bundle)
    process = start(place, "--workers", "2")
    wait_for_segments(place.log, 2)
    load = Load(place)
    try:
        load.wait(labels=10)
        begun = segments(place.log)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        wait_for_segments(place.log, begun + 1)
        load.wait(labels=len(load.labels) + 10)
    finally:
        load.end()
        process.terminate()
    assert process.wait(30) == 0
    check(load, kept_in(place.log), alone=False)
    assert [chain.name for chain in chain_folders(place.log)] == ["worker-00", "worker-01"], "the new worker took the chain of the killed one"
