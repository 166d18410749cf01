"""Who teaches the pruned network, and how: rolling-origin validation over several months, against LightGBM.

For each month m the teachers and students learn from the months up to m-2, stop by m-1 and are scored on m, as in
select_model.py. A student is the pruned network's shape from scratch, which takes seconds; the last candidates are
the pruned network itself, and the dense one. The test months are not read. What it finds is written to
build/bench/select_student.json; the choice is made by a person, in conf/distill/ and conf/prune/.
"""

import argparse
import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from prodml.core.config import compose
from prodml.core.files import artifact, project_root, sha256_of, write_json, written
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.model.device import select_device, set_determinism
from prodml.model.distill import fitted_trees, logit, unseen_logits
from prodml.model.networks import build_network, load_network, save_network
from prodml.model.prune import PruneSettings, fine_tuning_settings, prune
from prodml.model.reference import predict_lightgbm
from prodml.model.rows import Rows, load_rows
from prodml.model.train import TrainSettings, fit_temperature, predict, predict_logits, train
from prodml.stats.bootstrap import percentile_interval, resampled
from select_model import METRICS, fold_files, labelled_rows

FOLDS = 4
# The pruned network's shape, trained as it is fine-tuned, only longer, since it starts from nothing.
STUDENT = {"kind": "mlp", "name": "student", "hidden": [32, 32, 32]}
LONGER = {"epochs": 6, "patience": 6}
AT_THE_END = {"epochs": 3, "patience": 6}


@dataclass(frozen=True)
class Student:
    """Who teaches, what differs from STUDENT, and from the training; `pruned` starts from the dense network."""

    teacher: str = "none"  # none, dense, lightgbm (of days left out), seen (of rows it learned), both, both seen
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    pruned: bool = False

    @property
    def costly(self) -> bool:
        """Whether one seed must do: it takes a minute a month, not seconds."""
        return self.pruned or "numeric_embedding" in self.model or max(self.model.get("hidden", [0])) > 100


PIECEWISE = {"numeric_embedding": "piecewise_linear", "numeric_embedding_width": 4, "numeric_bins": 8}
LIKE_DENSE = {"epochs": 3, "batch_size": 1024, "learning_rate": 0.001, "schedule": "constant"}
CANDIDATES = {
    "labels alone": Student(),
    "taught by dense": Student("dense"),
    "taught by LightGBM, rows it learned": Student("seen"),
    "taught by LightGBM, days left out": Student("lightgbm"),
    "taught by both, rows LightGBM learned": Student("both seen"),
    "taught by both, days left out": Student("both"),
    "teacher's share 0.5": Student("lightgbm", training={"distillation": 0.5}),
    "teacher's share 0.9": Student("lightgbm", training={"distillation": 0.9}),
    "teacher's share 1": Student("lightgbm", training={"distillation": 1.0}),
    "two layers of 32": Student("lightgbm", {"hidden": [32, 32]}),
    "three layers of 64": Student("lightgbm", {"hidden": [64, 64, 64]}),
    "12 epochs": Student("lightgbm", training={"epochs": 12, "patience": 12}),
    "piecewise linear numbers": Student("lightgbm", PIECEWISE),
    "pruned, taught by dense": Student("dense", training=AT_THE_END, pruned=True),
    "pruned, taught by LightGBM, days left out": Student("lightgbm", training=AT_THE_END, pruned=True),
    "pruned, so taught, 12 epochs at the end": Student("lightgbm", training={"epochs": 12, "patience": 12}, pruned=True),
    "dense, taught by LightGBM, days left out": Student("lightgbm", {"hidden": [512, 512, 512], "dropout": 0.3}, LIKE_DENSE),
}


