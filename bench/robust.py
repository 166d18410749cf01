"""Adversarial training: what it buys under attack and what it costs, on a sample of the training rows.

For each seed and each `adversarial_epsilon` a network is trained as the train stage does, otherwise with the settings of
conf/train. It is stopped by the even days of the validation rows and scored on the odd ones: as they are, under what the
adversary of conf/data can do (PGD on numbers, and swaps), and under PGD on every number. What a step costs is the least time
of some rounds of steps on the same batches, each against the plain step of that run. No test row is read. Written to build/bench/robust.json.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from prodml.bundle.encode import input_names
from prodml.core.config import compose, read_settings
from prodml.core.files import artifact, read_json, write_json
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.model.device import select_device, set_determinism
from prodml.model.networks import build_network
from prodml.model.rows import Rows, load_rows
from prodml.model.train import Trainer, TrainSettings, fit_temperature, predict, train
from prodml.stats.scores import best_threshold, log_loss, roc_auc
from prodml.trust.attack import AttackSettings, Box, attack_lines, box_around, read_reach

TRAININGS = {"plain": (0.0, 1), "0.1": (0.1, 1), "0.25": (0.25, 1), "0.1, 5 steps": (0.1, 5)}


def sampled(rows: Rows, count: int, seed: int) -> Rows:
    """Some of the rows, in their order."""
    return rows.take(np.sort(np.random.default_rng(seed).permutation(len(rows))[:count]))


def under_attack(network: Any, boxes: dict[str, Box], scored: Rows, settings: AttackSettings, seed: int) -> dict[str, Any]:
    """ROC AUC and flipped decisions of the strongest attacks by gradient, at each reach and epsilon."""
    threshold = best_threshold(scored.labels.cpu().numpy(), predict(network, scored))
    found = {}
    for reach, box in boxes.items():
        lines = attack_lines({"network": network}, box, {"network": threshold}, settings, reach, seed, asked=[])
        best = "PGD and swaps" if box.reach.codes else "PGD"
        found |= {f"{reach}, {line['epsilon']:g}": {key: round(line[key], 4) for key in ("roc_auc", "flipped", "random_flipped")} for line in lines if line["attack"] == best}
    return found


def measured(conf: dict[str, Any], encoding: dict[str, Any], parts: dict[str, Rows], boxes: dict[str, Box], attack: AttackSettings, name: str, seed: int) -> dict[str, Any]:
    """One training: its seconds, its scores on rows as they are, and under attack."""
    epsilon, steps = TRAININGS[name]
    settings = read_settings(TrainSettings, conf["train"] | {"adversarial_epsilon": epsilon, "adversarial_steps": steps}, "train")
    set_determinism(seed, conf["device"]["threads"])
    network = build_network(conf["model"], encoding, parts["train"].numbers).to(parts["train"].labels.device)
    looks = train(network, parts["train"], parts["stop"], settings, seed, conf["device"]["precision"], desc=f"{name}, seed {seed}")
    fit_temperature(network, parts["stop"])
    labels, answers = parts["scored"].labels.cpu().numpy(), predict(network, parts["scored"])
    clean = {"roc_auc": round(roc_auc(labels, answers), 4), "log_loss": round(log_loss(labels, answers), 4)}
    return {"looks": len(looks), "clean": clean, **under_attack(network, boxes, parts["scored"], attack, seed)}


def step_times(conf: dict[str, Any], encoding: dict[str, Any], rows: Rows, stop: Rows, rounds: int = 7, steps: int = 20) -> dict[str, float]:
    """Milliseconds of a step of each training, the least of some rounds that are taken in turn."""
    trainers = {}
    for name, (epsilon, count) in TRAININGS.items():
        settings = read_settings(TrainSettings, conf["train"] | {"adversarial_epsilon": epsilon, "adversarial_steps": count}, "train")
        trainers[name] = Trainer(build_network(conf["model"], encoding, rows.numbers).to(rows.labels.device), rows, stop, settings)
    batch, least = rows.take(slice(0, conf["train"]["batch_size"])), dict.fromkeys(TRAININGS, float("inf"))
    for _ in range(rounds):
        for name, trainer in trainers.items():
            begun = time.perf_counter()
            for number in range(steps):
                loss = trainer.step(batch.numbers, batch.codes, batch.labels, number)
            loss.item()
            least[name] = min(least[name], 1000 * (time.perf_counter() - begun) / steps)
    return {name: round(value, 3) for name, value in least.items()}


def summary(lines: dict[str, dict[str, Any]], times: dict[str, float]) -> dict[str, Any]:
    """Means over seeds of each training's figures, and the time of its step against the plain one."""
    found = {}
    for name in TRAININGS:
        own = [line[name] for line in lines.values()]
        figures = {key: {inner: round(float(np.mean([line[key][inner] for line in own])), 4) for inner in own[0][key]} for key in own[0] if isinstance(own[0][key], dict)}
        found[name] = figures | {"time_ratio": round(times[name] / times["plain"], 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="how many trainings of each kind")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--model", default="mlp", help="a file of conf/model")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    asked = parser.parse_args()
    path = results_path("robust.json", asked.write)
    warnings.filterwarnings("ignore", message=".*did not already require gradients.*")
    conf, encoding = compose([f"model={asked.model}"]), read_json(artifact("features", "encoding.json"))
    place = select_device(conf["device"]["kind"])
    rows, validation = (load_rows(artifact("features", f"{name}.parquet"), encoding, place) for name in ("train", "validation"))
    training = pq.read_table(artifact("features", "train.parquet"), columns=input_names(encoding))
    parts = {"train": sampled(rows, asked.rows, 0), "stop": validation.take(validation.blocks % 2 == 0), "scored": sampled(validation.take(validation.blocks % 2 == 1), 10_000, 0)}
    attack = read_settings(AttackSettings, conf["robustness"]["attack"] | {"rows": 1000}, "robustness.attack")
    attacked = sampled(parts["scored"], attack.rows, 1)
    reaches = {"declared": conf["data"]["adversary"]["columns"], "every number": "numbers"}
    boxes = {name: box_around(attacked, read_reach(columns, encoding, training, attack.most_values), encoding) for name, columns in reaches.items()}
    set_determinism(0, conf["device"]["threads"])
    lines, times = {}, step_times(conf, encoding, parts["train"], parts["scored"])
    for seed in progress(range(asked.seeds), desc="seeds"):
        lines[str(seed)] = {name: measured(conf, encoding, parts, boxes, attack, name, seed) for name in TRAININGS}
        write_json(path, {"model": conf["model"]["name"], "rows": asked.rows, "device": str(place), "step_ms": times, "seeds": lines, "over_seeds": summary(lines, times)})
    for name, figures in summary(lines, times).items():
        print(f"{name:14} step × {figures['time_ratio']:.2f}  " + "  ".join(f"{key} {value['roc_auc']:.4f}" + (f" ({value['flipped']:.1%} flipped)" if "flipped" in value else "") for key, value in figures.items() if isinstance(value, dict)))


if __name__ == "__main__":
    main()
