"""A contract has one meaning: the ground floor's checker, the Ibis expression and pandera agree on every row."""

import datetime
import json
import math

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from conftest import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandera.errors import SchemaErrors

from prodml.bundle.contract import OPERATORS, RowChecker, check_rule, row_contract
from prodml.core.errors import InputError
from prodml.data.clean import CELL_REPAIRS, apply_repairs
from prodml.data.contract import breaks, check_rules, pandera_schema, type_breaks
from prodml.data.validate import count_breaks, missing_by_month, split_rejected

# Two columns of each type, so that any two can be compared; `whole` holds floats where the contract says int.
TYPES = {"i": "int", "j": "int", "f": "float", "g": "float", "s": "text", "t": "text", "at": "time", "by": "time"}
NUMBERS = [0, 1, -1, 5, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]
FLOATS = [0.0, -0.0, 0.1, 0.30000000000000004, 1.0, -2.5, 5.0, 1e300, 2.0**53, math.inf, -math.inf, math.nan]
TEXTS = ["", "a", "A1", "aa", "b\n", " a", "é", "éa", "٣", "ſ", "N123", "日本", "\t", "a\x0b", "NULL"]
TIMES = [datetime.datetime(2013, 1, 1), datetime.datetime(2013, 3, 10, 7), datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999), datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)]
VALUES = {
    "int": st.sampled_from(NUMBERS) | st.integers(-(2**63), 2**63 - 1),
    "float": st.sampled_from(FLOATS) | st.floats(allow_nan=True, allow_infinity=True),
    "text": st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
    "time": st.sampled_from(TIMES) | st.datetimes(),
}
ARROW = {"int": pa.int64(), "float": pa.float64(), "text": pa.string(), "time": pa.timestamp("us")}
PIECES = ["a", "A", "é", "日", r"\d", r"\w", r"\D", r"\W", ".", "[a-z]", "[^a]", "[é-ü]", r"\.", r"[\d_]", r"\n", " ", "N"]
TIMES_OVER = ["", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"]


@st.composite
def patterns(draw) -> str:
    """A pattern of the common subset."""
    parts = ["".join(draw(st.sampled_from(PIECES)) + draw(st.sampled_from(TIMES_OVER)) for _ in range(draw(st.integers(1, 3)))) for _ in range(draw(st.integers(1, 2)))]
    body = "|".join(parts)
    return draw(st.sampled_from(["{}", "^{}$", "(?:{})+", "({})?a"])).format(body)


def bound(draw, kind: str):
    """A value as a contract can write it down: no NaN, and a time as text."""
    if kind == "time":
        return draw(VALUES["time"]).isoformat()
    if kind in ("int", "float"):
        return draw((VALUES["int"] | VALUES["float"]).filter(lambda value: value == value))
    return draw(VALUES["text"])


@st.composite
def rules(draw) -> dict:
    """A rule of rows on these columns."""
    kind = draw(st.sampled_from(["not_null", "range", "allowed", "pattern", "compare"]))
    of = "text" if kind == "pattern" else draw(st.sampled_from(["int", "float", "time", "text"]))
    names = [name for name in TYPES if TYPES[name] == of]
    rule = {"table": "rows", "rule": kind, "columns": draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)), "severity": "error"}
    match kind:
        case "range":
            sides = draw(st.sampled_from([["min"], ["max"], ["min", "max"]]))
            return rule | {side: bound(draw, of) for side in sides}
        case "allowed":
            return rule | {"values": [bound(draw, of) for _ in range(draw(st.integers(1, 4)))]}
        case "pattern":
            return rule | {"pattern": draw(patterns())}
        case "compare":
            pool = [name for name in TYPES if TYPES[name] in ("int", "float")] if of in ("int", "float") else names
            rule |= {"columns": [draw(st.sampled_from(pool)), draw(st.sampled_from(pool))], "op": draw(st.sampled_from(sorted(OPERATORS)))}
            offsets = {"text": st.just(0), "time": st.integers(-10_000, 10_000) | st.sampled_from([0.5, -1.25])}.get(of, st.integers(-10, 10) | st.floats(-1e6, 1e6))
            return rule | {"offset": draw(offsets)}
    return rule


@st.composite
def tables(draw) -> dict[str, list]:
    """Columns of one to six rows, with holes."""
    rows = draw(st.integers(1, 6))
    return {name: [draw(st.none() | VALUES[kind]) for _ in range(rows)] for name, kind in TYPES.items()}


def as_table(columns: dict[str, list]) -> ibis.Table:
    rows = len(columns["i"])
    arrays = {name: pa.array(columns[name], ARROW[kind], from_pandas=False) for name, kind in TYPES.items()}
    return ibis.memtable(pa.table({"source_row": pa.array(range(1, rows + 1)), **arrays}))


def by_the_checker(rules: list[dict], columns: dict[str, list]) -> dict[str, set[int]]:
    contract = row_contract("rows", TYPES, rules, "no target")
    found = {rule["name"]: set() for rule in rules}
    for verdict in RowChecker(contract)(columns):
        found[verdict.rule].add(verdict.row)
    return found


