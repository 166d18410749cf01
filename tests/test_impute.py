"""What fills a missing value is learnt from training rows alone, travels in the encoding, and equals scikit-learn's answer."""

import json

import ibis
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from prodml.bundle.encode import RowEncoder, feature_names, input_names
from prodml.core.errors import InputError
from prodml.data.features import make_features
from prodml.data.impute import standard_units, with_imputation
from prodml.model.networks import build_network
from prodml.model.rows import load_rows

COLUMNS = ["a", "b", "c"]
KINDS = {"town": ("category", "text"), **{name: ("number", "numbers") for name in COLUMNS}}
METHODS = [{"method": "mean"}, {"method": "median"}, {"method": "most_frequent"}, {"method": "constant", "value": -1}, {"method": "median", "by": "town"}, {"method": "nearest"}, {"method": "iterative"}]
SPLIT = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}


def people(seed: int = 0, count: int = 600) -> pd.DataFrame:
    """Related columns with holes, and a town that shifts one of them."""
    draw = np.random.default_rng(seed)
    town = draw.choice(["Ulm", "Bonn", "Köln"], count)
    a = draw.normal(50, 10, count).round()
    b = 2 * a + draw.normal(0, 3, count) + np.where(town == "Ulm", 30, 0)
    table = pd.DataFrame({"a": a, "b": b.round(), "c": (a - b).round(), "town": town})
    return table.mask(draw.random(table.shape) < 0.15).astype({"town": object})


def encoding_of(table: pd.DataFrame, *rules: dict, kinds=KINDS) -> dict:
    numeric = [{"name": name, "mean": float(table[name].mean()), "std": float(table[name].std(ddof=0)), "missing": True} for name in COLUMNS]
    plain = {"target": {}, "numeric": numeric, "categorical": [{"name": "town", "vocabulary": sorted(table.town.dropna().unique())}]}
    return with_imputation(plain, ibis.memtable(table.assign(key=range(len(table)))), list(rules), kinds)


def filled(table: pd.DataFrame, encoding: dict) -> np.ndarray:
    """The numbers, after the encoding has been to JSON and back."""
    return RowEncoder(json.loads(json.dumps(encoding, allow_nan=False)))(table)[0]


def raw(table: pd.DataFrame) -> np.ndarray:
    return table[COLUMNS].to_numpy(float)


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
def test_one_value_a_column_as_scikit_learn_has_it(strategy):
    train, new = people(0), people(1)
    value = {"value": -1} if strategy == "constant" else {}
    ours = filled(new, encoding_of(train, {"name": "r", "columns": COLUMNS, "method": strategy, **value}))
    theirs = SimpleImputer(strategy=strategy, fill_value=-1 if value else None, add_indicator=True).fit(raw(train)).transform(raw(new))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("method", ["mean", "median"])
def test_a_value_a_group_as_pandas_has_it(method):
    train, new = people(0), people(1)
    ours = filled(new, encoding_of(train, {"name": "r", "columns": COLUMNS, "method": method, "by": "town", "indicator": False}))
    groups = getattr(train.groupby("town")[COLUMNS], method)()
    overall = getattr(train[COLUMNS], method)()
    wanted = [[row[name] if row[name] == row[name] else groups[name].get(row["town"], overall[name]) for name in COLUMNS] for row in new.to_dict("records")]
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_neighbours_as_scikit_learn_finds_them():
    """The same prototypes, given to scikit-learn as its training rows."""
    train, new = people(0), people(1)
    encoding = encoding_of(train, {"name": "r", "columns": COLUMNS, "method": "nearest", "neighbors": 3, "prototypes": 30, "indicator": False})
    (rule,) = encoding["imputation"]
    mean, std = np.array(rule["mean"]), np.array(rule["std"])
    theirs = KNNImputer(n_neighbors=3).fit(np.array(rule["prototypes"])).transform((raw(new) - mean) / std) * std + mean
    some = ~new[COLUMNS].isna().all(axis=1).to_numpy()
    np.testing.assert_allclose(filled(new, encoding)[some], theirs[some], rtol=1e-5)
    empty = filled(new, encoding)[~some]
    assert len(empty) and np.allclose(empty, mean), "a row without any value gets the training means"


