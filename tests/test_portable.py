"""The portable form of a graph answers the same in ONNX Runtime and in OpenVINO, which shares no code with it."""

import numpy as np
import onnx
import openvino
import pytest
import torch
from conftest import ROOT

from prodml.bundle.bundle import open_bundle
from prodml.cli import main
from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.model.export import export_onnx, portable, predict, session, to_onnx, trial_rows
from prodml.model.measure import dynamic_int8
from prodml.model.networks import build_network
from prodml.model.quantize import QuantizeSettings, quantize
from prodml.model.rows import made_up_rows

BOUND = 1e-5 # float32 sums in another order
KINDS = {
    "logistic": {"kind": "logistic"}, "mlp": {"kind": "mlp", "hidden": [16, 8]}, "batch norm": {"kind": "mlp", "hidden": [8], "norm": "batch"},
    "periodic": {"kind": "mlp", "hidden": [8], "numeric_embedding": "periodic"}, "tabm": {"kind": "tabm", "hidden": [8], "members": 4},
    "resnet": {"kind": "resnet", "hidden": [16, 8, 8], "norm": "batch"}, "attention": {"kind": "attention", "hidden": [2, 8], "norm": "layer", "head_width": 4, "embedding_width": 8},
}
QUANTIZED = {"static": {"mode": "static"}, "weights": {"mode": "weights"}, "four bits": {"mode": "weights", "weight_bits": 4}}


@pytest.fixture(scope="module")
def rows():
    return made_up_rows(600, 0)


def network_of(kind: str, encoding: dict):
    torch.manual_seed(0)
    network = build_network(KINDS[kind], encoding).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.3 * torch.randn_like(weights) # some begin at zero
    return network


def openvino_answers(model: onnx.ModelProto, numbers: np.ndarray, codes: np.ndarray, tmp_path) -> np.ndarray:
    onnx.save(model, tmp_path / "graph.onnx")
    compiled = openvino.compile_model(openvino.Core().read_model(tmp_path / "graph.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = {"numbers": numbers, "codes": codes}
    return compiled([feeds[port.node.friendly_name] for port in compiled.inputs])[0]


def check(original: onnx.ModelProto, numbers: np.ndarray, codes: np.ndarray, tmp_path, bound: float = BOUND) -> None:
    """Main domain alone, and the answers of the original in both runtimes: one row, many, missing and infinite numbers."""
    plain = portable(original)
    assert {node.domain for node in plain.graph.node} == {""} == {version.domain for version in plain.opset_import}
    expected = predict(session(original.SerializeToString()), numbers, codes)
    assert expected.std() > 0.01
    for answers in (predict(session(plain.SerializeToString()), numbers, codes), openvino_answers(plain, numbers, codes, tmp_path)):
        assert np.abs(answers - expected).max() <= bound
    assert np.abs(openvino_answers(plain, numbers[:1], codes[:1], tmp_path) - expected[:1]).max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network(kind, rows, tmp_path):
    network = network_of(kind, rows[1])
    numbers, codes = (tensor.numpy() for tensor in trial_rows(network, 300))
    assert np.isnan(numbers).any() and np.isinf(numbers).any()
    check(to_onnx(network), numbers, codes, tmp_path)


@pytest.mark.parametrize("how", QUANTIZED)
def test_quantized_graphs(how, rows, tmp_path):
    network = network_of("mlp", rows[1])
    numbers, codes = (tensor.numpy() for tensor in trial_rows(network, 300))
    graph = quantize(to_onnx(network), rows[0], QuantizeSettings(**QUANTIZED[how]))
    check(graph, numbers, codes, tmp_path)


def test_the_command_writes_it(small_bundle, tmp_path, capsys):
    assert main(["export", str(tmp_path / "plain.onnx"), "--bundle", str(small_bundle)]) == 0
    assert "opset 20 of the main ONNX domain" in capsys.readouterr().out
    bundle = open_bundle(small_bundle, unsigned=True)
    numbers, codes = bundle._encode({"delay": [0.4, -3.0], "wind": [None, 1.0], "carrier": ["UA", "ZZ"]})
    answers = openvino_answers(onnx.load(tmp_path / "plain.onnx"), numbers, codes, tmp_path)
    assert np.abs(answers - bundle.predict_encoded(numbers, codes)).max() <= BOUND


def test_what_has_no_portable_form_is_named(small_bundle, rows, tmp_path, capsys):
    graph = quantize(to_onnx(network_of("mlp", rows[1])), rows[0], QuantizeSettings(mode="dynamic"))
    vendor = onnx.ModelProto()
    vendor.CopyFrom(graph)
    vendor.graph.node[-1].domain = "com.microsoft"
    with pytest.raises(InputError, match="com.microsoft"):
        portable(vendor)
    assert main(["export", str(tmp_path / "x.onnx"), "--bundle", str(small_bundle), "--graph", "nosuch"]) == 1
    assert "Choose one of dense" in capsys.readouterr().err and not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_dynamic_int8_of_onnx_runtime_takes_every_network(name, tmp_path):
    rows, encoding = made_up_rows(100)
    network = build_network(compose([f"model={name}"])["model"], encoding).eval()
    export_onnx(network, tmp_path / "model.onnx")
    rounded = dynamic_int8(tmp_path / "model.onnx")
    told, exact = rounded.call(rounded.inputs(rows)), predict(session((tmp_path / "model.onnx").read_bytes()), rows.numbers.numpy(), rows.codes.numpy())
    assert rounded.runtime == "ONNX Runtime, dynamic int8" and np.abs(told - exact).max() < 0.05
