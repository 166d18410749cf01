"""A user's own feature module: what it is made of is watched, and nothing else re-runs the stage."""

import json
import os
import runpy

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, drop_layers, edit, run, stages_run
from whole import add_table

OWN = """#| export
import ibis

from prodml.stats.mine_scale import SCALE


def features(tables, options):
    "The square of a column."
    return tables["rows"].select(key="source_row", square=ibis._.level * ibis._.level * SCALE)
"""
SETTINGS = {"target": {"column": "high", "positive": "yes"}, "split": {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}, "features": {"module": "mine"}}


@pytest.mark.parametrize("line", [
    "from .other import ONE", "from . import other", "from prodml.data.other import ONE", "from prodml.data import other",
    "import prodml.data.other", "import prodml.data.other as one, json", "def late():\n    from .other import ONE",
    "from ..stats.deep import ONE", "from ..stats import deep", "from prodml.stats.deep import ONE", "import prodml.stats.deep",
    "from .between import TWO", "import prodml.data.between as two",
])
def test_a_module_is_watched_with_all_that_it_imports(line, tmp_path, monkeypatch):
    """Directly or through others, in whichever form and layer."""
    monkeypatch.chdir(tmp_path)
    modules = {
        "data/mine": line, "data/other": "ONE = 'watched'", "stats/deep": "ONE = 'watched'", "data/apart": "ONE = 'apart'",
        "data/between": "from ..stats.deep import ONE as TWO",
    }
    for name, code in modules.items():
        path = tmp_path / "prodml" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code + "\n")
    (tmp_path / "params.yaml").write_text("data: {features: {module: mine}}\n")
    text = runpy.run_path(str(ROOT / "nbs" / "export.py"))["feature_module"]()
    assert line in text and "watched" in text and "apart" not in text


def notebook(name: str, code: str) -> str:
    """A notebook that exports one module."""
    sources = [("markdown", f"# {name}\n\n> A module of a test."), ("code", f"#| default_exp {name}"), ("code", code), ("markdown", "Why it is so.")]
    cells = [
        {"cell_type": kind, "id": f"cell{place}", "metadata": {}, "source": source.splitlines(keepends=True)} | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for place, (kind, source) in enumerate(sources)
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}) + "\n"


@pytest.mark.slow
def test_an_edit_of_ones_own_module_is_never_stale(checkout):
    """Nobody calls the export by hand: neither DVC nor `prodml run` works with what the notebooks no longer say."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"level": random.integers(1, 100, 300), "high": random.choice(["yes", "no"], 300)})
    drop_layers(checkout, "2_model", "3_trust", "4_serve")
    add_table(checkout, table, SETTINGS)
    scale = checkout / "nbs" / "0_stats" / "09_mine_scale.ipynb"
    scale.write_text(notebook("stats.mine_scale", "#| export\nSCALE = 1\n"))
    (checkout / "nbs" / "1_data" / "17_mine.ipynb").write_text(notebook("data.mine", OWN))
    assert run("python", "-m", "prodml.cli", "params", "data=mine", "examples=false", cwd=checkout).returncode == 0

    def largest(folder=checkout) -> float:
        return max(pd.read_parquet(path).square.max() for path in folder.glob("artifacts/features/*.parquet") if path.stem in ("train", "validation", "test"))

    repro = ("dvc", "repro", "features")
    assert stages_run(run(*repro, cwd=checkout)) == ["export", "ingest", "validate", "clean", "features"]
    assert largest() == 99**2
    edit(checkout / "nbs" / "1_data" / "17_mine.ipynb", "prose", " One more word.")
    edit(checkout / "nbs" / "1_data" / "08_flights.ipynb", "prose", " One more word.")
    assert stages_run(run(*repro, cwd=checkout)) == ["export"]
    scale.write_text(notebook("stats.mine_scale", "#| export\nSCALE = 2\n"))
    assert stages_run(run(*repro, cwd=checkout)) == ["export", "features"]
    assert largest() == 2 * 99**2
    scale.write_text(notebook("stats.mine_scale", "#| export\nSCALE = 3\n"))
    done = run("python", "-m", "prodml.cli", "run", "features", "--in-place", cwd=checkout, PYTHONPATH=os.fspath(checkout))
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest() == 3 * 99**2
