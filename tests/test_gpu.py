"""What runs on a CUDA device, where there is one; on the CPU the notebooks check the same steps on device 'meta'."""

import numpy as np
import pytest
import torch

from prodml.model.accelerators import NEEDS, Graphed, accelerated, reason_against, replaced
from prodml.model.distill import logit, read_teacher, save_logits, unseen_logits
from prodml.model.export import Probability, export_onnx, predict, session
from prodml.model.measure import device_facts, measure
from prodml.model.networks import build_network, save_network
from prodml.model.prune import IMPORTANCES, PruneSettings, prune, shrink
from prodml.model.quantize import QuantizeSettings
from prodml.model.quantize_aware import quantize_aware
from prodml.model.rows import made_up_rows
from prodml.model.sparsify import MaskSettings, masked, semi_structured
from prodml.model.train import TrainSettings, train
from prodml.model.train import predict as probabilities

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
MODELS = [
    {"kind": "logistic"},
    {"kind": "mlp", "hidden": [32, 32]},
    {"kind": "tabm", "hidden": [16, 16], "members": 4},
    {"kind": "resnet", "hidden": [16, 32, 32], "norm": "batch"},
    {"kind": "attention", "hidden": [2, 16, 2, 16], "norm": "layer"},
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["kind"])
def test_a_network_learns_and_answers_as_on_the_cpu(model, tmp_path):
    rows, encoding = made_up_rows(2000, 0)
    place = torch.device("cuda")
    network = build_network(model, encoding, rows.numbers).to(place)
    history = train(network, rows.to(place), rows.to(place), TrainSettings(epochs=4, batch_size=128, learning_rate=0.01), 0, "auto")
    assert history[-1]["validation_log_loss"] < history[0]["validation_log_loss"]
    there = probabilities(network, rows.to(place))
    here = probabilities(network.cpu(), rows)
    np.testing.assert_allclose(there, here, atol=1e-3)
    export_onnx(network, tmp_path / "model.onnx")
    answered = predict(session(tmp_path / "model.onnx"), rows.numbers.numpy(), rows.codes.numpy())
    np.testing.assert_allclose(answered, here, atol=1e-4)


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("model", MODELS[1:], ids=lambda model: model["kind"])
def test_a_network_is_pruned_on_the_device(model, importance):
    rows, encoding = made_up_rows(500, 0)
    network = build_network(model, encoding, rows.numbers).to("cuda")
    widths = [width // 2 for width in network.hidden_widths()]
    shrink(network, widths, importance, rows.to("cuda"))
    assert network.hidden_widths() == widths
    assert Probability(network)(rows.numbers.to("cuda"), rows.codes.to("cuda")).device.type == "cuda"


@pytest.mark.parametrize("form", NEEDS)
def test_a_form_of_products_answers_nearly_as_on_the_cpu(form):
    place = torch.device("cuda")
    if reason := reason_against(form, place):
        pytest.skip(reason)
    rows, encoding = made_up_rows(500, 0)
    network = build_network({"kind": "mlp", "hidden": [128, 128, 64]}, encoding, rows.numbers).eval()
    with torch.inference_mode():
        # The layers keep the same zeros and roundings there as here, where no kernel skips them.
        here = Probability(replaced(network, form))(rows.numbers, rows.codes)
        there = Probability(replaced(network.to(place), form))(rows.numbers.to(place), rows.codes.to(place))
    assert there.device.type == "cuda" and there.dtype == torch.float32
    np.testing.assert_allclose(there.cpu(), here, atol=1e-3 if form == "float32" else 2e-2)


def test_a_graph_is_recorded_once_for_each_batch_size():
    place = torch.device("cuda")
    rows, encoding = made_up_rows(500, 0)
    network = Probability(build_network({"kind": "mlp", "hidden": [32, 32]}, encoding).eval().to(place))
    graphed = Graphed(network, place)
    with torch.inference_mode():
        for part in (slice(0, 1), slice(0, 200), slice(1, 2), slice(200, 400)):
            some = rows.take(part)
            given = graphed(some.numbers, some.codes).cpu()
            np.testing.assert_allclose(given, network(some.numbers.to(place), some.codes.to(place)).cpu(), atol=1e-5)
    assert len(graphed.recorded) == 2


def test_what_the_device_can_do_is_timed(tmp_path):
    rows, encoding = made_up_rows(500, 0)
    save_network(build_network({"kind": "mlp", "hidden": [128, 128]}, encoding).eval(), tmp_path)
    found, missing = accelerated(tmp_path, torch.device("cuda"))
    assert {*missing, *(name.removeprefix("dense_cuda_") for name in found)} == set(NEEDS)
    figures = measure(found, rows, rounds=2, calls=10, batch=128)
    assert all(line["p50_us"] > 0 and line["rows_per_s"] > 0 for line in figures.values())
    assert device_facts(threads=1)["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("regulariser", ["group_norm", "growing"])
def test_cuts_fall_into_a_training_on_the_device(continuous, regulariser):
    rows, encoding = made_up_rows(2000, 0)
    here = rows.to("cuda")
    settings = PruneSettings(0.25, 2, schedule="cubic", scope="global", continuous=continuous, regularisation=0.01, regulariser=regulariser)
    network = build_network({"kind": "mlp", "hidden": [64, 64]}, encoding).to("cuda")
    narrow, lines = prune(network, here, here, settings, TrainSettings(epochs=2, batch_size=128, learning_rate=0.01))
    assert lines[-1]["parameters"] < lines[0]["parameters"] and narrow.temperature.device.type == "cuda"


def test_two_of_four_zeros_answer_as_their_dense_twin():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no 2:4 kernels on this device")
    rows, encoding = made_up_rows(2000, 0)
    here = rows.to("cuda")
    network = build_network({"kind": "mlp", "hidden": [128, 128]}, encoding).to("cuda")
    sparse, _ = masked(network, here, here, MaskSettings("semi_structured_2_4"), TrainSettings(epochs=2, batch_size=128, learning_rate=0.01))
    np.testing.assert_allclose(probabilities(semi_structured(sparse), here), probabilities(sparse, here), atol=5e-3)


def test_teachers_answer_on_the_device(tmp_path):
    rows, encoding = made_up_rows(600, 0)
    place = rows.to("cuda")
    trees = {"num_leaves": 7, "learning_rate": 0.1}
    unseen = unseen_logits(tmp_path, place, encoding, trees, 10, folds=3)
    save_logits(tmp_path / "logits.parquet", place.keys, {"dense": logit(np.full(600, 0.3)).to("cuda"), "lightgbm": unseen})
    both = read_teacher(tmp_path / "logits.parquet", "both", place)
    assert unseen.device.type == both.device.type == "cuda"
    assert torch.equal(unseen.cpu(), unseen_logits(tmp_path / "again", rows, encoding, trees, 10, folds=3))


def test_a_network_is_trained_with_rounding_on_the_device():
    rows, encoding = made_up_rows(1000, 0)
    rows = rows.to("cuda")
    network = build_network({"kind": "mlp", "hidden": [16, 16]}, encoding).to("cuda")
    settings = QuantizeSettings(mode="weights", weight_bits=4)
    aware = quantize_aware(network, rows, rows, settings, TrainSettings(epochs=1, batch_size=128, learning_rate=0.01))
    assert aware.temperature.device.type == "cuda"
    # Two parts share a layer's scales in the first layer, so the second tells: at most 15 steps a unit.
    assert max(len(torch.unique((unit / unit.abs().max() * 7).round(decimals=3))) for unit in aware.blocks[2].weight) <= 15
