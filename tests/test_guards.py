"""A bad value meets the same rule and remedy in `Bundle.predict`, in `prodml score` and in the server's JSON."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prodml.bundle.bundle import open_bundle
from prodml.core.errors import InputError
from prodml.serve.models import Served
from prodml.serve.problems import Problem, told_of
from prodml.serve.rows import Columns, prepare_columns, prepare_rows, read_json
from prodml.serve.score import Doubt, Part, score_part

GOOD = {"delay": 0.4, "wind": 1.0, "carrier": "UA"}
# A change of the good row, and the rules that it breaks.
BAD = {
    "infinite": ({"wind": math.inf}, ["number is finite"]), "minus infinite": ({"wind": -math.inf}, ["number is finite"]), "beyond 32 bits": ({"wind": 1e308}, ["number is finite"]),
    "out of range": ({"delay": 11.0}, ["delay is possible"]), "out of range and 32 bits": ({"delay": 1e308}, ["delay is possible", "number is finite"]),
    "truth value": ({"delay": True}, ["type of delay"]), "text": ({"wind": "calm"}, ["type of wind"]), "number as text": ({"wind": "1"}, ["type of wind"]),
    "number as category": ({"carrier": 5}, ["type of carrier"]), "missing": ({"delay": None}, ["delay is known"]), "two": ({"delay": None, "carrier": 5.5}, ["delay is known", "type of carrier"]),
}
# What only some of the three can be given.
NESTED = {"list": ({"delay": [1]}, ["type of delay"]), "object": ({"carrier": {"a": 1}}, ["type of carrier"]), "beyond 64 bits": ({"wind": 2**70}, ["type of wind"])}
NOT_IN_PARQUET = ("beyond 64 bits",)
NONE_IN_JSON = {"not a number": ({"delay": math.nan}, ["delay is known"])}


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return open_bundle(small_bundle, unsigned=True)


@pytest.fixture(scope="module")
def served(bundle):
    return Served(bundle, "1")


def columns_of(*rows: dict) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def errors(problems: list[dict]) -> list[tuple]:
    """Row, column, rule and remedy of what refuses, in one order."""
    return sorted((one["row"] or 0, one["column"], one["rule"], one["remedy"]) for one in problems if one["severity"] == "error")


def refused_by_server(call) -> list[tuple]:
    with pytest.raises(Problem) as caught:
        call()
    assert caught.value.status == 422
    return errors(caught.value.errors)


def scored(served, columns: dict[str, list], tmp_path) -> list[tuple]:
    """What `prodml score` writes beside the result, from a Parquet file, or from lists where no file has such cells."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "rows.parquet")
    part = Part(0, np.arange(1, len(table) + 1), pq.read_table(tmp_path / "rows.parquet"), [])
    rejected = score_part(served, Doubt(served.check), part, "parquet", [], 0)[1].to_pylist()
    return errors([{**line, "severity": "error"} for line in rejected])


@pytest.mark.parametrize("name", [*BAD, *NESTED, *NONE_IN_JSON])
def test_a_bad_value_meets_one_sentence(name, bundle, served, tmp_path):
    change, rules = {**BAD, **NESTED, **NONE_IN_JSON}[name]
    rows = [GOOD, GOOD | change]
    columns = columns_of(*rows)
    found = errors(told_of(bundle.check(columns)))
    assert sorted(rule for *_, rule, _ in found) == sorted(rules) and {row for row, *_ in found} == {2}
    with pytest.raises(InputError) as caught:
        bundle.predict(columns)
    assert caught.value.row == 2 and (caught.value.row, caught.value.column, caught.value.remedy) in {(row, column, remedy) for row, column, _, remedy in found}
    assert any(repr(rule) in caught.value.problem for rule in rules)
    assert refused_by_server(lambda: prepare_rows(served, rows, False, 0)) == found
    assert refused_by_server(lambda: prepare_columns(served, Columns(columns, 2), False, 0)) == found
    if all(not isinstance(value, float) or math.isfinite(value) for value in change.values()):
        body = json.dumps(rows).encode()
        assert refused_by_server(lambda: prepare_rows(served, read_json(body), False, 0)) == found
    if name not in NOT_IN_PARQUET:
        alone = [entry[1:] for entry in found]
        assert [entry[1:] for entry in scored(served, columns_of(GOOD | change), tmp_path)] == alone


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_column_meets_one_sentence(name, bundle, served):
    columns = {column: [value] for column, value in GOOD.items() if column != name}
    found = errors(told_of(bundle.check(columns)))
    assert found == [(0, name, f"{name} is there", "Send the column; a missing value is null, not a missing column.")]
    with pytest.raises(InputError, match=f"column {name}: the rule '{name} is there' is broken. Send the column"):
        bundle.predict(columns)
    assert refused_by_server(lambda: prepare_columns(served, Columns(columns, 1), False, 0)) == found
    assert [entry[1:] for entry in refused_by_server(lambda: prepare_rows(served, [{key: value[0] for key, value in columns.items()}], False, 0))] == [entry[1:] for entry in found]