def test_prototypes_are_nobodys_row_and_do_as_well_as_raw_rows():
    jitter = np.random.default_rng(3).normal(size=(3000, 3)) # whole numbers would meet by chance
    train, complete = people(0, 3000), people(1, 3000).dropna()
    train[COLUMNS] += jitter
    encoding = encoding_of(train, {"name": "r", "columns": COLUMNS, "method": "nearest", "indicator": False})
    (rule,) = encoding["imputation"]
    prototypes = np.array(rule["prototypes"]) * rule["std"] + rule["mean"]
    assert len(prototypes) <= 256 and not np.isclose(prototypes[:, None], raw(train)[None]).all(axis=2).any()
    holed = complete.assign(b=np.nan)
    mean, std = np.array(rule["mean"]), np.array(rule["std"])
    raw_rows = KNNImputer(n_neighbors=5).fit((raw(train) - mean) / std).transform((raw(holed) - mean) / std)[:, 1] * std[1] + mean[1]
    errors = [np.sqrt(np.mean((guess - complete.b) ** 2)) for guess in (filled(holed, encoding)[:, 1], raw_rows, np.full(len(complete), train.b.mean()))]
    assert errors[0] < 1.1 * errors[1] and errors[0] < 0.5 * errors[2], errors


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_iterative_as_scikit_learn_does_it():
    train, new = people(0), people(1)
    encoding = encoding_of(train, {"name": "r", "columns": COLUMNS, "method": "iterative", "rounds": 4, "indicator": False})
    keys = np.argsort(np.arange(len(train)) * 2_654_435_761 % 2**32)
    units, mean, std = standard_units(raw(train)[keys])
    imputer = IterativeImputer(max_iter=4, random_state=0, min_value=np.nanmin(units, 0), max_value=np.nanmax(units, 0)).fit(units)
    theirs = imputer.transform((raw(new) - mean) / std) * std + mean
    np.testing.assert_allclose(filled(new, encoding), theirs, rtol=1e-5, atol=1e-4)
    default = IterativeImputer(max_iter=4, random_state=0).fit(raw(train)).transform(raw(new))
    assert np.abs(filled(new, encoding) - default).mean() < 0.01 * np.nanstd(raw(new)), "nor do the units matter much"


@pytest.mark.parametrize("rule", METHODS, ids=lambda rule: "-".join(map(str, rule.values())))
def test_hard_rows(rule):
    """A row without any value, a group that was never seen, a column that is missing for the first time after training."""
    train = people(0)
    train["a"] = train["a"].fillna(50)
    encoding = encoding_of(train, {"name": "r", "columns": COLUMNS, **rule})
    hard = pd.DataFrame({"a": [np.nan, 40.0, np.nan], "b": [np.nan, np.nan, 90.0], "c": [np.nan, np.nan, -40.0], "town": ["Ulm", "Atlantis", None]})
    numbers = filled(hard, encoding)
    assert np.isfinite(numbers).all()
    assert feature_names(encoding) == [*COLUMNS, "b_missing", "c_missing", "town"], "no indicator for a column that training never misses"
    assert input_names(encoding) == [*COLUMNS, "town"]
    assert numbers[:, 3:].tolist() == [[1, 1], [1, 1], [0, 0]]
    one_by_one = np.vstack([filled(hard.iloc[[place]], encoding) for place in range(3)])
    np.testing.assert_allclose(one_by_one, numbers, rtol=1e-6, err_msg="a row alone is filled as in a batch")


@pytest.mark.parametrize("rule", METHODS, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_column_without_any_value(rule):
    train = people(0).assign(c=np.nan)
    numbers = filled(people(1), encoding_of(train, {"name": "r", "columns": COLUMNS, **rule}))
    assert np.isfinite(numbers).all()
    assert (numbers[people(1).c.isna(), 2] == rule.get("value", 0)).all()


def test_categories():
    train = people(0)
    encoding = encoding_of(train, {"name": "r", "columns": ["town"], "method": "most_frequent"})
    word = train.town.mode()[0]
    numbers, codes = RowEncoder(encoding)(pd.DataFrame({"a": [1.0] * 3, "b": 1.0, "c": 1.0, "town": [None, "Atlantis", "Ulm"]}))
    vocabulary = encoding["categorical"][0]["vocabulary"]
    assert codes[:, 0].tolist() == [1 + vocabulary.index(word), 0, 1 + vocabulary.index("Ulm")], "an unknown word is not a missing one"
    assert numbers[:, 3].tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="no training row has"):
        encoding_of(train, {"name": "r", "columns": ["town"], "method": "constant", "value": "Atlantis"})


def through_the_pipeline(folder, table: pd.DataFrame, rules: list[dict], **features) -> dict:
    (folder / "clean").mkdir(parents=True)
    table.assign(source_row=range(1, len(table) + 1)).to_parquet(folder / "clean" / "people.parquet", index=False)
    settings = {"module": None, "options": {}, "kinds": {}, "max_categories": 20, "min_category_rows": 1, "imputation": rules, **features}
    make_features(folder / "clean", folder / "features", "people", {"column": "paid", "positive": "yes"}, settings, SPLIT)
    return {name: json.loads((folder / "features" / f"{name}.json").read_text()) for name in ("encoding", "report")}


