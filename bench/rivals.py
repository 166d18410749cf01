"""Pruning beside its honest rival: the same small shape trained from scratch, with and without distillation, over seeds.

For each seed a dense network is trained as the train stage does, cut as the prune stage does, and the shape that is left
is trained from scratch twice: on the labels alone (`scratch`), and taught by the teacher that teaches the pruned network
(`distilled`). The rivals get the learning rate and the passes of conf/reference, which suit small networks. No choice is made here: it
reads the test rows that the evaluate stage reads. Means over seeds carry Student's t intervals; each seed's differences
carry an interval by day. Written to build/bench/rivals.json after every seed; seeds that stand there under the same
settings, data and code are not run again.
"""

import argparse
import hashlib
import json
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from prodml.core.config import compose, read_settings
from prodml.core.files import artifact, read_json, sha256_of, write_json
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.model.compress import own_keys
from prodml.model.device import select_device, set_determinism
from prodml.model.distill import read_teacher
from prodml.model.networks import Network, build_network, count_parameters
from prodml.model.prune import PruneSettings, fine_tuning_settings, prune
from prodml.model.reference import fit_rival
from prodml.model.rows import Rows, load_rows
from prodml.model.train import TrainSettings, fit_temperature, predict, train
from prodml.stats.bootstrap import paired_difference
from prodml.stats.scores import log_loss, pr_auc, roc_auc

METRICS = {"roc_auc": roc_auc, "pr_auc": pr_auc, "log_loss": log_loss}
PAIRS = (("pruned", "scratch"), ("pruned", "distilled"), ("distilled", "scratch"), ("pruned", "dense"))
# What the networks are made by; a change of any of these makes the record's seeds stale.
MODULES = ("encoder", "networks", "train", "prune", "reference")


def settings_hash(conf: dict[str, Any]) -> str:
    """Names the settings, the feature tables and the code that a line of the record belongs to."""
    files = [artifact("distill", "logits.parquet"), *(artifact("features", f"{name}.parquet") for name in ("train", "validation", "test"))]
    files += [project_root() / "prodml" / "model" / f"{name}.py" for name in MODULES]
    asked = {key: conf[key] for key in ("model", "train", "distill", "prune", "device")} | {"small": conf["reference"]["small"]}
    return hashlib.sha256(json.dumps([asked, [sha256_of(file) for file in files]], sort_keys=True).encode()).hexdigest()[:16]


def fitted(conf: dict[str, Any], encoding: dict[str, Any], rows: Rows, validation: Rows, seed: int) -> dict[str, Network]:
    """The dense network of a seed, what pruning leaves of it, and the same small shape from scratch."""
    precision = conf["device"]["precision"]
    set_determinism(seed, conf["device"]["threads"])
    dense = build_network(conf["model"], encoding, rows.numbers).to(rows.labels.device)
    train(dense, rows, validation, TrainSettings(**conf["train"]), seed, precision)
    fit_temperature(dense, validation)
    teacher = read_teacher(artifact("distill", "logits.parquet"), conf["distill"]["teacher"], rows)
    tuning = fine_tuning_settings(conf["train"], conf["prune"]["fine_tuning"])
    pruned, _ = prune(dense, rows, validation, PruneSettings(**own_keys(PruneSettings, conf["prune"])), tuning, seed, precision, None, teacher)
    small = read_settings(TrainSettings, {**conf["train"], **conf["reference"]["small"]}, "reference.small")
    shape = {**conf["model"], "hidden": pruned.hidden_widths(), "dropout": pruned.architecture.dropout}
    teachers = {"scratch": None, "distilled": teacher}
    rivals = {name: fit_rival({**shape, "name": name}, encoding, rows, validation, small, seed, precision, teacher) for name, teacher in teachers.items()}
    return {"dense": dense, "pruned": pruned, **rivals}


def line_of(networks: dict[str, Network], test: Rows) -> dict[str, Any]:
    """Scores of a seed's networks on the test rows, their differences with intervals by day, and their sizes."""
    labels = test.labels.cpu().numpy()
    answers = {name: predict(network, test) for name, network in networks.items()}
    return {
        "scores": {name: {metric: float(score(labels, answer)) for metric, score in METRICS.items()} for name, answer in answers.items()},
        "differences": {f"{a} - {b}": {metric: paired_difference(labels, answers[a], answers[b], test.blocks, metric) for metric in METRICS} for a, b in PAIRS},
        "weights": {name: count_parameters(network) for name, network in networks.items()},
        "hidden": {name: network.hidden_widths() for name, network in networks.items()},
    }


def over_seeds(values: list[float], level: float = 0.95) -> dict[str, float]:
    """Mean, and the ends of Student's t interval of it; no ends for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean}
    reach = float(student_t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def summary(lines: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds of every score and of every difference between two networks of one seed."""
    seeds = list(lines.values())
    scores = {name: {metric: over_seeds([line["scores"][name][metric] for line in seeds]) for metric in METRICS} for name in seeds[0]["scores"]}
    gaps = {pair: {metric: over_seeds([line["differences"][pair][metric]["estimate"] for line in seeds]) for metric in METRICS} for pair in seeds[0]["differences"]}
    return {"scores": scores, "differences": gaps}


def written_out(value: dict[str, float], form: str) -> str:
    """A mean or an estimate with its interval."""
    middle = value["mean"] if "mean" in value else value["estimate"]
    ends = f" [{value['low']:{form}}, {value['high']:{form}}]" if "low" in value else ""
    return f"{middle:{form}}{ends}"


def show(record: dict[str, Any]) -> None:
    """Print what the record holds."""
    lines, mean = record["seeds"], record["over_seeds"]
    last = next(iter(lines.values()))
    print(f"\n{len(lines)} seeds, mean over seeds with Student's t interval, test rows")
    for name, own in mean["scores"].items():
        print(f"  {name:10} {str(last['hidden'][name]):16} {last['weights'][name]:>8,} weights  " + "  ".join(f"{metric} {written_out(own[metric], '.4f')}" for metric in METRICS))
    print("\ndifferences within a seed: mean over seeds, then seed by seed with the interval by day")
    for pair, own in mean["differences"].items():
        print(f"  {pair}: " + "  ".join(f"{metric} {written_out(own[metric], '+.4f')}" for metric in METRICS))
        for seed, line in lines.items():
            print(f"    seed {seed}: " + "  ".join(f"{metric} {written_out(line['differences'][pair][metric], '+.4f')}" for metric in METRICS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many; each takes some minutes")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    count, path = given.seeds, results_path("rivals.json", given.write)
    conf = compose()
    name = settings_hash(conf)
    record = read_json(path) if path.exists() else {}
    lines = record["seeds"] if record.get("settings") == name else {}
    missing = [seed for seed in range(count) if str(seed) not in lines]
    if missing:
        place, encoding = select_device(conf["device"]["kind"]), read_json(artifact("features", "encoding.json"))
        parts = {part: load_rows(artifact("features", f"{part}.parquet"), encoding, place) for part in ("train", "validation", "test")}
    for seed in progress(missing, desc="seeds"):
        lines[str(seed)] = line_of(fitted(conf, encoding, parts["train"], parts["validation"], seed), parts["test"])
        record = {"settings": name, "model": conf["model"]["name"], "device": str(place), "seeds": lines, "over_seeds": summary(lines)}
        write_json(path, record)
    show(record)


if __name__ == "__main__":
    main()
