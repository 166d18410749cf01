"""What is computed in pieces is what is computed at once, and what is read from disk is what lies in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prodml.core.config import compose
from prodml.data import flights
from prodml.data.clean import clean
from prodml.data.features import feature_slices
from prodml.data.ingest import ingest, write_batches
from prodml.data.validate import read_tables
from prodml.model.networks import build_network
from prodml.model.rows import StreamedRows, load_rows, made_up_rows, open_rows
from prodml.model.train import TrainSettings, predict, train
from prodml.stats.scores import roc_auc


@pytest.fixture(scope="module")
def autumn(root, tmp_path_factory):
    """Three weeks of the real tables around the autumn change of clock, cleaned; and the settings."""
    data = compose(["data=flights"])["data"]
    folder = tmp_path_factory.mktemp("autumn")
    ingest(root / "data", data["tables"], folder / "ingest", data["null_values"], "flights", 1.0)
    tables = read_tables(folder / "ingest")
    some = {name: table for name, table in tables.items() if name != "flights"}
    month, day = tables["flights"].month, tables["flights"].day
    some["flights"] = tables["flights"].filter(((month == 10) & (day >= 20)) | ((month == 11) & (day <= 9)))
    for name, table in some.items():
        write_batches(folder / "validate" / f"{name}.parquet", table.order_by("source_row").to_pyarrow_batches())
    clean(folder / "validate", folder / "clean", data["repairs"])
    return folder / "clean", data


def features_made(autumn, rows: int) -> tuple[int, pa.Table]:
    """How many slices of about so many rows there are, and their features, sorted by key."""
    source, data = autumn
    slices = feature_slices(read_tables(source), data["main"], data["target"], {**data["features"], "slice_rows": rows}, data["split"])
    return len(slices), pa.concat_tables([table.to_pyarrow() for table in slices]).sort_by("key")


@pytest.fixture(scope="module")
def at_once(autumn):
    slices, whole = features_made(autumn, 10**9)
    assert slices == 1 and len(whole) > 15_000
    return whole


def test_features_in_slices_are_features_at_once(autumn, at_once):
    """To the bit, whatever the slices; only the order of rows may differ where a slice ends."""
    slices, pieces = features_made(autumn, 6000)
    assert slices >= 3 and pieces.equals(at_once)


def test_a_slice_that_looks_back_too_little_would_be_seen(autumn, at_once, monkeypatch):
    monkeypatch.setattr(flights, "LOOKBACK_DAYS", 1)
    slices, short = features_made(autumn, 10_000)
    assert slices >= 2 and len(short) == len(at_once) and not short.equals(at_once)


def written_rows(path: Path, count: int, group: int) -> dict:
    """Made-up rows as a feature table in groups of rows, and their encoding."""
    rows, encoding = made_up_rows(count)
    words = np.array([None, *encoding["categorical"][0]["vocabulary"]], object)
    numbers = [pa.array(column, pa.float32(), mask=np.isnan(column)) for column in rows.numbers.numpy().T]
    table = pa.table({
        "key": rows.keys, "block": rows.blocks, "month": rows.months.tolist(), "label": pa.array(rows.labels.numpy().astype(np.int8)),
        "delay": numbers[0], "wind": numbers[1], "carrier": words[rows.codes[:, 0].numpy()].tolist(),
    })
    pq.write_table(table, path, row_group_size=group)
    return encoding


def test_streamed_rows_are_the_rows(tmp_path):
    encoding = written_rows(tmp_path / "train.parquet", 5000, 700)
    whole, streamed = load_rows(tmp_path / "train.parquet", encoding), open_rows(tmp_path / "train.parquet", encoding, "cpu", 1000)
    assert isinstance(streamed, StreamedRows) and len(streamed) == 5000 and torch.equal(streamed.labels, whole.labels)
    parts = list(streamed.parts())
    assert len(parts) > 1
    for name in ("numbers", "codes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]).nan_to_num(-9), getattr(whole, name).nan_to_num(-9))


def test_training_from_disk_learns_repeats_and_resumes(tmp_path):
    encoding = written_rows(tmp_path / "train.parquet", 5000, 700)
    whole, streamed = load_rows(tmp_path / "train.parquet", encoding), open_rows(tmp_path / "train.parquet", encoding, "cpu", 1000)
    settings = TrainSettings(epochs=3, batch_size=128, learning_rate=0.01, checks_per_epoch=2)

    def trained(rows, checkpoint=None):
        torch.manual_seed(0)
        network = build_network({"kind": "mlp", "hidden": [16]}, encoding)
        train(network, rows, whole, settings, 0, checkpoint=checkpoint)
        return network

    first, again, in_memory = trained(streamed), trained(streamed), trained(whole)
    for one, other in zip(first.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)
    assert np.array_equal(predict(first, whole), predict(first, streamed)), "asked in pieces or at once"
    scores = [roc_auc(whole.labels.numpy(), predict(network, whole)) for network in (first, in_memory)]
    assert min(scores) > 0.8 and abs(scores[0] - scores[1]) < 0.02
