"""Going on with new rows: a fair memory and honest forgetting."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prodml.core.errors import InputError
from prodml.model.device import set_determinism
from prodml.model.incremental import UpdatePlan, compare_ways, held_out, partitions_of, remember, unseen_categories, update, with_replay
from prodml.model.networks import build_network, load_network, save_network
from prodml.model.rows import made_up_rows
from prodml.model.train import TrainSettings, predict


def test_every_row_has_the_same_chance_to_be_remembered():
    """Over many seeds, rows of the first and of the last month are remembered equally often."""
    rows, _ = made_up_rows(200)
    kept = np.zeros(200)
    for seed in range(400):
        memory = None
        for number in range(4):
            memory = remember(memory, rows.take(slice(50 * number, 50 * number + 50)), 40, 1000 * seed + number)
        kept[memory.rows.keys] += 1
    assert len(memory.rows) == 40
    by_month = kept.reshape(4, 50).mean(axis=1) / 400
    assert np.allclose(by_month, 0.2, atol=0.02), by_month


def test_the_memory_does_not_grow():
    rows, _ = made_up_rows(1000)
    memory = remember(None, rows, 100, 0)
    for seed in range(1, 20):
        memory = remember(memory, rows, 100, seed)
        assert len(memory.rows) == len(memory.drawn) == 100


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share):
    rows, _ = made_up_rows(100)
    with pytest.raises(InputError, match="replay_share"):
        with_replay(rows, remember(None, rows, 10, 0), share)


def test_held_out_days_are_whole_and_unseen():
    rows, _ = made_up_rows(1000)
    learnt, kept = held_out(rows, 0.3, 7)
    assert not set(learnt.blocks) & set(kept.blocks) and len(learnt) + len(kept) == 1000 and len(set(kept.blocks)) == 6


def test_an_update_goes_on_from_a_saved_network(tmp_path):
    """One more pass from saved weights is an update; its bytes repeat, and it begins where the saved network ended."""
    rows, encoding = made_up_rows(2000)
    stop = made_up_rows(500, 1)[0]
    set_determinism(0, 1)
    first = build_network({"kind": "mlp", "hidden": [8]}, encoding)
    update(first, rows, stop, TrainSettings(epochs=4, batch_size=64, learning_rate=0.01))
    save_network(first, tmp_path)
    gentle = TrainSettings(epochs=1, batch_size=64, learning_rate=1e-7, schedule="constant")
    answers = []
    for _ in range(2):
        network = load_network(tmp_path)
        history = update(network, made_up_rows(500, 2)[0], stop, gentle)
        answers.append(predict(network, stop))
    assert np.array_equal(*answers) and np.abs(answers[0] - predict(first, stop)).max() < 1e-3 and len(history) >= 1


def test_parts_of_one_class_are_named():
    rows, encoding = made_up_rows(300)
    one = rows.take(rows.labels.numpy() == 1)
    plan = UpdatePlan({"kind": "logistic"}, encoding, TrainSettings(epochs=1, batch_size=32, learning_rate=0.01), TrainSettings(epochs=1, batch_size=32, learning_rate=0.01), 0.5, 100, 0)
    with pytest.raises(InputError, match="one class"):
        compare_ways(plan, [held_out(one, 0.2, 0)], [("b", *held_out(rows, 0.2, 0))], rows)


def test_a_table_without_months_has_parts():
    rows, _ = made_up_rows(100)
    names = [name for name, _ in partitions_of(rows, 4)]
    assert names == ["part 1", "part 2", "part 3", "part 4"]
    assert torch.equal(torch.cat([part.labels for _, part in partitions_of(rows, 4)]), rows.labels)


def test_unseen_values_are_counted_across_groups(tmp_path):
    pq.write_table(pa.table({"carrier": ["AA", "ZZ", "ZZ", None, "QQ"] * 3}), tmp_path / "new.parquet", row_group_size=4)
    assert unseen_categories(tmp_path / "new.parquet", {"categorical": [{"name": "carrier", "vocabulary": ["AA"]}]}) == {"carrier": {"ZZ": 6, "QQ": 3}}
