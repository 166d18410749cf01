"""Slices, groups and behaviour: planted faults are found, chance is not taken for one, and a wrong declaration says what is wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.model.rows import made_up_rows
from prodml.stats.non_inferiority import Floor
from prodml.stats.scores import row_log_loss
from prodml.stats.slice_search import SearchSettings, row_excess, search_half, search_slices
from prodml.stats.slices import all_slices
from prodml.trust.behaviour import declared_tests
from prodml.trust.fairness import compare_groups, group_names, protected_columns, protected_values
from prodml.trust.slices import declared_lines

SETTINGS = SearchSettings(rows=60, of_each_label=10, blocks=10)


def world(seed, rows=5000, days=60, wrong=None):
    """A table of numbers with holes and categories, whose columns go together and whose days differ; probabilities that are right but where `wrong` says so."""
    draw = np.random.default_rng(seed)
    day = np.sort(draw.integers(0, days, rows))
    storm = draw.normal(size=days)[day]
    wind, rain = storm + draw.normal(size=rows), np.maximum(storm + draw.normal(size=rows), 0)
    carrier, origin = (np.array(names)[draw.integers(0, len(names), rows)] for names in (["AA", "B6", "UA", "WN"], ["EWR", "JFK", "LGA"]))
    wind[draw.random(rows) < 0.1] = np.nan
    table = pa.table({"carrier": carrier, "origin": origin, "wind": wind, "rain": rain})
    encoding = {"numeric": [{"name": "wind"}, {"name": "rain"}], "categorical": [{"name": "carrier", "vocabulary": ["AA", "B6", "UA", "WN"]}, {"name": "origin", "vocabulary": ["EWR", "JFK", "LGA"]}]}
    probabilities = 1 / (1 + np.exp(-(storm + 0.5 * np.nan_to_num(wind) - 1)))
    truth = np.where(wrong(carrier, origin, rain), 1 - probabilities, probabilities) if wrong else probabilities
    return (draw.random(rows) < truth).astype(int), probabilities, day, all_slices(table, ["carrier", "origin", "wind", "rain"], encoding)


def test_a_planted_pair_of_a_category_and_a_number_is_found():
    """Beside it stands at most its part where the model is surest, and so worst."""
    for seed in range(5):
        labels, probabilities, day, masks = world(seed, wrong=lambda carrier, origin, rain: (carrier == "WN") & (rain == 0))
        found = search_slices(row_excess(labels, probabilities), labels, day, masks, SETTINGS).found
        planted = [place for place, item in enumerate(found) if set(item.of) == {"carrier = WN", "rain = 0"}]
        assert planted and planted[0] <= 1 and found[planted[0]].low > 0 and "carrier = WN" in found[0].of


def test_two_planted_pairs_are_both_found():
    labels, probabilities, day, masks = world(1, wrong=lambda carrier, origin, rain: (carrier == "WN") & (origin == "EWR") | (carrier == "AA") & (origin == "LGA"))
    found = {frozenset(item.of) for item in search_slices(row_excess(labels, probabilities), labels, day, masks, SETTINGS).found}
    assert {frozenset(("carrier = WN", "origin = EWR")), frozenset(("carrier = AA", "origin = LGA"))} <= found


def test_where_the_probabilities_are_right_the_search_finds_nothing_but_by_the_false_discovery_rate():
    alarms = 0
    for seed in range(100, 160):
        labels, probabilities, day, masks = world(seed, rows=3000)
        alarms += bool(search_slices(row_excess(labels, probabilities), labels, day, masks, SETTINGS).found)
    assert alarms <= binom.ppf(0.999, 60, 0.05)


def test_a_hard_slice_is_not_taken_for_a_wrong_one():
    """Where the future is open the log loss is high and right: the first search says so, the second does not."""
    draw = np.random.default_rng(0)
    day, hard = np.repeat(np.arange(60), 100), draw.random(6000) < 0.3
    probabilities = np.where(hard, 0.5, 0.1)
    labels = (draw.random(6000) < probabilities).astype(int)
    masks = {"hard = 1": hard, "hard = 0": ~hard}
    assert search_slices(row_log_loss(labels, probabilities), labels, day, masks, SETTINGS).found[0].of == ("hard = 1",)
    assert not search_slices(row_excess(labels, probabilities), labels, day, masks, SETTINGS).found


def test_what_is_proposed_does_not_depend_on_the_half_that_confirms():
    labels, probabilities, day, masks = world(3, wrong=lambda carrier, origin, rain: carrier == "WN")
    loss, half = row_log_loss(labels, probabilities), search_half(day, SETTINGS.run)
    other = np.where(half, loss, np.random.default_rng(0).permutation(loss))
    proposed = [search_slices(values, labels, day, masks, SETTINGS) for values in (loss, other)]
    names = [sorted(item.slice for item in search.candidates) for search in proposed]
    assert names[0] == names[1] and names[0] and proposed[0].candidates != proposed[1].candidates


def test_the_order_of_the_rows_does_not_matter():
    labels, probabilities, day, masks = world(4, wrong=lambda carrier, origin, rain: carrier == "WN")
    order = np.random.default_rng(0).permutation(len(labels))
    one = search_slices(row_log_loss(labels, probabilities), labels, day, masks, SETTINGS)
    two = search_slices(row_log_loss(labels, probabilities)[order], labels[order], day[order], {name: mask[order] for name, mask in masks.items()}, SETTINGS)
    assert [item.slice for item in one.candidates] == [item.slice for item in two.candidates]
    assert np.allclose([item.difference for item in one.candidates], [item.difference for item in two.candidates])


def test_a_slice_with_one_label_is_left_out_and_not_scored():
    labels, probabilities, day, masks = world(5)
    never = {"late": {"late = 0": labels == 0, "late = 1": labels == 1}}
    lines, short = declared_lines({"int8": probabilities, "dense": probabilities}, labels, day, never, {"int8": 0.5, "dense": 0.5}, Floor(100, 20, 10))
    assert not lines and set(short) == {"late = 0", "late = 1"}


def test_a_protected_column_need_not_be_a_feature(tmp_path):
    draw = np.random.default_rng(0)
    key, labels = draw.permutation(4000), draw.integers(0, 2, 4000)
    sex = draw.integers(0, 2, 4000)
    pq.write_table(pa.table({"source_row": np.arange(4000), "sex": pa.array(np.where(sex, "f", "m"))}), tmp_path / "people.parquet")
    values = protected_values("sex", pa.table({"key": key}), tmp_path / "people.parquet")
    groups = group_names(protected_columns(["sex"])[0], values)
    assert (groups == np.where(sex[key], "f", "m")).all()
    # The compressed model calls one group positive half as often; its parent does not.
    dense = np.where(draw.random(4000) < 0.6, 0.9, 0.1)
    int8 = np.where((groups == "f") & (draw.random(4000) < 0.5), 0.1, dense)
    found = compare_groups(labels, {"int8": int8, "dense": dense}, {"int8": 0.5, "dense": 0.5}, groups, np.arange(4000) % 50, Floor(100, 20, 10), 200)
    rise = {line["measure"]: line for line in found["rises"]}
    assert rise["demographic_parity_difference"]["low"] > 0.1 and rise["equal_opportunity_difference"]["low"] > 0.1


@pytest.mark.parametrize("change, said", [
    ({"rain": 1.0}, "changes a column that is no feature"),
    ({"carrier": 1}, "adds 1 to a category"),
    ({"carrier": "ZZ"}, "which training did not list"),
    ({"delay": "late"}, "adds 'late' to a number"),
    ({"delay": True}, "adds True to a number"),
    ({}, "changes nothing"),
])
def test_a_wrong_change_says_what_is_wrong(change, said):
    encoding = made_up_rows(10)[1]
    with pytest.raises(InputError) as error:
        declared_tests({"renamed": [], "tests": [{"name": "a test", "change": change, "answer": "not lower"}]}, encoding)
    assert said in str(error.value) and "a test" in str(error.value) and "conf/data" in str(error.value)


@pytest.mark.parametrize("data", ["flights", "breast_cancer"])
def test_what_conf_declares_can_be_read(data):
    settings = compose([f"data={data}"])
    assert [item.column for item in protected_columns(settings["data"]["protected"])] == (["carrier", "origin"] if data == "flights" else [])
    columns = sorted({column for test in settings["data"]["behaviour"]["tests"] for column in test["change"]})
    declared_tests(settings["data"]["behaviour"], {"numeric": [{"name": name} for name in columns], "categorical": []})
    SearchSettings(**settings["slices"]["search"])
