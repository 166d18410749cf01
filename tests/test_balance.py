"""Classes are made even among training rows only, as imbalanced-learn does it, and probabilities stay probabilities."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from imblearn.over_sampling import SMOTENC, RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler

from prodml.core.errors import InputError
from prodml.core.files import sha256_of_folder
from prodml.data.balance import KINDS, balance
from prodml.data.features import make_features
from prodml.model.device import set_determinism
from prodml.model.networks import build_network
from prodml.model.rows import Rows, balanced_rows, check_real, load_rows, made_up_rows
from prodml.model.train import Trainer, TrainSettings, fit_temperature, predict, predict_logits, train

QUICK = {"epochs": 6, "batch_size": 128, "learning_rate": 0.01}
MODEL = {"kind": "mlp", "hidden": [16]}
RESAMPLED = [kind for kind in KINDS if kind != "none"]


def rare_rows(count: int, seed: int) -> Rows:
    """The made-up task with a tenth of its cases."""
    rows = made_up_rows(count, seed)[0]
    return rows.take((rows.labels.numpy() == 0) | (np.arange(count) % 10 == 0))


def arrays(rows: Rows) -> dict[str, np.ndarray]:
    return {"numbers": rows.numbers.numpy(), "codes": rows.codes.numpy(), "labels": rows.labels.numpy()}


@pytest.mark.parametrize("split", ["validation", "test", "all", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_only_training_rows_are_resampled(kind, split):
    with pytest.raises(InputError, match="training rows only"):
        balance(**arrays(rare_rows(500, 0)), kind=kind, split=split)


@pytest.mark.parametrize("kind, sampler", [("over", RandomOverSampler), ("under", RandomUnderSampler)])
def test_random_sampling_draws_the_rows_that_imbalanced_learn_draws(kind, sampler):
    rows = arrays(rare_rows(2000, 0))
    ours = balance(**rows, kind=kind, split="train", seed=3)
    theirs = sampler(random_state=3)
    theirs.fit_resample(np.nan_to_num(rows["numbers"]), rows["labels"].astype(int))
    assert np.array_equal(ours.origin, np.sort(theirs.sample_indices_))
    assert np.bincount(ours.labels.astype(int)).tolist() == [int((ours.labels == 0).sum())] * 2


def test_smotenc_makes_the_rows_that_imbalanced_learn_makes():
    """Without holes, on standardized numbers, there is nothing in between."""
    rows = arrays(rare_rows(2000, 0))
    rows["numbers"] = np.nan_to_num(rows["numbers"])
    ours = balance(**rows, kind="smotenc", split="train", seed=3)
    mean, spread = rows["numbers"].astype(float).mean(axis=0), rows["numbers"].astype(float).std(axis=0)
    table = np.hstack([(rows["numbers"] - mean) / spread, rows["codes"]])
    theirs, labels = SMOTENC(categorical_features=[2], k_neighbors=5, random_state=3).fit_resample(table, rows["labels"].astype(int))
    np.testing.assert_allclose(ours.numbers, theirs[:, :2] * spread + mean, atol=1e-4)
    assert np.array_equal(ours.codes[:, 0], theirs[:, 2]) and np.array_equal(ours.labels, labels)


def test_made_up_rows_have_holes_where_their_class_has_them():
    rows = arrays(rare_rows(4000, 0))
    case = rows["labels"] == 1
    rows["numbers"][case, 1] = np.nan
    ours = balance(**rows, kind="smotenc", split="train")
    fresh = ours.origin < 0
    assert fresh.sum() > 1000 and np.isnan(ours.numbers[fresh, 1]).all() and not np.isnan(ours.numbers[fresh, 0]).any()
    assert (ours.labels[fresh] == 1).all() and set(ours.codes[fresh, 0]) <= set(rows["codes"][case, 0])


@pytest.mark.parametrize("kind", RESAMPLED)
def test_a_training_resamples_its_own_rows_and_no_others(kind, tmp_path):
    """Through the files of the pipeline: the splits on the disk stay, and what a network is stopped and judged by is real."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=1500)
    table = pd.DataFrame({"source_row": range(1, 1501), "x": x, "town": draw.choice(["Ulm", "Bonn"], 1500), "paid": np.where(x + draw.normal(size=1500) > 1.8, "yes", "no")})
    (tmp_path / "clean").mkdir()
    table.to_parquet(tmp_path / "clean" / "people.parquet", index=False)
    settings = {"module": None, "options": {}, "kinds": {}, "max_categories": 20, "min_category_rows": 1}
    folder = tmp_path / "features"
    make_features(tmp_path / "clean", folder, "people", {"column": "paid", "positive": "yes"}, settings, {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0})
    before = sha256_of_folder(folder)
    encoding = json.loads((folder / "encoding.json").read_text())
    parts = {split: load_rows(folder / f"{split}.parquet", encoding) for split in ("train", "validation", "test")}
    trainer = Trainer(build_network(MODEL, encoding), parts["train"], parts["validation"], TrainSettings(**QUICK, resample=kind))
    trainer.leg()
    assert trainer.rows.labels.mean() == 0.5 and ((trainer.rows.keys < 0).any() == (kind == "smotenc"))
    assert set(trainer.rows.keys[trainer.rows.keys >= 0]) <= set(parts["train"].keys)
    assert np.array_equal(trainer.validation.keys, parts["validation"].keys) and sha256_of_folder(folder) == before
    for split in ("validation", "test"):
        check_real(parts[split])
        assert not set(parts[split].keys) & set(trainer.rows.keys)


