"""Which LightGBM: the same rolling origin as select_model.py, so that the networks are compared with tuned trees.

Each candidate changes a few of the settings in conf/reference. The test months are not read. What it finds is written
to build/bench/select_trees.json; the choice is made by a person, in conf/reference/.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from prodml.core.config import compose
from prodml.core.files import write_json
from prodml.core.progress import progress
from prodml.core.records import results_path
from prodml.model.reference import fit_lightgbm, predict_lightgbm
from prodml.model.rows import load_rows
from prodml.stats.bootstrap import paired_difference
from select_model import METRICS, fold_files, labelled_rows

# What each candidate changes; "rounds" is the number of trees, the rest are LightGBM's own parameters.
CANDIDATES = {
    "as configured": {},
    "LightGBM's defaults": None,
    "200 trees": {"rounds": 200},
    "800 trees": {"rounds": 800},
    "7 leaves": {"num_leaves": 7},
    "31 leaves": {"num_leaves": 31},
    "63 leaves": {"num_leaves": 63},
    "leaves of 100 rows": {"min_data_in_leaf": 100},
    "leaves of 2,000 rows": {"min_data_in_leaf": 2000},
    "all columns": {"feature_fraction": 1.0},
    "half as fast, 800 trees": {"learning_rate": 0.025, "rounds": 800},
}


def settings_of(name: str, conf: dict) -> tuple[dict, int]:
    """LightGBM's parameters and the number of trees of a candidate."""
    change = CANDIDATES[name]
    if change is None:
        return {}, 100
    changed = {**conf["trees"], "rounds": conf["rounds"], **change}
    return {key: value for key, value in changed.items() if key != "rounds"}, changed["rounds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", nargs="+", default=["2013-07", "2013-08", "2013-09", "2013-10"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    path = results_path("select_trees.json", given.write)
    settings = compose()  # once: conf/ may change while this runs
    table, threads = labelled_rows(), settings["device"]["threads"]
    answers: dict[str, list[np.ndarray]] = {name: [] for name in CANDIDATES}
    labels, days = [], []
    with progress(total=len(given.months) * len(CANDIDATES) * given.seeds, desc="trees") as bar:
        for month in given.months:
            with tempfile.TemporaryDirectory() as folder:
                encoding = fold_files(table, month, Path(folder))
                training, scored = (load_rows(Path(folder) / f"{part}.parquet", encoding) for part in ("train", "score"))
            labels.append(scored.labels.numpy())
            days.append(scored.blocks)
            for name in CANDIDATES:
                trees, rounds = settings_of(name, settings["reference"])
                seeds = []
                for seed in range(given.seeds):
                    seeds.append(predict_lightgbm(fit_lightgbm(training, encoding, trees, rounds, seed, threads), scored, threads))
                    bar.update()
                answers[name].append(np.mean(seeds, axis=0))
    truth, blocks = np.concatenate(labels), np.concatenate(days)
    together = {name: np.concatenate(months) for name, months in answers.items()}
    lines = {}
    for name, months in answers.items():
        line = {key: float(np.mean([metric(label, month) for label, month in zip(labels, months)])) for key, metric in METRICS.items()}
        line["less_configured"] = {key: paired_difference(truth, together[name], together["as configured"], blocks, key) for key in ("roc_auc", "log_loss")}
        lines[name] = line
        difference = line["less_configured"]["roc_auc"]
        print(f"{name:25} ROC AUC {line['roc_auc']:.4f}  PR AUC {line['pr_auc']:.4f}  log loss {line['log_loss']:.4f}  less configured {difference['estimate']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]")
    write_json(path, {"months": given.months, "seeds": given.seeds, "candidates": lines})


if __name__ == "__main__":
    main()
