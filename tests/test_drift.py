"""Drift: every statistic against SciPy, false alarms and power of the verdict, and what the profile tells and keeps."""

import json

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.spatial.distance
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.core.files import artifact, write_json
from prodml.data import drift as drift_module
from prodml.data.drift import classifier_test, compare_tables, drift_report, drift_within, read_splits, reference_cells, rounded, tally_periods, with_parts
from prodml.stats import drift
from prodml.stats.profile import Cells, cells_of, column_drift, drift_lines, profile_document, read_profile, tallied, with_alarms

FLOORS = {"distribution": 0.1, "missing": 0.02, "unlisted": 0.01}
numbers = arrays(np.float64, st.integers(5, 80), elements=st.floats(-1000, 1000, width=16))
counts = arrays(np.int64, 6, elements=st.integers(1, 400))


def exact(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return drift.aligned(drift.counted(x), drift.counted(y))


@given(numbers, numbers)
@settings(deadline=None, max_examples=80)
def test_distances_of_numbers_are_scipys(x, y):
    values, a, b = exact(x, y)
    assert drift.kolmogorov_smirnov(a, b)[0] == pytest.approx(scipy.stats.ks_2samp(x, y, method="asymp").statistic, abs=1e-12)
    assert drift.wasserstein(values, a, b) == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-9, abs=1e-9)


@given(counts, counts)
@settings(deadline=None, max_examples=80)
def test_distances_of_counts_are_scipys(a, b):
    for base in (2, np.e):
        theirs = scipy.spatial.distance.jensenshannon(a, b, base=base)
        assert drift.jensen_shannon(a, b, base) == pytest.approx(0 if np.isnan(theirs) else theirs, abs=1e-7)
    assert drift.psi(a, b) == pytest.approx(scipy.stats.entropy(a, b) + scipy.stats.entropy(b, a), abs=1e-12)
    theirs = scipy.stats.chi2_contingency([a, b], correction=False)
    assert drift.chi_square(a, b, least_expected=0) == (pytest.approx(theirs.statistic, abs=1e-8), pytest.approx(theirs.pvalue, abs=1e-10))
    theirs = scipy.stats.chi2_contingency([[a[0], a[1]], [b[0], b[1]]], correction=False)
    change, p = drift.proportions(a[0], a[:2].sum(), b[0], b[:2].sum())
    assert (change, p) == (pytest.approx(b[0] / b[:2].sum() - a[0] / a[:2].sum()), pytest.approx(theirs.pvalue, abs=1e-10))


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
@settings(deadline=None)
def test_false_discoveries_are_scipys(p):
    assert np.allclose(drift.benjamini_hochberg(p), scipy.stats.false_discovery_control(p))


@pytest.mark.parametrize("sizes", [(50, 80), (400, 300), (3000, 5000)])
@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2])
def test_the_p_of_kolmogorov_smirnov_is_close_to_scipys(sizes, shift):
    random = np.random.default_rng(sum(sizes))
    x, y = random.normal(size=sizes[0]), random.normal(shift, 1, sizes[1])
    ours = drift.kolmogorov_smirnov(*exact(x, y)[1:])[1]
    assert ours == pytest.approx(scipy.stats.ks_2samp(x, y, method="exact").pvalue, abs=0.03)


@given(counts, counts)
@settings(deadline=None, max_examples=60)
def test_measures_are_symmetric_zero_on_the_same_and_blind_to_scale(a, b):
    for measure in (drift.psi, drift.jensen_shannon, lambda x, y: drift.kolmogorov_smirnov(x, y)[0], lambda x, y: drift.wasserstein(np.arange(6), x, y)):
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-12) and measure(a, b) >= 0
        assert measure(a, a) == 0
        assert measure(a, b) == pytest.approx(measure(3 * a, 7 * b), abs=1e-12)
    order = np.array([3, 0, 5, 1, 4, 2])
    for measure in (drift.psi, drift.jensen_shannon, lambda x, y: drift.chi_square(x, y)[0]):
        assert measure(a, b) == pytest.approx(measure(a[order], b[order]), abs=1e-9), "the order of categories says nothing"
    assert drift.chi_square(a, b)[0] == pytest.approx(drift.chi_square(b, a)[0], abs=1e-9)