def test_made_up_rows_are_refused_where_a_model_is_judged():
    rows = rare_rows(1000, 0)
    even = balanced_rows(rows, "smotenc", "train")[0]
    assert (even.keys < 0).sum() == (even.blocks < 0).sum() > 0
    encoding = made_up_rows(10)[1]
    with pytest.raises(InputError, match="made up"):
        train(build_network(MODEL, encoding), rows, even, TrainSettings(**QUICK))
    with pytest.raises(InputError, match="made up"):
        check_real(even.take(slice(len(even) - 1, len(even))))


@pytest.mark.parametrize("change", [{"resample": kind} for kind in RESAMPLED] + [{"class_weight": "balanced"}, {"loss": "focal"}, {"loss": "focal", "class_weight": "balanced"}], ids=str)
def test_probabilities_are_those_of_the_task(change):
    encoding = made_up_rows(10)[1]
    rows, validation = rare_rows(6000, 0), rare_rows(4000, 1)
    set_determinism(0, 1)
    network = build_network(MODEL, encoding)
    train(network, rows, validation, TrainSettings(**QUICK, **change))
    fit_temperature(network, validation)
    probabilities, labels = predict(network, validation), validation.labels.numpy()
    assert abs(probabilities.mean() - labels.mean()) < 0.02, (probabilities.mean(), labels.mean())
    top = probabilities >= np.quantile(probabilities, 0.9)
    assert abs(probabilities[top].mean() - labels[top].mean()) < 0.08, (probabilities[top].mean(), labels[top].mean())


@pytest.mark.parametrize("change", [{"resample": "smotenc"}, {"loss": "focal"}], ids=str)
def test_a_training_that_was_interrupted_ends_in_the_same_bytes(change, tmp_path):
    encoding = made_up_rows(10)[1]
    rows, validation, settings = rare_rows(2000, 0), rare_rows(1000, 1), TrainSettings(**QUICK, **change, checks_per_epoch=1)

    def weights(checkpoint=None, stop_after=None) -> bytes:
        set_determinism(0, 1)
        network = build_network(MODEL, encoding)
        if stop_after:
            trainer = Trainer(network, rows, validation, settings)
            for _ in range(stop_after):
                trainer.leg()
            from prodml.model.checkpoint import save_state

            save_state(checkpoint, *trainer.state())
            return b""
        train(network, rows, validation, settings, checkpoint=checkpoint)
        return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())

    whole = weights()
    weights(tmp_path / "network.safetensors", stop_after=3)
    assert weights(tmp_path / "network.safetensors") == whole


def test_a_teacher_is_asked_about_real_rows_only():
    encoding = made_up_rows(10)[1]
    rows, validation = rare_rows(1000, 0), rare_rows(1000, 1)
    network = build_network(MODEL, encoding)
    logits = torch.arange(len(rows)).float()
    copied = Trainer(network, rows, validation, TrainSettings(**QUICK, resample="under", distillation=1.0), teacher_logits=logits)
    place = {key: number for number, key in enumerate(rows.keys)}
    assert torch.allclose(copied.targets, torch.sigmoid(logits[[place[key] for key in copied.rows.keys]]))
    with pytest.raises(InputError, match="made up"):
        Trainer(network, rows, validation, TrainSettings(**QUICK, resample="smotenc"), teacher_logits=logits)


def test_the_offset_is_that_of_the_odds():
    """An over-sampled network and its plain twin differ by the logarithm of the odds, and the bias takes it back."""
    encoding = made_up_rows(10)[1]
    rows, validation = rare_rows(3000, 0), rare_rows(2000, 1)
    cases = float(rows.labels.sum())
    for change, wanted in (({"resample": "over"}, np.log(cases / (len(rows) - cases))), ({"class_weight": "balanced"}, np.log(cases / (len(rows) - cases))), ({}, 0.0)):
        set_determinism(0, 1)
        network = build_network({"kind": "logistic"}, encoding)
        trainer = Trainer(network, rows, validation, TrainSettings(**QUICK, **change))
        assert abs(trainer.offset - wanted) < 1e-5
        trainer.leg()
        before = predict_logits(network, validation, trainer.best)
        trainer.finish()
        np.testing.assert_allclose(predict_logits(network, validation) - before, wanted, atol=1e-4)
