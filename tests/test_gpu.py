"""What runs on a CUDA device, where there is one; on the CPU the notebooks check the same steps on device 'meta'."""

import numpy as np
import pytest
import torch

from prodml.model.device import supported_precisions
from prodml.model.export import Probability, export_onnx, predict, session
from prodml.model.low_precision import in_precision
from prodml.model.networks import build_network
from prodml.model.prune import shrink
from prodml.model.quantize import QuantizeSettings
from prodml.model.quantize_aware import quantize_aware
from prodml.model.rows import made_up_rows
from prodml.model.train import TrainSettings, train
from prodml.model.train import predict as probabilities

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
MODELS = [{"kind": "logistic"}, {"kind": "mlp", "hidden": [32, 32]}, {"kind": "tabm", "hidden": [16, 16], "members": 4}]


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


def test_a_network_is_pruned_on_the_device():
    rows, encoding = made_up_rows(500, 0)
    network = build_network({"kind": "mlp", "hidden": [32, 32]}, encoding, rows.numbers).to("cuda")
    shrink(network, [8, 8], "magnitude", rows.to("cuda"))
    assert network.hidden_widths() == [8, 8]
    assert Probability(network)(rows.numbers.to("cuda"), rows.codes.to("cuda")).device.type == "cuda"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float8"])
def test_a_low_precision_answers_as_float32(precision):
    if precision not in supported_precisions("cuda"):
        pytest.skip(f"compute capability {torch.cuda.get_device_capability()} has no units for {precision}")
    rows, encoding = made_up_rows(2000, 0)
    rows = rows.to("cuda")
    network = build_network({"kind": "mlp", "hidden": [64, 64]}, encoding).to("cuda").eval()
    narrow = in_precision(network, precision)
    with torch.inference_mode():
        expected = Probability(network)(rows.numbers, rows.codes)
        for function in (narrow, torch.compile(narrow)):
            torch.testing.assert_close(function(rows.numbers, rows.codes), expected, atol=0.03, rtol=0)


def test_a_network_is_trained_with_rounding_on_the_device():
    rows, encoding = made_up_rows(1000, 0)
    rows = rows.to("cuda")
    network = build_network({"kind": "mlp", "hidden": [16, 16]}, encoding).to("cuda")
    settings = QuantizeSettings(mode="weights", weight_bits=4)
    aware = quantize_aware(network, rows, rows, settings, TrainSettings(epochs=1, batch_size=128, learning_rate=0.01))
    assert aware.temperature.device.type == "cuda"
    # Two parts share a layer's scales in the first layer, so the second tells: at most 15 steps a unit.
    assert max(len(torch.unique((unit / unit.abs().max() * 7).round(decimals=3))) for unit in aware.blocks[2].weight) <= 15
