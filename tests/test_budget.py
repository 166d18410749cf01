"""Verdicts compare like with like, and every setting out of its range is answered with the range."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT

from prodml.core.config import compose, read_settings
from prodml.core.errors import InputError
from prodml.model.budget import Budget, chosen, judge_costs
from prodml.model.compress import SearchSpace, prunings_for
from prodml.model.distill import DistillSettings
from prodml.model.encoder import Architecture
from prodml.model.export import predict, session, to_onnx
from prodml.model.measure import MeasureSettings, in_runtime
from prodml.model.networks import build_network
from prodml.model.prune import PruneSettings, fine_tuning_settings
from prodml.model.quantize import QuantizeSettings, changes, check_change, quantize
from prodml.model.quantize_aware import rounding_settings
from prodml.model.reference import check_tree_settings, read_rivals
from prodml.model.rows import made_up_rows
from prodml.model.sparsify import MaskSettings
from prodml.model.train import TrainSettings

ONNX, EAGER = "ONNX Runtime", "PyTorch"


def line(p50_us: float, runtime: str) -> dict:
    """Figures as `measure` gives them."""
    return {"p50_us": p50_us, "p95_us": p50_us, "rows_per_s": 1e6, "size_bytes": 1000, "runtime": runtime}


def test_a_child_that_is_slower_in_the_parents_runtime_is_found():
    """A small network in ONNX Runtime beats its parent in eager PyTorch whatever it is; that is the runtime's merit."""
    figures = {"dense": line(100.0, EAGER), "dense_onnx": line(10.8, ONNX), "int8": line(14.3, ONNX)}
    judged = judge_costs(figures["int8"], in_runtime(figures, "dense", ONNX), Budget("dense"))[-1]
    assert judged.verdict == "broken" and "in ONNX Runtime" in judged.name and judged.limit == pytest.approx(10.8 * 1.05, abs=0.1)
    assert judge_costs(figures["int8"], in_runtime(figures, "dense", ONNX), Budget("dense", tolerance=0.5))[-1].verdict == "kept"


@pytest.mark.parametrize("parent, runtime, wanted", [
    ("dense", EAGER, "dense"), ("dense", ONNX, "dense_onnx"), ("dense", "LightGBM", "dense_onnx"), ("pruned", EAGER, "pruned_eager"), ("pruned", "AOTInductor", "pruned_aoti"),
    ("pruned", "LightGBM", "pruned"), ("lightgbm", ONNX, "lightgbm"), ("lightgbm", "LightGBM", "lightgbm"), ("logistic", EAGER, "logistic"),
])
def test_the_parent_is_timed_as_its_child(parent, runtime, wanted):
    runtimes = {"dense": EAGER, "dense_onnx": ONNX, "pruned": ONNX, "pruned_eager": EAGER, "pruned_aoti": "AOTInductor", "lightgbm": "LightGBM", "logistic": ONNX}
    figures = {name: line(10.0 * place, own) for place, (name, own) in enumerate(runtimes.items(), 1)}
    assert in_runtime(figures, parent, runtime) is figures[wanted]


@pytest.mark.parametrize("parent, sentence", [("nosuch", "no model that was evaluated. It must be one of dense, lightgbm"), ("int8", "the model that is served itself")])
def test_a_parent_that_is_none_is_refused(parent, sentence):
    with pytest.raises(InputError, match=sentence):
        Budget(parent).check_parent(["dense", "int8", "lightgbm"], "int8")
    Budget("lightgbm").check_parent(["dense", "int8", "lightgbm"], "int8")


def test_what_differs_by_less_than_the_tolerance_counts_as_equal():
    figures = {"large": line(10.0, ONNX), "small": line(10.4, ONNX) | {"size_bytes": 10}}
    assert chosen({name: [] for name in figures}, figures, Budget("dense"))[0] == "small"
    assert chosen({name: [] for name in figures}, figures, Budget("dense", tolerance=0.01))[0] == "large"


@pytest.mark.parametrize("model, able, left_out", [("mlp_wide", 4, 0), ("resnet", 2, 2), ("tabm", 2, 2), ("attention", 2, 2), ("logistic", 1, 4)])
def test_a_search_keeps_to_what_the_network_has(model, able, left_out):
    conf, (_, encoding) = compose([f"model={model}"]), made_up_rows(50)
    space = read_settings(SearchSpace, {**conf["compress"], "width_ratio": [0.125, 0.25], "schedule": ["cubic"], "depth": [0, 2]}, "compress")
    prunings, reasons = prunings_for(build_network(conf["model"], encoding), space, PruneSettings(width_ratio=0.5, steps=2))
    assert (len(prunings), len(reasons)) == (able, left_out) and all(reasons.values())


