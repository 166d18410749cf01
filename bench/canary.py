"""The canary's judgement by simulation, and how fast a rollback takes effect.

A thousand harmless challengers run against the champion that they are, with a look after every batch and to the very end:
none is promoted, which would end the watch. Beside it, what naive peeking (a z-test at 5% in each look) would have done,
and the whole plan with its growing weights. Then planted faults: how many are found within how many requests a side.
At last two real workers on the project's own bundle: seconds from a rollback's commit until each routes to the champion
alone, and what routing, recording and a second's background work cost. Written to build/bench/canary.json and .png.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.core.files import project_root, read_json, write_json
from prodml.core.records import results_path
from prodml.core.progress import progress
from prodml.serve.registry import Registry
from prodml.serve.rollout import Behaviour, Guard, Rollout, RolloutSettings, Step, observed, simulate
from prodml.stats.sequential import BettingTest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = project_root()
SETTINGS = RolloutSettings(shift_tolerated=0.1)
CONFUSED = 0.45  # of the probabilities belong to other rows, so that the Brier loss rises by three points; what it rises by is measured
PLANTED = {
    "3% errors against 2%": (Behaviour(errors=0.03), 100, 5_000, False),
    "10% errors against 2%": (Behaviour(errors=0.10), 50, 600, False),
    "half again as slow": (Behaviour(median_s=0.003), 100, 5_000, False),
    "a fifth of the predictions elsewhere": (Behaviour(predicted=(1.9, 3.5)), 100, 10_000, False),
    "3 points of Brier": (Behaviour(confused=CONFUSED), 100, 10_000, True),
}


# Simulations.


def watched(challenger: Behaviour, seed: int, batch: int, most: int, labelled: bool, settings: RolloutSettings = SETTINGS) -> tuple[int | None, str, np.ndarray, Guard]:
    """After how many requests a side harm was shown, or None; by which guardrail; errors of both sides per batch up to then, [2, looks]; the guard."""
    draw, guard, errors = np.random.default_rng(seed), Guard(settings, seed), []
    for at in range(batch, most + 1, batch):
        sides = observed(challenger, batch, draw, labelled), observed(Behaviour(), batch, draw, labelled)
        errors.append([tally.errors for tally in sides])
        guard.take(*sides)
        if guard.harm:
            return at, guard.harm[0].split(":")[0], np.array(errors).T, guard
    return None, "", np.array(errors).T, guard


def peeked(errors: np.ndarray, batch: int) -> bool:
    """Whether a one-sided z-test at 5%, done anew at each look, would ever have cried harm."""
    own, base = np.cumsum(errors, axis=1)
    trials = batch * np.arange(1, len(own) + 1)
    pooled = (own + base) / (2 * trials)
    spread = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / trials, 1e-300))
    return bool(((own - base) / trials > 1.6449 * spread)[own + base >= 10].any())


def harmless(runs: int, most: int = 20_000, batch: int = 200) -> dict[str, Any]:
    """A/A canaries to the end of `most` requests a side."""
    by, naive, spent = [], 0, []
    for seed in progress(range(runs), desc="harmless challengers"):
        at, guardrail, errors, guard = watched(Behaviour(), seed, batch, most, True)
        by.append(guardrail)
        naive += peeked(errors, batch)
        spent.append(guard.tests["errors"].spent)
    false = sum(bool(name) for name in by)
    return {"runs": runs, "requests_a_side": most, "looks": most // batch, "alpha": SETTINGS.alpha, "false_rollbacks": false, "share": false / runs, "by_guardrail": {name: by.count(name) for name in sorted(set(by)) if name}, "alpha_of_errors_spent_by_the_end": round(max(spent), 5), "naive_peeking_share_until_then": naive / runs}


def whole_plan(runs: int, most: int = 60_000, batch: int = 400) -> dict[str, Any]:
    """A/A canaries through shadow, 1%, 5%, 25% and 50%, with promotion."""
    settings = replace(SETTINGS, steps=tuple(replace(step, min_seconds=0, min_observations=100) for step in SETTINGS.steps))
    ends = [simulate(settings, Behaviour(), Behaviour(), 10**6 + seed, batch, most, True) for seed in progress(range(runs), desc="whole plans")]
    actions = [verdict.action for verdict, _, _ in ends]
    worse = [simulate(settings, Behaviour(), Behaviour(errors=0.03), 2 * 10**6 + seed, batch, most, False)[0].action for seed in progress(range(runs), desc="worse by the margin")]
    return {"runs": runs, "requests": most, "harmless": {action: actions.count(action) for action in ("promote", "hold", "rollback")}, "worse_by_the_margin_of_1_point": {action: worse.count(action) for action in ("promote", "hold", "rollback")}}


def planted(runs: int) -> dict[str, Any]:
    """How many of each fault are found within its limit, and after how many requests a side."""
    found = {}
    for number, (name, (behaviour, batch, most, labelled)) in enumerate(PLANTED.items()):
        times = [watched(behaviour, 10_000 * (number + 1) + seed, batch, most, labelled)[:2] for seed in progress(range(runs), desc=name)]
        shown = [at if at is not None else np.inf for at, _ in times]
        by = [guardrail for _, guardrail in times if guardrail]
        found[name] = {"runs": runs, "within": most, "found": float(np.mean(np.isfinite(shown))), "median": quantile(shown, 0.5), "nine_of_ten": quantile(shown, 0.9), "by_guardrail": {guardrail: by.count(guardrail) for guardrail in sorted(set(by))}}
    found["3 points of Brier"]["rise_of_the_loss"] = loss_rise()
    return found


def quantile(values: list[float], part: float) -> float | None:
    """The quantile, or None where it was not reached."""
    value = float(np.quantile(values, part, method="higher"))
    return value if np.isfinite(value) else None


def loss_rise() -> float:
    draw = np.random.default_rng(0)
    own, base = (np.mean(observed(behaviour, 1_000_000, draw, True).losses) for behaviour in (Behaviour(confused=CONFUSED), Behaviour()))
    return round(float(own - base), 4)


def wrong_decisions(runs: int, most: int = 30_000, batch: int = 100) -> dict[str, Any]:
    """Three points more wrong decisions, 28% against 25%: the loss test on losses of 0 and 1, which spread most."""
    times = []
    for seed in progress(range(runs), desc="3 points of accuracy"):
        draw, test = np.random.default_rng(seed), BettingTest(SETTINGS.alpha * SETTINGS.shares["loss"])
        times.append(next((at for at in range(batch, most + 1, batch) if test.update(draw.random(batch) < 0.28, draw.random(batch) < 0.25)), np.inf))
    return {"runs": runs, "within": most, "found": float(np.mean(np.isfinite(times))), "median": quantile(times, 0.5), "nine_of_ten": quantile(times, 0.9)}


# Two real workers.


def real_registry(folder: Path) -> tuple[Registry, str]:
    """A registry with the project's bundle twice, the second with another provenance; and the model's name."""
    key, public = folder / "key", new_key(folder / "key")
    registry = Registry(folder / "registry", trusted=[public])
    for number in range(2):
        place = Path(shutil.copytree(ROOT / "bundle", folder / f"release{number}"))
        write_manifest(place, read_json(place / MANIFEST)["provenance"] | {"release": str(number)})
        (place / SIGNATURE).write_bytes(signature_of((place / MANIFEST).read_bytes(), private_key(key)))
        name = registry.register(place, "bench", "To be measured.").split("@")[0]
    registry.assign(name, "champion", "v1.0.0", "bench", "The first one.")
    return registry, name


def follow(folder: str, name: str) -> None:
    """A worker: routes and records without pause, and prints the monotonic clock whenever the routing changed, and at the end how many requests had no answer."""
    rollout = Rollout(Registry(folder, trusted=[Path(folder).parent / "key.pub"]), name, RolloutSettings()).open()
    last, number, unanswered = None, 0, 0
    while not Path(folder, "stop").exists():
        for _ in range(200):
            number += 1
            decision = rollout.route(f"customer {number}")
            unanswered += decision.version not in ("v1.0.0", "v1.0.1")
            rollout.record(decision.version, True, 0.001, 0.3)
            canary = bool(rollout._routing.limit)
            if canary != last:
                print(time.monotonic(), canary, flush=True)
                last = canary
        time.sleep(0.005)
    rollout.close()
    print("unanswered", unanswered, number, flush=True)


def rollback_seconds(times: int, workers: int = 2) -> dict[str, Any]:
    """Seconds from the commit of a rollback until each worker routes to the champion alone."""
    settings = RolloutSettings(steps=(Step(0.5, max_observations=10**9),), error_margin=1e-5)
    with tempfile.TemporaryDirectory() as temporary:
        registry, name = real_registry(Path(temporary))
        control = Rollout(registry, name, settings)
        processes = [subprocess.Popen([sys.executable, __file__, "--follow", str(registry.folder), name], stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(workers)]
        seconds = []
        try:
            for process in processes:
                process.stdout.readline()
            for number in progress(range(times), desc="rollbacks"):
                control.start("v1.0.1", "bench", "To be measured.")
                for process in processes:
                    assert process.stdout.readline().endswith("True\n")
                time.sleep(0.037 * (number % 6))  # not in step with the workers' clock
                control.rollback("bench", "To be measured.")
                committed = time.monotonic()
                seconds += [float(process.stdout.readline().split()[0]) - committed for process in processes]
            (registry.folder / "stop").touch()
            ends = [process.stdout.readline().split() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        registry.verify()
    return {"rollbacks": times, "workers": workers, "median_s": round(float(np.median(seconds)), 3), "longest_s": round(max(seconds), 3), "requests": sum(int(end[2]) for end in ends), "unanswered": sum(int(end[1]) for end in ends)}


def least_ns(act: Callable[[], Any], times: int = 50_000) -> float:
    """Nanoseconds of one call, the least of seven rounds."""
    found = []
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(times):
            act()
        found.append((time.perf_counter_ns() - start) / times)
    return round(min(found))


def costs() -> dict[str, Any]:
    """What a request pays, and what the thread needs for a second of 9,000 requests."""
    with tempfile.TemporaryDirectory() as temporary:
        registry, name = real_registry(Path(temporary))
        rollout = Rollout(registry, name, RolloutSettings(steps=(Step(0.5, max_observations=10**9),), error_margin=1e-5))
        rollout.start("v1.0.1", "bench", "To be measured.")
        rollout.beat()
        told = {"route_ns": least_ns(lambda: rollout.route("customer 12345")), "record_ns": least_ns(lambda: rollout.record("v1.0.1", True, 0.001, 0.3))}
        rollout._answers.clear()
        draw, spent = np.random.default_rng(0), []
        for second in range(20):
            used = 0.0
            for _ in range(5):
                for number in range(1800):
                    rollout.record("v1.0.1" if number % 2 else "v1.0.0", bool(draw.random() > 0.02), float(draw.lognormal(-6, 0.5)), float(draw.random()))
                start = time.thread_time()
                rollout.beat()
                used += time.thread_time() - start
            spent.append(used)
        registry.store.close()
    return told | {"thread_cpu_ms_per_second_of_9000_requests": round(1000 * float(np.median(spent)), 1)}


# The record.


def targets(found: dict[str, Any]) -> list[tuple[str, bool]]:
    """Each target with what was measured, and whether it is met."""
    a, three, ten, loss, back = found["harmless"], found["planted"]["3% errors against 2%"], found["planted"]["10% errors against 2%"], found["planted"]["3 points of Brier"], found["rollback"]
    return [
        (f"false rollbacks of {a['runs']:,} harmless challengers {a['share']:.1%}, at most α = {a['alpha']:.0%}", a["share"] <= a["alpha"]),
        (f"3% errors against 2% found within 5,000 a side in {three['found']:.1%} of runs, 90% wanted", three["found"] >= 0.9),
        (f"10% errors against 2% found within 600 a side in {ten['found']:.1%} of runs, 90% wanted", ten["found"] >= 0.9),
        (f"a loss of 3 points of Brier found within {loss['within']:,} labels a side in {loss['found']:.1%} of runs, 90% wanted; half within {loss['median']:,.0f}", loss["found"] >= 0.9),
        (f"rollback in effect after {back['longest_s']} s at the longest of {back['rollbacks']}, below 1 s wanted", back["longest_s"] < 1),
        (f"requests without an answer during rollbacks: {back['unanswered']} of {back['requests']:,}", back["unanswered"] == 0),
    ]


def drawn(path: Path, curve: dict[str, Any]) -> None:
    """Delay against effect: requests a side until harm is shown, for errors beyond 2%."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    points = curve["points_beyond"]
    axis.loglog(points, curve["median"], "o-", label="half of the runs")
    axis.loglog(points, [value or np.nan for value in curve["nine_of_ten"]], "s--", label="nine of ten")
    for x, y, text, side in ((1, 5000, "wanted: 5,000", "right"), (8, 600, "wanted: 600", "left")):
        axis.plot(x, y, "v", color="black", ms=6)
        axis.annotate(text, (x, y), textcoords="offset points", xytext=(-7 if side == "right" else 7, 1), ha=side)
    axis.set(xlabel="errors beyond the champion's 2%, in points", ylabel="requests a side\nuntil the rollback", xlim=(0.35, 16))
    axis.set_xticks(points, [f"{point:g}" for point in points])
    axis.minorticks_off()
    axis.legend(frameon=False, loc="lower left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def delay_curve(runs: int) -> dict[str, Any]:
    """Requests a side until harm is shown, by the surplus of errors in points."""
    points, median, nine = (0.75, 1.0, 1.5, 2.0, 4.0, 8.0), [], []
    for number, point in enumerate(points):
        times = [watched(Behaviour(errors=0.02 + point / 100), 10**7 * (number + 1) + seed, 50 if point > 2 else 200, 20_000, False)[0] or np.inf for seed in progress(range(runs), desc=f"{point:g} points")]
        median.append(quantile(times, 0.5))
        nine.append(quantile(times, 0.9))
    return {"runs": runs, "points_beyond": points, "median": median, "nine_of_ten": nine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="simulated canaries of each kind (default: 1000)")
    parser.add_argument("--follow", nargs=2, metavar=("FOLDER", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    if given.follow:
        return follow(*given.follow)
    path = results_path("canary.json", given.write, ROOT)
    found = {"rollback": rollback_seconds(30), "costs": costs(), "harmless": harmless(given.runs), "planted": planted(given.runs)}
    found |= {"three_points_of_accuracy": wrong_decisions(max(given.runs // 4, 1)), "whole_plan": whole_plan(max(given.runs // 4, 1)), "delay": delay_curve(max(2 * given.runs // 5, 1))}
    judged = targets(found)
    write_json(path, found | {"targets": [{"target": text, "met": met} for text, met in judged]})
    drawn(path.with_suffix(".png"), found["delay"])
    for text, met in judged:
        print(f"{'met    ' if met else 'NOT MET'}  {text}")


if __name__ == "__main__":
    main()
