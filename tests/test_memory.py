"""What streams computes what the whole would: features in slices, sums, splits, training from disk."""

import gc
import json

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.data import flights, validate
from prodml.data.features import build_features, feature_slices, fit_encoding, slice_starts, write_splits
from prodml.data.ingest import ingest
from prodml.data.validate import read_tables
from prodml.model.checkpoint import save_state
from prodml.model.device import set_determinism
from prodml.model.networks import build_network
from prodml.model.rows import Rows, StreamedRows, load_rows, open_rows
from prodml.model.train import TrainSettings, Trainer, predict_logits, train


@pytest.fixture(scope="module")
def data() -> dict:
    """The settings of the flights."""
    return compose(["data=flights"])["data"]


@pytest.fixture(scope="module")
def tables(root, data, tmp_path_factory):
    """Three months of the raw tables, across the spring change of clock, and three carriers that fly from all airports: enough for every window, at a third of the time."""
    folder = tmp_path_factory.mktemp("raw") / "ingest"
    ingest(root / "data", data["tables"], folder, data["null_values"], "flights", 1.0)
    loaded = read_tables(folder)
    return {**loaded, "flights": loaded["flights"].filter(loaded["flights"].month <= 3, loaded["flights"].carrier.isin(["AA", "DL", "UA"]))}


def slices(tables, data) -> list:
    """Features in slices of 10,000 rows, so that all but the first begin in the middle of a look back of 28 days; not computed yet."""
    return list(feature_slices(tables, "flights", data["target"], {**data["features"], "slice_rows": 10_000}, data["split"]))


@pytest.fixture(scope="module")
def pieces(tables, data) -> list[pa.Table]:
    """The slices, each in the order of its keys."""
    return [piece.order_by("key").to_pyarrow() for piece in slices(tables, data)]


@pytest.mark.slow
def test_features_in_slices_are_the_features(tables, data, pieces):
    whole = build_features(tables, "flights", data["target"], data["features"], data["split"]).order_by("key").to_pyarrow()
    assert len(pieces) > 3 and pa.concat_tables(pieces).sort_by("key").equals(whole)


def test_a_lookback_that_is_too_short_would_be_seen(tables, data, pieces, monkeypatch):
    monkeypatch.setattr(flights, "LOOKBACK_DAYS", 20)
    short = slices(tables, data)[2].order_by("key").to_pyarrow()
    assert short.num_rows == pieces[2].num_rows and not short.equals(pieces[2])


def test_duckdb_is_bounded_silent_and_cleans_up(tables, tmp_path):
    pq.write_table(pa.table({"source_row": [1]}), tmp_path / "a.parquet")
    table = read_tables(tmp_path)["a"]
    backend = table._find_backend()
    settings = dict(backend.raw_sql("select name, value from duckdb_settings() where name in ('memory_limit', 'temp_directory', 'enable_progress_bar')").fetchall())
    assert settings["enable_progress_bar"] == "false" and "MiB" in settings["memory_limit"] and "prodml-spill-" in settings["temp_directory"]


def test_rows_that_were_spilled_are_read_to_the_end(tmp_path, monkeypatch):
    """A sort larger than the limit, whose tables are out of sight while its rows are still being read."""
    monkeypatch.setattr(validate, "MEMORY_LIMIT", "100MB")
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"source_row": rng.permutation(2_000_000), **{f"c{n}": rng.random(2_000_000) for n in range(8)}}), tmp_path / "a.parquet")
    batches = read_tables(tmp_path)["a"].order_by("source_row").to_pyarrow_batches(chunk_size=100_000)
    first = next(batches)
    gc.collect()
    rows = first["source_row"].to_pylist() + [row for batch in batches for row in batch["source_row"].to_pylist()]
    assert rows == list(range(2_000_000))


def splits_file(path, count: int, group: int) -> None:
    rng = np.random.default_rng(1)
    days = np.datetime64("2020-01-01") + np.sort(rng.integers(0, 300, count))
    pq.write_table(pa.table({
        "key": np.arange(count), "split_by": pa.array(days.astype("datetime64[D]")), "label": rng.integers(0, 2, count),
        "speed": pa.array(rng.lognormal(3, 2, count), mask=rng.random(count) < 0.1), "town": rng.choice(["a", "b", "c"], count), "id": [str(n) for n in range(count)],
    }), path, row_group_size=group)


