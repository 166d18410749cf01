"""Every gate can fail: each of conf/trust is given the input that must fail it."""

import numpy as np
import pytest
from conftest import ROOT

from prodml.core.config import read_params
from prodml.stats.bootstrap import interval
from prodml.stats.scores import HIGHER_IS_BETTER, ece
from prodml.trust.card import verdict_of
from prodml.trust.evaluate import skill_intervals
from prodml.trust.gates import judged, read_gates, reasons_of
from prodml.trust.leaks import column_report
from prodml.trust.models import write_report
from prodml.trust.uncertainty import Period, coverage_lines, fit_sets, headline
from prodml.stats.conformal import prediction_sets

GATES = read_params(ROOT)["trust"]["gates"]


def world(seed: int, days: int = 60, rows: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, honest probabilities and days, each of which has a mood that the model does not know."""
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), rows)
    logit = random.normal(-1.2, 1.2, len(day))
    label = (random.random(len(day)) < 1 / (1 + np.exp(-logit - random.normal(0, 0.7, days)[day]))).astype(float)
    return label, 1 / (1 + np.exp(-logit)), day


def skill_of_shuffled(seed: int, spread: float) -> dict:
    """The skill of a model that was trained on shuffled labels: the base rate, more or less, and noise by row and day."""
    label, _, day = world(seed)
    random = np.random.default_rng(seed + 10_000)
    logit = np.log(label.mean() / (1 - label.mean())) + spread * (random.normal(size=len(day)) + random.normal(size=60)[day])
    return skill_intervals(label, 1 / (1 + np.exp(-logit)), day, 200, 0.99, seed)


def coverage_when(shift: float) -> dict:
    """The headline of sets that were calibrated on honest days and met days on which the probabilities are off."""
    label, said, day = world(0)
    periods = {"validation": Period(label, said, day, np.full(len(day), ""))}
    late, asked, days = world(1)
    periods["test"] = Period(late, 1 / (1 + np.exp(-np.log(asked / (1 - asked)) - shift)), days, np.full(len(days), ""))
    fitted = fit_sets(periods["validation"], 0.1, "class_conditional")
    return headline(coverage_lines(periods, {name: prediction_sets(period.probabilities, fitted) for name, period in periods.items()}, 0.1, (200, 0.95, 0)))


def columns_when(explains: float, roc_auc: float, low: float) -> dict:
    return column_report([{"column": "twin", "rule": "value", "roc_auc": roc_auc, "explains": explains}], {}, {"estimate": low + 0.01, "low": low, "high": low + 0.02})[0]


# What must break each gate: a headline that a stage makes from such an input, or the number of one.
FAILING = {
    "better than the base rate": lambda: {"skill_log_loss_low": skill_of_shuffled(0, 0.3)["log_loss"]["low"]},
    "better than the base rate by square": lambda: {"skill_brier_low": skill_of_shuffled(0, 0.3)["brier"]["low"]},
    "better than one column": lambda: columns_when(0.3, 0.8, -0.001),
    "no column is the label": lambda: columns_when(0.2, 0.999, 0.1),
    "no column explains the label": lambda: columns_when(0.9, 0.97, 0.1),
    "calibration": lambda: {"ece": ece(*(lambda label, said, day: (label, said**3))(*world(0)))},  # far too low
    "worst slice": lambda: {"worst_roc_auc_low": 0.5},  # a group whose rows the model orders by chance
    "equal opportunity": lambda: {"worst_equal_opportunity_difference": 0.5},  # half as many positives found in one group
    "gap by compression": lambda: {"largest_gap_rise_low": 0.01},  # the compressed model treats groups provably less alike
    "invariance": lambda: {"invariance_violations": 1},  # another name of the same thing, another answer
    "directions": lambda: {"directional_violations": 0.5},  # a coin
    "edge cases": lambda: {"edge_cases_failed": 1},  # an empty row without an answer
    "coverage is promised": lambda: coverage_when(-2.0),
    "sets decide": lambda: {"abstained": 1.0},  # fifty rows: no limit rules a label out
    "completeness": lambda: {"completeness_error": 0.1},  # shares that do not add up to the answer
    "same reasons": lambda: {"agreement_with_dense": 0.0},  # other columns than the parent's
    "serving explanations": lambda: {"fast_path_error": 1.0},  # shares in another order
    "outage": lambda: {"worst_outage_roc_auc": 0.5},  # a model that reads one feed alone
    "slices of compression": lambda: {"slices_worse": 1},  # a slice that pays
}


@pytest.mark.parametrize("gate", GATES, ids=[gate["name"] for gate in GATES])
def test_a_gate_rejects_what_it_stands_against(gate, tmp_path):
    assert gate["name"] in FAILING, "write the input that must break this gate"
    found = FAILING[gate["name"]]()
    write_report(tmp_path / gate["stage"] / f"{gate['stage']}.json", found, {})
    verdicts = judged(read_gates([gate]), tmp_path, {})
    assert verdicts[0]["met"] is False and len(reasons_of(verdicts)) == 1 and verdict_of(verdicts)[1] is False


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.5])
def test_shuffled_labels_are_rejected_by_the_gates_on_skill(spread):
    passed = [all(item["low"] >= 0 for item in skill_of_shuffled(seed, spread).values()) for seed in range(200)]
    assert sum(passed) <= 2, "99 of 100"


def test_an_honest_model_has_skill_and_a_lucky_base_rate_has_none():
    for seed in range(20):
        label, said, day = world(seed)
        assert all(item["low"] > 0 for item in skill_intervals(label, said, day, 200, 0.99, seed).values())
        constant = np.full(len(label), label.mean())
        assert not any(item["low"] > 0 for item in skill_intervals(label, constant, day, 200, 0.99, seed).values())


@pytest.mark.parametrize("days", [1, 7])
def test_too_few_blocks_prove_nothing_and_are_not_counted_as_met(days, tmp_path):
    label, said, day = world(0)
    found = skill_intervals(label, said, day % days, 200)
    assert found["log_loss"]["estimate"] > 0 and found["log_loss"]["low"] is None
    gate = next(gate for gate in GATES if gate["value"] == "skill_log_loss_low")
    write_report(tmp_path / "evaluate" / "evaluate.json", {"skill_log_loss_low": None}, {})
    verdicts = judged(read_gates([gate, gate | {"name": "optional", "required": False}]), tmp_path, {})
    said, passed = verdict_of(verdicts)
    assert passed is False and "1 had nothing to judge" in said and reasons_of(verdicts) == [f"{gate['name']}: evaluate.skill_log_loss_low was not examined"]
    assert verdict_of(verdicts[1:])[0] == "Accepted: 0 of 1 gates are met; 1 had nothing to judge."


def test_coverage_is_judged_on_later_days():
    kept, lost = coverage_when(0.0), coverage_when(-2.0)
    assert kept["coverage_validation"] == lost["coverage_validation"], "the validation days know nothing of it"
    assert lost["coverage_test_high"] < 0.9 <= kept["coverage_test_high"]


@pytest.mark.parametrize("metric", HIGHER_IS_BETTER)
@pytest.mark.parametrize("count", [30, 400])
def test_an_interval_holds_its_estimate(metric, count):
    for seed in range(40):
        random = np.random.default_rng(seed)
        said = random.beta(2, 5, count)
        label = (random.random(count) < said).astype(int)
        label[:4] = 0, 1, 0, 1
        found = interval(label, said, np.arange(count) // max(count // 40, 1), metric, 100, seed)
        assert found["low"] <= found["estimate"] <= found["high"]
        assert metric != "ece" or found["low"] < found["high"]
