"""Non-inferiority: what must hold for any labels, probabilities and blocks."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prodml.core.errors import InputError
from prodml.stats.non_inferiority import QUALITY_CLAUSES, Floor, auc_loss, calibration_loss, holm, judge, placements, slice_losses
from prodml.stats.scores import roc_auc


@st.composite
def samples(draw):
    """Labels, two models with ties, and blocks, with each label in two blocks at least."""
    seed, count, blocks, steps = draw(st.tuples(st.integers(0, 10_000), st.integers(20, 120), st.integers(3, 15), st.integers(2, 40)))
    random = np.random.default_rng(seed)
    labels, place = random.integers(0, 2, count).astype(float), random.integers(0, blocks, count)
    assume(all(len(np.unique(place[labels == label])) >= 2 for label in (0, 1)))
    parent, candidate = (np.round(steps * random.random(count)) / steps for _ in range(2))
    return labels, parent, candidate, place


@settings(deadline=None)
@given(samples())
def test_the_loss_is_the_difference_of_auc_whatever_the_order(sample):
    labels, parent, candidate, blocks = sample
    loss = auc_loss(*sample)
    assert loss.estimate == pytest.approx(roc_auc(labels, parent) - roc_auc(labels, candidate), abs=1e-12)
    mixed = np.random.default_rng(0).permutation(len(labels))
    again = auc_loss(*(array[mixed] for array in sample))
    assert again == pytest.approx(loss, abs=1e-12)
    back = auc_loss(labels, candidate, parent, blocks)
    assert (back.estimate, back.standard_error) == pytest.approx((-loss.estimate, loss.standard_error), abs=1e-12)


@settings(deadline=None)
@given(samples())
def test_auc_asks_for_ranks_alone(sample):
    labels, parent, candidate, blocks = sample
    assert auc_loss(labels, parent**3, candidate / 2, blocks) == pytest.approx(auc_loss(*sample), abs=1e-12)
    assert np.allclose(placements(1 - labels, 1 - parent), placements(labels, parent))


@settings(deadline=None)
@given(samples(), st.floats(0.5, 0.99))
def test_calibration_lies_within_its_bounds_and_within_the_move(sample, level):
    labels, parent, candidate, blocks = sample
    estimate, low, high = calibration_loss(*sample, level)
    assert low <= estimate <= high
    assert abs(estimate) <= np.abs(candidate - parent).mean() + 1e-12
    assert calibration_loss(labels, parent, parent, blocks, level) == (0, 0, 0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_never_below_p_and_keeps_its_order(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_a_stricter_margin_is_never_easier():
    random = np.random.default_rng(0)
    labels, blocks = random.integers(0, 2, 3000), np.repeat(np.arange(50), 60)
    parent = np.clip(0.3 * labels + 0.6 * random.random(3000), 0, 1)
    candidate = np.clip(parent + 0.1 * random.normal(size=3000), 0, 1)
    slices = {"all": np.ones(3000, bool), "half": np.arange(3000) % 2 == 0, "few": np.arange(3000) < 100}
    order = {"broken": 0, "not resolved": 1, "proven": 2}
    seen = {name: [] for name in QUALITY_CLAUSES}
    for margin in (0.0, 0.001, 0.01, 0.1, 1.0):
        for clause in judge(labels, parent, candidate, blocks, dict.fromkeys(QUALITY_CLAUSES, margin), slices, replicates=100):
            seen[clause.name].append(order[clause.verdict])
            assert (clause.verdict == "proven") == (clause.bound <= margin)
    assert all(verdicts == sorted(verdicts) and verdicts[-1] == 2 for verdicts in seen.values()), seen
    worst = judge(labels, parent, candidate, blocks, {"max_worst_slice_drop": 0.1}, slices)[0]
    judged, left_out = slice_losses(labels, parent, candidate, blocks, slices)
    assert worst.bound == max(item.bound for item in judged) and worst.left_out == tuple(left_out) == ("few",)


def test_what_cannot_be_judged_says_why():
    labels, p, blocks = np.array([0, 1, 0, 1]), np.array([0.1, 0.6, 0.4, 0.3]), np.array([0, 0, 1, 1])
    for wrong, said in (
        (lambda: auc_loss(labels, p, p, blocks[:2]), "do not match"),
        (lambda: auc_loss(labels, p, p, np.array([0, 1, 0, 1])), "in one block"),
        (lambda: auc_loss(labels, p, p, blocks).bounds(1.0), "level"),
        (lambda: slice_losses(labels, p, p, blocks, {"short": np.ones(2, bool)}), "the mask of the slice 'short'"),
        (lambda: judge(labels, p, p, blocks, {"p95_us": 3}), "no quality clause"),
        (lambda: judge(labels, p, p, blocks, {"max_auc_drop": float("nan")}), "at least 0"),
    ):
        with pytest.raises(InputError, match=said):
            wrong()
    small = judge(labels, p, p, blocks, {"max_worst_slice_drop": 0.1}, {"all": np.ones(4, bool)}, floor=Floor())[0]
    assert small.verdict == "not resolved" and small.bound is None
