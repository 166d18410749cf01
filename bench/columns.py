"""Processor seconds of the stages of data against the number of columns of the table.

A made-up table, a tenth of its columns text, with the rules that a draft gives it (one for each column, and one
that all are known), goes through ingest, validate, clean, features, drift and the document that a server reads.
Written to build/bench/columns.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from prodml.core.config import compose
from prodml.core.files import read_json, write_json
from prodml.core.records import results_path
from prodml.data.clean import clean
from prodml.data.drift import drift_report, read_splits
from prodml.data.features import make_features
from prodml.data.ingest import ingest
from prodml.data.rowwise import serving_document
from prodml.data.validate import read_tables, validate

ROOT = Path(__file__).resolve().parents[1]
TARGET = {"column": "y", "positive": "yes"}
FEATURES = {"module": None, "options": {}, "kinds": {}, "max_categories": 1000, "min_category_rows": 5}
SPLIT = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}


def table(columns: int, rows: int) -> pa.Table:
    """The table, from a fixed seed."""
    draw = np.random.default_rng(0)
    made = {f"c{place}": draw.choice(list("abc"), rows) if place % 10 == 0 else draw.normal(size=rows).round(3) for place in range(columns)}
    return pa.table({**made, "y": draw.choice(["yes", "no"], rows)})


def rules(columns: int) -> list[dict[str, Any]]:
    """As a draft writes them."""
    names = [f"c{place}" for place in range(columns)]
    known = {"name": "known", "rule": "not_null", "columns": names, "severity": "error", "max_rejected_fraction": 0.001}
    texts = [{"name": f"{name} is known", "rule": "allowed", "columns": [name], "values": list("abc"), "severity": "warning"} for name in names[::10]]
    numbers = [{"name": f"{name} is in its range", "rule": "range", "columns": [name], "min": -10, "max": 10, "severity": "warning"} for name in names if name not in names[::10]]
    return [{"table": "t", **rule} for rule in (known, *texts, *numbers)]


def measured(columns: int, rows: int, drift: dict[str, Any], folder: Path) -> dict[str, float]:
    """Seconds of each stage."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> None:
        start = time.process_time()
        work()
        seconds[stage] = round(time.process_time() - start, 2)

    pyarrow.csv.write_csv(table(columns, rows), folder / "t.csv")
    data = {"main": "t", "repairs": [], "features": FEATURES, "target": TARGET, "split": SPLIT}
    types = {f"c{place}": "text" if place % 10 == 0 else "float" for place in range(columns)}
    timed("ingest", lambda: ingest(folder, {"t": {"file": "t.csv"}}, folder / "ingest", [""], "t", 1.0))
    timed("validate", lambda: validate(folder / "ingest", folder / "validate", folder / "rejected", rules(columns), "t", TARGET))
    timed("clean", lambda: clean(folder / "validate", folder / "clean", []))
    timed("features", lambda: make_features(folder / "clean", folder / "features", "t", TARGET, FEATURES, SPLIT))
    settings = (drift["profile"], drift["level"], drift["floors"], drift["multivariate"], 0)
    timed("drift", lambda: drift_report(read_splits(folder / "features", ["train", "validation", "test"]), "train", {}, *settings))
    timed("rowwise", lambda: serving_document(read_tables(folder / "clean"), data, read_json(folder / "features" / "encoding.json"), types))
    return seconds


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, nargs="+", default=[100, 300, 600, 2000])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="write to bench/results, which is committed")
    given = parser.parse_args()
    found = []
    for columns in given.columns:
        with tempfile.TemporaryDirectory() as folder:
            found.append({"columns": columns, **measured(columns, given.rows, compose([])["drift"], Path(folder))})
            found[-1]["all"] = round(sum(found[-1].values()) - columns, 2)
        print(found[-1], flush=True)
    path = results_path("columns.json", given.write, ROOT)
    write_json(path, {"rows": given.rows, "processor_seconds": found})
    print(path)


if __name__ == "__main__":
    main()
