"""Whole pipelines: another table, a stranger's CSV, what re-runs what, a kill, experiments."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, git, run

from prodml.bundle.bundle import open_bundle
from prodml.core.trial import run_trial

pytestmark = pytest.mark.slow


def stages_run(done: subprocess.CompletedProcess) -> list[str]:
    """The stages that a `dvc repro` ran, in order."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return re.findall(r"Running stage '(\w+)'", done.stdout)


def edit(notebook: Path, kind: str, text: str) -> None:
    """Append a text to the last markdown cell, or to the last stage cell, of a notebook."""
    content = json.loads(notebook.read_text())
    fits = (lambda cell: cell["cell_type"] == "markdown") if kind == "prose" else (lambda cell: "".join(cell["source"]).startswith("#| stage"))
    [cell for cell in content["cells"] if fits(cell)][-1]["source"].append(text)
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


@pytest.fixture(scope="module")
def second_table(tmp_path_factory):
    """The breast cancer table, run through every stage in a trial."""
    folder = tmp_path_factory.mktemp("trials") / "cancer"
    record = ROOT / "metrics" / "evaluate.json"
    before = record.read_bytes() if record.exists() else None
    # The compiler is tested in its notebook; explanations need no precision here.
    quick = ["measure.aot_inductor=false", "explain.samples=512", "explain.orders=20", "explain.compared_rows=20", "explain.measured_rows=3", "explain.moved_rows=1"]
    done = run_trial(folder, ["data=breast_cancer", *quick], quiet=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (record.read_bytes() if record.exists() else None) == before, "a trial touched the main run"
    return folder


def test_another_table_goes_through_every_stage(second_table):
    scores = json.loads((second_table / "metrics" / "evaluate.json").read_text())
    assert {"dense", "pruned", "int8", "lightgbm", "logistic"} <= set(scores)
    assert all(scores[name]["test"]["roc_auc"] > 0.95 for name in ("dense", "pruned", "int8", "lightgbm"))
    latency = json.loads((second_table / "metrics" / "latency.json").read_text())["models"]
    for name in ("dense", "pruned", "int8"):
        assert {"p50_us", "p95_us", "p99_us", "rows_per_s", "size_bytes"} <= set(latency[name])
    assert latency["int8"]["size_bytes"] < latency["pruned"]["size_bytes"] < latency["dense"]["size_bytes"] / 10


def test_its_bundle_answers_and_a_changed_one_is_refused(second_table, tmp_path):
    table = pd.read_parquet(ROOT / "examples" / "breast_cancer" / "tumours.parquet")
    bundle = open_bundle(second_table / "bundle", unsigned=True, rejected=True)
    malignant = (table.diagnosis == "malignant").to_numpy()
    probabilities = bundle.predict({name: table[name].to_numpy() for name in table.columns})
    assert probabilities[malignant].mean() > 0.9 > 0.1 > probabilities[~malignant].mean()
    card = (second_table / "bundle" / "model_card.md").read_text()
    assert "nobody has stated" in card and "New York" not in card, "another table has no statements of the flights"
    copy = shutil.copytree(second_table / "bundle", tmp_path / "bundle")
    with open(copy / "encoding.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(ValueError, match="encoding.json"):
        open_bundle(copy, unsigned=True, rejected=True)


def test_what_re_runs_what(second_table):
    repro = ("dvc", "repro", "dvc.yaml")
    assert stages_run(run(*repro, cwd=second_table)) == []
    edit(second_table / "nbs" / "2_model" / "10_measure.ipynb", "prose", " One more word.")
    assert stages_run(run(*repro, cwd=second_table)) == ["export"]
    # A text of its own, or a second test run in this checkout would find the answer in DVC's cache.
    edit(second_table / "nbs" / "3_trust" / "01_evaluate.ipynb", "run", f"\n# one more look, {time.time_ns()}")
    ran = stages_run(run(*repro, cwd=second_table))
    assert "evaluate" in ran and not {"train", "prune", "quantize", "features"} & set(ran)


def test_a_forced_run_gives_the_same_lock(second_table):
    run("dvc", "repro", "dvc.yaml", cwd=second_table)
    before = (second_table / "dvc.lock").read_text()
    assert len(stages_run(run("dvc", "repro", "--force", "dvc.yaml", cwd=second_table))) >= 11
    assert (second_table / "dvc.lock").read_text() == before


def test_a_killed_stage_leaves_nothing_half_written(second_table):
    run("dvc", "repro", "dvc.yaml", cwd=second_table)
    written, checkpoints = second_table / "artifacts" / "train", second_table / ".checkpoints"
    before = (written / "model.safetensors").read_bytes()
    again = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "train"]
    training = subprocess.Popen(again, cwd=second_table, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    # Killed in the middle: after the first checkpoint, before the end.
    while training.poll() is None and not list(checkpoints.rglob("*.safetensors")):
        time.sleep(0.02)
    assert training.poll() is None, "the training ended before it could be killed"
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    assert not written.exists(), "a folder appears whole or not at all"
    assert stages_run(subprocess.run(again, cwd=second_table, capture_output=True, text=True)) == ["train"]
    assert (written / "model.safetensors").read_bytes() == before, "resumed or not, the same bytes"
    assert not list(checkpoints.rglob("*.safetensors")), "a finished training leaves no checkpoint"


def test_a_strangers_csv_needs_one_file(checkout):
    rng = np.random.default_rng(0)
    rows = 600
    income = rng.normal(3000, 800, rows).round(2)
    table = pd.DataFrame({
        "customer": [f"C{number:05}" for number in range(rows)], "income": income, "city": rng.choice(["Köln", "Bonn, am Rhein", 'Ulm "Mitte"', None], rows),
        "joined": pd.date_range("2015-01-01", periods=rows).strftime("%Y-%m-%d"), "visits": rng.poisson(3, rows), "member": rng.choice(["true", "false"], rows),
        "left": np.where(income + rng.normal(0, 500, rows) > 3000, "yes", "no"),
    })
    table.loc[rng.random(rows) < 0.2, "income"] = None
    (checkout / "shop").mkdir()
    table.to_csv(checkout / "shop" / "customers.csv", index=False)
    (checkout / "conf" / "data" / "shop.yaml").write_text(
        "defaults: [defaults, _self_]\nname: shop\nfolder: shop\nmain: customers\ntables: {customers: {file: customers.csv}}\n"
        "target: {column: left, positive: 'yes'}\nsplit: {by: time, column: joined, validation_from: '2015-12-01', test_from: '2016-04-01'}\nfeatures: {max_categories: 100}\n"
    )
    assert run("python", "-m", "prodml.cli", "params", "data=shop", "run=smoke", "data.sample_fraction=1.0", cwd=checkout).returncode == 0
    assert "bundle" in stages_run(run("dvc", "repro", "dvc.yaml", cwd=checkout))
    kinds = json.loads((checkout / "artifacts" / "features" / "report.json").read_text())["kinds"]
    assert {name: kind for name, (kind, _) in kinds.items()} == {"customer": "drop", "income": "number", "city": "category", "joined_weekday": "category", "joined_hour": "drop", "visits": "number", "member": "category"}
    assert json.loads((checkout / "metrics" / "evaluate.json").read_text())["lightgbm"]["test"]["roc_auc"] > 0.6


def test_experiments_run_the_copys_code(checkout):
    """`dvc exp run` composes conf/ itself; a queued run in a copy imports the copy's package."""
    check = "\nimport prodml\nassert __import__('pathlib').Path(prodml.__file__).resolve().is_relative_to(project_root().resolve()), prodml.__file__"
    edit(checkout / "nbs" / "1_data" / "01_ingest.ipynb", "run", check)
    git(checkout, "commit", "-qam", "look where the package comes from")
    queued = run("dvc", "exp", "run", "--queue", "-S", "data=breast_cancer", "-S", "model=logistic,mlp", "-S", "run=smoke", "-S", "data.sample_fraction=1.0", "bundle", cwd=checkout)
    assert queued.returncode == 0, queued.stderr
    done = run("dvc", "exp", "run", "--run-all", cwd=checkout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = run("dvc", "exp", "show", "--csv", cwd=checkout).stdout
    assert "logistic" in table and table.count("breast_cancer") >= 2, table
    names = run("dvc", "exp", "list", "--name-only", cwd=checkout).stdout.split()
    assert len(names) == 2, names
