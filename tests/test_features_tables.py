"""Features of any table: whole numbers, flags, times, row numbers, and names that the tables of features use themselves."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prodml.bundle.encode import RESERVED, encode
from prodml.core.errors import InputError
from prodml.core.files import read_json
from prodml.data.drift import drift_report, read_splits
from prodml.data.features import make_features
from prodml.data.rowwise import serving_document
from prodml.data.validate import read_tables
from prodml.stats.profile import cells_of, drift_lines, tallied, with_alarms

FEATURES = {"module": None, "options": {}, "kinds": {}, "slice_rows": 50_000, "max_categories": 1000, "min_category_rows": 5, "imputation": []}
SPLIT = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}


def made(folder, columns, split=SPLIT, roles=None, features=FEATURES):
    """The report of the features of a table of 600 rows."""
    rng = np.random.default_rng(0)
    table = pa.table({"source_row": range(1, 601), "x": rng.normal(size=600), **columns, "y": rng.choice(["yes", "no"], 600)})
    (folder / "clean").mkdir()
    pq.write_table(table, folder / "clean" / "t.parquet")
    return make_features(folder / "clean", folder / "features", "t", {"column": "y", "positive": "yes"}, features, split, roles or {}), table


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


def made_of_reserved(folder, **settings):
    """The report of the features of a table with a column of each reserved name, in two spellings of one."""
    columns = {name: [n * 7 % 11 for n in range(600)] for name in (*RESERVED[1:], "Key")}
    return made(folder, columns, features={**FEATURES, **settings}, roles={"split": "identifier"})[0]["kinds"]


def test_a_column_may_have_a_name_that_the_tables_of_features_use(tmp_path):
    rule = {"name": "typical", "columns": ["label"], "method": "median"}
    kinds = made_of_reserved(tmp_path, kinds={"month": "category"}, imputation=[rule])
    assert {name: kind for name, (kind, _) in kinds.items()} == {"x": "number", **dict.fromkeys(["label_", "split_by_", "block_", "Key_"], "number"), "month_": "category", "split_": "drop"}
    assert kinds["block_"][1] == "numbers; the column block, a name that the table of features uses" and "roles" in kinds["split_"][1]
    test = pq.read_table(tmp_path / "features" / "test.parquet")
    assert set(test["month"].to_pylist()) == {""} and set(test["month_"].to_pylist()) == {str(n) for n in range(11)} and set(test["label"].to_pylist()) == {0, 1}
    assert test["Key_"].to_pylist() == [(key - 1) * 7 % 11 for key in test["key"].to_pylist()]


def test_a_request_keeps_the_name_of_its_column(tmp_path):
    made_of_reserved(tmp_path)
    data = {"main": "t", "repairs": [], "features": FEATURES, "target": {"column": "y"}, "split": SPLIT}
    types = {name: "int" for name in ("x", *RESERVED[1:], "Key")}
    document = serving_document(read_tables(tmp_path / "clean"), data, read_json(tmp_path / "features" / "encoding.json"), types)
    steps = {name: document["steps"][place] for name, place in document["outputs"].items()}
    assert {name: step["name"] for name, step in steps.items()} == {"x": "x", "label_": "label", "split_by_": "split_by", "block_": "block", "month_": "month", "Key_": "Key"}


def test_drift_knows_a_role_by_the_name_of_the_column(tmp_path):
    made_of_reserved(tmp_path)
    table = read_splits(tmp_path / "features", ["train", "validation", "test"])
    settings = {"rows": 100, "mmd_rows": 50, "permutations": 20, "classifier": {"rounds": 2, "leaf_share": 0.1, "trees": {}}}
    floors = {"distribution": 0.1, "missing": 0.02, "unlisted": 0.01, "classifier": 0.6}
    cells = drift_report(table, "train", {"month": "calendar"}, {"bins": 10, "max_values": 100, "least_rows": 5}, 0.01, floors, settings, 0)[1]
    assert {cell.name: cell.role for cell in cells}["month_"] == "calendar"


def test_rows_stay_together_by_a_column_of_such_a_name(tmp_path):
    report, table = made(tmp_path, {"block": [n % 50 for n in range(600)]}, split={**SPLIT, "column": "block"})
    assert "block_" not in report["kinds"]
    block = dict(zip(table["source_row"].to_pylist(), table["block"].to_pylist()))
    parts = [{block[key] for key in pq.read_table(tmp_path / "features" / f"{name}.parquet")["key"].to_pylist()} for name in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize("columns", [{"month": range(600), "month_": range(600)}, {"at": pa.array(range(600), pa.timestamp("s")), "at_hour": range(600)}])
def test_two_columns_that_become_one_feature_are_both_named(tmp_path, columns):
    with pytest.raises(InputError, match=f"the columns {' and '.join(columns)} both become the feature"):
        made(tmp_path, columns)


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


def test_a_file_is_read_a_few_times_however_many_columns_it_has(tmp_path, monkeypatch):
    """Each read of a Parquet file costs as much as the file has columns: one for each column grows with the square."""
    reads, original = [], {name: getattr(pq.ParquetFile, name) for name in ("read", "read_row_group")}
    for name, method in original.items():
        monkeypatch.setattr(pq.ParquetFile, name, lambda *given, method=method, **more: reads.append(1) or method(*given, **more))
    draw = np.random.default_rng(1)
    report, _ = made(tmp_path, {f"c{n}": draw.normal(size=600) for n in range(150)})
    assert len(report["kinds"]) == 151 and len(reads) < 20


def test_a_number_whose_name_only_ends_in_id_is_kept(tmp_path):
    assert made(tmp_path, {"paid": np.random.default_rng(1).permutation(10_000)[:600]})[0]["kinds"]["paid"][0] == "number"


def test_a_role_of_no_column_is_refused(tmp_path):
    with pytest.raises(InputError, match="roles of conf/data, column twon.*'town'"):
        made(tmp_path, {"town": list("abc") * 200}, roles={"twon": "calendar"})
