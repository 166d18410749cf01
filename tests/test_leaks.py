"""A column that tells the label alone is found, whatever it is called, and an honest strong one is not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from prodml.core.config import read_params
from prodml.core.errors import InputError
from prodml.trust.gates import judged, read_gates, reasons_of
from prodml.trust.leaks import check_accepted, column_report, gain_over_column, strongest_columns
from prodml.trust.models import write_report

NO_GAIN = {"estimate": None, "low": None, "high": None}
GATES = [gate for gate in read_params(ROOT)["trust"]["gates"] if gate["value"].startswith("strongest_column")]


def labels_of(count: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def broken(tmp_path, strong, accepted=None) -> list[str]:
    """What the gates of conf/trust say of the columns."""
    found, tables, subjects = column_report(strong, accepted or {}, NO_GAIN)
    write_report(tmp_path / "leaks" / "leaks.json", found, tables, subjects=subjects)
    return reasons_of(judged(read_gates(GATES), tmp_path, {}))


def noisy(label: np.ndarray, wrong: float) -> np.ndarray:
    return np.where(np.random.default_rng(1).random(len(label)) < wrong, 1 - label, label)


TWINS = {
    "other words": lambda y: np.where(y == 1, "closed", "open"),
    "one in a hundred wrong": lambda y: noisy(y, 0.01),
    "a number with noise": lambda y: y + np.random.default_rng(2).normal(0, 0.05, len(y)),
    "several words of each label": lambda y: np.where(y == 1, np.random.default_rng(2).choice(["a", "b"], len(y)), np.random.default_rng(3).choice(["c", "d", "e"], len(y))),
    "a hole": lambda y: pa.array(np.random.default_rng(2).random(len(y)), mask=y == 1),
    "a hole in text": lambda y: pa.array(np.full(len(y), "seen"), mask=y == 0),
    "the row number of a sorted file": lambda y: np.argsort(np.argsort(y, kind="stable")).astype(float),
    "odd codes": lambda y: np.random.default_rng(2).integers(0, 40, len(y)) * 2.0 + y,
    "the middle of a range": lambda y: np.where(y == 1, 0.5, np.random.default_rng(2).choice([0.1, 0.9], len(y))) + np.random.default_rng(3).normal(0, 0.02, len(y)),
}


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_of_the_label_is_named_and_rejected(twin, share, tmp_path):
    label = labels_of(2000, share)
    table = pa.table({"status": TWINS[twin](label), "age": np.random.default_rng(4).normal(size=2000)})
    strong = strongest_columns(table, table.column_names, label, np.arange(2000) // 20)
    assert strong[0]["column"] == "status"
    reasons = broken(tmp_path, strong)
    assert reasons and all("(status)" in reason for reason in reasons)


def test_a_user_who_keeps_one_label_is_a_leak_where_rows_are_split_at_random(tmp_path):
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(125), 20)
    label = (random.random(125) < 0.4).astype(float)[user]
    table = pa.table({"user": [f"u{one:03d}" for one in user], "age": random.normal(size=2500)})
    assert broken(tmp_path, strongest_columns(table, table.column_names, label, np.arange(2500)))
    assert not broken(tmp_path, strongest_columns(table, table.column_names, label, user)), "users kept together: a new one is unknown"


@pytest.mark.parametrize(("count", "share"), [(50, 0.3), (1731, 12 / 1731), (600, 0.5), (3000, 0.05)])
def test_noise_is_no_leak_in_small_and_rare_tables(count, share, tmp_path):
    for seed in range(5):
        random, label = np.random.default_rng(seed), labels_of(count, share, seed)
        label[:2] = 0, 1
        table = pa.table({f"c{place}": random.normal(size=count) for place in range(8)} | {"word": random.choice(["a", "b", "c"], count)})
        assert not broken(tmp_path, strongest_columns(table, table.column_names, label, np.arange(count)))


def test_the_strongest_honest_measurements_pass(tmp_path):
    table = pq.read_table(ROOT / "examples" / "breast_cancer" / "tumours.parquet")
    label = np.array([value == "malignant" for value in table["diagnosis"].to_pylist()], float)
    strong = strongest_columns(table, [name for name in table.column_names if name != "diagnosis"], label, np.arange(len(label)))
    assert strong[0]["roc_auc"] > 0.94, "strong"
    assert not broken(tmp_path, strong)


def test_a_person_can_accept_a_column_with_a_reason(tmp_path):
    label = labels_of(500, 0.4)
    table = pa.table({"odor": label, "twin": 1 - label, "noise": np.random.default_rng(9).random(500)})
    strong, why = strongest_columns(table, table.column_names, label, np.arange(500)), "smelt before the mushroom is picked"
    assert broken(tmp_path, strong, check_accepted([{"column": "odor", "why": why}], table.column_names)), "its twin is not accepted"
    both = check_accepted([{"column": name, "why": why} for name in ("odor", "twin")], table.column_names)
    assert not broken(tmp_path, strong, both)
    assert [row[-1] for row in column_report(strong, both, NO_GAIN)[1]["strongest_columns"]["rows"]] == [why, why, ""]
    with pytest.raises(InputError, match="known_strong"):
        check_accepted([{"column": "colour", "why": why}], table.column_names)


def test_odd_tables_are_examined_or_say_that_they_were_not(tmp_path):
    label = labels_of(50, 0.4)
    none = strongest_columns(pa.table({"constant": np.ones(50)}), ["constant"], label, np.zeros(50))
    assert none == [] and column_report([], {}, NO_GAIN)[0]["strongest_column_roc_auc"] == 0.5
    single = strongest_columns(pa.table({"x": label}), ["x"], label, np.zeros(50))
    assert single[0]["explains"] > 0.75, "one block: rows are held out one by one"
    assert strongest_columns(pa.table({"id": [str(place) for place in range(50)]}), ["id"], label, np.arange(50)) == [], "nothing repeats"


def test_a_model_that_is_one_column_gains_nothing_over_it():
    random = np.random.default_rng(0)
    x, z = random.integers(0, 5, 4000), random.normal(size=4000)
    chance = 1 / (1 + np.exp(-(x - 2.0 + 1.5 * z)))
    label = (random.random(4000) < chance).astype(np.int8)
    table = pa.table({"x": x.astype(float), "z": z, "label": label, "block": (np.arange(4000) // 40).astype(np.int32)})
    tables, line = [table.slice(0, 2000), table.slice(2000)], {"column": "x", "rule": "value"}
    rate = np.array([label[:2000][x[:2000] == one].mean() for one in range(5)])[x[2000:]]
    assert gain_over_column(tables, line, chance[2000:], 300)["low"] > 0
    assert gain_over_column(tables, line, rate, 300)["low"] < 0.0005
    assert gain_over_column(tables, line, np.full(2000, label.mean()), 300)["high"] < 0
