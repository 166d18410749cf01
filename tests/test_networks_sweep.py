"""The defaults work for every network: what a search chose for one is not asked of another."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from test_bad_input import run_data_floor

from prodml.core.config import compose, read_settings
from prodml.core.files import read_json
from prodml.model.compress import own_keys
from prodml.model.export import predict, session, to_onnx
from prodml.model.networks import build_network
from prodml.model.prune import PruneSettings, fine_tuning_settings, prune, reason_for_depth
from prodml.model.quantize import QuantizeSettings, changes, check_change, quantize
from prodml.model.quantize_aware import quantize_aware, rounding_settings
from prodml.model.rows import Rows, load_rows
from prodml.model.train import TrainSettings, fit_temperature, train

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
PRUNINGS = ("default", "searched", "none")
SEARCHED = ("prune", "quantize", "bundle")
QUANTIZATIONS = ("default", "searched", "none", "weights", "four_bits")


@functools.cache
def settings(*overrides: str) -> dict:
    """The settings of conf/, composed once: a composition takes a second."""
    return compose(overrides)


def searched(model: str) -> dict:
    """The settings for a network, with what a search chose for it."""
    return settings(f"model={model}", *(f"{group}=searched" for group in SEARCHED))


def test_each_network_is_named_as_its_file():
    """A choice is kept under model.name and found under the name of the file."""
    for name in MODELS:
        assert searched(name)["model"]["name"] == name


@pytest.mark.parametrize("group", SEARCHED)
def test_a_searched_option_is_the_default_of_a_network_that_was_not_searched(group):
    own = {path.stem for path in (ROOT / "conf" / group / "searched").glob("*.yaml")}
    assert own <= set(MODELS), "a choice for a network that there is not"
    default = settings(*(f"{each}=default" for each in SEARCHED))[group]
    for name in set(MODELS) - own:
        assert searched(name)[group] == default, name


def test_no_default_asks_for_a_depth_that_the_network_does_not_have():
    _, encoding = small_table_rows()
    for name in MODELS:
        conf = searched(name)
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


def parts_of(table: pd.DataFrame, folder: Path) -> tuple[dict, Rows, Rows]:
    """Encoding, training and validation rows of a table."""
    tables = {"people": {"file": "people.csv"}, "towns": {"file": "towns.csv"}}
    run_data_floor(folder, table, tables=tables, rules=[], split={"by": "random", "validation": 0.2, "test": 0.2, "seed": 0})
    encoding = read_json(folder / "features" / "encoding.json")
    return encoding, *(load_rows(folder / "features" / f"{name}.parquet", encoding) for name in ("train", "validation"))


def test_a_network_of_categories_alone_is_exported():
    """Logistic regression, whose graph keeps the entrance of its numbers even if there are none."""
    rows, encoding = small_table_rows()
    network = build_network(searched("logistic")["model"], {**encoding, "numeric": []}, rows.numbers[:, :0])
    graph = session(to_onnx(network).SerializeToString())
    said = predict(graph, rows.numbers[:, :0], rows.codes)
    with torch.inference_mode():
        wanted = network.eval()(rows.numbers[:, :0], rows.codes).sigmoid().numpy()
    np.testing.assert_allclose(said, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory) -> tuple[dict, Rows, Rows]:
    return parts_of(small_table(), tmp_path_factory.mktemp("few"))


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_network_goes_through_the_default_compression(model, few_rows):
    compressed_in_every_way(model, few_rows, 20, ("searched",), ("searched",))


@pytest.fixture(scope="module", params=[small_table, tumours], ids=["400 rows", "breast cancer"])
def parts(request, tmp_path_factory) -> tuple[dict, Rows, Rows]:
    return parts_of(request.param(), tmp_path_factory.mktemp("table"))


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_network_is_pruned_and_quantized_in_every_way(model, parts):
    compressed_in_every_way(model, parts, 60, PRUNINGS, QUANTIZATIONS)


def compressed_in_every_way(model: str, parts: tuple[dict, Rows, Rows], steps: int, prunings: Sequence[str], quantizations: Sequence[str]) -> None:
    """Train a network for a few steps, and compress it by each pair of options; options that say the same are one."""
    encoding, rows, validation = parts
    torch.manual_seed(0)
    conf = searched(model)
    network = build_network(conf["model"], encoding, rows.numbers)
    shortest = {**settings("run=smoke")["train"], "least_steps": steps}
    train(network, rows, validation, read_settings(TrainSettings, shortest, "train"))
    fit_temperature(network, validation)
    groups = [option_of(model, "prune", option) for option in prunings]
    for pruning in without_doubles([{**group, "fine_tuning": {**group["fine_tuning"], "epochs": 1}} for group in groups]):
        chosen = read_settings(PruneSettings, own_keys(PruneSettings, pruning), "prune")
        narrow, _ = prune(network, rows, validation, chosen, fine_tuning_settings(shortest, pruning["fine_tuning"]))
        graph = to_onnx(narrow)
        for group in without_doubles([option_of(model, "quantize", option) for option in quantizations]):
            quantized_as_configured(group, narrow, graph, rows, validation)


def option_of(model: str, group: str, option: str) -> dict:
    """An option of a group of settings, for a network."""
    return searched(model)[group] if option == "searched" else settings(f"{group}={option}")[group]


def without_doubles(groups: list[dict]) -> list[dict]:
    return [group for place, group in enumerate(groups) if group not in groups[:place]]


def quantized_as_configured(group: dict, network, graph, rows: Rows, validation: Rows) -> None:
    """Quantize as the stage does; the bound holds against the network before any rounding."""
    asked, aware = read_settings(QuantizeSettings, own_keys(QuantizeSettings, group), "quantize"), rounding_settings(group["aware"])
    taught = to_onnx(quantize_aware(network, rows, validation, asked, aware)) if aware else graph
    small = quantize(taught, rows, asked)
    before, after = (predict(session(one.SerializeToString()), validation.numbers, validation.codes) for one in (graph, small))
    check_change(changes(before, after), asked.max_change)