@given(numbers, numbers, st.floats(0.5, 4), st.floats(-50, 50))
@settings(deadline=None, max_examples=60)
def test_a_change_of_unit_scales_wasserstein_and_leaves_kolmogorov_smirnov(x, y, scale, shift):
    values, a, b = exact(x, y)
    assert drift.wasserstein(values * scale + shift, a, b) == pytest.approx(scale * drift.wasserstein(values, a, b), abs=1e-7)
    assert drift.kolmogorov_smirnov(a, b)[0] == pytest.approx(drift.kolmogorov_smirnov(a[::-1], b[::-1])[0], abs=1e-12)


def test_all_leading_axes_are_carried_along():
    random = np.random.default_rng(0)
    a, b = random.integers(1, 50, (3, 4, 6)), random.integers(1, 50, (3, 4, 6))
    for measure in (drift.psi, drift.jensen_shannon, lambda x, y: drift.kolmogorov_smirnov(x, y)[1], lambda x, y: drift.chi_square(x, y)[1], lambda x, y: drift.wasserstein(np.arange(6), x, y)):
        every = measure(a, b)
        assert every.shape == (3, 4)
        assert every[1, 2] == pytest.approx(measure(a[1, 2], b[1, 2]))


@pytest.mark.parametrize("rare", [[1, 0, 1], [3, 1, 2], [40, 1, 0]])
def test_pooling_keeps_all_rows_and_its_p_holds(rare):
    a, b = np.array([300, 200, *rare]), np.array([250, 210, *rare[::-1]])
    x, y = drift.pooled(a, b)
    assert (x.sum(), y.sum()) == (a.sum(), b.sum())
    expected = (x + y) * min(x.sum(), y.sum()) / (x + y).sum()
    assert (expected[x + y > 0] >= 5).all()


