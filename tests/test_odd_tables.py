"""Tables of odd shapes go through every stage, and tables that teach nothing or too much are rejected by name."""

import numpy as np
import pandas as pd
import pytest
from whole import run_whole

from prodml.cli import verdict_lines
from prodml.core.files import read_json

ROWS = 400
RANDOM = {"by": "random", "validation": 0.25, "test": 0.25, "seed": 0}


def numbers(count: int, rows: int = ROWS) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns of numbers, and a label that the first one knows something of."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({f"size_{place}": random.normal(size=rows).round(4) for place in range(count)})
    return table, np.where(table["size_0"] + random.normal(size=rows) > 0, "yes", "no")


def categories_in_groups() -> tuple[pd.DataFrame, dict]:
    """No number at all; the label is named label, a category month, and a customer's rows stay together."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({
        "customer": random.integers(0, 80, ROWS).astype(str), "month": random.choice(["May", "June", "July"], ROWS),
        "town": random.choice(["Ulm", "Bonn", None], ROWS),
    })
    table["label"] = np.where((table.month == "May") ^ (random.random(ROWS) < 0.3), "yes", "no")
    return table, {"target": {"column": "label", "positive": "yes"}, "split": {**RANDOM, "column": "customer"}}


def months_of_numbers() -> tuple[pd.DataFrame, dict]:
    """Numbers only, with one date a month, so that few days carry many rows, and a validation period of a single month."""
    table, label = numbers(3)
    table["month"] = np.repeat(pd.date_range("2021-01-01", periods=40, freq="MS").strftime("%Y-%m-%d"), ROWS // 40)
    table["paid"] = label
    return table, {"split": {"by": "time", "column": "month", "validation_from": "2023-02-01", "test_from": "2023-03-01"}}


def one_number() -> tuple[pd.DataFrame, dict]:
    table, label = numbers(1)
    return table.assign(paid=label), {"split": RANDOM}


def constant_in_validation() -> tuple[pd.DataFrame, dict]:
    """All of validation lies in one month, in which a number and a category never change."""
    table, label = numbers(2)
    days = pd.date_range("2021-01-01", periods=ROWS, freq="D")
    month = (days >= "2021-11-01") & (days < "2021-12-01")
    table = table.assign(seen=days.strftime("%Y-%m-%d"), colour=np.where(month, "red", np.resize(["red", "blue", "green"], ROWS)), paid=label)
    table.loc[month, "size_1"] = 0.0
    return table, {"split": {"by": "time", "column": "seen", "validation_from": "2021-11-01", "test_from": "2021-12-01"}}


@pytest.mark.parametrize("make", [
    pytest.param(months_of_numbers, marks=pytest.mark.slow), pytest.param(categories_in_groups, marks=pytest.mark.slow),
    pytest.param(one_number, marks=pytest.mark.long), pytest.param(constant_in_validation, marks=pytest.mark.long),
])
def test_an_odd_table_goes_through_every_stage(make, tmp_path):
    table, settings = make()
    run_whole(tmp_path / "odd", table, settings)
    verdicts = {gate["name"]: gate for gate in read_json(tmp_path / "odd" / "bundle" / "gates.json")["gates"]}
    assert verdicts["edge cases"]["met"] is True, verdicts["edge cases"]
    assert (tmp_path / "odd" / "build" / "measure" / "latency.json").exists()


def teachable(rows: int = 1500) -> pd.DataFrame:
    """Numbers and a category, of which the label follows with noise."""
    table, _ = numbers(3, rows)
    random = np.random.default_rng(1)
    table["town"] = random.choice(["Ulm", "Bonn"], rows)
    score = table["size_0"] + table["size_1"] + (table.town == "Ulm") + 0.7 * random.normal(size=rows)
    return table.assign(paid=np.where(score > 0.5, "yes", "no"))


def shuffled() -> pd.DataFrame:
    table = teachable()
    return table.assign(paid=np.random.default_rng(2).permutation(table.paid))


def with_twin() -> pd.DataFrame:
    """A column says what the label says, but for one row in two hundred."""
    table = teachable()
    wrong = np.random.default_rng(3).random(len(table)) < 0.005
    return table.assign(settled=np.where((table.paid == "yes") ^ wrong, "in full", "open"))


SKILL = {"better than the base rate", "better than the base rate by square"}
TWIN = {"no column is the label", "no column explains the label"}


@pytest.mark.parametrize("make, broken, kept", [
    pytest.param(shuffled, SKILL, TWIN, marks=pytest.mark.slow),
    pytest.param(teachable, set(), SKILL | TWIN, marks=pytest.mark.long),
    pytest.param(with_twin, TWIN, SKILL, marks=pytest.mark.long),  # in CI it is the table of test_trials.py
])
def test_a_table_that_teaches_nothing_or_too_much_is_rejected_by_name(make, broken, kept, tmp_path):
    """From the raw file to the verdict; a table to learn from, made alike, breaks none of these gates."""
    longer = ["train.epochs=20", "prune.fine_tuning.epochs=40"]
    run_whole(tmp_path / "whole", make(), {"split": RANDOM}, longer, without=("measure", "imbalance", "incremental"))
    verdicts = read_json(tmp_path / "whole" / "bundle" / "gates.json")
    rejected, said = {reason.partition(":")[0] for reason in verdicts["rejected"]}, verdict_lines(verdicts)
    assert broken <= rejected and not kept & rejected, verdicts["rejected"]
    assert all(any(line.strip().startswith(f"{name}:") for line in said[1:]) for name in broken)
    assert not broken or said[0].startswith("The bundle is rejected")
