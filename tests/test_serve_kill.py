"""The real server is killed in the middle of load: what was acknowledged is there, what is lost is within the bound, and it starts again by itself."""

import os
import random
import signal
import time
from pathlib import Path

from killing import Load, check, kept_in, killed_under_load, place_in, start

from prodml.serve.audit import replay
from prodml.serve.log_format import chain_folders, segment_paths


def test_a_server_that_is_killed_loses_no_label(small_bundle, tmp_path):
    """Three times on one folder; `bench/log.py --kill 50` does it fifty times."""
    place, chance = place_in(tmp_path, small_bundle), random.Random(7)
    fates = [killed_under_load(place, chance) for _ in range(3)]
    assert all(fate.answers > fate.labels >= 3 for fate in fates)
    kept = kept_in(place.log)
    for own in sorted(kept.answers)[:10]:
        assert replay(place.log, own, [small_bundle], unsigned=True).verdict == "identical"


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def segments(log: Path) -> int:
    return sum(len(segment_paths(chain)) for chain in chain_folders(log))


def test_a_worker_that_is_killed_is_replaced_and_its_chain_goes_on(small_bundle, tmp_path):
    place = place_in(tmp_path, small_bundle)
    process = start(place, "--workers", "2")
    load = Load(place)
    try:
        load.wait(labels=10)
        (victim, other), until, begun = children(process.pid), time.monotonic() + 30, segments(place.log)
        os.kill(victim, signal.SIGKILL)
        while segments(place.log) == begun:
            assert time.monotonic() < until and other in children(process.pid), "the worker was not replaced"
            time.sleep(0.05)
        load.wait(labels=len(load.labels) + 10)
    finally:
        load.end()
        process.terminate()
    assert process.wait(30) == 0
    check(load, kept_in(place.log), alone=False)
    assert [chain.name for chain in chain_folders(place.log)] == ["worker-00", "worker-01"], "the new worker took the chain of the killed one"
