"""Which network: rolling-origin validation over several months, over seeds, with intervals by day.

For each month m the candidate learns from the months up to m-2, stops by m-1 and is scored on m, as in the pipeline,
which stops by the months after training. The test months are not read. What it finds is written to
build/bench/select_model.json; the choice is made by a person, in conf/config.yaml and conf/model/.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prodml.core.config import compose
from prodml.core.files import artifact, project_root, read_json, sha256_of, write_json, written
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.data.features import fit_encoding
from prodml.model.device import select_device, set_determinism
from prodml.model.networks import build_network
from prodml.model.reference import fit_lightgbm, predict_lightgbm
from prodml.model.rows import load_rows
from prodml.model.train import TrainSettings, predict, train
from prodml.stats.bootstrap import interval, paired_difference
from prodml.stats.scores import log_loss, pr_auc, roc_auc

METRICS = {"roc_auc": roc_auc, "pr_auc": pr_auc, "log_loss": log_loss}
# Hydra overrides of each candidate; the small networks are trained as conf/reference trains them.
CANDIDATES = {
    "logistic": ["model=logistic"],
    "mlp": ["model=mlp"],
    "mlp_wide, dropout 0.3": ["model=mlp_wide", "model.dropout=0.3"],
    "mlp_wide, dropout 0.1": ["model=mlp_wide", "model.dropout=0.1"],
    "mlp_wide, dropout 0.1, cosine": ["model=mlp_wide", "model.dropout=0.1", "train.schedule=cosine", "train.average_decay=0.0"],
    "tabm": ["model=tabm"],
}


def labelled_rows() -> pa.Table:
    """The training and validation rows of the pipeline."""
    return pa.concat_tables(pq.read_table(artifact("features", f"{name}.parquet")) for name in ("train", "validation"))


def fold_files(table: pa.Table, month: str, folder: Path) -> dict:
    """Write the fold's three parts to `folder` and give back its encoding, fitted on its own training part."""
    months = np.array(table["month"].to_pylist())
    before = sorted(set(months[months < month]))
    masks = {"train": months < before[-1], "stop": months == before[-1], "score": months == month}
    names = [name for name in table.schema.names if name not in ("key", "block", "month", "label")]
    for name, mask in masks.items():
        pq.write_table(table.filter(pa.array(mask)), folder / f"{name}.parquet")
    features = compose()["data"]["features"]
    return fit_encoding(folder / "train.parquet", names, {}, features["min_category_rows"])


def settings_of(overrides: list[str]) -> tuple[dict, TrainSettings]:
    """The model's configuration and how it is trained."""
    conf = compose(overrides)
    part = {"logistic": "logistic", "mlp": "small"}.get(conf["model"]["name"])
    return conf["model"], TrainSettings(**{**conf["train"], **(conf["reference"][part] if part else {})})


def answers(name: str, parts: dict, encoding: dict, seed: int, device: dict) -> np.ndarray:
    """The probabilities of a candidate, trained on the fold, for its scored month."""
    set_determinism(seed, device["threads"])
    if name == "lightgbm":
        conf = compose()["reference"]
        return predict_lightgbm(fit_lightgbm(parts["train"], encoding, conf["trees"], conf["rounds"], seed, device["threads"]), parts["score"])
    model, settings = settings_of(CANDIDATES[name])
    network = build_network(model, encoding, parts["train"].numbers).to(select_device(device["kind"]))
    train(network, parts["train"], parts["stop"], settings, seed, device["precision"])
    return predict(network, parts["score"])


def cached(name: str, month: str, seed: int, make) -> np.ndarray:
    """The answers of one training, made once: a search that was stopped goes on where it was."""
    conf = compose(CANDIDATES.get(name, []))
    settings = {group: conf[group] for group in (("reference",) if name == "lightgbm" else ("model", "train", "reference"))}
    inputs = [settings, month, seed, *(sha256_of(artifact("features", f"{part}.parquet")) for part in ("train", "validation"))]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    path = project_root() / ".checkpoints" / "select_model" / f"{key}.npy"
    if not path.exists():
        with written(path) as aside, open(aside, "wb") as stream:
            np.save(stream, make())
    return np.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", nargs="+", default=["2013-07", "2013-08", "2013-09", "2013-10"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    path = results_path("select_model.json", given.write)
    table, device = labelled_rows(), compose()["device"]
    names = ["lightgbm", *given.candidates]
    found: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}
    labels, blocks = [], []
    with progress(total=len(given.months) * len(names) * given.seeds, desc="trainings") as bar:
        for month in given.months:
            with tempfile.TemporaryDirectory() as folder:
                encoding = fold_files(table, month, Path(folder))
                parts = {name: load_rows(Path(folder) / f"{name}.parquet", encoding, select_device(device["kind"])) for name in ("train", "stop", "score")}
            labels.append(parts["score"].labels.cpu().numpy())
            blocks.append(parts["score"].blocks)
            for name in names:
                seeds = []
                for seed in range(given.seeds):
                    seeds.append(cached(name, month, seed, lambda name=name, seed=seed: answers(name, parts, encoding, seed, device)))
                    bar.update()
                found[name].append(seeds)
    write_json(path, summary(found, labels, blocks, given))


def summary(found: dict, labels: list[np.ndarray], blocks: list[np.ndarray], given: argparse.Namespace) -> dict:
    """For each candidate the mean of each metric over months and seeds, and the difference to LightGBM by day; printed too."""
    days, truth = np.concatenate(blocks), np.concatenate(labels)
    together = {name: np.concatenate([np.mean(seeds, axis=0) for seeds in months]) for name, months in found.items()}
    lines = {}
    for name, months in found.items():
        line = {key: float(np.mean([metric(label, seed) for label, seeds in zip(labels, months) for seed in seeds])) for key, metric in METRICS.items()}
        line["roc_auc_by_day"] = interval(truth, together[name], days, "roc_auc")
        line["less_lightgbm"] = {key: paired_difference(truth, together[name], together["lightgbm"], days, key) for key in ("roc_auc", "log_loss")}
        lines[name] = line
        difference = line["less_lightgbm"]["roc_auc"]
        print(f"{name:30} ROC AUC {line['roc_auc']:.4f}  PR AUC {line['pr_auc']:.4f}  log loss {line['log_loss']:.4f}  less LightGBM {difference['estimate']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]")
    return {"months": given.months, "seeds": given.seeds, "candidates": lines}


if __name__ == "__main__":
    main()
