"""Each kind of bad input stops at the stage that should notice, and the sentence says where, what and what to do."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from prodml.core.errors import InputError
from prodml.data.clean import clean
from prodml.data.features import make_features
from prodml.data.ingest import ingest
from prodml.data.validate import validate

TABLES = {"people": {"file": "people.csv", "columns": {"age": "float", "paid": "text"}}, "towns": {"file": "towns.csv"}}
RULES = [
    {"name": "age is possible", "table": "people", "rule": "range", "columns": ["age"], "min": 0, "max": 120, "severity": "error", "max_rejected_fraction": 0.05},
    {"name": "town is known", "table": "people", "rule": "reference", "columns": ["town"], "to": "towns.town", "severity": "warning"},
]
TARGET = {"column": "paid", "positive": "yes"}
FEATURES = {"module": None, "options": {}, "kinds": {}, "max_categories": 20, "min_category_rows": 1}
SPLIT = {"by": "time", "column": "since", "validation_from": "2020-03-01", "test_from": "2020-04-01"}


def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "age": rng.integers(18, 90, 200), "town": rng.choice(["Ulm", "Bonn", "Köln"], 200), "since": pd.date_range("2020-01-01", periods=200, freq="15h").strftime("%Y-%m-%dT%H:%M:%S"),
        "paid": rng.choice(["yes", "no"], 200),
    })


def run_data_floor(folder: Path, people: pd.DataFrame | None, tables=TABLES, rules=RULES, target=TARGET, features=FEATURES, split=SPLIT) -> dict:
    """Ingest, validate, clean and features on a folder of raw files."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    if people is not None:
        people.to_csv(raw / "people.csv", index=False)
    (raw / "towns.csv").write_text("town\nUlm\nBonn\nKöln\n")
    ingest(raw, tables, folder / "ingest", ["", "NA"], "people", 1.0)
    validate(folder / "ingest", folder / "validate", folder / "rejected", rules, "people", target)
    clean(folder / "validate", folder / "clean", [])
    return make_features(folder / "clean", folder / "features", "people", target, features, split)


def stopped(folder: Path, stage: str, *sentences: str, **inputs) -> InputError:
    """The error that a bad input ends in, after checking its words, and that the stage left nothing and no later one ran."""
    with pytest.raises(InputError) as caught:
        run_data_floor(folder, **inputs)
    for sentence in sentences:
        assert sentence in str(caught.value)
    order = ["ingest", "validate", "clean", "features"]
    assert not any((folder / later).exists() for later in order[order.index(stage) :])
    assert not [path for path in folder.rglob(".*")], "nothing half-written stays"
    return caught.value


def test_good_input_goes_through(tmp_path):
    report = run_data_floor(tmp_path, people())
    assert sum(report["rows"]) == 200 and all(report["rows"])


def test_a_missing_table(tmp_path):
    stopped(tmp_path, "ingest", "people.csv", "the table people is missing", "towns.csv", people=None)


def test_a_renamed_column(tmp_path):
    stopped(tmp_path, "ingest", "people.csv", "column age", "renamed to 'ages'", people=people().rename(columns={"age": "ages"}))


def test_a_text_in_a_numeric_column(tmp_path):
    bad = people().astype({"age": object})
    bad.loc[41, "age"] = "forty"
    error = stopped(tmp_path, "ingest", "people.csv", "column age", "row 42", "'forty' is not a number", "null_values", people=bad)
    assert error.row == 42


def test_a_text_in_an_undeclared_numeric_column(tmp_path):
    bad = people().astype({"age": object})
    bad.loc[41, "age"] = "forty"
    tables = {"people": {"file": "people.csv"}, "towns": {"file": "towns.csv"}}
    stopped(tmp_path, "ingest", "column age", "row 42", people=bad, tables=tables)


@pytest.mark.parametrize("text, sentence", [("", "the file is empty"), ("age,town,since,paid\n", "no rows"), ("age,town,since,paid\n1,Ulm\n", "not a table"), ("age,town,since,paid\n1,\xff,2020-01-01,yes\n", "UTF-8")])
def test_a_broken_file(tmp_path, text, sentence):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "people.csv").write_bytes(text.encode("latin-1"))
    stopped(tmp_path, "ingest", "people.csv", sentence, people=None)


def test_a_truncated_archive(tmp_path):
    (tmp_path / "raw").mkdir()
    whole = tmp_path / "raw" / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("people.csv", people().to_csv(index=False))
    (tmp_path / "raw" / "people.zip").write_bytes(whole.read_bytes()[:-40])
    stopped(tmp_path, "ingest", "people.zip", "cut short", "Fetch the file again", people=None, tables={"people": {"file": "people.zip"}})


