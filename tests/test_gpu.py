"""What runs on a CUDA device, where there is one; on the CPU the notebooks check the same steps on device 'meta'."""

import numpy as np
import pytest
import torch

from prodml.model.distill import logit, read_teacher, save_logits, unseen_logits
from prodml.model.export import Probability, export_onnx, predict, session
from prodml.model.networks import build_network
from prodml.model.prune import shrink
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


def test_teachers_answer_on_the_device(tmp_path):
    rows, encoding = made_up_rows(600, 0)
    place = rows.to("cuda")
    trees = {"num_leaves": 7, "learning_rate": 0.1}
    unseen = unseen_logits(tmp_path, place, encoding, trees, 10, folds=3)
    save_logits(tmp_path / "logits.parquet", place.keys, {"dense": logit(np.full(600, 0.3)).to("cuda"), "lightgbm": unseen})
    both = read_teacher(tmp_path / "logits.parquet", "both", place)
    assert unseen.device.type == both.device.type == "cuda"
    assert torch.equal(unseen.cpu(), unseen_logits(tmp_path / "again", rows, encoding, trees, 10, folds=3))