def by_ibis(rules: list[dict], table: ibis.Table) -> dict[str, set[int]]:
    flagged = table.select("source_row", **{rule["name"]: breaks(rule, {"rows": table}) for rule in rules}).to_pyarrow().to_pylist()
    return {rule["name"]: {row["source_row"] for row in flagged if row[rule["name"]]} for rule in rules}


def by_pandera(rules: list[dict], table: ibis.Table) -> dict[str, set[int]]:
    found = {rule["name"]: set() for rule in rules}
    try:
        pandera_schema("rows", TYPES, rules, {"rows": table}, examples=None).validate(table, lazy=True)
    except SchemaErrors as errors:
        for error in errors.schema_errors:
            found[error.check.name] = {case["source_row"] for case in error.failure_cases.failure_case}
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(columns=tables(), made=st.lists(rules(), min_size=1, max_size=5))
def test_three_readers_give_one_verdict(columns, made):
    named = [rule | {"name": f"rule {number}"} for number, rule in enumerate(made)]
    table = as_table(columns)
    check_rules(named, {"rows": table})
    expected = by_ibis(named, table)
    assert by_the_checker(named, columns) == expected
    assert by_pandera(named, table) == expected


@settings(max_examples=60, deadline=None)
@given(columns=tables(), made=rules())
def test_numpy_columns_get_the_verdict_of_lists(columns, made):
    named = [made | {"name": "rule"}]
    arrays = {name: np.array(values, dtype=object) for name, values in columns.items()}
    floats = [math.nan if value is None else value for value in columns["f"]]
    arrays |= {"f": np.array(floats), "at": np.array([np.datetime64("NaT") if value is None else np.datetime64(value) for value in columns["at"]], "datetime64[us]")}
    assert by_the_checker(named, arrays) == by_the_checker(named, columns)
    as_text = columns | {name: [value and value.isoformat() for value in columns[name]] for name in ("at", "by")}
    assert by_the_checker(named, as_text) == by_the_checker(named, columns)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.none() | VALUES["float"] | st.integers(-100, 100).map(float), min_size=1), texts=st.lists(st.none() | VALUES["text"] | st.dates().map(str) | st.datetimes().map(str), min_size=1))
def test_a_value_of_another_type_is_found_by_both(values, texts):
    whole = ibis.memtable(pa.table({"a": pa.array(values, pa.float64(), from_pandas=False)}))
    check = RowChecker({"types": {"a": "int"}, "rules": []})
    assert [verdict.row for verdict in check({"a": values})] == [row for row, wrong in enumerate(type_breaks(whole.a, "int").to_pyarrow().to_pylist(), start=1) if wrong]
    words = ibis.memtable(pa.table({"a": pa.array(texts, pa.string())}))
    check = RowChecker({"types": {"a": "time"}, "rules": []})
    assert [verdict.row for verdict in check({"a": texts})] == [row for row, wrong in enumerate(type_breaks(words.a, "time").to_pyarrow().to_pylist(), start=1) if wrong]


def test_floats_where_whole_numbers_are_declared():
    """5.0 is 5, and 5.5 breaks its type and is still compared."""
    rule = {"name": "small", "table": "rows", "rule": "range", "columns": ["i"], "min": 0, "max": 5, "severity": "error"}
    values = [5.0, 5.5, 6.0, math.nan, None, math.inf]
    check = RowChecker(row_contract("rows", {"i": "int"}, [rule], "no target"))
    table = ibis.memtable(pa.table({"i": pa.array(values, pa.float64(), from_pandas=False)}))
    found = check({"i": values})
    assert [verdict.row for verdict in found if verdict.kind == "range"] == [row for row, wrong in enumerate(breaks(rule, {"rows": table}).to_pyarrow().to_pylist(), start=1) if wrong] == [2, 3, 6]
    assert [verdict.row for verdict in found if verdict.kind == "type"] == [2, 6]


def test_a_strange_request_gets_verdicts():
    check = RowChecker({"types": {"i": "int", "s": "text", "at": "time"}, "rules": [{"name": "known", "rule": "not_null", "columns": ["i", "s", "at"], "severity": "error"}]})
    found = check({"i": [True, [1], "1", 10**400], "s": [1, {}, None, b"x"]})
    assert ("column", "at") in {(verdict.kind, verdict.column) for verdict in found}
    assert sorted((verdict.row, verdict.column) for verdict in found if verdict.kind == "type") == [(1, "i"), (1, "s"), (2, "i"), (2, "s"), (3, "i"), (4, "i"), (4, "s")]
    assert [(verdict.row, verdict.column) for verdict in found if verdict.kind == "not_null"] == [(3, "s")]
    assert all(verdict.remedy for verdict in found) and check({"i": [], "s": [], "at": []}) == []


