"""The dense default over seeds: its test ROC AUC, and its gap to LightGBM with an interval by day.

No choice is made here. It trains what conf/ has chosen five times, as the train stage does, and reads the test rows
that the evaluate stage reads. Written to build/bench/seeds.json.
"""

import argparse

import numpy as np
import pyarrow.parquet as pq

from prodml.core.config import compose
from prodml.core.files import artifact, read_json, write_json
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.model.device import select_device, set_determinism
from prodml.model.networks import build_network
from prodml.model.rows import load_rows
from prodml.model.train import TrainSettings, fit_temperature, predict, train
from prodml.stats.bootstrap import paired_difference
from prodml.stats.scores import log_loss, pr_auc, roc_auc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    seeds, path = range(given.seeds), results_path("seeds.json", given.write)
    conf = compose()
    device = conf["device"]
    place = select_device(device["kind"])
    encoding = read_json(artifact("features", "encoding.json"))
    parts = {name: load_rows(artifact("features", f"{name}.parquet"), encoding, place) for name in ("train", "validation", "test")}
    labels, days = parts["test"].labels.cpu().numpy(), parts["test"].blocks
    predictions = pq.read_table(artifact("evaluate", "predictions.parquet")).to_pandas()
    trees = predictions[predictions.split == "test"].set_index("key").lightgbm.loc[np.asarray(parts["test"].keys)].to_numpy()
    lines, answers = [], []
    for seed in progress(seeds, desc="seeds"):
        set_determinism(seed, device["threads"])
        network = build_network(conf["model"], encoding, parts["train"].numbers).to(place)
        train(network, parts["train"], parts["validation"], TrainSettings(**conf["train"]), seed, device["precision"])
        fit_temperature(network, parts["validation"])
        answers.append(predict(network, parts["test"]))
        lines.append({name: float(metric(labels, answers[-1])) for name, metric in (("roc_auc", roc_auc), ("pr_auc", pr_auc), ("log_loss", log_loss))})
        print(f"seed {seed}: " + "  ".join(f"{name} {value:.4f}" for name, value in lines[-1].items()))
    mean = {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}
    # The gap of one network, seed by seed, not of their blend, which would be better than any of them.
    gaps = [{metric: paired_difference(labels, answer, trees, days, metric) for metric in ("roc_auc", "pr_auc", "log_loss")} for answer in answers]
    write_json(path, {"model": conf["model"]["name"], "seeds": lines, "mean": mean, "less_lightgbm": gaps})
    print("mean: " + "  ".join(f"{name} {value:.4f}" for name, value in mean.items()))
    for seed, gap in zip(seeds, gaps):
        print(f"seed {seed} less LightGBM: " + "  ".join(f"{name} {value['estimate']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]" for name, value in gap.items()))


if __name__ == "__main__":
    main()
