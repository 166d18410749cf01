"""A challenger is judged by proof, promoted or rolled back in every worker, and no death of a worker changes the story."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from conftest import ROOT

from prodml.cli import main
from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.core.errors import InputError
from prodml.core.files import write_json
from prodml.serve.registry import Registry
from prodml.serve.rollout import Behaviour, Decision, Guard, Rollout, RolloutSettings, Step, Tally, observed, simulate
from prodml.stats.sequential import OddsTest

GRAPH = """<ir_version: 10, opset_import: ["": 18]>
made_up (float[N, 2] numbers, int64[N, 1] codes) => (float[N] probability) {
    column = Constant<value = int64[1] {0}>()
    first = Gather<axis = 1>(numbers, column)
    axes = Constant<value = int64[1] {1}>()
    flat = Squeeze(first, axes)
    probability = Sigmoid(flat)
}"""
PLAN = RolloutSettings(steps=(Step(shadow=True, min_seconds=0), Step(0.1, min_seconds=0, min_observations=100), Step(0.5, min_seconds=0)))
SALT = "00" * 16  # so that the tests repeat
FAST = replace(PLAN, poll_seconds=0.02, look_seconds=0.05)


def release(folder: Path, key: Path | None, threshold: float, rejected: tuple[str, ...] = ()) -> Path:
    """A bundle with a graph that ONNX Runtime runs; signed if there is a key."""
    folder.mkdir(parents=True)
    (folder / "one.onnx").write_bytes(onnx.parser.parse_model(GRAPH).SerializeToString())
    numeric = [{"name": name, "mean": 0.0, "std": 1.0, "missing": True} for name in ("delay", "wind")]
    write_json(folder / "encoding.json", {"target": {"column": "late", "positive": "yes"}, "numeric": numeric, "categorical": [{"name": "carrier", "vocabulary": ["AA", "UA"]}]})
    write_json(folder / "model.json", {"name": "flights", "serves": "one", "graphs": {"one": "one.onnx"}})
    write_json(folder / "thresholds.json", {"one": threshold})
    write_json(folder / "contract.json", {"columns": []})
    write_json(folder / "gates.json", {"rejected": list(rejected)})
    write_manifest(folder, {"code": "0" * 64})
    if key is not None:
        (folder / SIGNATURE).write_bytes(signature_of((folder / MANIFEST).read_bytes(), private_key(key)))
    return folder


def fill(folder: Path, url: str | None = None) -> Registry:
    """A registry with v1.0.0, the champion, and v1.0.1."""
    registry = Registry(folder / "registry", url, trusted=[new_key(folder / "key")])
    for number in range(2):
        registry.register(release(folder / f"release{number}", folder / "key", 0.1 * number), "Ada", "A week's model.")
    registry.assign("flights", "champion", "v1.0.0", "Ada", "The first one.")
    return registry


@pytest.fixture
def registry(tmp_path):
    registry = fill(tmp_path)
    yield registry
    registry.store.close()


def again(registry: Registry) -> Registry:
    """The same registry through another connection, as another process has it."""
    return Registry(registry.folder, trusted=registry.trusted)


def answers(rollout: Rollout, count: int, draw: np.random.Generator, failing: float = 0.02) -> None:
    for _ in range(count):
        decision = rollout.route(f"customer {draw.integers(10**9)}")
        for version in filter(None, decision):
            rollout.record(version, draw.random() >= (failing if version == "v1.0.1" else 0.02), draw.lognormal(-6, 0.5), draw.beta(1.2, 3.5))


def turn(rollout: Rollout, second: float) -> None:
    """What the thread does, by a given clock."""
    rollout._gather()
    rollout._follow()
    rollout._write()
    rollout.look(int(1e6 * second))


# The judgement.


@pytest.mark.parametrize("both", [Behaviour(errors=0.0), Behaviour(errors=0.3), Behaviour(median_s=2.0)], ids=["no errors", "a third fails", "slow"])
def test_the_champion_against_itself_is_hardly_ever_rolled_back(both):
    actions = [simulate(PLAN, both, both, seed, batch=500, most=15_000, labelled=True)[0].action for seed in range(30)]
    assert actions.count("rollback") <= 5  # 6 or more of 30 at 5% has a chance of 0.3%


@pytest.mark.parametrize(("bad", "named"), [
    (Behaviour(errors=0.10), "errors"), (Behaviour(median_s=0.004), "latency"), (Behaviour(predicted=(3.5, 3.5)), "prediction distribution"), (Behaviour(confused=0.8), "loss"),
], ids=["errors", "latency", "shift", "loss"])
def test_a_planted_fault_is_found_and_named(bad, named):
    for seed in range(3):
        verdict, _, _ = simulate(PLAN, Behaviour(), bad, seed, batch=400, most=60_000, labelled=named == "loss")
        assert verdict.action == "rollback" and named in verdict.reason


def test_errors_that_the_rate_of_both_explains_are_no_harm():
    """The rate rises just when the challenger gets more of the traffic, which pooled counts would call its fault."""
    test, pooled, draw = OddsTest(0.05), [0, 0, 0, 0], np.random.default_rng(0)
    for batch in range(200):
        own, rate = (10, 0.01) if batch < 100 else (150, 0.05)
        counts = own, int(draw.binomial(own, rate)), 200 - own, int(draw.binomial(200 - own, rate))
        pooled = [total + count for total, count in zip(pooled, counts)]
        assert not test.update(*counts)
    assert pooled[1] / pooled[0] > 1.8 * pooled[3] / pooled[2], "so that the pooled rates would have said otherwise"


def test_nothing_seen_is_neither_success_nor_failure(registry):
    rollout = Rollout(registry, "flights", PLAN)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    for second in range(100, 200):
        turn(rollout, second)
    assert rollout.status()["status"] == "running" and rollout.status()["step"] == 0
    assert len(rollout.looks()) == 1 and "neither success nor failure" in rollout.looks()[0]["reason"]
    for _ in range(500):
        rollout.record("v1.0.0", True, 0.001, 0.2)
    turn(rollout, 201)
    assert "nothing was seen of the challenger, which" in rollout.status()["reason"] and rollout.status()["step"] == 0


def test_what_is_unproven_is_held_and_at_the_deadline_given_back(registry):
    settings = replace(PLAN, steps=(Step(0.5, min_seconds=0, min_observations=1, max_observations=200),), error_margin=0.0001, deadline_seconds=40)
    rollout, draw = Rollout(registry, "flights", settings), np.random.default_rng(0)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    reasons = []
    for second in range(100, 160):
        answers(rollout, 40, draw)
        turn(rollout, second)
        reasons.append(rollout.status()["reason"])
    assert any(reason.startswith("inconclusive: not proven") for reason in reasons)
    assert rollout.status()["status"] == "rolled_back" and "inconclusive at the deadline" in reasons[-1]


def test_a_clock_that_is_set_back_neither_stops_the_looks_nor_counts(registry):
    settings = replace(PLAN, steps=(Step(shadow=True, min_seconds=30, min_observations=10), Step(0.5, min_seconds=0)))
    rollout, draw = Rollout(registry, "flights", settings), np.random.default_rng(0)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    seconds = [1000 + number for number in range(20)] + [400 + number for number in range(9)] + [10**7]
    for second in seconds:
        answers(rollout, 20, draw)
        turn(rollout, second)
    status = rollout.status()
    assert len(rollout.looks()) == len(seconds) and status["step"] == 1
    assert status["seconds"] == 19 + 8 + 10, "one look adds ten times the time between looks at most"
    assert registry.verify()


def test_what_is_no_longer_routed_to_is_let_go_and_the_champion_before_is_kept(registry, tmp_path, monkeypatch):
    monkeypatch.setattr("prodml.serve.rollout._IDLE_SECONDS", 0.0)
    for number in range(2, 5):
        registry.register(release(tmp_path / f"later{number}", tmp_path / "key", 0.1 * number), "Ada", "A week's model.")
    loaded, champions = [], []
    rollout = Rollout(registry, "flights", PLAN, prepare=loaded.append, release=loaded.remove, on_champion=champions.append)
    rollout.beat()
    assert loaded == ["v1.0.0"] and champions == ["v1.0.0"]
    for number in range(1, 5):
        rollout.start(f"v1.0.{number}", "Ada", "Try.", SALT)
        rollout.beat()
        assert f"v1.0.{number}" in loaded and rollout.under_way
        rollout.promote("Ada", "Sure.")
        rollout.beat()
        assert sorted(loaded) == [f"v1.0.{number - 1}", f"v1.0.{number}"] == sorted(rollout.held) and champions[-1] == f"v1.0.{number}"
    rollout.rollback("Grace", "Complaints.")
    rollout.beat()
    assert champions[-1] == "v1.0.3" and len(loaded) == 2, "it was in memory"
    rollout.start("v1.0.1", "Ada", "An old one.", SALT)
    rollout.beat()
    rollout.rollback("Grace", "Complaints.")
    rollout.beat()
    assert sorted(loaded) == ["v1.0.3", "v1.0.4"]


def test_a_rollback_does_not_go_one_further_by_mistake(registry, tmp_path):
    registry.register(release(tmp_path / "later", tmp_path / "key", 0.7), "Ada", "A week's model.")
    rollout = Rollout(registry, "flights", PLAN)
    rollout.promote("Ada", "Sure.", "v1.0.1")
    rollout.start("v1.0.2", "Ada", "Try.", SALT)
    with pytest.raises(InputError, match="not the challenger"):
        rollout.rollback("Grace", "Complaints.", "v1.0.1")
    rollout._finish("rollback", "prodml", "loss")
    with pytest.raises(InputError, match="rolled back a moment ago"):
        rollout.rollback("Grace", "Complaints.")
    with pytest.raises(InputError, match="no rollout is under way"):
        rollout.rollback("Grace", "Complaints.", "v1.0.2")
    assert registry.roles("flights") == {"champion": "v1.0.1"} and rollout.rollback("Grace", "Complaints.", "v1.0.1") == "v1.0.0"


def test_the_status_tells_what_was_from_what_is(registry, tmp_path, capsys, monkeypatch):
    """After a promotion and a rollback the version that was tried is no challenger any more."""
    monkeypatch.setenv("PRODML_TRUSTED_KEYS", str(tmp_path / "key.pub"))
    words = ["--registry", str(tmp_path / "registry")]
    for action, what, said in (
        ("start", "flights@v1.0.1", "flights: champion v1.0.0\nchallenger v1.0.1: running, step 1 of 5 (shadow), not looked at yet\n"),
        ("promote", "flights@v1.0.1", "flights: champion v1.0.1\nno rollout is under way; the last one, of v1.0.1: promoted at step 1 of 5 (shadow), by hand\n"),
        ("rollback", "flights@v1.0.1", "flights: champion v1.0.0\nno rollout is under way; the last one, of v1.0.1: promoted at step 1 of 5 (shadow), by hand\n"),
    ):
        assert main(["rollout", action, what, *words]) == 0
        assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("action", ["status", "history", "tags", "start", "pause", "resume", "promote", "rollback"])
def test_a_model_that_the_registry_does_not_hold_is_an_error(registry, action, capsys):
    for named in ("flihgts", "flihgts@v1.0.0"):
        assert main(["rollout", action, named, "--registry", str(registry.folder)]) == 1
        assert "the registry has no model 'flihgts'. It holds flights." in capsys.readouterr().err


def test_what_was_never_champion_cannot_be_taken_back(tmp_path):
    empty = Registry(tmp_path / "registry", trusted=[new_key(tmp_path / "key")])
    empty.register(release(tmp_path / "release", tmp_path / "key", 0.1), "Ada", "The first one.")
    rollout = Rollout(empty, "flights", PLAN)
    with pytest.raises(InputError, match="had no champion before"):
        rollout.rollback("Grace", "Complaints.")
    with pytest.raises(InputError, match="not the champion"):
        rollout.rollback("Grace", "Complaints.", "v1.0.0")
    with pytest.raises(InputError, match="had no champion before"):
        Rollout(empty, "nothing", PLAN).rollback("Grace", "Complaints.")
    empty.store.close()


def test_a_call_counts_once_however_many_rows_it_answers(registry):
    rollout = Rollout(registry, "flights", PLAN)
    for number in range(64):
        rollout.record("v1.0.0", True, 0.5 if number == 0 else None, 0.2)
    rollout.record("v1.0.0", False, 0.1, None)
    rollout._gather()
    tally = rollout._unsent["v1.0.0"]
    assert (tally.trials, tally.errors, int(tally.latency.sum()), int(tally.probability.sum())) == (65, 1, 1, 64)


# The state.


def test_a_key_meets_the_same_model_in_every_worker_and_stays_with_the_challenger(registry):
    workers = [Rollout(registry if number == 0 else again(registry), "flights", PLAN) for number in range(2)]
    workers[0].start("v1.0.1", "Ada", "Try.", SALT)
    keys, met = [f"customer {number}" for number in range(2000)], []
    for step in range(3):
        for worker in workers:
            worker._follow()
        routes = [[worker.route(key) for key in keys] for worker in workers]
        assert routes[0] == routes[1]
        met.append({key for key, decision in zip(keys, routes[0]) if decision.version == "v1.0.1"})
        draw = np.random.default_rng(step)
        while workers[0]._active().step == step and step < 2:
            answers(workers[0], 500, draw)
            turn(workers[0], 100 + 1000 * step + draw.random() * 900)
    assert met[0] == set() and met[1] < met[2] and 130 < len(met[1]) < 270 and 900 < len(met[2]) < 1100
    assert {decision.shadow for decision in routes[0]} == {None}


def test_a_pause_holds_the_step_but_not_the_guard(registry):
    rollout, draw = Rollout(registry, "flights", PLAN), np.random.default_rng(0)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    rollout.pause("Ada", "Lunch.")
    for second in range(100, 110):
        answers(rollout, 200, draw)
        turn(rollout, second)
    assert rollout.status()["step"] == 0 and rollout.status()["reason"] == "paused"
    for second in range(110, 130):
        answers(rollout, 200, draw, failing=0.2)
        turn(rollout, second)
    assert rollout.status()["status"] == "rolled_back" and registry.roles("flights") == {"champion": "v1.0.0"}


def test_a_rollout_keeps_the_rules_that_it_was_started_with(registry):
    Rollout(registry, "flights", PLAN).start("v1.0.1", "Ada", "Try.", SALT)
    other = Rollout(again(registry), "flights", replace(PLAN, steps=(Step(0.3),)))
    other._follow()
    assert other._plan == PLAN and other.route("any") == Decision("v1.0.0", "v1.0.1")


def test_without_the_database_the_champion_serves_alone(registry):
    rollout = Rollout(registry, "flights", replace(FAST, contact_seconds=0.05))
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    rollout.beat()
    assert rollout.route("any").shadow == "v1.0.1"
    registry.store.close()
    database = registry.folder / "registry.db"
    for path in registry.folder.glob("registry.db*"):
        path.rename(path.with_name("away" + path.name))
    database.mkdir()
    time.sleep(0.1)
    rollout.beat()
    assert rollout.route("any") == Decision("v1.0.0")
    database.rmdir()
    for path in registry.folder.glob("awayregistry.db*"):
        path.rename(path.with_name(path.name.removeprefix("away")))
    rollout.beat()
    assert rollout.route("any").shadow == "v1.0.1", "it goes on when it can ask again"


def test_the_breaker_holds_while_the_database_is_away(registry):
    rollout = Rollout(registry, "flights", FAST)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    rollout.beat()
    other = again(registry)
    with other.store.transaction():
        for number in range(60):
            rollout.record("v1.0.1", False, 0.001, None)
            rollout.record("v1.0.0", True, 0.001, 0.2)
        rollout.beat()  # waits for the database, and gives it up
        assert rollout.route("any") == Decision("v1.0.0") and rollout._active() is not None
        rollout._window.clear()
    rollout.beat()
    assert rollout._active() is None and "breaker: 60 of 60" in rollout.status()["reason"] and rollout.versions == {"v1.0.0"}


def test_labels_of_predictions_from_before_are_left_out(registry):
    rollout = Rollout(registry, "flights", PLAN)
    rollout.start("v1.0.1", "Ada", "Try.", SALT)
    rollout._follow()
    started = rollout._control.started_us
    for at_us in (started - 1, started, started + 1, None):
        rollout.label("v1.0.0", 0.2, 0, at_us)
    rollout._gather()
    assert rollout._unsent["v1.0.0"].losses == [0.04] * 3 and rollout.versions == {"v1.0.0", "v1.0.1"}


def test_a_queue_that_nobody_empties_is_bounded(registry):
    rollout = Rollout(registry, "flights", PLAN)
    for _ in range(150_000):
        rollout.record("v1.0.0", True, 0.001, 0.5)
    assert len(rollout._answers) == 2**17


@pytest.mark.parametrize(("part", "given"), [("nobody has signed", {"key": None}), ("rejected", {"rejected": ("worst slice",)}), ("changed", {})])
def test_a_bundle_that_no_server_would_open_does_not_come_in(registry, tmp_path, part, given):
    folder = release(tmp_path / "bad", given.get("key", tmp_path / "key"), 0.9, given.get("rejected", ()))
    if part == "changed":
        (folder / "thresholds.json").write_text('{"one": 0.1}')
    before = registry.head(), sorted(registry.folder.rglob("*.onnx"))
    with pytest.raises(InputError, match=part):
        registry.register(folder, "Ada", "Try.")
    assert (registry.head(), sorted(registry.folder.rglob("*.onnx"))) == before


# Several processes.

WORKER = """
import sys, time
import numpy as np
from prodml.serve.registry import Registry
from prodml.serve.rollout import Rollout, RolloutSettings, Step
folder, key, seed, failing = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
steps = (Step(shadow=True, min_seconds=0, min_observations=50), Step(0.5, min_seconds=0, max_observations=10**9))
settings = RolloutSettings(steps=steps, poll_seconds=0.02, look_seconds=0.05, error_margin=0.00001)
rollout = Rollout(Registry(folder, trusted=[key]), "flights", settings, f"worker {seed}").open()
draw, last = np.random.default_rng(seed), None
while True:
    decision = rollout.route(f"customer {draw.integers(10**9)}")
    for version in filter(None, decision):
        rollout.record(version, draw.random() >= (failing if version == "v1.0.1" else 0.0), 0.001, 0.3)
    among = {rollout.route(f"customer {number}").version for number in range(20)} | {decision.shadow} - {None}
    if among != last:
        print(" ".join(sorted(among)), flush=True)
        last = among
    time.sleep(0.001)
