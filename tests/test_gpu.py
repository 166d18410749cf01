"""What runs on a CUDA device, where there is one; on the CPU the notebooks check the same steps on device 'meta'."""

import numpy as np
import pytest
import torch

from prodml.model.export import Probability, export_onnx, predict, session
from prodml.model.networks import build_network
from prodml.model.prune import IMPORTANCES, PruneSettings, prune, shrink
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
