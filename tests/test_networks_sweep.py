"""The defaults work for every network: what a search chose for one is not asked of another."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, git, run
from test_bad_input import run_data_floor

from prodml.core.config import compose, read_settings
from prodml.core.files import read_json
from prodml.model.compress import own_keys
from prodml.model.export import predict, session, to_onnx
from prodml.model.networks import build_network, load_network, save_network
from prodml.model.prune import PruneSettings, fine_tuning_settings, prune, reason_for_depth
from prodml.model.quantize import QuantizeSettings, changes, check_change, quantize
from prodml.model.quantize_aware import quantize_aware, rounding_settings
from prodml.model.rows import Rows, load_rows
from prodml.model.train import TrainSettings, fit_temperature, train

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
PRUNINGS = ("default", "searched", "none")
QUANTIZATIONS = ("default", "searched", "none", "weights", "four_bits")


def test_each_network_is_named_as_its_file():
    """A choice is kept under model.name and found under the name of the file."""
    for name in MODELS:
        assert compose([f"model={name}"])["model"]["name"] == name


@pytest.mark.parametrize("group", ["prune", "quantize", "bundle"])
def test_a_searched_option_is_the_default_of_a_network_that_was_not_searched(group):
    searched = {path.stem for path in (ROOT / "conf" / group / "searched").glob("*.yaml")}
    assert searched <= set(MODELS), "a choice for a network that there is not"
    default = compose([f"{group}=default"])[group]
    for name in MODELS:
        taken = compose([f"model={name}", f"{group}=searched"])[group]
        assert (taken == default) == (name not in searched) or name in searched, name
        if name not in searched:
            assert taken == default, name


def test_no_default_asks_for_a_depth_that_the_network_does_not_have():
    _, encoding = small_table_rows()
    for name in MODELS:
        conf = compose([f"model={name}"])
        network = build_network(conf["model"], encoding)
        assert not reason_for_depth(network, conf["prune"]["depth"]), name


def small_table_rows() -> tuple[Rows, dict]:
    from prodml.model.rows import made_up_rows

    return made_up_rows(200)


def small_table() -> pd.DataFrame:
    """Three columns, one with gaps, and 400 rows."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"size": rng.normal(size=400), "colour": rng.choice(["red", "green", "blue"], 400), "count": rng.integers(0, 9, 400)})
    table["paid"] = np.where(table["size"] + (table.colour == "red") + rng.normal(size=400) > 0.5, "yes", "no")
    table.loc[:40, "size"] = None
    return table


def tumours() -> pd.DataFrame:
    """The breast cancer table under the names of the made-up one."""
    table = pd.read_parquet(ROOT / "examples" / "breast_cancer" / "tumours.parquet").rename(columns={"diagnosis": "paid"})
    return table.assign(paid=np.where(table.paid == "malignant", "yes", "no"))


@pytest.fixture(scope="module", params=[small_table, tumours], ids=["400 rows", "breast cancer"])
def parts(request, tmp_path_factory) -> tuple[dict, Rows, Rows]:
    """Encoding, training and validation rows of a small table."""
    folder = tmp_path_factory.mktemp("table")
    tables = {"people": {"file": "people.csv"}, "towns": {"file": "towns.csv"}}
    run_data_floor(folder, request.param(), tables=tables, rules=[], split={"by": "random", "validation": 0.2, "test": 0.2, "seed": 0})
    encoding = read_json(folder / "features" / "encoding.json")
    return encoding, *(load_rows(folder / "features" / f"{name}.parquet", encoding) for name in ("train", "validation"))


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_network_is_pruned_and_quantized_in_every_way(model, parts, tmp_path):
    encoding, rows, validation = parts
    conf = compose([f"model={model}"])
    torch.manual_seed(0)
    network = build_network(conf["model"], encoding, rows.numbers)
    train(network, rows, validation, read_settings(TrainSettings, {**conf["train"], "epochs": 1, "least_steps": 60}, "train"))
    fit_temperature(network, validation)
    seen = []
    for pruning in PRUNINGS:
        conf = compose([f"model={model}", f"prune={pruning}", "run=smoke"])
        settings = read_settings(PruneSettings, own_keys(PruneSettings, conf["prune"]), "prune")
        if settings in seen:
            continue
        seen.append(settings)
        narrow, _ = prune(network, rows, validation, settings, fine_tuning_settings({**conf["train"], "least_steps": 60}, conf["prune"]["fine_tuning"]))
        graph = to_onnx(narrow)
        for quantization in QUANTIZATIONS:
            quantized_as_configured(model, quantization, narrow, graph, rows, validation)


def quantized_as_configured(model: str, option: str, network, graph, rows: Rows, validation: Rows) -> None:
    """Quantize as the stage does; the bound holds against the network before any rounding."""
    group = compose([f"model={model}", f"quantize={option}"])["quantize"]
    settings, aware = read_settings(QuantizeSettings, own_keys(QuantizeSettings, group), "quantize"), rounding_settings(group["aware"])
    taught = to_onnx(quantize_aware(network, rows, validation, settings, aware)) if aware else graph
    small = quantize(taught, rows, settings)
    before, after = (predict(session(one.SerializeToString()), validation.numbers, validation.codes) for one in (graph, small))
    check_change(changes(before, after), settings.max_change)