@cache
def dead(value: float) -> tuple:
    """Rows, and the graph of a network whose first layer puts out next to nothing."""
    rows, encoding = made_up_rows(300)
    torch.manual_seed(0)
    network = build_network({"kind": "mlp", "hidden": [8, 8]}, encoding)
    with torch.no_grad():
        network.blocks[0].weight.mul_(value)
        network.blocks[0].bias.fill_(value or -1.0)
    graph = to_onnx(network.eval())
    return rows, graph


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [0.0, 1e-42], ids=["off", "next to nothing"])
def test_a_dead_layer_is_quantized_or_named(method, value):
    rows, graph = dead(value)
    try:
        small = quantize(graph, rows, QuantizeSettings(mode="static", method=method, rows=200))
    except InputError as error:
        assert value and method in ("percentile", "entropy") and "minmax or mse" in str(error)
    else:
        before, after = (predict(session(one.SerializeToString()), rows.numbers, rows.codes) for one in (graph, small))
        assert changes(before, after)["max_change"] < 0.05


def test_the_bound_holds_against_the_network_before_rounding():
    """Training with rounding moves answers too: what it moved counts."""
    with pytest.raises(InputError, match="by 0.178, and quantize.max_change is 0.1"):
        check_change(changes(np.array([0.5, 0.2]), np.array([0.5, 0.378])), 0.1)
    stage = "".join(cell for cell in stage_cells("09_quantize"))
    assert "check_change(moved, settings.max_change)" in stage and "moved = changes(before, after)" in stage


