"""Whole pipelines: another table through every stage, what re-runs what, a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, edit, make_checkout, run, stages_run
from kernels import failure_by_hand
from sklearn.metrics import roc_auc_score

from prodml.bundle.bundle import open_bundle
from prodml.bundle.encode import input_names
from prodml.core.runner import stage_notebook
from prodml.core.trial import run_trial

# The compiler is tested in its notebook; explanations need no precision here.
QUICK = ["measure.aot_inductor=false", "explain.samples=512", "explain.orders=20", "explain.compared_rows=20", "explain.measured_rows=3", "explain.moved_rows=1"]
SHOP = """defaults: [defaults, _self_]
name: shop
folder: shop
main: customers
tables: {customers: {file: customers.csv}}
target: {column: left, positive: "yes"}
split: {by: time, column: joined, validation_from: "2015-12-01", test_from: "2016-04-01"}
features: {max_categories: 100}
"""


def customers() -> pd.DataFrame:
    """Numbers, texts with quotes and commas, dates, gaps, and a column that says the label again."""
    rng = np.random.default_rng(0)
    rows = 600
    income = rng.normal(3000, 800, rows).round(2)
    table = pd.DataFrame({
        "customer": [f"C{number:05}" for number in range(rows)], "income": income, "city": rng.choice(["Köln", "Bonn, am Rhein", 'Ulm "Mitte"', None], rows),
        "joined": pd.date_range("2015-01-01", periods=rows).strftime("%Y-%m-%d"), "visits": rng.poisson(3, rows), "member": rng.choice(["true", "false"], rows),
        "left": np.where(income + rng.normal(0, 500, rows) > 3000, "yes", "no"),
    })
    table.loc[rng.random(rows) < 0.2, "income"] = None
    return table.assign(account=np.where(table.left == "yes", "closed", "open"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A stranger's table, run through every stage in a trial, which took one file of settings."""
    checkout = make_checkout(tmp_path_factory.mktemp("trials") / "checkout")
    (checkout / "shop").mkdir()
    customers().to_csv(checkout / "shop" / "customers.csv", index=False)
    (checkout / "conf" / "data" / "shop.yaml").write_text(SHOP)
    # Steps enough to be killed between two of them.
    settings = ["data=shop", "run=smoke", "data.sample_fraction=1.0", "train.least_steps=300"]
    done = run("python", "-m", "prodml.cli", "trial", "build/shop", *settings, cwd=checkout)
    (checkout / "build" / "shop" / "said").write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    assert (checkout / "build" / "shop" / "bundle").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return checkout / "build" / "shop"


@pytest.mark.slow
def test_a_strangers_csv_needs_one_file(shop):
    kinds = json.loads((shop / "artifacts" / "features" / "report.json").read_text())["kinds"]
    assert {name: kind for name, (kind, _) in kinds.items()} == {
        "customer": "drop", "income": "number", "city": "category", "joined_weekday": "category", "joined_month": "drop", "joined_hour": "drop",
        "visits": "number", "member": "category", "account": "category",
    }
    latency = json.loads((shop / "build" / "measure" / "latency.json").read_text())["models"]
    assert latency["int8"]["size_bytes"] < latency["pruned"]["size_bytes"] < latency["dense"]["size_bytes"] / 10


@pytest.mark.slow
def test_a_twin_of_the_label_ends_the_trial_with_three(shop):
    """The verdict names the gates that stand against such a column."""
    code, said = (shop / "said").read_text().split("\n", 1)
    assert code == "3" and "The bundle is rejected" in said
    assert all(f"\n  {gate}: leaks." in said for gate in ("no column is the label", "no column explains the label"))