def test_the_p_of_rare_categories_is_not_too_small():
    """Forty categories of which most have a row or two: the p of plain chi-square would be off."""
    random = np.random.default_rng(1)
    shares = 1 / np.arange(1, 41) ** 2
    p = [drift.chi_square(random.multinomial(300, shares / shares.sum()), random.multinomial(200, shares / shares.sum()))[1] for _ in range(600)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.08


def made(random: np.random.Generator, n: int, **changed) -> dict[str, np.ndarray]:
    """Rows of a table that does not drift, but for the columns that are given."""
    rows = {f"x{i}": random.normal(size=n) for i in range(8)}
    rows["temp"] = np.where(random.random(n) < 0.05, np.nan, random.normal(55, 18, n))
    rows["rain"] = np.where(random.random(n) < 0.9, 0, random.exponential(1, n))
    rows["carrier"] = random.choice(["AA", "B6", "DL", "UA"], n, p=[0.2, 0.3, 0.1, 0.4])
    rows["month"] = np.full(n, 3.0)
    return rows | {name: change(rows[name]) for name, change in changed.items()}


def alarms(reference: dict, current: dict, level: float = 0.01, roles=None) -> set[tuple[str, str]]:
    cells = cells_of(reference, roles)
    lines = with_alarms(drift_lines(cells, tallied(cells, reference), tallied(cells, current), ["new"]), level, FLOORS)
    return {(line["column"], alarm["check"]) for line in lines for alarm in line["alarms"]}


@pytest.mark.parametrize("n", [300, 3000])
def test_a_split_at_random_alarms_no_more_often_than_the_level(n):
    """A/A: the share of whole reports with any alarm, over 200 tables, without the help of the floors too."""
    random, floorless = np.random.default_rng(n), dict.fromkeys(FLOORS, 0.0)
    with_floors = without = 0
    for _ in range(200):
        old, new = made(random, n), made(random, n)
        cells = cells_of(old)
        lines = drift_lines(cells, tallied(cells, old), tallied(cells, new), ["new"])
        with_floors += any(line["alarms"] for line in with_alarms(lines, 0.05, FLOORS))
        without += any(line["alarms"] for line in with_alarms(lines, 0.05, floorless))
    assert with_floors <= without <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


def mixed(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Rows of one distribution in columns of many kinds: bell-shaped, heavy-tailed, whole, mostly zero, rare, missing, long lists of categories."""
    weights = 1 / np.arange(1, 61) ** 1.5
    normal = random.normal(size=n)
    return {
        "normal": normal, "close": normal + 0.1 * random.normal(size=n), "cauchy": random.standard_cauchy(n), "lognormal": random.lognormal(0, 2, n), "pareto": random.pareto(1.1, n),
        "whole": random.poisson(3, n).astype(float), "year": random.integers(1990, 2020, n).astype(float), "zeros": np.where(random.random(n) < 0.95, 0, random.exponential(1, n)),
        "flag": (random.random(n) < 0.02).astype(float), "holes": np.where(random.random(n) < 0.3, np.nan, random.normal(size=n)), "few holes": np.where(random.random(n) < 0.004, np.nan, random.normal(size=n)),
        "city": random.choice([f"t{place}" for place in range(60)], n, p=weights / weights.sum()), "pair": random.choice(["a", "b"], n),
        "many": np.array([f"u{place}" for place in random.integers(0, 400, n)]), "gone": np.where(random.random(n) < 0.1, None, random.choice(["x", "y", "z"], n)),
    }


def split_lines(seed: int, shifted: dict | None = None) -> list[dict]:
    """The lines of validation and test: 2,500 rows, split 70/15/15 at random, columns of the test rows shifted on request."""
    random = np.random.default_rng(seed)
    rows, places = mixed(random, 2500), np.split(random.permutation(2500), [1750, 2125])
    train, validation, test = ({name: values[place] for name, values in rows.items()} for place in places)
    test |= {name: change(test[name]) for name, change in (shifted or {}).items()}
    cells = cells_of(train)
    old = tallied(cells, train)
    return [line for name, part in (("validation", validation), ("test", test)) for line in drift_lines(cells, old, tallied(cells, part), [name])]


SHIFTS = {
    "normal": lambda x: x + 0.5, "cauchy": lambda x: x + 2, "lognormal": lambda x: 5 * x, "whole": lambda x: x + 1, "holes": lambda x: np.where(np.arange(len(x)) % 4 == 0, np.nan, x),
    "city": lambda x: np.where(x == "t0", "t1", x), "gone": lambda x: np.where(x == "x", "new", x),
}


def test_reports_of_a_random_split_alarm_no_more_often_than_the_level_of_conf():
    """The false discovery rate is the chance of any alarm where nothing drifts: as many reports may alarm as happens once in a thousand at this level, without the help of the floors too."""
    conf, alarmed = compose([])["drift"], [0, 0]
    floors = [{check: conf["floors"][check] for check in FLOORS}, dict.fromkeys(FLOORS, 0.0)]
    for seed in range(120):
        lines = split_lines(seed)
        alarmed = [count + any(line["alarms"] for line in with_alarms(lines, conf["level"], given)) for count, given in zip(alarmed, floors)]
    assert alarmed[0] <= alarmed[1] <= scipy.stats.binom.ppf(0.999, 120, conf["level"])


@pytest.mark.parametrize("column", SHIFTS)
def test_a_shifted_column_of_a_split_alarms_and_no_other(column):
    conf = compose([])["drift"]
    for seed in range(3):
        lines = with_alarms(split_lines(seed, {column: SHIFTS[column]}), conf["level"], {check: conf["floors"][check] for check in FLOORS})
        assert {(line["period"], line["column"]) for line in lines if line["alarms"]} == {("test", column)}


def test_columns_are_looked_at_once_for_all_splits(tmp_path, monkeypatch):
    """And not again for months that a split at random has not."""
    calls = {name: [] for name in ("tally_periods", "drift_lines")}
    for name, made in calls.items():
        monkeypatch.setattr(f"prodml.data.drift.{name}", lambda *given, made=made, does=getattr(drift_module, name): made.append(1) or does(*given))
    small_splits(tmp_path, np.zeros)
    table = read_splits(tmp_path, ["train", "validation", "test"]).mutate(month=ibis.literal(""))
    multivariate = {"rows": 600, "mmd_rows": 100, "permutations": 9, "classifier": {"rounds": 5, "leaf_share": 0.01, "trees": {}}}
    found = drift_report(table, "train", {}, {"bins": 20, "max_values": 10, "least_rows": 20}, 0.05, {**FLOORS, "classifier": 0.6}, multivariate, 0)[0]
    assert [(line["period"], line["column"]) for line in found["splits"]] == [("test", "x"), ("test", "c"), ("validation", "x"), ("validation", "c")] and found["months"] == []
    assert {name: len(made) for name, made in calls.items()} == {"tally_periods": 1, "drift_lines": 1}


@pytest.mark.slow
def test_the_whole_report_of_a_random_split_does_not_alarm(tmp_path):
    """With the classifier over all columns, by all settings of conf: one level for the columns, one for each classifier."""
    conf, alarmed = compose([])["drift"], 0
    settings = (conf["profile"], conf["level"], conf["floors"], conf["multivariate"], 0)
    for seed in range(8):
        random = np.random.default_rng(seed)
        rows, places = pa.table({**mixed(random, 2500), "block": np.arange(2500), "month": [""] * 2500}), np.split(random.permutation(2500), [1750, 2125])
        for split, place in zip(("train", "validation", "test"), places):
            pq.write_table(rows.take(pa.array(place)), tmp_path / f"{split}.parquet")
        kinds = {name: "categorical" if pa.types.is_string(rows[name].type) else "numeric" for name in mixed(random, 3)}
        write_json(tmp_path / "encoding.json", {kind: [{"name": name} for name, own in kinds.items() if own == kind] for kind in ("numeric", "categorical")})
        alarmed += bool(drift_report(read_splits(tmp_path, ["train", "validation", "test"]), "train", {}, *settings)[0]["alarms"])
    assert alarmed <= scipy.stats.binom.ppf(0.999, 8, 3 * conf["level"])


def test_a_large_table_does_not_alarm_on_nothing():
    random = np.random.default_rng(5)
    old, new = made(random, 400_000), made(random, 400_000, x0=lambda x: x + 0.02)
    cells = cells_of(old)
    line = drift_lines(cells, tallied(cells, old), tallied(cells, new), ["new"])[0]
    assert line["p"] < 1e-6 and line["psi"] < 0.01, "significant, and nothing"
    assert alarms(old, new) == set()


PLANTED = {
    "degrees Celsius": ({"temp": lambda x: (x - 32) / 1.8}, {("temp", "distribution"), ("temp", "unlisted")}),
    "half a deviation": ({"x0": lambda x: x + 0.5}, {("x0", "distribution")}),
    "twice as wide": ({"x0": lambda x: 2 * x}, {("x0", "distribution"), ("x0", "unlisted")}),
    "a tenth is missing": ({"x0": lambda x: np.where(np.arange(len(x)) % 10 == 0, np.nan, x)}, {("x0", "missing")}),
    "a new carrier": ({"carrier": lambda x: np.where(np.arange(len(x)) % 40 == 0, "HA", x)}, {("carrier", "unlisted"), ("carrier", "distribution")}),
    "carriers swapped": ({"carrier": lambda x: np.where(x == "AA", "UA", x)}, {("carrier", "distribution")}),
    "it rains on zero": ({"rain": lambda x: np.where(x == 0, -1e-9, x)}, {("rain", "unlisted")}),
    "the next month": ({"month": lambda x: x + 1}, set()),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_shift_is_found_and_nothing_else(what):
    changed, expected = PLANTED[what]
    for seed in range(5):
        random = np.random.default_rng(seed)
        found = alarms(made(random, 4000), made(random, 2000, **changed), roles={"month": "calendar"})
        assert {pair for pair in expected if pair[1] != "unlisted" or len(expected) == 1} <= found <= expected, seed


def test_a_column_that_turns_to_celsius_within_one_file_is_found():
    random = np.random.default_rng(3)
    rows = made(random, 20_000)
    rows["temp"][12_000:] = (rows["temp"][12_000:] - 32) / 1.8
    table = ibis.memtable(pa.table({"source_row": np.arange(20_000), **rows}))
    lines = drift_within(with_parts(table, 10), "part", "01", {})
    assert {(line["period"], line["column"]) for line in lines if line["alarms"]} == {(part, "temp") for part in ("07", "08", "09", "10")}
    assert all(line["mean_change"] == pytest.approx(-42, abs=4) for line in lines if line["alarms"])


@pytest.mark.parametrize("bins", [20, 100])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "whole", "zeros", "two"])
def test_a_sketch_is_as_close_as_it_says(kind, bins):
    """Kolmogorov–Smirnov within the share of the largest interval, Wasserstein within the sum of width times share."""
    random = np.random.default_rng(bins)
    draw = {
        "normal": lambda m: random.normal(m, 1, 6000), "lognormal": lambda m: random.lognormal(m, 1, 6000), "whole": lambda m: random.poisson(3 + m, 6000).astype(float),
        "zeros": lambda m: np.where(random.random(6000) < 0.8, 0, random.exponential(1 + m, 6000)), "two": lambda m: (random.random(6000) < 0.5 + m / 4).astype(float),
    }[kind]
    for shift in (0.0, 0.3):
        old, new = draw(0.0), draw(shift)
        cells = cells_of({"x": old}, bins=bins)
        a, b = tallied(cells, {"x": old}), tallied(cells, {"x": new})
        sketch, truth = column_drift(cells[0], a, b), drift.number_drift(old, new)
        edges = cells[0].edges
        widths = np.diff(np.concatenate([[min(new.min(), old.min(), edges[0])], edges, [max(new.max(), old.max(), edges[-1])]]))
        p, q = (tally.counts["x"][0, :-1] / 6000 for tally in (a, b))
        open_cells = widths > 1e-6 if kind not in ("whole", "two") else np.zeros(len(widths), bool)
        assert -1e-12 <= truth["ks"] - sketch["ks"][0] <= p[open_cells].max(initial=0) + 1e-9
        assert p[open_cells].max(initial=0) <= 1.1 / bins + 20 / 6000
        assert abs(truth["wasserstein"] - sketch["wasserstein"][0]) <= (widths * (p + q)).sum()
        assert abs(truth["psi"] - sketch["psi"][0]) < 0.02 + 0.15 * truth["psi"]
        assert sketch["missing"][0] == truth["missing"]


def test_a_profile_names_nobody():
    names = np.array(["common"] * 500 + ["rare person"] * 19 + ["just enough"] * 20, dtype=object)
    numbers = np.random.default_rng(0).normal(size=539)
    cells = cells_of({"name": names, "size": numbers}, least_rows=20)
    document = profile_document(cells, tallied(cells, {"name": names, "size": numbers}))
    assert "rare person" not in json.dumps(document)
    assert document["columns"][0]["values"] == ["common", "just enough"] and document["columns"][0]["other"] == 19
    inner = np.array(document["columns"][1]["counts"][1:-1])
    assert (inner[:-2] >= 19).all(), "no interval but the outermost rests on fewer rows"
    assert len(json.dumps(document)) < 4000


def test_a_million_categories_stay_few_in_the_profile():
    table = ibis.memtable(pa.table({"id": [f"n{i}" for i in range(1_000_000)], "kind": ["a", "b"] * 500_000, "half": ["1"] * 500_000 + ["2"] * 500_000}))
    lines = drift_within(table, "half", "1", {}, max_values=1000)
    assert [line["role"] for line in lines] == ["identifier", "feature"] and not any(line["alarms"] for line in lines)
    cells = reference_cells(table, {"id": ("category", "identifier")}, 100, 1000, 1)
    assert len(cells[0].values) == 1000


def test_a_profile_read_back_judges_the_same_and_merges():
    random = np.random.default_rng(0)
    old, new = made(random, 3000), made(random, 1500, temp=lambda x: x - 20)
    cells = cells_of(old)
    parts = [{name: values[part] for name, values in old.items()} for part in (slice(0, 1000), slice(1000, None))]
    whole, merged = tallied(cells, old), tallied(cells, parts[0]) + tallied(cells, parts[1])
    read, again = read_profile(json.loads(json.dumps(profile_document(cells, merged), allow_nan=False)))
    direct = drift_lines(cells, whole, tallied(cells, new), ["new"])
    served = drift_lines(read, again, tallied(read, new), ["new"])
    for one, other in zip(direct, served, strict=True):
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] or one[key] == pytest.approx(other[key], abs=1e-9) for key in one)


def test_the_streamed_tally_is_that_of_arrays():
    random = np.random.default_rng(2)
    rows = made(random, 300_000)
    table = ibis.memtable(pa.table({**rows, "half": np.where(np.arange(300_000) < 170_000, "a", "b")}))
    cells = cells_of(rows)
    names, tally = tally_periods(table, cells, "half")
    assert names == ["a", "b"]
    for place, part in enumerate((slice(0, 170_000), slice(170_000, None))):
        expected = tallied(cells, {name: values[part] for name, values in rows.items()})
        for cell in cells:
            assert np.array_equal(tally.counts[cell.name][place], expected.counts[cell.name][0])
            if cell.kind == "number":
                assert np.allclose(tally.moments[cell.name][place], expected.moments[cell.name][0])


def test_mmd_holds_its_level_and_finds_a_shift():
    random = np.random.default_rng(0)
    p = [drift.mmd(random.normal(size=(40, 3)), random.normal(size=(30, 3)), permutations=99, seed=i)["p"] for i in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert drift.mmd(random.normal(size=(200, 3)), random.normal(0.5, 1, (150, 3)))["p"] < 0.01


def test_the_classifier_test_holds_its_level_in_rows_and_in_blocks():
    random, trees = np.random.default_rng(0), {"num_leaves": 4}
    labels, day = np.arange(800) >= 400, np.repeat(np.arange(40), 20)
    rejected = {"rows": 0, "blocks": 0}
    for seed in range(60):
        rows = random.normal(size=(800, 3))
        rejected["rows"] += classifier_test(rows, labels, np.arange(800), ["a", "b", "c"], [], trees, 10, 0.01, 99, seed)["p"] <= 0.05
        rows[:, 0] = random.normal(size=40)[day]
        rejected["blocks"] += classifier_test(rows, labels, day, ["a", "b", "c"], [], trees, 10, 0.01, 99, seed)["p"] <= 0.05
    assert max(rejected.values()) <= 60 * 0.05 + 3 * np.sqrt(60 * 0.05 * 0.95)


def small_splits(folder, label) -> None:
    random = np.random.default_rng(0)
    for place, split in enumerate(("train", "validation", "test")):
        rows = {"key": np.arange(600), "block": np.arange(600) // 20 + 100 * place, "month": [f"2013-0{place + 1}"] * 600, "label": label(600), "x": random.normal(place, 1, 600), "c": random.choice(["a", "b"], 600)}
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    write_json(folder / "encoding.json", {"numeric": [{"name": "x"}], "categorical": [{"name": "c"}]})


def test_no_label_has_any_part_in_the_report(tmp_path):
    reports = []
    multivariate = {"rows": 600, "mmd_rows": 100, "permutations": 99, "classifier": {"rounds": 5, "leaf_share": 0.01, "trees": {}}}
    for label in (np.zeros, np.ones):
        small_splits(tmp_path, label)
        table = read_splits(tmp_path, ["train", "validation", "test"])
        assert "label" not in table.columns
        made = drift_report(table, "train", {}, {"bins": 20, "max_values": 10, "least_rows": 20}, 0.05, {**FLOORS, "classifier": 0.6}, multivariate, 0)
        reports.append(json.dumps(rounded([made[0], profile_document(made[1], made[2]["train"])]), sort_keys=True, allow_nan=False))
    assert reports[0] == reports[1]
    found = json.loads(reports[0])[0]["alarms"]
    assert {(alarm["period"], alarm["column"]) for alarm in found} >= {("validation", "x"), ("test", "x"), ("test", None)}
    assert not any(alarm["column"] == "c" for alarm in found)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: drift.psi([0, 0], [1, 2]), "without rows"),
        (lambda: drift.counted(np.array([1.0, -np.inf])), "infinity"),
        (lambda: compare_tables(pa.table({"a": [1]}), pa.table({"b": [1]})), "column a: the column is missing"),
        (lambda: tallied(cells_of({"a": np.arange(3.0)}), {"a": np.arange(3.0)}) + tallied(cells_of({"b": np.arange(3.0)}), {"b": np.arange(3.0)}), "other columns"),
        (lambda: Cells("a", "text", "feature", np.empty(0)), "cannot be profiled"),
        (lambda: with_alarms([], 0.05, {"distribution": 0.1}), "floors are given"),
        (lambda: drift_within(ibis.memtable({"a": [1.0, 2.0], "p": ["1", None]}), "p", "1", {}), "no rows to compare"),
        (lambda: classifier_test(np.zeros((6, 1)), np.arange(6) > 2, np.arange(6), ["a"], [], {}), "too few"),
    ],
)
def test_bad_input_says_what_is_wrong(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        wrong()


@pytest.mark.parametrize("n", [1, 2])
def test_a_row_or_two_are_compared_without_an_alarm(n):
    random = np.random.default_rng(0)
    assert alarms(made(random, 1000), made(random, n)) == set()
    assert alarms(made(random, n), made(random, n), 0.01) == set()


@pytest.mark.skipif(not artifact("drift", "profile.json").exists(), reason="the stage `drift` has not run here")
def test_the_profile_of_the_run_is_that_of_the_training_rows():
    cells, tally = read_profile(json.loads(artifact("drift", "profile.json").read_text()))
    rows = pq.read_table(artifact("features", "train.parquet"))
    assert tally.rows[0] == len(rows) and {cell.name for cell in cells} <= set(rows.schema.names) - {"label", "key", "block", "month"}
    for cell in cells:
        assert tally.counts[cell.name][0, -1] == rows[cell.name].null_count
