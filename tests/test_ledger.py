"""The ledger says what was done to every cell and row, and it cannot disagree with the tables."""

import datetime

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.core.files import sha256_of_folder
from prodml.data.clean import CELL_REPAIRS, clean
from prodml.data.ingest import ingest
from prodml.data.trace import find_row
from prodml.data.validate import count_breaks, read_tables, validate


def people() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({
        "source_row": range(1, 501), "town": rng.choice(["Ulm", "Bonn", "Köln", None], 500).tolist(), "age": pa.array([None if age > 80 else int(age) for age in rng.integers(18, 90, 500)]),
        "minute": rng.integers(0, 200, 500), "heat": pa.array([None if value > 1 else float(value) for value in rng.normal(0, 1, 500).round(2)]),
    })


REPAIRS = [
    {"name": "too old", "table": "people", "repair": "clip", "columns": ["age"], "above": 70},
    {"name": "one Cologne", "table": "people", "repair": "replace", "columns": ["town"], "value": "Köln", "by": "Cologne"},
    {"name": "no frost", "table": "people", "repair": "blank", "columns": ["heat"], "below": -1.5},
    {"name": "heat goes on", "table": "people", "repair": "forward_fill", "columns": ["heat"], "by": ["town"], "order": "minute", "max_rows": 2, "max_minutes": 5},
    {"name": "one a minute", "table": "people", "repair": "deduplicate", "columns": ["town", "minute"], "keep": "most complete"},
    {"name": "of age", "table": "people", "repair": "drop_rows", "where": {"rule": "range", "columns": ["age"], "min": 21}},
    {"name": "somewhere", "table": "people", "repair": "constant", "columns": ["town"], "value": "elsewhere"},
]


def cleaned(folder, table: pa.Table, repairs: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame, list[dict]]:
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(table, folder / "in" / "people.parquet")
    summary = clean(folder / "in", folder / "out", repairs)
    return pq.read_table(folder / "out" / "people.parquet").to_pandas(), pq.read_table(folder / "out" / "ledger" / "cells.parquet").to_pandas(), summary


def test_replaying_the_ledger_on_the_raw_table_gives_the_clean_one(tmp_path):
    after, ledger, summary = cleaned(tmp_path, people(), REPAIRS)
    replayed = people().to_pandas().set_index("source_row").astype(object)
    for line in ledger.itertuples():
        if isinstance(line.column, str):
            was = replayed.at[line.source_row, line.column]
            assert (pd.isna(was) and pd.isna(line.before)) or str(was) == line.before or float(was) == float(line.before)
            replayed.at[line.source_row, line.column] = None if pd.isna(line.after) else line.after
    gone = ledger[ledger.column.isna()]
    replayed = replayed.drop(gone.source_row).reset_index()
    assert replayed.source_row.tolist() == after.source_row.tolist() and len(after) + len(gone) == 500
    for name in ("town", "age", "heat"):
        assert [None if pd.isna(value) else value for value in after[name]] == [None if pd.isna(value) else value if name == "town" else float(value) for value in replayed[name]], name
    assert sum(entry["cells_changed"] for entry in summary) == int(ledger.column.notna().sum()) and sum(entry["rows_removed"] for entry in summary) == len(gone)
    assert {entry["name"] for entry in summary if entry["cells_changed"] or entry["rows_removed"]} == {rule["name"] for rule in REPAIRS}, "every rule of this test does something"
    assert set(gone.reason) == {"repeats the key town, minute; the most complete row stays", "breaks range of age (min 21)"}


def test_the_ledgers_bytes_repeat(tmp_path):
    hashes = []
    for _ in range(2):
        cleaned(tmp_path, people(), REPAIRS)
        hashes.append(sha256_of_folder(tmp_path / "out"))
    assert hashes[0] == hashes[1]


def test_a_table_that_nothing_touches_has_an_empty_ledger(tmp_path):
    after, ledger, summary = cleaned(tmp_path, people(), [{**REPAIRS[0], "above": 200}])
    assert len(after) == 500 and len(ledger) == 0 and summary[0]["cells_changed"] == 0 and list(ledger.columns)[:3] == ["table", "source_row", "step"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.none() | st.integers(0, 9).map(float)), min_size=1, max_size=25), st.none() | st.integers(0, 4), st.none() | st.integers(0, 12))
def test_forward_fill_is_what_a_walk_through_the_rows_gives(rows, max_rows, max_minutes):
    groups, minutes, values = zip(*rows)
    table = ibis.memtable(pa.table({"source_row": range(1, len(rows) + 1), "group": groups, "at": pa.array(minutes, pa.int64()), "value": pa.array(values, pa.float64())}))
    rule = {"name": "r", "table": "t", "columns": ["value"], "by": ["group"], "order": "at"} | ({} if max_rows is None else {"max_rows": max_rows}) | ({} if max_minutes is None else {"max_minutes": max_minutes})
    found = dict(zip(range(1, len(rows) + 1), CELL_REPAIRS["forward_fill"](table, rule).order_by("source_row").value.to_pyarrow().to_pylist()))
    last: dict[str, tuple] = {}
    for row, (group, minute, value) in sorted(enumerate(rows, start=1), key=lambda item: (item[1][1], item[0])):
        if value is None and group in last:
            known, since, steps = last[group]
            near = (max_rows is None or steps + 1 <= max_rows) and (max_minutes is None or minute - since <= max_minutes)
            assert found[row] == (known if near else None)
            last[group] = (known, since, steps + 1)
        else:
            assert found[row] == value
            if value is not None:
                last[group] = (value, minute, 0)


