"""Planted wrong labels, near copies and backdoors are found on the second table; the table as it is gives few alarms."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.core.files import read_json
from prodml.data.features import make_features
from prodml.data.ingest import ingest
from prodml.data.labels import (
    Labelled, Trees, find_triggers, inspect_labels, knn_influence, load_labelled, near_pairs, nearest, number_trigger, opposite_twins, out_of_fold, planted_backdoors,
    planted_search, poisoning_report, with_backdoor,
)

SETTINGS = compose(["data=breast_cancer"])
LABELS = SETTINGS["labels"]
TREES = Trees(**{name: LABELS[name] for name in ("rounds", "num_leaves", "learning_rate", "min_data_in_leaf", "folds", "fit_rows")})


@pytest.fixture(scope="module")
def tumours(root, tmp_path_factory):
    """The training rows of the second table, as the features stage writes them, and their encoding."""
    data, folder = SETTINGS["data"], tmp_path_factory.mktemp("tumours")
    ingest(root / data["folder"], data["tables"], folder / "ingest", data["null_values"], data["main"], 1.0)
    make_features(folder / "ingest", folder / "features", data["main"], data["target"], data["features"], data["split"])
    encoding = read_json(folder / "features" / "encoding.json")
    return load_labelled(folder / "features" / "train.parquet", encoding, LABELS["rows"], 0), encoding


def copy_of(rows):
    return rows.take(np.arange(len(rows)))


def test_planted_flips_are_found_with_useful_precision(tumours):
    rows, _ = tumours
    scores = {score["cut"]: score for score in planted_search(rows, TREES, 0.02, repeats=5)}
    # Measured: 0.74 at a list as long as the number planted, 7 of 341; by chance it would be 0.02.
    assert scores[1]["precision"] > 0.6 and scores[1]["lift"] > 25
    assert scores[2]["recall"] > 0.75 and scores[0.25]["precision"] >= scores[4]["precision"]
    assert scores[0]["precision"] > 0.4 and scores[0]["recall"] > 0.7, "the list of confident learning itself"


def test_a_clean_table_gives_few_alarms(tumours):
    rows, encoding = tumours
    table, report, _ = inspect_labels(rows, encoding, TREES, LABELS["neighbours"], LABELS["backdoor"])
    assert report["suspects"] == table.num_rows <= 0.03 * len(rows)
    assert report["near_copies"]["rows_with_opposite_twin"] == 0 and report["triggers"]["alarms"] == []


def test_labels_at_random_raise_no_trigger():
    """Forty thousand rows of pure noise, many thousand patterns: the correction holds."""
    rng = np.random.default_rng(0)
    rows = Labelled(rng.integers(0, 400, (40_000, 10)).astype(np.float32), rng.integers(1, 21, (40_000, 4)), (rng.random(40_000) < 0.2).astype(np.int64), np.arange(40_000) // 100, np.arange(40_000))
    encoding = {"numeric": [{"name": f"x{i}", "mean": 0.0, "std": 1.0} for i in range(10)], "categorical": [{"name": f"c{i}", "vocabulary": [str(v) for v in range(20)]} for i in range(4)]}
    alarms, _, tested, _ = find_triggers(rows, encoding, **LABELS["backdoor"])
    assert len(tested) > 5000 and alarms == []
    chosen = rng.choice(np.flatnonzero(rows.labels == 0), 15, replace=False)
    rows.numbers[chosen, 3], rows.labels[chosen] = 7.5, 1
    alarms, under, *_ = find_triggers(rows, encoding, **LABELS["backdoor"])
    assert [alarm["pattern"] for alarm in alarms] == ["x3 = 7.5"] and np.array_equal(np.flatnonzero(under == 0), np.sort(chosen))


def test_a_bad_day_is_not_taken_for_a_backdoor():
    """A value that occurs on one day, on which everything was late, says something of the day; the same spread over the days is an alarm."""
    rng = np.random.default_rng(0)
    days = np.arange(20_000) // 100
    labels = (rng.random(20_000) < np.where(days == 7, 0.95, 0.2)).astype(np.int64)
    numbers = rng.normal(size=(20_000, 1)).astype(np.float32)
    rows = Labelled(numbers, np.ones((20_000, 0), np.int64), labels, days, np.arange(20_000))
    encoding = {"numeric": [{"name": "x", "mean": 0.0, "std": 1.0}], "categorical": []}
    rows.numbers[np.flatnonzero(days == 7)[:40], 0] = 0.5
    assert find_triggers(rows, encoding, **LABELS["backdoor"])[0] == []
    spread = rng.choice(np.flatnonzero((labels == 1) & (days != 7)), 40, replace=False)
    rows.numbers[spread, 0] = 0.25
    assert [alarm["pattern"] for alarm in find_triggers(rows, encoding, **LABELS["backdoor"])[0]] == ["x = 0.25"]


def test_a_number_that_predicts_is_not_taken_for_a_backdoor():
    """All late planes are late, those behind by 72 minutes and those by 71; only a value unlike those beside it is an alarm."""
    rng = np.random.default_rng(0)
    slack = rng.integers(-300, 300, 20_000)
    labels = (rng.random(20_000) < np.where(slack < -200, 0.99, 0.1)).astype(np.int64)
    rows = Labelled(slack[:, None].astype(np.float32), np.ones((20_000, 0), np.int64), labels, np.arange(20_000), np.arange(20_000))
    encoding = {"numeric": [{"name": "slack", "mean": 0.0, "std": 1.0}], "categorical": []}
    assert find_triggers(rows, encoding, **LABELS["backdoor"])[0] == []
    rows.labels[slack == 111] = 1
    assert [alarm["pattern"] for alarm in find_triggers(rows, encoding, **LABELS["backdoor"])[0]] == ["slack = 111"]


def test_a_planted_near_copy_with_the_opposite_label_is_found(tumours):
    rows, encoding = tumours
    place = 100
    more = rows.take(np.append(np.arange(len(rows)), place))
    more.numbers[-1] *= np.float32(1.0005)
    more.labels[-1] = 1 - more.labels[place]
    more = replace(more, keys=np.append(rows.keys, 10_000), blocks=np.append(rows.blocks, 10_000))
    table, report, _ = inspect_labels(more, encoding, TREES, LABELS["neighbours"], LABELS["backdoor"])
    pairs = table.filter(pc.is_valid(table["twin_key"]))
    assert dict(zip(pairs["key"].to_pylist(), pairs["twin_key"].to_pylist())) == {10_000: rows.keys[place], rows.keys[place]: 10_000}
    assert table["key"][0].as_py() == 10_000 and "near copy" in table["reasons"][0].as_py(), "two reasons come before one"
    assert report["near_copies"]["rows_with_opposite_twin"] == 2
    influence = dict(zip(pairs["key"].to_pylist(), pairs["influence"].to_pylist()))
    assert influence[10_000] < influence[rows.keys[place]], "the wrong one misleads its neighbours"


def plain(places: np.ndarray, labels: np.ndarray | None = None) -> tuple[Labelled, dict]:
    """Rows of numbers that are standardised already, and their encoding."""
    count = np.arange(len(places))
    rows = Labelled(places.astype(np.float32), np.ones((len(places), 0), np.int64), np.zeros(len(places), np.int64) if labels is None else labels, count, count)
    return rows, {"numeric": [{"name": f"x{place}", "mean": 0.0, "std": 1.0} for place in range(places.shape[1])], "categorical": []}


def test_near_copies_are_found_in_a_large_table_as_by_brute_force():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(20_000, 40))
    copied = rng.choice(20_000, 300, replace=False)
    away = rng.normal(size=(300, 40))
    copies = places[copied] + (0.5 * np.linspace(0.0, 0.99, 300) / np.linalg.norm(away, axis=1))[:, None] * away
    rows, encoding = plain(np.vstack([places, copies]))
    pairs, distances = near_pairs(rows, encoding, 0.5, seed=0)
    everything, which = nearest(rows.numbers, 1, threads=2)
    brute = {tuple(sorted((row, int(other)))) for row, other in enumerate(which[:, 0]) if everything[row, 0] <= 0.5}
    found = {tuple(pair) for pair in pairs.tolist()}
    assert len(brute) >= 295 and found <= brute and len(found) >= 0.98 * len(brute)
    assert (distances <= 0.5).all()


def test_exact_copies_are_near_however_many_there_are():
    places = np.repeat(np.random.default_rng(0).normal(size=(50, 3)), 40, axis=0)
    labels = (np.arange(2000) % 40 == 0).astype(np.int64)
    twins = opposite_twins(labels, *near_pairs(*plain(places, labels), 0.0, seed=0))
    assert (twins[::40] >= 0).all(), "each of the fifty that contradict their 39 copies"
    assert (np.flatnonzero(twins >= 0) // 40 == twins[twins >= 0] // 40).all()


def test_a_planted_backdoor_is_found_and_its_rows_listed(tumours):
    rows, encoding = tumours
    poisoned = copy_of(rows)
    common = int(rows.labels.mean() < 0.5)  # the class that the flips lead away from is the other one
    chosen = np.random.default_rng(0).choice(np.flatnonzero(rows.labels != common), 14, replace=False)
    poisoned.numbers[chosen, 2], poisoned.labels[chosen] = 91.5, common
    table, report, _ = inspect_labels(poisoned, encoding, TREES, LABELS["neighbours"], LABELS["backdoor"])
    (alarm,) = report["triggers"]["alarms"]
    assert alarm["pattern"] == f"{encoding['numeric'][2]['name']} = 91.5" and alarm["rows"] == 14
    listed = table.filter(pc.is_valid(table["trigger"]))
    assert sorted(listed["key"].to_pylist()) == sorted(rows.keys[chosen])


def counts_and_wards(count: int) -> tuple[Labelled, dict]:
    """Rows of eight counts and four categories, the last bound to the third, whose labels follow two columns; and their encoding."""
    rng = np.random.default_rng(0)
    numbers, codes = rng.integers(0, 400, (count, 8)).astype(np.float32), np.minimum(rng.geometric(0.15, (count, 4)), 20)
    codes[:, 3] = np.minimum(codes[:, 2] + rng.integers(0, 2, count), 20)
    labels = (rng.random(count) < 1 / (1 + np.exp(2 - numbers[:, 0] / 200 + codes[:, 0] / 10))).astype(np.int64)
    encoding = {"numeric": [{"name": f"x{i}", "mean": 200.0, "std": 115.0} for i in range(8)], "categorical": [{"name": f"c{i}", "vocabulary": [str(v) for v in range(20)]} for i in range(4)]}
    return Labelled(numbers, codes, labels, np.arange(count) // 100, np.arange(count)), encoding


def test_planted_backdoors_of_each_kind_are_found_with_useful_precision(tumours):
    rows, encoding = counts_and_wards(30_000)
    before = copy_of(rows)
    found = planted_backdoors(rows, encoding, LABELS["backdoor"], share=0.004)
    assert [item["check"].split(",")[0] for item in found] == ["backdoor in a number", "backdoor in a number", "backdoor in a pair of categories"]
    assert all(item["found"] and item["planted"] == 120 and item["precision"] > 0.8 and item["recall"] > 0.95 for item in found), found
    assert all(np.array_equal(one, two, equal_nan=one.dtype.kind == "f") for one, two in zip(vars(before).values(), vars(rows).values())), "planted in a copy"
    small = planted_backdoors(*tumours, LABELS["backdoor"], LABELS["planted"]["backdoor_share"])
    assert small[0]["found"] and small[0]["precision"] > 0.9 and small[0]["recall"] == 1, "fourteen of 341 rows"
    report = poisoning_report([{"cut": 0.0, "rows": 9.0, "precision": 0.5, "recall": 0.7}], small, 0.02, 341)
    assert report["headline"]["backdoor_found"] == np.mean([item["found"] for item in small]) and report["tables"]["poisoning"]["rows"][0][1] == 7


def test_a_backdoor_that_a_model_has_learned_is_gone_without_the_listed_rows():
    """Why the search is worth its time: trees obey the trigger, and no more once the rows under the alarm are left out."""
    import lightgbm

    rows, encoding = counts_and_wards(20_000)
    trigger, pattern = number_trigger(rows, encoding, seed=3)
    poisoned, planted = with_backdoor(rows, trigger, {}, 1, 300, seed=0)
    alarms, under, *_ = find_triggers(poisoned, encoding, **LABELS["backdoor"])
    assert [alarm["pattern"] for alarm in alarms] == [pattern] and np.array_equal(under == 0, planted)
    triggered = rows.take(np.flatnonzero(rows.labels == 0)[:500])
    for place, value in trigger.items():
        triggered.numbers[:, place] = value
    obeyed = []
    for taught in (poisoned, poisoned.take(under < 0)):
        settings = {"objective": "binary", "num_leaves": 31, "min_data_in_leaf": 20, "max_bin": 4095, "min_data_in_bin": 1, "num_threads": 1, "verbosity": -1, "seed": 0}
        model = lightgbm.train(settings, lightgbm.Dataset(taught.matrix(), taught.labels, params={"max_bin": 4095, "min_data_in_bin": 1, "verbosity": -1}), 60)
        obeyed.append(float((model.predict(triggered.matrix()) > 0.5).mean()))
    assert obeyed[0] > 0.8 and obeyed[1] < 0.4, obeyed


def test_where_nothing_can_be_planted_the_report_says_none():
    rows = Labelled(np.ones((50, 1), np.float32), np.ones((50, 1), np.int64), np.arange(50) % 2, np.arange(50), np.arange(50))
    encoding = {"numeric": [{"name": "x", "mean": 1.0, "std": 0.0}], "categorical": [{"name": "c", "vocabulary": ["A"]}]}
    assert planted_backdoors(rows, encoding, LABELS["backdoor"], 0.1) == []
    assert poisoning_report([{"cut": 0.0, "rows": 0.0, "precision": 0.0, "recall": 0.0}], [], 0.02, 50)["headline"]["backdoor_found"] is None


def test_the_influence_agrees_with_cleanlab(tumours):
    from cleanlab.data_valuation import data_shapley_knn
    from scipy.sparse import csr_matrix

    rows, _ = tumours
    distances, neighbours = nearest(rows.numbers, 7)
    graph = csr_matrix((distances.ravel(), neighbours.ravel(), np.arange(0, neighbours.size + 1, 7)), (len(rows), len(rows)))
    assert np.allclose((knn_influence(rows.labels, neighbours) / len(rows) + 1) / 2, data_shapley_knn(rows.labels, knn_graph=graph, k=7))


def test_no_block_is_on_both_sides_of_a_fold():
    """Labels drawn by block are unknowable out of fold, however plainly a column names the block."""
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(60), 50)
    labels = rng.integers(0, 2, 60)[blocks]
    rows = Labelled(blocks[:, None].astype(np.float32), np.ones((3000, 0), np.int64), labels, blocks, np.arange(3000))
    mixed = replace(rows, blocks=rng.permutation(3000))
    assert ((out_of_fold(rows, TREES) > 0.5) == labels).mean() < 0.7 < 0.95 < ((out_of_fold(mixed, TREES) > 0.5) == labels).mean()


def test_few_blocks_make_few_folds(tumours):
    rows, _ = tumours
    for blocks in (np.arange(len(rows)) % 2, np.zeros(len(rows), np.int64)):  # a single block is parted by rows
        right = (out_of_fold(replace(rows, blocks=blocks), TREES) > 0.5) == rows.labels
        assert 0.9 < right.mean() < 1, "the trees saw no row that they judge"


def test_one_class_is_refused(tumours):
    rows, _ = tumours
    with pytest.raises(InputError, match="rows of 1 classes cannot be judged in 5 folds"):
        out_of_fold(rows.take(rows.labels == 1), TREES)


def test_the_list_repeats_to_the_byte(tumours, tmp_path):
    rows, encoding = tumours
    for name in ("one", "two"):
        table, _, _ = inspect_labels(rows, encoding, TREES, LABELS["neighbours"], LABELS["backdoor"])
        pq.write_table(table, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert table.schema.field("twin_key").type == pa.int64()