RULES = [
    {"name": "by town", "columns": ["a"], "method": "mean", "by": "town"},
    {"name": "together", "columns": ["b", "c"], "method": "iterative"},
    {"name": "commonest", "columns": ["town"], "method": "most_frequent"},
]


def test_validation_and_test_rows_move_nothing(tmp_path):
    table = people(0).assign(paid=np.random.default_rng(2).choice(["yes", "no"], 600))
    before = through_the_pipeline(tmp_path / "before", table, RULES)
    train_keys = pq.read_table(tmp_path / "before" / "features" / "train.parquet")["key"].to_numpy()
    other = ~np.isin(np.arange(1, 601), train_keys)
    changed = table.copy()
    changed.loc[other, COLUMNS] = changed.loc[other, COLUMNS] * 100 + 7
    changed.loc[other, "town"] = "Atlantis"
    changed.loc[np.flatnonzero(other)[::3], COLUMNS] = np.nan
    assert 0 < other.sum() < 600
    assert through_the_pipeline(tmp_path / "after", changed, RULES)["encoding"] == before["encoding"]
    moved = table.copy()
    moved.loc[~other, "a"] += 5
    assert through_the_pipeline(tmp_path / "moved", moved, RULES)["encoding"]["imputation"] != before["encoding"]["imputation"], "training rows do move it"


def test_the_pipeline_counts_and_the_network_sees_no_hole(tmp_path):
    table = people(0).assign(paid=np.random.default_rng(2).choice(["yes", "no"], 600), d=np.nan)
    made = through_the_pipeline(tmp_path, table, [*RULES, {"name": "nothing", "columns": ["d"], "method": "mean"}])
    splits = {name: pq.read_table(tmp_path / "features" / f"{name}.parquet") for name in ("train", "validation", "test")}
    for line in made["report"]["imputed"]:
        if line["column"] == "d":
            assert line["dropped"] == "no value" and line["train"] == 0
        else:
            assert {name: line[name] for name in splits} == {name: rows[line["column"]].null_count for name, rows in splits.items()}
    assert sum(line["train"] for line in made["report"]["imputed"]) > 100
    rows = load_rows(tmp_path / "features" / "test.parquet", made["encoding"])
    assert rows.numbers.isfinite().all() and rows.numbers.shape[1] == 3 + 4 and (rows.codes > 0).all()
    network = build_network({"kind": "mlp", "hidden": [8]}, made["encoding"])
    assert network.inputs.missing == [] and network(rows.numbers, rows.codes).isfinite().all()


def test_a_column_without_values_that_is_declared_a_number(tmp_path):
    table = people(0).assign(paid=np.random.default_rng(2).choice(["yes", "no"], 600), d=np.nan)
    encoding = through_the_pipeline(tmp_path, table, [{"name": "r", "columns": ["d", "b"], "method": "median"}], kinds={"d": "number"})["encoding"]
    rows = load_rows(tmp_path / "features" / "test.parquet", encoding)
    place = feature_names(encoding).index("d")
    assert (rows.numbers[:, place] == 0).all()


def test_no_rules_change_no_byte(tmp_path):
    table = people(0).assign(paid=np.random.default_rng(2).choice(["yes", "no"], 600))
    through_the_pipeline(tmp_path / "with", table, [])
    settings = {"module": None, "options": {}, "kinds": {}, "max_categories": 20, "min_category_rows": 1}
    make_features(tmp_path / "with" / "clean", tmp_path / "without", "people", {"column": "paid", "positive": "yes"}, settings, SPLIT)
    for path in sorted((tmp_path / "without").iterdir()):
        assert path.read_bytes() == (tmp_path / "with" / "features" / path.name).read_bytes()
        assert b"imput" not in path.read_bytes()


@pytest.mark.parametrize("rule, sentence", [
    ({"columns": ["a"], "method": "mode"}, "Methods are"), ({"columns": ["aa"], "method": "mean"}, "renamed to 'a'"),
    ({"columns": ["a"], "method": "mean", "by": "b"}, "no other category"), ({"columns": ["a"], "method": "constant"}, "Give `value`"),
])
def test_a_wrong_rule_says_what_is_wrong(rule, sentence):
    with pytest.raises(InputError, match=sentence):
        encoding_of(people(0), {"name": "r", **rule})


def test_an_indicator_that_would_take_a_columns_name():
    with pytest.raises(InputError, match="name of another column"):
        encoding_of(people(0), {"name": "r", "columns": ["a"], "method": "mean"}, kinds={**KINDS, "a_missing": ("number", "numbers")})