def test_columns_of_different_lengths_meet_one_sentence(bundle, served):
    columns = {"delay": [0.4], "wind": [1.0, 2.0], "carrier": ["UA"]}
    with pytest.raises(InputError) as caught:
        bundle.predict(columns)
    with pytest.raises(Problem) as refused:
        prepare_columns(served, Columns(columns, 2), False, 0)
    assert str(caught.value).endswith(caught.value.remedy) and caught.value.problem[1:] in refused.value.detail and caught.value.remedy in refused.value.detail


def test_what_is_no_set_of_columns_is_named(bundle):
    for wrong in ([GOOD], "delay", 5, None, np.zeros((2, 3))):
        with pytest.raises(InputError, match="not columns by name"):
            bundle.predict(wrong)
    for values in (0.4, "x", {"a": 1}, np.zeros((1, 1))):
        with pytest.raises(InputError, match="a list with one value for each row"):
            bundle.predict({**columns_of(GOOD), "delay": values})


def test_good_rows_are_answered_in_every_form(bundle, served):
    """An unknown column is ignored everywhere; a category never seen is a warning; numpy, pandas and Arrow are columns as lists are."""
    rows = [GOOD, {"delay": -3.0, "wind": None, "carrier": "ZZ"}, {"delay": 2, "wind": 0.5, "carrier": None}]
    columns = columns_of(*rows)
    expected = bundle.predict(columns)
    frame = pd.DataFrame(columns)
    forms = [
        {**columns, "more": [1]}, frame, frame.convert_dtypes(), frame.assign(carrier=frame["carrier"].astype("category")), pa.table(columns),
        pa.table({**columns, "carrier": pa.array(columns["carrier"]).dictionary_encode()}), {name: tuple(values) for name, values in columns.items()},
        {"delay": np.array([0.4, -3.0, 2.0]), "wind": np.array([1.0, np.nan, 0.5]), "carrier": np.array(["UA", "ZZ", None], object)},
        np.array([(0.4, 1.0, "UA"), (-3.0, np.nan, "ZZ"), (2.0, 0.5, "")], [("delay", "f8"), ("wind", "f8"), ("carrier", "U2")]),
    ]
    for form in forms:
        assert np.array_equal(bundle.predict(form), expected)
    assert np.array_equal(served.predict(*served.features(columns, 0)[:2]), expected)
    assert [(one.rule, one.row) for one in bundle.check(columns)] == [("carrier is known to us", 2)]
    prepared = prepare_rows(served, [row | {"more": 1} for row in rows], False, 0)
    assert np.array_equal(served.predict(prepared.numbers, prepared.codes), expected)


def test_a_row_is_explained_with_the_same_bits_in_any_company(small_bundle):
    """Or an explanation that was recorded could not be had again."""
    bundle, draw = open_bundle(small_bundle, unsigned=True), np.random.default_rng(0)
    numbers = draw.normal(size=(64, len(bundle.encoding["numeric"]))).astype(np.float32)
    codes = draw.integers(0, 3, (64, len(bundle.encoding["categorical"])))
    together = bundle.explainer(numbers, codes)
    for row in range(64):
        alone = bundle.explainer(numbers[row : row + 1], codes[row : row + 1])
        assert alone.shares.tobytes() == together.shares[row].tobytes() and alone.logits[0] == together.logits[row]
        assert alone.errors.tobytes() == together.errors[row].tobytes()


def test_a_row_alone_is_encoded_as_among_others(bundle):
    draw = np.random.default_rng(0)
    rows = [
        {
            "delay": draw.choice([0, 1, 0.25, -0.0, 1e-30]).item(),
            "wind": [None, 1, 2.5, math.nan][draw.integers(4)],
            "carrier": [None, "UA", "?", "AA"][draw.integers(4)],
        }
        for _ in range(200)
    ]
    numbers, codes = bundle.encoded(columns_of(*rows))
    for place, row in enumerate(rows):
        own = bundle.encoded(columns_of(row))
        assert own[0].tobytes() == numbers[place].tobytes() and own[1].tobytes() == codes[place].tobytes(), row
        arrays = {name: np.array([value], dtype=object) for name, value in row.items()}
        assert bundle.encoded(arrays)[0].tobytes() == own[0].tobytes()