class Fold:
    """One month: its rows, and what each teacher says of the training rows."""

    def __init__(self, month: str, threads: int):
        self.month, self.threads, self.conf = month, threads, compose()
        self.place = select_device(self.conf["device"]["kind"])
        with tempfile.TemporaryDirectory() as folder:
            self.encoding = fold_files(labelled_rows(), month, Path(folder))
            self.train, self.stop, self.score = (load_rows(Path(folder) / f"{name}.parquet", self.encoding, self.place) for name in ("train", "stop", "score"))
        trees = [self.conf["reference"][key] for key in ("trees", "rounds")]
        self.folder = cache(month, threads, *trees, self.conf["model"], self.conf["train"])
        self.precision = self.conf["device"]["precision"]
        self.said = self._ask()

    def _ask(self) -> dict[str, torch.Tensor]:
        conf = self.conf["reference"]
        how = (self.encoding, conf["trees"], conf["rounds"])
        self.forest = fitted_trees(self.folder / "all.txt", self.train, *how, threads=self.threads)
        self.dense = self._dense()
        said = {
            "dense": predict_logits(self.dense, self.train),
            "seen": logit(predict_lightgbm(self.forest, self.train, self.threads)).to(self.place),
            "lightgbm": unseen_logits(self.folder, self.train, *how, FOLDS, threads=self.threads),
        }
        return said | {"both": (said["dense"] + said["lightgbm"]) / 2, "both seen": (said["dense"] + said["seen"]) / 2}

    def _dense(self):
        folder = self.folder / "dense"
        if not (folder / "model.json").exists():
            set_determinism(0, self.threads)
            network = build_network(self.conf["model"], self.encoding, self.train.numbers).to(self.place)
            train(network, self.train, self.stop, TrainSettings(**self.conf["train"]), 0, self.precision)
            fit_temperature(network, self.stop)
            save_network(network, folder)
        return load_network(folder, self.place)

    def answers(self, name: str, seed: int) -> np.ndarray:
        """The probabilities of a model for the scored month; a student is trained once and its answers kept."""
        if name == "lightgbm":
            return predict_lightgbm(self.forest, self.score, self.threads)
        if name == "dense":
            return predict(self.dense, self.score)
        path = cache(self.folder.name, name, vars(CANDIDATES[name]), self.conf["prune"], STUDENT, LONGER, seed).with_suffix(".npy")
        if not path.exists():
            with written(path) as aside, open(aside, "wb") as stream:
                np.save(stream, predict(self._student(CANDIDATES[name], seed), self.score))
        return np.load(path)

    def _student(self, student: Student, seed: int):
        conf, teacher = self.conf["prune"], self.said.get(student.teacher)
        tuning = {**conf["fine_tuning"], **({} if student.pruned else LONGER), **student.training}
        training = fine_tuning_settings(self.conf["train"], tuning)
        set_determinism(seed, self.threads)
        if student.pruned:
            settings = PruneSettings(**{key: value for key, value in conf.items() if key != "fine_tuning"})
            return prune(self.dense, self.train, self.stop, settings, training, seed, self.precision, teacher=teacher)[0]
        network = build_network({**STUDENT, **student.model}, self.encoding, self.train.numbers).to(self.place)
        train(network, self.train, self.stop, training, seed, self.precision, teacher)
        fit_temperature(network, self.stop)
        return network


def cache(*inputs) -> Path:
    """A path of its own for whatever depends on these and on the rows."""
    tables = [sha256_of(artifact("features", f"{part}.parquet")) for part in ("train", "validation")]
    key = hashlib.sha256(json.dumps([*inputs, *tables], sort_keys=True).encode()).hexdigest()[:16]
    return project_root() / ".checkpoints" / "select_student" / key


def drawn(scored: list[Rows], months: list[list[np.ndarray]], metric: str) -> tuple[float, np.ndarray]:
    """The mean over months and seeds of a score, and its values when days are drawn anew within each month, [R]."""
    found = [resampled(rows.labels.cpu().numpy(), answer, rows.blocks, metric, 500, number) for number, (rows, seeds) in enumerate(zip(scored, months)) for answer in seeds]
    weights = np.concatenate([np.full(len(seeds), 1 / len(seeds)) for seeds in months]) / len(months)
    return float(weights @ [estimate for estimate, _ in found]), weights @ np.stack([values for _, values in found])


def summary(found: dict[str, list[list[np.ndarray]]], scored: list[Rows]) -> dict:
    """For each model the mean of each metric over months and seeds, and how it differs from LightGBM; printed too."""
    trees, lines = {key: drawn(scored, found["lightgbm"], key) for key in METRICS}, {}
    for name, months in found.items():
        own = {key: drawn(scored, months, key) for key in METRICS}
        line = {key: estimate for key, (estimate, _) in own.items()} | {"seeds": len(months[0])}
        line["roc_auc_by_month"] = [float(np.mean([METRICS["roc_auc"](rows.labels.cpu().numpy(), answer) for answer in seeds])) for rows, seeds in zip(scored, months)]
        line["less_lightgbm"] = {key: percentile_interval(own[key][0] - trees[key][0], own[key][1] - trees[key][1]) for key in METRICS}
        lines[name] = line
        less = line["less_lightgbm"]["roc_auc"]
        print(f"{name:42} ROC AUC {line['roc_auc']:.4f}  PR AUC {line['pr_auc']:.4f}  log loss {line['log_loss']:.4f}  less LightGBM {less['estimate']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}]")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", nargs="+", default=["2013-07", "2013-08", "2013-09", "2013-10"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=compose()["device"]["threads"])
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    path = results_path("select_student.json", given.write)
    names = ["lightgbm", "dense", *given.candidates]
    found: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}
    scored = []
    seeds = {name: 1 if name not in CANDIDATES or CANDIDATES[name].costly else given.seeds for name in names}
    with progress(total=len(given.months) * sum(seeds.values()), desc="students") as bar:
        for month in given.months:
            fold = Fold(month, given.threads)
            for name in names:
                found[name].append([])
                for seed in range(seeds[name]):
                    found[name][-1].append(fold.answers(name, seed))
                    bar.update()
            scored.append(fold.score)
    write_json(path, {"months": given.months, "candidates": summary(found, scored)})


if __name__ == "__main__":
    main()
