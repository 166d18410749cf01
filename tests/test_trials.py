"""Whole pipelines: another table through every stage, what re-runs what, a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, edit, run, stages_run
from kernels import failure_by_hand

from prodml.bundle.bundle import open_bundle
from prodml.core.runner import stage_notebook
from prodml.core.trial import run_trial

pytestmark = pytest.mark.long


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
    latency = json.loads((second_table / "build" / "measure" / "latency.json").read_text())["models"]
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


def test_notebooks_run_by_hand_give_the_same_artifacts(second_table):
    """Each stage's notebook in a Jupyter kernel, top to bottom, in the pipeline's order."""
    stages = [name for name in yaml.safe_load((second_table / "dvc.lock").read_text())["stages"] if name != "export"]
    failures = {stage: failure_by_hand(stage_notebook(stage, second_table), second_table) for stage in stages}
    assert not any(failures.values()), "\n\n".join(f"{stage}: {failure}" for stage, failure in failures.items() if failure)
    status = run("dvc", "status", "--json", cwd=second_table)
    assert json.loads(status.stdout) == {}, "a stage run by hand gave other bytes than DVC's run of it"


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