def stage_cells(name: str) -> list[str]:
    """The Run section of a notebook of the models."""
    cells = json.loads((ROOT / "nbs" / "2_model" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if "".join(cell["source"]).startswith("#| stage")]


CONF = compose()
READERS = {
    "prune": lambda group: (read_settings(PruneSettings, without(group, "fine_tuning", "masks", "sparsity"), "prune"), read_settings(MaskSettings, only(group, "masks", "sparsity", "steps", "schedule"), "prune")),
    "prune.fine_tuning": lambda group: fine_tuning_settings(CONF["train"], group),
    "quantize": lambda group: read_settings(QuantizeSettings, without(group, "aware"), "quantize"),
    "quantize.aware": rounding_settings,
    "distill": lambda group: read_settings(DistillSettings, group, "distill"),
    "train": lambda group: read_settings(TrainSettings, group, "train"),
    "model": lambda group: read_settings(Architecture, group, "model"),
    "budget": lambda group: read_settings(Budget, group, "budget").check_parent(["dense", "lightgbm"]),
    "compress": lambda group: read_settings(SearchSpace, group, "compress"),
    "measure": lambda group: read_settings(MeasureSettings, group, "measure"),
    "reference": lambda group: check_tree_settings(group["trees"], group["rounds"]),
    "reference.small": lambda group: read_settings(TrainSettings, {**CONF["train"], **group}, "reference.small"),
    "reference.logistic": lambda group: read_settings(TrainSettings, {**CONF["train"], **group}, "reference.logistic"),
    "reference.trees": check_tree_settings,
    "reference.rivals": read_rivals,
}


def without(group: dict, *keys: str) -> dict:
    return {key: value for key, value in group.items() if key not in keys}


def only(group: dict, *keys: str) -> dict:
    return {key: group[key] for key in keys}


def group_of(name: str) -> dict:
    """The settings of a group as they are composed."""
    found = CONF
    for part in name.split("."):
        found = found[part]
    return found


# A value out of range for every key that has a range. What is not here may be anything of its type.
OUT_OF_RANGE = {
    "prune": {
        "width_ratio": [0.0, 1.5, -0.5], "steps": [0, -1], "importance": ["luck"], "round_to": [0], "epochs_between": [0.0, 0.5], "schedule": ["cosine"], "scope": ["universal"],
        "regularisation": [-1.0], "regulariser": ["lasso"], "depth": [-1], "masks": ["random"], "sparsity": [0.0, 1.0, 1.5],
    },
    "prune.fine_tuning": {"epochs": [0], "patience": [0], "batch_size": [1], "learning_rate": [0.0], "schedule": ["cubic"], "distillation": [1.5]},
    "quantize": {"mode": ["int8"], "weight_bits": [2, 0], "rows": [0], "method": ["guess"], "max_change": [0.0, 1.5]},
    "quantize.aware": {"epochs": [-1], "batch_size": [0], "learning_rate": [-1.0], "schedule": ["linear"], "distillation": [2.0]},
    "distill": {"teacher": ["none", "forest"], "folds": [1, -2]},
    "train": {
        "epochs": [0], "batch_size": [1], "learning_rate": [0.0, float("inf"), float("nan")], "weight_decay": [-1.0], "schedule": ["linear"], "warmup": [1.0], "clip_norm": [0.0],
        "checks_per_epoch": [0], "patience": [0], "class_weight": ["heavy"], "label_smoothing": [1.0], "average_decay": [1.0], "least_steps": [-1], "loss": ["hinge"],
        "focal_gamma": [-1.0], "resample": ["double"], "adversarial_epsilon": [-0.1], "adversarial_steps": [0],
    },
    "model": {
        "kind": ["forest"], "hidden": [[0]], "activation": ["step"], "norm": ["group"], "dropout": [1.0], "embedding_width": [0], "numeric_embedding": ["one_hot"],
        "numeric_embedding_width": [0], "numeric_bins": [1], "clip": [0.0],
    },
    "budget": {
        "parent": ["nosuch"], "prefer": ["beauty"], "tolerance": [-0.1, 1.0], "p95_us": [0.0], "size_bytes": [0], "rows_per_s": [-1.0], "max_auc_drop": [-0.1], "max_pr_auc_drop": [-0.1],
        "max_log_loss_rise": [-0.1], "max_worst_slice_drop": [-0.1], "max_calibration_drift": [-0.1], "replicates": [10], "level": [0.5, 1.0],
    },
    "compress": {
        "width_ratio": [[], [1.5]], "schedule": [["cosine"]], "round_to": [[0]], "depth": [[-1]], "precision": [["int3"]], "runtime": [["TensorRT"], []], "rounds": [0], "replicates": [1],
    },
    "measure": {"threads": [0], "rounds": [0], "calls": [0], "batch": [0]},
    "reference": {"rounds": [0]},
    "reference.small": {"epochs": [0], "learning_rate": [0.0], "distillation": [-1.0]},
    "reference.logistic": {"epochs": [0], "learning_rate": [0.0], "patience": [0]},
    "reference.trees": {"num_leaves": [1, 0], "learning_rate": [0.0, -1.0], "feature_fraction": [0.0, 1.5], "bagging_fraction": [2.0], "lambda_l2": [-1.0]},
    "reference.rivals": {"scratch": [{"teacher": "forest"}, {"teacher": "none", "hiden": [8]}, {"teacher": "none", "kind": "forest"}]},
}
CASES = [(group, key, value) for group, keys in OUT_OF_RANGE.items() for key, values in keys.items() for value in values]
KEYS = [(group, key) for group in READERS if group != "reference" for key, value in group_of(group).items() if group == "reference.rivals" or not isinstance(value, dict)]


@pytest.mark.parametrize("group, key, value", CASES, ids=lambda part: str(part))
def test_a_value_out_of_range_is_answered_with_the_range(group, key, value):
    with pytest.raises(InputError) as caught:
        READERS[group]({**group_of(group), key: value})
    text = str(caught.value)
    assert f"{group}.{key}" in text, text
    assert len(caught.value.remedy) > 10 and "See conf" not in text and "Traceback" not in text


@pytest.mark.parametrize("group, key", KEYS, ids=lambda part: str(part))
def test_a_value_of_another_type_is_named(group, key):
    READERS[group](group_of(group))
    wrong = {"reference.trees": "text", "reference.rivals": ["a list"]}.get(group, {})
    with pytest.raises(InputError) as caught:
        READERS[group]({**group_of(group), key: wrong})
    assert key in str(caught.value)


@pytest.mark.parametrize("group, key", [pair for pair in KEYS if pair[0] != "reference.rivals"], ids=lambda part: str(part))
def test_a_misspelt_key_is_named(group, key):
    given = {name if name != key else f"{key}x": value for name, value in group_of(group).items()}
    with pytest.raises(InputError) as caught:
        READERS[group](given)
    assert key in str(caught.value)


def test_an_option_or_a_key_that_does_not_exist_is_refused_when_composed():
    for override in ("prune=serched", "prune.widht_ratio=0.1", "budget.parnt=dense"):
        with pytest.raises(InputError, match=override.partition("=")[0].split(".")[0]):
            compose([override])
