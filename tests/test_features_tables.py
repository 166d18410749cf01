"""Features of any table: whole numbers, flags, times, row numbers, and reserved names."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prodml.bundle.encode import encode
from prodml.core.errors import InputError
from prodml.core.files import read_json
from prodml.data.features import RESERVED, make_features
from prodml.stats.profile import cells_of, drift_lines, tallied, with_alarms

FEATURES = {"module": None, "options": {}, "kinds": {}, "slice_rows": 50_000, "max_categories": 1000, "min_category_rows": 5, "imputation": []}
SPLIT = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}


def made(folder, columns, split=SPLIT, roles=None):
    """The report of the features of a table of 600 rows."""
    rng = np.random.default_rng(0)
    table = pa.table({"source_row": range(1, 601), "x": rng.normal(size=600), **columns, "y": rng.choice(["yes", "no"], 600)})
    (folder / "clean").mkdir()
    pq.write_table(table, folder / "clean" / "t.parquet")
    return make_features(folder / "clean", folder / "features", "t", {"column": "y", "positive": "yes"}, FEATURES, split, roles or {}), table


@pytest.mark.parametrize("base", [2**24, 20_210_524, -(2**40), 2**53, 2**62])
def test_any_whole_number_is_the_same_feature_in_training_and_serving(tmp_path, base):
    report, table = made(tmp_path, {"n": [base + 7 * (n % 50) for n in range(600)]})
    assert report["kinds"]["n"][0] == "number"
    train = pq.read_table(tmp_path / "features" / "train.parquet")
    keys = train["key"].to_numpy() - 1
    rows = {name: table[name].to_pylist() for name in ("n", "x")}
    served = encode({name: [values[key] for key in keys] for name, values in rows.items()}, read_json(tmp_path / "features" / "encoding.json"))[0]
    names = [column["name"] for column in read_json(tmp_path / "features" / "encoding.json")["numeric"]]
    assert np.array_equal(served[:, names.index("n")], train["n"].to_numpy())


def test_each_column_has_its_kind_and_reason(tmp_path):
    columns = {"flag": [["Y", None][n % 2] for n in range(600)], "rowno": range(600), "user": [f"u{n}" for n in range(600)], "town": list("abc") * 200}
    kinds = made(tmp_path, columns, roles={"town": "identifier"})[0]["kinds"]
    assert {name: kind for name, (kind, _) in kinds.items()} == {"x": "number", "flag": "category", "rowno": "drop", "user": "drop", "town": "drop"}
    assert "row number" in kinds["rowno"][1] and "roles" in kinds["town"][1]


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match="the name is taken") as error:
        made(tmp_path, {name: range(600)})
    assert error.value.column == name


def test_alike_samples_raise_few_alarms_and_a_shift_raises_one():
    rng, alarms, floors = np.random.default_rng(1), 0, {"distribution": 0.1, "missing": 0.02, "unlisted": 0.01}
    for _ in range(60):
        one, two = ({str(n): rng.lognormal(size=rows) for n in range(8)} for rows in (1750, 375))
        cells = cells_of(one)
        lines = with_alarms(drift_lines(cells, tallied(cells, one), tallied(cells, two), ["test"]), 0.01, floors)
        alarms += any(line["alarms"] for line in lines)
    assert alarms <= 3
    moved = {**two, "0": two["0"] + 1000.0}
    assert [alarm["check"] for alarm in with_alarms(drift_lines(cells, tallied(cells, one), tallied(cells, moved), ["test"]), 0.01, floors)[0]["alarms"]] == ["distribution", "unlisted"]