@pytest.mark.parametrize("change, sentence", [
    ({"min": "0"}, "sets '0' beside the int column"), ({"min": True}, "sets True"), ({"min": float("nan")}, "sets nan"), ({"rule": "regex"}, "of the kind 'regex'"),
    ({"maximum": 3}, "the key 'maximum'"), ({"rule": "pattern", "pattern": "(?i)a", "min": None}, "has the key 'min'"), ({"columns": []}, "has the columns []"), ({"severity": "fatal"}, "severity 'fatal'"),
])
def test_a_slip_in_a_rule_is_refused(change, sentence):
    rule = {"name": "r", "table": "rows", "rule": "range", "columns": ["i"], "min": 0, "severity": "error"} | change
    with pytest.raises(InputError, match=sentence.replace("[", r"\[").replace("]", r"\]")):
        check_rule(rule, {"i": "int"})


def test_the_flights_contract_travels_as_json(root):
    """What the bundle holds is the declared contract without what is not known when a prediction is asked for."""
    conf = yaml.safe_load((root / "conf" / "data" / "flights.yaml").read_text())
    types = conf["tables"]["flights"]["columns"]
    contract = json.loads(json.dumps(row_contract("flights", types, conf["rules"], conf["target"]["column"], conf["request"])))
    assert not {"arr_delay", "dep_delay", "dep_time", "air_time"} & set(contract["types"])
    good = {"year": 2013, "month": 1, "day": 1, "carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "distance": 1400, "hour": 5, "minute": 15, "time_hour": "2013-01-01T10:00:00Z", "sched_arr_time": 819}
    check = RowChecker(contract)
    assert check({name: [value] for name, value in good.items()}) == []
    assert [(verdict.column, verdict.severity) for verdict in check({name: [value] for name, value in (good | {"origin": "BOS", "hour": 24}).items()})] == [("origin", "error"), ("hour", "error")]


def test_rules_on_many_columns_and_values(tmp_path):
    names = [f"c{place}" for place in range(800)]
    tables = {"t": ibis.memtable(pa.table({"source_row": [1, 2, 3], **{name: [0, 1, None if name == names[-1] else 1] for name in names}}))}
    rules = [{"name": "known", "rule": "not_null", "columns": names}, {"name": "listed", "rule": "allowed", "columns": names[:1], "values": list(range(1, 1200))}]
    rules += [{"name": name, "rule": "range", "columns": [name], "min": 1} for name in names[:60]] # several queries
    rules = [{"table": "t", "severity": "error", **rule} for rule in rules]
    found = count_breaks(rules, tables)
    assert [(line["name"], line["rows"], line["first_rows"]) for line in found] == [("known", 1, [3]), ("listed", 1, [1]), *((name, 1, [1]) for name in names[:60])]
    kept, rejected = split_rejected(rules, tables, found)
    assert kept["t"].source_row.to_pyarrow().to_pylist() == [2]


def named_like_ours():
    """A table whose columns have the names that work columns of a stage might have."""
    at = [datetime.datetime(2013, month, 1) for month in (1, 1, 2)]
    columns = {"at": at, "month": [1.0, 1, 2], "month_": ["a", None, "b"], "share_0": [None, None, 5.0], "broken_0": ["x", "y", "z"], "local_": [7, 8, 9], "nth_": [1, 2, 3], "holes_": [9, 1, 1]}
    return pa.table({"source_row": [1, 2, 3], **columns})


def test_a_column_may_have_the_name_of_a_work_column(tmp_path):
    tables = {"t": ibis.memtable(named_like_ours())}
    assert missing_by_month(tables["t"]) == {"2013-01": {**dict.fromkeys(tables["t"].columns[1:], 0.0), "month_": 0.5, "share_0": 1.0}, "2013-02": dict.fromkeys(tables["t"].columns[1:], 0.0)}
    rule = {"table": "t", "name": "first", "rule": "range", "columns": ["month"], "max": 1, "severity": "error"}
    kept, rejected = split_rejected([rule], tables, count_breaks([rule], tables))
    assert kept["t"].order_by("source_row").to_pyarrow().equals(named_like_ours()[:2])
    assert json.loads(rejected[0].to_pyarrow()["row"][0].as_py())["broken_0"] == "z"
    rekey = {"table": "t", "name": "utc", "repair": "rekey", "columns": ["utc"], "local": ["at"], "timezone": "America/New_York"}
    repaired = CELL_REPAIRS["rekey"](tables["t"], rekey).order_by("source_row").to_pyarrow()
    assert repaired.drop_columns("utc").equals(named_like_ours())


@pytest.mark.slow
def test_the_most_complete_row_of_a_key_is_found_among_very_many_columns():
    columns = {f"c{place}": [None if place else 1.0, 2.0] for place in range(1500)}
    tables = {"t": ibis.memtable(pa.table({"source_row": [1, 2], "key": ["a", "a"], **columns}))}
    rule = {"table": "t", "name": "one", "repair": "deduplicate", "columns": ["key"], "keep": "most complete"}
    assert apply_repairs(tables, [rule])["t"].result().source_row.to_pyarrow().to_pylist() == [2]