def test_a_damaged_archive(tmp_path):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "people.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("people.csv", people().to_csv(index=False))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    stopped(tmp_path, "ingest", "people.zip", people=None, tables={"people": {"file": "people.zip"}})


def test_too_many_broken_rows_are_kept_aside(tmp_path):
    bad = people()
    bad.loc[:19, "age"] = 999
    stopped(tmp_path, "validate", "'age is possible' (range)", "20 rows, 10.00%", "5.00% is tolerated", "rows [1, 2, 3]", people=bad)
    assert pq.read_table(tmp_path / "rejected" / "rejected.parquet").num_rows == 20


def test_a_few_broken_rows_are_set_aside_with_their_reason(tmp_path):
    bad = people()
    bad.loc[:3, "age"] = 999
    assert sum(run_data_floor(tmp_path, bad)["rows"]) == 196
    rejected = pq.read_table(tmp_path / "validate" / "rejected" / "rows.parquet").to_pylist()
    assert [row["source_row"] for row in rejected] == [1, 2, 3, 4] and rejected[0]["rules"] == "age is possible" and '"age":999' in rejected[0]["row"] and rejected[0]["reasons"] == "age is possible: age is 999.0"


def test_a_target_with_one_class(tmp_path):
    stopped(tmp_path, "validate", "column paid", "no row has the positive value 'yes'", people=people().assign(paid="no"))
    shutil.rmtree(tmp_path / "ingest")
    stopped(tmp_path, "validate", "column paid", "one class", people=people().assign(paid="yes"))


def test_a_target_that_is_not_binary(tmp_path):
    stopped(tmp_path, "validate", "column paid", "not binary: it has the values 'maybe', 'no', 'yes'", people=people().assign(paid=lambda t: t.paid.where(t.age > 30, "maybe")))


def test_a_missing_target(tmp_path):
    stopped(tmp_path, "validate", "column payed", "renamed to 'paid'", people=people(), target={"column": "payed", "positive": "yes"})


def test_a_split_without_rows(tmp_path):
    stopped(tmp_path, "features", "the test split has no rows", "Move the cuts", people=people(), split={**SPLIT, "test_from": "2031-01-01"})


def test_a_split_with_one_class(tmp_path):
    stopped(tmp_path, "features", "the validation split has one class", people=people().assign(paid=lambda t: t.paid.where(t.since < "2020-03", "no").where(t.since < "2020-04", t.paid)))


def test_a_rule_on_a_column_that_is_not_there(tmp_path):
    stopped(tmp_path, "validate", "column agee", "renamed to 'age'", people=people(), rules=[{**RULES[0], "columns": ["agee"]}])


@pytest.mark.parametrize("split, sentence", [
    ({**SPLIT, "column": "town"}, "column town: the column to split by holds string, and no times"),
    ({**SPLIT, "test_from": "april"}, "data.split has a moment that is no time"),
    ({"by": "time", "column": "since", "test_from": "2020-04-01"}, "data.split lacks the key validation_from"),
    ({**SPLIT, "validaton_from": "2020-03-01"}, "has the unknown key validaton_from. Is validation_from meant?"),
    ({"by": "random", "validation": 0.6, "test": 0.5, "seed": 0}, "leave rows for training"),
    ({"by": "month"}, "a split by 'month' is not known"),
])
def test_a_split_that_makes_no_sense(tmp_path, split, sentence):
    stopped(tmp_path, "features", sentence, people=people(), split=split)


@pytest.mark.parametrize("features, sentence", [
    ({**FEATURES, "max_categorys": 5}, "has the unknown key max_categorys. Is max_categories meant?"),
    ({**FEATURES, "max_categories": "many"}, "data.features.max_categories is 'many'"),
    ({**FEATURES, "module": "trains"}, "there is no prodml.data.trains"),
])
def test_feature_settings_that_make_no_sense(tmp_path, features, sentence):
    stopped(tmp_path, "features", sentence, people=people(), features=features)


def test_numbers_that_no_network_can_hold(tmp_path):
    stopped(tmp_path, "features", "column age", "too large", people=people().assign(age=lambda t: t.age * 1e300), rules=[])


def test_a_declared_number_without_a_value(tmp_path):
    bad = people().assign(empty=np.where(people().since < "2020-04-01", None, 1.0))
    report = run_data_floor(tmp_path, bad, features={**FEATURES, "kinds": {"empty": "number"}})
    assert report["kinds"]["empty"] == ("number", "declared")
    described = json.loads((tmp_path / "features" / "encoding.json").read_text())["numeric"]
    assert {"name": "empty", "mean": 0.0, "std": 1.0, "missing": True} in described