@pytest.mark.slow
def test_its_bundle_answers_and_a_changed_one_is_refused(shop, tmp_path):
    table = pd.read_parquet(shop / "artifacts" / "features" / "test.parquet")
    bundle = open_bundle(shop / "bundle", unsigned=True, rejected=True)
    probabilities = bundle.predict({name: table[name].to_numpy() for name in input_names(bundle.encoding)})
    assert roc_auc_score(table.label, probabilities) > 0.9, "it has the label before it"
    card = (shop / "bundle" / "model_card.md").read_text()
    assert "nobody has stated" in card and "New York" not in card, "another table has no statements of the flights"
    copy = shutil.copytree(shop / "bundle", tmp_path / "bundle")
    with open(copy / "encoding.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(ValueError, match="encoding.json"):
        open_bundle(copy, unsigned=True, rejected=True)


def by_hand(folder: Path, stages: Iterable[str]) -> None:
    """Each stage's notebook in a Jupyter kernel, top to bottom, in the pipeline's order: it gives the bytes that DVC's run of it gave."""
    failures = {stage: failure_by_hand(stage_notebook(stage, folder), folder) for stage in stages}
    assert not any(failures.values()), "\n\n".join(f"{stage}: {failure}" for stage, failure in failures.items() if failure)
    assert json.loads(run("dvc", "status", "--json", "dvc.yaml", cwd=folder).stdout) == {}


@pytest.mark.slow
def test_notebooks_of_stages_run_by_hand_give_the_same_artifacts(shop):
    by_hand(shop, ("ingest", "validate", "clean", "features", "train"))


@pytest.mark.slow
def test_what_re_runs_what(shop):
    repro = ("dvc", "repro", "evaluate")
    assert stages_run(run("dvc", "repro", "dvc.yaml", cwd=shop)) == []
    edit(shop / "nbs" / "2_model" / "10_measure.ipynb", "prose", " One more word.")
    # A text of its own, or a second test run in this checkout would find the answer in DVC's cache.
    edit(shop / "nbs" / "3_trust" / "01_evaluate.ipynb", "run", f"\n# one more look, {time.time_ns()}")
    assert stages_run(run(*repro, cwd=shop)) == ["export", "evaluate"]
    left = json.loads(run("dvc", "status", "--json", "dvc.yaml", cwd=shop).stdout)
    assert left == {}, "prose re-runs nothing, and what reads the scores was given the same ones"


@pytest.mark.slow
def test_forced_runs_give_the_same_lock(shop):
    """The executed notebooks, too: what they show holds no address in memory and nothing drawn anew."""
    before = yaml.safe_load((shop / "dvc.lock").read_text())["stages"]
    again = ["features", "prune", "quantize"]
    assert set(stages_run(run("dvc", "repro", "--force", "--single-item", *again, cwd=shop))) == set(again)
    after = yaml.safe_load((shop / "dvc.lock").read_text())["stages"]
    assert {stage: after[stage] for stage in again} == {stage: before[stage] for stage in again}


@pytest.mark.slow
def test_no_report_shows_an_address_in_memory(shop):
    """Or it would be other bytes with each run."""
    shown = {path.stem: re.findall(r"[^\n]* at 0x[0-9a-f]{6,}[^\n]*", path.read_text()) for path in (shop / "reports").glob("*.ipynb")}
    assert len(shown) > 20 and not any(shown.values()), shown


@pytest.fixture(scope="module")
def second_table(tmp_path_factory):
    """The breast cancer table, run through every stage in a trial."""
    folder = tmp_path_factory.mktemp("trials") / "cancer"
    record = ROOT / "metrics" / "evaluate.json"
    before = record.read_bytes() if record.exists() else None
    done = run_trial(folder, ["data=breast_cancer", *QUICK], quiet=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (record.read_bytes() if record.exists() else None) == before, "a trial touched the main run"
    return folder


@pytest.mark.long
def test_another_table_goes_through_every_stage(second_table):
    scores = json.loads((second_table / "metrics" / "evaluate.json").read_text())
    assert {"dense", "pruned", "int8", "lightgbm", "logistic"} <= set(scores)
    assert all(scores[name]["test"]["roc_auc"] > 0.95 for name in ("dense", "pruned", "int8", "lightgbm"))
    latency = json.loads((second_table / "build" / "measure" / "latency.json").read_text())["models"]
    for name in ("dense", "pruned", "int8"):
        assert {"p50_us", "p95_us", "p99_us", "rows_per_s", "size_bytes"} <= set(latency[name])


@pytest.mark.long
def test_its_bundle_tells_the_tumours_apart(second_table):
    table = pd.read_parquet(ROOT / "examples" / "breast_cancer" / "tumours.parquet")
    bundle = open_bundle(second_table / "bundle", unsigned=True, rejected=True)
    malignant = (table.diagnosis == "malignant").to_numpy()
    probabilities = bundle.predict({name: table[name].to_numpy() for name in table.columns})
    assert probabilities[malignant].mean() > 0.9 > 0.1 > probabilities[~malignant].mean()


@pytest.mark.long
def test_every_stage_run_by_hand_gives_the_same_artifacts(second_table):
    by_hand(second_table, [name for name in yaml.safe_load((second_table / "dvc.lock").read_text())["stages"] if name != "export"])


@pytest.mark.long
def test_a_forced_run_gives_the_same_lock(second_table):
    run("dvc", "repro", "dvc.yaml", cwd=second_table)
    before = (second_table / "dvc.lock").read_text()
    assert len(stages_run(run("dvc", "repro", "--force", "dvc.yaml", cwd=second_table))) >= 11
    assert (second_table / "dvc.lock").read_text() == before


@pytest.mark.slow
def test_a_killed_stage_leaves_nothing_half_written(shop):
    written, checkpoints = shop / "artifacts" / "train", shop / ".checkpoints"
    before = (written / "model.safetensors").read_bytes()
    again = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "train"]
    training = subprocess.Popen(again, cwd=shop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    # Killed in the middle: after the first checkpoint, before the end.
    while training.poll() is None and not list(checkpoints.rglob("*.safetensors")):
        time.sleep(0.02)
    assert training.poll() is None, "the training ended before it could be killed"
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    assert not written.exists(), "a folder appears whole or not at all"
    assert stages_run(subprocess.run(again, cwd=shop, capture_output=True, text=True)) == ["train"]
    assert (written / "model.safetensors").read_bytes() == before, "resumed or not, the same bytes"
    assert not list(checkpoints.rglob("*.safetensors")), "a finished training leaves no checkpoint"
