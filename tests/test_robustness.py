"""Attacks keep to the limits of a request, outages cost what the feed is worth, and every setting in conf/ is one that the stage takes."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit

from prodml.core.config import compose, read_settings
from prodml.core.errors import InputError
from prodml.model.networks import build_network
from prodml.model.rows import Rows, made_up_rows
from prodml.trust.attack import AttackSettings, at_random, attack_lines, box_around, by_asking, by_gradient, by_swaps, logits_of, read_reach
from prodml.trust.robustness import ShiftSettings, StressSettings, card_tables, columns_of, headline_of, read_outages, stress_lines, stresses

HOW = AttackSettings(rows=200, epsilons=[0.1, 0.4], steps=4, swaps=1, passes=1, draws=1)


@pytest.fixture(scope="module")
def flights():
    """Rows with a whole number on a circle, one that follows it, one that may be missing, and two categories; a network; the training table."""
    rng = np.random.default_rng(0)
    count = 300
    length, wind = rng.integers(30, 600, count).astype(np.float32), rng.normal(size=count).astype(np.float32)
    wind[:60] = np.nan
    arrival = ((length + rng.integers(0, 1440, count)) % 1440).astype(np.float32)
    codes = np.column_stack([rng.integers(0, 4, count), rng.integers(1, 3, count)])
    rows = Rows(torch.from_numpy(np.column_stack([length, arrival, wind])), torch.from_numpy(codes), torch.from_numpy((rng.random(count) < 0.4).astype(np.float32)), np.arange(count) // 10, np.full(count, ""), np.arange(count))
    numeric = [{"name": name, "mean": float(np.nanmean(values)), "std": float(np.nanstd(values)), "missing": name == "wind"} for name, values in (("length", length), ("arrival", arrival), ("wind", wind))]
    encoding = {"numeric": numeric, "categorical": [{"name": "carrier", "vocabulary": ["AA", "B6", "UA"]}, {"name": "origin", "vocabulary": ["EWR", "JFK"]}]}
    carriers = [None if code == 0 else ["AA", "B6", "UA"][code - 1] for code in codes[:, 0]]
    table = pa.table({"length": length, "arrival": arrival, "wind": wind, "carrier": carriers, "origin": [["EWR", "JFK"][code - 1] for code in codes[:, 1]]})
    torch.manual_seed(0)
    network = build_network({"kind": "mlp", "hidden": [16]}, encoding).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    return rows, encoding, table, network


def made_by_every_attack(network, box):
    """The rows that each attack makes, pushed both ways."""
    for direction in (1.0, -1.0):
        yield from (box.moved(by_gradient(network, box, 0.4, direction, steps)) for steps in (1, 4))
        swapped = by_swaps(lambda rows: logits_of(network, rows), box, 1, direction)[1]
        yield box.moved(by_gradient(network, box, 0.4, direction, 4, swapped), swapped)
        yield box.moved(*by_asking(lambda rows: logits_of(network, rows), box, 0.4, 1, direction))
    yield at_random(box, 0.4, 1)


def test_no_attack_leaves_the_limits_of_a_request(flights):
    rows, encoding, table, network = flights
    declared = {"length": {"by": 30, "min": 40, "moves": {"arrival": 1440}}, "wind": {"max": 1.0}, "carrier": {"values": ["AA", "B6"]}}
    box, moved_at_all = box_around(rows, read_reach(declared, encoding, table), encoding, table), False
    for made in made_by_every_attack(network, box):
        before, after = rows.numbers, made.numbers
        step = after[:, 0] - before[:, 0]
        assert step.abs().max() <= 30 and torch.equal(after[:, 0], after[:, 0].round()), "at most 30, and whole"
        assert (after[:, 0] >= torch.minimum(before[:, 0], torch.tensor(40.0))).all() and (after[:, 0] <= before[:, 0].max()).all(), "inside its range"
        assert torch.equal(after[:, 1], torch.remainder(before[:, 1] + step, 1440)), "what follows follows, on its circle"
        assert torch.equal(torch.isnan(after[:, 2]), torch.isnan(before[:, 2])), "missing stays missing"
        assert (after[60:, 2] <= torch.maximum(before[60:, 2], torch.tensor(1.0)) + 1e-6).all()
        assert torch.equal(made.codes[:, 1], rows.codes[:, 1]) and torch.equal(made.codes[rows.codes[:, 0] == 0], rows.codes[rows.codes[:, 0] == 0])
        swapped = made.codes[:, 0] != rows.codes[:, 0]
        assert set(made.codes[swapped, 0].tolist()) <= {1, 2}
        assert torch.equal(made.labels, rows.labels)
        moved_at_all = moved_at_all or bool((step != 0).any() and swapped.any())
    assert moved_at_all


def test_asking_sees_through_a_network_that_hides_its_gradients(flights):
    """Rounded logits are flat: FGSM and PGD find nothing to follow, and a query finds the same push as before."""
    rows, encoding, table, network = flights

    class Stairs(type(network)):
        def forward(self, numbers, codes):
            return super().forward(numbers, codes).div(0.1).round() * 0.1

    stairs = Stairs(network.architecture, network.inputs)
    stairs.load_state_dict(network.state_dict())
    stairs.eval()
    box = box_around(rows, read_reach("numbers", encoding, table), encoding, table)
    lines = {line["attack"]: line for line in attack_lines({"stairs": stairs}, box, {"stairs": 0.5}, HOW, "numbers") if line["epsilon"] == 0.4}
    assert lines["PGD"]["push"] == lines["FGSM"]["push"] == 0 and lines["PGD"]["flipped"] == 0
    assert lines["asking"]["push"] > 0.3 and lines["asking"]["flipped"] > lines["asking"]["random_flipped"]


def test_the_outage_of_the_one_feed_that_matters_leaves_chance():
    rows, encoding = made_up_rows(2000)
    table = pa.table({"delay": rows.numbers[:, 0].numpy(), "wind": rows.numbers[:, 1].numpy(), "carrier": ["AA"] * 2000})
    feeds = read_outages({"delays": {"columns": ["de*"]}, "weather": {"columns": ["wind"]}, "silent": {"columns": ["delay"], "values": {"delay": 0.0}}}, encoding)
    makes = stresses(columns_of(table, encoding), rows, encoding, read_reach("numbers", encoding, table), StressSettings(2000, [0.1], [0.1], {"noise": 0.1, "missing": 0.1}), feeds)
    lines = stress_lines({"int8": lambda asked: expit(asked.numbers[:, 0].nan_to_num().double().numpy())}, makes, 50, 0.95)
    score = {line["level"]: line["roc_auc"] for line in lines if line["stress"] == "outage"}
    assert score["delays"] == score["silent"] == 0.5 and score["weather"] == lines[0]["roc_auc"] > 0.7
    headline = headline_of([], lines, [], "int8", {"noise": 0.1, "missing": 0.1})
    assert headline["worst_outage_roc_auc"] == 0.5 and headline["flipped_at_smallest_epsilon"] is None and headline["roc_auc_with_noise"] > 0.7
    tables = card_tables([], lines, feeds, [], "int8")
    assert [row[0] for row in tables["outages"]["rows"]] == list(feeds) and tables["attacks"]["rows"] == [] and [row[0] for row in tables["stress"]["rows"]] == ["none", "noise", "missing"]


def test_a_table_without_numbers_or_categories_is_attacked_where_it_can_be():
    rows, encoding = made_up_rows(50)
    words = Rows(rows.numbers[:, :0], rows.codes, rows.labels, rows.blocks, rows.months, rows.keys)
    encoding = {"numeric": [], "categorical": encoding["categorical"]}
    network = build_network({"kind": "mlp", "hidden": [4]}, encoding).eval()
    reach = read_reach("all", encoding, pa.table({"carrier": ["AA"] * 50}))
    lines = attack_lines({"dense": network}, box_around(words, reach, encoding), {"dense": 0.5}, HOW, "declared")
    assert [line["attack"] for line in lines] == ["1 swap"]


@pytest.mark.parametrize("overrides", [[], ["data=breast_cancer"], ["run=smoke"], ["data=breast_cancer", "run=smoke"]])
def test_the_settings_in_conf_are_such_as_the_stage_takes(overrides):
    conf = compose(overrides)
    for kind, name in ((AttackSettings, "attack"), (StressSettings, "stress"), (ShiftSettings, "shift")):
        read_settings(kind, conf["robustness"][name], f"robustness.{name}")
    assert isinstance(conf["data"]["outages"], dict) and conf["data"]["adversary"]["columns"]


@pytest.mark.parametrize("wrong", [{"towards": ["test"]}, {"factors": [0.0]}, {"clip": 1.0}, {"penalty": 0.0}, {"least_rows": 0}])
def test_a_shift_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=f"robustness.shift.{next(iter(wrong))}"):
        read_settings(ShiftSettings, compose([])["robustness"]["shift"] | wrong, "robustness.shift")