"""


def worker(registry: Registry, tmp_path: Path, seed: int, failing: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(registry.folder), str(tmp_path / "key.pub"), str(seed), str(failing)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")})


def until(condition, seconds: float = 20.0):
    """What the condition gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


def ended(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.kill()
        process.wait()


def test_a_rollback_by_hand_reaches_every_process(registry, tmp_path):
    settings = RolloutSettings(steps=(Step(0.5, min_seconds=0, max_observations=10**9),), error_margin=0.00001)
    control = Rollout(registry, "flights", settings)
    control.start("v1.0.1", "Ada", "Try.", SALT)
    processes = [worker(registry, tmp_path, seed) for seed in range(2)]
    try:
        assert [process.stdout.readline() for process in processes] == ["v1.0.0 v1.0.1\n"] * 2
        control.rollback("Grace", "Complaints.")
        assert [process.stdout.readline() for process in processes] == ["v1.0.0\n"] * 2
        assert all(process.poll() is None for process in processes)
    finally:
        ended(*processes)
    assert registry.verify() and control.status()["reason"] == "Complaints."


def test_workers_that_are_killed_leave_a_rollout_that_others_finish(registry, tmp_path):
    settings = RolloutSettings(steps=(Step(shadow=True, min_seconds=0, min_observations=50), Step(0.5, min_seconds=0, max_observations=10**9)), poll_seconds=0.02, look_seconds=0.05, error_margin=0.00001)
    control = Rollout(registry, "flights", settings)
    control.start("v1.0.1", "Ada", "Try.", SALT)
    salt = control._active().salt
    seen = 0
    for number in range(3):
        processes = [worker(registry, tmp_path, 2 * number + place) for place in range(2)]
        until(lambda: control.status()["tests"]["errors"]["trials"] > seen)
        time.sleep(0.05 * number)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        seen = control.status()["tests"]["errors"]["trials"]
        looks = control.looks(10_000)
        assert [look["seq"] for look in looks] == list(range(1, len(looks) + 1)) and registry.verify()
        trials = [look["report"]["errors"]["trials"] for look in looks]
        assert trials == sorted(trials) and control._active().salt == salt
    last = worker(registry, tmp_path, 99, failing=0.3)
    try:
        until(lambda: control.status()["status"] == "rolled_back")
    finally:
        ended(last)
    assert registry.roles("flights") == {"champion": "v1.0.0"} and registry.verify()


def test_several_workers_count_each_answer_once(registry):
    workers = [Rollout(registry if number == 0 else again(registry), "flights", replace(FAST, look_seconds=0.001, error_margin=0.00001), f"worker {number}") for number in range(3)]
    workers[0].start("v1.0.1", "Ada", "Try.", SALT)
    for rollout in workers:
        rollout.open()
    until(lambda: all(rollout._control for rollout in workers))
    recorded = {"v1.0.0": 0, "v1.0.1": 0}
    for number in range(3000):
        rollout = workers[number % 3]
        for version in filter(None, rollout.route(f"customer {number}")):
            rollout.record(version, True, 0.001, 0.3)
            recorded[version] += 1
        if number % 200 == 0:
            time.sleep(0.02)
    for rollout in workers:
        rollout.close()
    guard = workers[0]._evidence(1)[1]
    counted = [guard.seen[side].trials + guard.open[side].trials for side in range(2)]
    waiting = [json.loads(body) for _, body in registry.store.rows("SELECT step, body FROM observations WHERE rollout = 1")]
    left = [sum(body[side]["trials"] for body in waiting if side in body) for side in ("challenger", "champion")]
    assert [count + rest for count, rest in zip(counted, left)] == [recorded["v1.0.1"], recorded["v1.0.0"]]


def test_the_same_in_postgresql(tmp_path, postgresql):
    registry = fill(tmp_path, postgresql)
    workers = [Rollout(Registry(registry.folder, postgresql, registry.trusted), "flights", PLAN, f"worker {number}") for number in range(2)]
    draw = np.random.default_rng(0)
    for failing, role in ((0.02, "v1.0.1"), (None, None)):
        if failing is None:
            assert workers[0].rollback("Grace", "Complaints.") == "v1.0.0"
            workers[0].start("v1.0.1", "Ada", "Once more.", SALT)
            failing, role = 0.3, "v1.0.0"
        else:
            workers[0].start("v1.0.1", "Ada", "Try.", SALT)
        for second in range(100, 200):
            for number, rollout in enumerate(workers):
                answers(rollout, 200, draw, failing)
                turn(rollout, second + number / 2)
            if workers[0]._active() is None:
                break
        assert registry.roles("flights") == {"champion": role}
    assert workers[1].looks() and registry.verify(registry.head()) == len(registry.events())
    for rollout in workers:
        rollout.registry.store.close()
    registry.store.close()


def test_neither_module_imports_anything_heavy():
    code = "import sys, prodml.serve.registry, prodml.serve.rollout; print(sorted({'torch', 'pandas', 'ibis', 'duckdb', 'scipy', 'psycopg', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_guard_that_is_put_away_is_the_same_when_taken_up():
    draw, guard = np.random.default_rng(0), Guard(PLAN, 7)
    for _ in range(8):
        guard.take(observed(Behaviour(), 40, draw, True), observed(Behaviour(), 300, draw, True))
    draws = [np.random.default_rng(1), np.random.default_rng(1)]
    copy = Guard(PLAN).restore(json.loads(json.dumps(guard.state())))
    for each, own in zip((guard, copy), draws):
        each.take(Tally(), observed(Behaviour(), 10, own))
        for _ in range(5):
            each.take(observed(Behaviour(predicted=(2.0, 3.0)), 40, own, True), observed(Behaviour(), 300, own, True))
    assert copy.state() == guard.state()