def test_splits_and_encoding_do_not_depend_on_the_pieces(tmp_path):
    settings = {"kinds": {}, "max_categories": 10, "min_category_rows": 1}
    split = {"by": "time", "column": "day", "validation_from": "2020-07-01", "test_from": "2020-09-01"}
    reports = []
    for group in (1000, 64_000):
        folder = tmp_path / str(group)
        folder.mkdir()
        splits_file(folder / "all.parquet", 64_000, group)
        reports.append(write_splits(folder / "all.parquet", folder, {"column": "late"}, settings, split))
    assert reports[0] == reports[1] and reports[0]["kinds"]["id"] == ("drop", "an identifier: more than 10 values")
    small, large = ({name: pq.read_table(tmp_path / group / f"{name}.parquet") for name in ("train", "validation", "test")} for group in ("1000", "64000"))
    assert small == large
    encodings = [json.loads((tmp_path / group / "encoding.json").read_text()) for group in ("1000", "64000")]
    assert encodings[0] == encodings[1]
    speed = large["train"]["speed"].drop_null().to_numpy().astype(np.float64)
    assert encodings[0]["numeric"][0]["mean"] == speed.mean() and encodings[0]["numeric"][0]["std"] == speed.std(), "numpy's own bits"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A feature table in forty groups of rows, and its encoding."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    x, town = rng.permutation(np.linspace(-2, 2, 8000)).astype(np.float32), rng.choice(["a", "b"], 8000)
    label = (rng.random(8000) < 1 / (1 + np.exp(-2 * x - (town == "a")))).astype(np.int8)
    pq.write_table(pa.table({"key": np.arange(8000), "block": np.arange(8000, dtype=np.int32), "month": [""] * 8000, "label": label, "x": x, "town": town}), folder / "train.parquet", row_group_size=200)
    return folder / "train.parquet", fit_encoding(folder / "train.parquet", ["x", "town"], {}, 1)


SETTINGS = TrainSettings(epochs=2, batch_size=128, learning_rate=0.01, checks_per_epoch=3)


def streamed_training(files, checkpoint=None, interrupt_after=None):
    set_determinism(0, 1)
    path, encoding = files
    rows = open_rows(path, encoding, rows_in_memory=10)
    network = build_network({"kind": "mlp", "hidden": [8]}, encoding, rows.numbers)
    trainer = Trainer(network, rows, rows, SETTINGS)
    if interrupt_after is not None:
        for _ in range(interrupt_after):
            trainer.leg()
        save_state(checkpoint, *trainer.state())
        return None, None
    history = train(network, rows, rows, SETTINGS, checkpoint=checkpoint)
    return network, history


def test_an_epoch_from_disk_sees_every_row_once_and_mixes_them(files):
    rows, whole = open_rows(*files, rows_in_memory=10), load_rows(*files)
    assert isinstance(rows, StreamedRows) and isinstance(open_rows(*files, rows_in_memory=8000), Rows)
    trainer = Trainer(build_network({"kind": "logistic"}, files[1]), rows, rows, SETTINGS)
    batches = list(trainer._batches(0, 0, trainer.batches))
    assert len(batches) == 8000 // 128 and {len(batch[0]) for batch in batches} == {128}
    seen = torch.cat([numbers[:, 0] for numbers, _, _ in batches])
    assert len(seen) == 8000 // 128 * 128 and torch.isin(seen, whole.numbers[:, 0]).all() and len(seen.unique()) == len(seen)
    place = {value: index for index, value in enumerate(whole.numbers[:, 0].tolist())}
    for numbers, codes, targets in batches:
        index = [place[value] for value in numbers[:, 0].tolist()]
        assert torch.equal(codes, whole.codes[index]) and torch.equal(targets, whole.labels[index]), "a row keeps its label"
    middle = list(trainer._batches(0, 20, 40))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(middle, batches[20:40], strict=True)), "a leg is the same whether or not it was begun with"
    assert not torch.equal(next(trainer._batches(1, 0, 1))[0], batches[0][0]), "another epoch has another order"


def test_training_from_disk_repeats_and_resumes(files, tmp_path):
    network, history = streamed_training(files)
    again, same = streamed_training(files)
    assert history == same and history[-1]["validation_log_loss"] < 0.6
    streamed_training(files, tmp_path / "state.safetensors", interrupt_after=4)
    resumed, after = streamed_training(files, tmp_path / "state.safetensors")
    assert after == history
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]) and torch.equal(weight, resumed.state_dict()[name]), name
    torch.testing.assert_close(predict_logits(network, open_rows(*files, rows_in_memory=10)), predict_logits(network, load_rows(*files)))


def test_rows_without_a_time_cannot_be_sliced():
    table = ibis.memtable({"at": ["2020-01-01", "2020-01-02", None]}).mutate(at=ibis._["at"].cast("timestamp"))
    with pytest.raises(InputError, match="rows without a time"):
        slice_starts(table, "at", 1)


def test_rows_on_disk_are_not_resampled(files):
    rows = open_rows(*files, rows_in_memory=10)
    with pytest.raises(InputError, match="rows that stay on disk cannot be resampled"):
        Trainer(build_network({"kind": "logistic"}, files[1]), rows, rows, TrainSettings(epochs=1, batch_size=128, learning_rate=0.01, resample="over"))