@pytest.fixture(scope="module")
def raw_flights(tmp_path_factory):
    """The five tables as ingest writes them."""
    if not (ROOT / "data" / "weather.csv").exists():
        pytest.skip("the tables are not here: prodml data fetch")
    folder, data = tmp_path_factory.mktemp("raw"), compose()["data"]
    ingest(ROOT / data["folder"], data["tables"], folder / "ingest", data["null_values"], data["main"], 1.0)
    return folder, data


def test_the_local_clock_gives_back_every_hour_of_the_weather(raw_flights):
    """A feed whose UTC time is lost, or is local time by mistake, is mended to the same 26,115 moments, the doubled hours of November among them."""
    weather = read_tables(raw_flights[0] / "ingest")["weather"]
    rule = next(rule for rule in raw_flights[1]["repairs"] if rule["repair"] == "rekey")
    true = weather.order_by("source_row").time_hour.to_pyarrow().to_pylist()
    wrong = weather.mutate(time_hour=weather.time_hour - ibis.interval(hours=5))
    assert CELL_REPAIRS["rekey"](wrong, rule).order_by("source_row").time_hour.to_pyarrow().to_pylist() == true
    doubled = weather.filter((weather.month == 11) & (weather.day == 3) & (weather.hour == 1))
    assert doubled.count().to_pyarrow().as_py() == 6 and datetime.datetime(2013, 11, 3, 6) in true


def test_validation_finds_the_missing_day_and_the_change_of_clock(raw_flights):
    folder, data = raw_flights
    report = {item["name"]: item for item in count_breaks(data["rules"], read_tables(folder / "ingest"))}
    days = report["a day of weather is whole"]
    assert days["severity"] == "warning" and [(item["partition"][:10], item["rows"]) for item in days["examples"][:3]] == [("2013-12-31", 0)] * 3
    assert report["weather is as new as the flights"]["examples"][0]["age_minutes"] == 29 * 60
    assert report["local weather hour is unique"]["rows"] == 3 and report["weather hour is unique"]["rows"] == 0
    assert not [item["name"] for item in report.values() if item["severity"] == "error" and item["rows"]]
    assert report["midnight is 0"]["rows"] == 29 and all(row["dep_time"] == 2400 for row in report["midnight is 0"]["examples"])


def test_rejected_rows_are_written_with_every_reason(tmp_path):
    """Rows of two tables, one of them for two reasons; a repeat is set aside and its first stays."""
    (tmp_path / "in").mkdir()
    pq.write_table(people(), tmp_path / "in" / "people.parquet")
    pq.write_table(pa.table({"source_row": [1, 2, 3], "town": ["Ulm", "Ulm", "Bonn"]}), tmp_path / "in" / "towns.parquet")
    rules = [
        {"name": "not old", "table": "people", "rule": "range", "columns": ["age"], "max": 78, "severity": "error", "max_rejected_fraction": 0.5},
        {"name": "with heat", "table": "people", "rule": "not_null", "columns": ["heat"], "severity": "error", "max_rejected_fraction": 0.5},
        {"name": "one town", "table": "towns", "rule": "unique", "columns": ["town"], "severity": "error", "max_rejected_fraction": 0.5},
    ]
    report = validate(tmp_path / "in", tmp_path / "out", tmp_path / "aside", rules, "people", {"column": "age", "at_least": 40})
    rejected = pq.read_table(tmp_path / "out" / "rejected" / "rows.parquet").to_pandas()
    raw = people().to_pandas()
    assert rejected[rejected.table == "people"].source_row.tolist() == raw[(raw.age > 78) | raw.heat.isna()].source_row.tolist()
    assert rejected[rejected.table == "towns"].source_row.tolist() == [2] and rejected.iloc[-1].reasons == "one town: town is 'Ulm'"
    twice = rejected[rejected.rules == "not old; with heat"]
    assert len(twice) and all("heat is missing" in reasons and "not old: age is " in reasons for reasons in twice.reasons)
    assert [item["rows"] for item in report["rules"]] == [int((raw.age > 78).sum()), int(raw.heat.isna().sum()), 1]
    with pytest.raises(InputError, match="'with heat'"):
        validate(tmp_path / "in", tmp_path / "out2", tmp_path / "aside", [rules[0], {**rules[1], "max_rejected_fraction": 0.0}], "people", {"column": "age", "at_least": 40})
    assert pq.read_metadata(tmp_path / "aside" / "rejected.parquet").num_rows == len(rejected) - 1 and not (tmp_path / "out2").exists()


@pytest.mark.parametrize("number", ["0", "-1", "99999999", str(10**30)])
def test_a_row_number_that_is_not_there_is_answered_with_those_that_are(number):
    table = ibis.memtable(pa.table({"source_row": [1, 2, 4], "wind": [1.0, 2.0, 3.0]}))
    with pytest.raises(InputError, match=f"there is no row {number} in weather: rows go from 1 to 4"):
        find_row(table, "weather", [number])
    with pytest.raises(InputError, match="no row with source_row=3"):
        find_row(table, "weather", ["3"])
