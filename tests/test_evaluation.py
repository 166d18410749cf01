"""Planted cases: a model that decays, days that are not alike, a table without time."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prodml.core.errors import InputError
from prodml.model.rows import Rows
from prodml.stats.conformal import covered_rows, prediction_sets
from prodml.trust.evaluate import by_month, cost_rules, decision_tables, shipped_first
from prodml.trust.uncertainty import Period, coverage_lines, crossed_sets, fit_sets, halved_coverage, headline, read_periods, selective_lines

DRAWS = (200, 0.95, 0)


def rows_of(labels: np.ndarray, days: np.ndarray, months: np.ndarray) -> Rows:
    """Rows without columns: what is scored here are given answers."""
    count = len(labels)
    return Rows(torch.zeros(count, 0), torch.zeros(count, 0, dtype=torch.int64), torch.from_numpy(labels.astype(np.float32)), days.astype(np.int32), months, np.arange(count))


def world(seed: int, days: int, rows: int = 60, mood: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and days: each day has a mood that the model sees, and one of which it knows nothing."""
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), rows)
    logit = random.normal(-1, 1.0, len(day)) + random.normal(0, mood, days)[day]
    labels = (random.random(len(day)) < 1 / (1 + np.exp(-logit - random.normal(0, mood, days)[day]))).astype(int)
    return labels, (1 / (1 + np.exp(-logit))).astype(np.float32), day


def write_predictions(path, months: bool, seed: int = 0) -> None:
    labels, said, day = world(seed, 120)
    month = np.where(day < 60, "2013-10", "2013-11") if months else np.full(len(day), "")
    pq.write_table(pa.table({"key": np.arange(len(day)), "split": np.where(day < 60, "validation", "test"), "block": day.astype(np.int32), "month": month, "label": labels.astype(np.int8), "int8": said}), path)


def test_a_planted_decay_shows_in_its_month_and_in_no_other():
    labels, said, day = world(0, 90)
    months = np.array(["2013-10", "2013-11", "2013-12"])[day // 30]
    decayed = np.where(months == "2013-12", np.random.default_rng(1).permutation(said), said)
    late = day >= 30
    splits = {"validation": rows_of(labels[~late], day[~late], months[~late]), "test": rows_of(labels[late], day[late], months[late])}
    answers = {split: {"sound": said[part], "decayed": decayed[part]} for split, part in (("validation", ~late), ("test", late))}
    lines = {(line["model"], line["month"]): line for line in by_month(splits, answers, *DRAWS)}
    assert lines["decayed", "2013-12"]["roc_auc"]["high"] < lines["sound", "2013-12"]["roc_auc"]["low"]
    assert lines["decayed", "2013-12"]["log_loss"]["low"] > lines["sound", "2013-12"]["log_loss"]["high"]
    assert lines["decayed", "2013-11"]["roc_auc"] == lines["sound", "2013-11"]["roc_auc"]
    assert sum(line["rows"] for line in lines.values()) == 2 * len(labels)


def test_no_threshold_comes_from_the_test_rows():
    labels, said, day = world(0, 60)
    parts = [day < 30, day >= 30]
    validation, test = (rows_of(labels[part], day[part], np.full(part.sum(), "")) for part in parts)
    costs = {"false_negative": 3.0, "false_positive": 1.0}
    rules = cost_rules(validation, {"int8": said[parts[0]]}, {"int8": 0.3}, costs)
    turned = rows_of(1 - labels[parts[1]], day[parts[1]], np.full(parts[1].sum(), ""))
    tables = [decision_tables(rows, {"int8": said[parts[1]]}, rules, ["int8"], [0.25, 0.5], costs, DRAWS)["costs"]["rows"] for rows in (test, turned)]
    assert [row[:3] for row in tables[0]] == [row[:3] for row in tables[1]], "other labels, the same thresholds"
    assert tables[0][0][3] != tables[1][0][3]
    with pytest.raises(InputError, match="bundle.serve"):
        shipped_first("best", ["int8"])


def test_crossed_coverage_keeps_the_promise_on_average_though_days_differ():
    crossed, by_day, by_row = [], [], []
    for seed in range(30):
        labels, said, day = world(seed, 40)
        period = Period(labels, said, day, np.full(len(day), ""))
        crossed.append(covered_rows(crossed_sets(period, 0.1, "class_conditional", 5), labels).mean())
        by_day.append(halved_coverage(period, 0.1, "class_conditional", 5, seed))
        mixed = Period(labels, said, np.random.default_rng(seed).permutation(day), period.months)
        by_row.append(halved_coverage(mixed, 0.1, "class_conditional", 5, seed))
    assert abs(np.mean(crossed) - 0.9) < 0.012 and abs(np.mean(by_day) - 0.9) < 0.015
    assert np.std(by_day) > 1.5 * np.std(by_row), "limits from few days waver more than limits from as many independent rows"


@pytest.mark.parametrize("months", [True, False])
def test_what_ships_gives_the_sets_that_were_measured(tmp_path, months):
    path = tmp_path / "predictions.parquet"
    write_predictions(path, months)
    periods = read_periods(path, "int8")
    fitted = fit_sets(periods["validation"], 0.1, "class_conditional")
    sets = {"validation": crossed_sets(periods["validation"], 0.1, "class_conditional", 5), "test": prediction_sets(periods["test"].probabilities, fitted)}
    lines = coverage_lines(periods, sets, 0.1, DRAWS)
    assert [(line["period"], line["month"]) for line in lines] == [("validation", "all"), ("test", "all")]
    found = headline(lines)
    assert found["coverage_validation_low"] <= 0.9 <= found["coverage_validation_high"] and found["nominal"] == 0.9
    sent = json.loads(json.dumps(fitted))
    assert np.array_equal(prediction_sets(periods["test"].probabilities.tolist(), sent), sets["test"])
    assert len(selective_lines(periods, [0.1, 0.2], "marginal", 5, DRAWS)) == 4
