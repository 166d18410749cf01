"""What a machine's clock said is committed only when somebody asks for it."""

import ast
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from prodml import cli
from prodml.core.errors import InputError
from prodml.core.records import MEASURED, MEASUREMENTS, outputs_hash, processor_name, results_path

BENCHES = sorted((ROOT / "bench").glob("*.py"))


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_a_bench_writes_to_the_record_only_through_results_path(path):
    tree = ast.parse(path.read_text())
    helps = {id(keyword.value) for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords if keyword.arg == "help"}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in helps]
    named = [node.value for node in texts if node.value == "results" or "bench/results" in node.value]
    assert not named, f"{path.name} names the folder itself: {named}"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "results_path"]
    assert len(calls) == 1 and isinstance(calls[0].args[1], ast.Attribute) and calls[0].args[1].attr == "write", path.name
    assert '"--write", action="store_true"' in path.read_text()


def test_no_other_code_names_the_folder_of_results():
    """The package writes there through the same function: prodml/core/records.py is the one place."""
    named = set()
    for path in ROOT.glob("prodml/**/*.py"):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        if {"bench", "results"} <= texts or any("bench/results" in text and "\n" not in text and " " not in text for text in texts):
            named.add(str(path.relative_to(ROOT)))
    assert named == {"prodml/core/records.py"}


def test_make_records_only_when_asked():
    text = (ROOT / "Makefile").read_text()
    assert "python $$script $(if $(WRITE),--write)" in text and "prodml results --record" in text
    assert "--record" not in text.replace("prodml results --record", "")


def test_the_stage_measure_writes_to_no_tracked_file():
    source = "".join("".join(cell["source"]) for cell in json.loads((ROOT / "nbs" / "2_model" / "10_measure.ipynb").read_text())["cells"] if cell["cell_type"] == "code")
    assert '"metrics"' not in source and "MEASURED" in source
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert "latency" not in json.dumps(pipeline.get("metrics", [])), "an experiment would show the record of another model"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with scores, a committed record of another machine, and models that were measured here."""
    for name in ("metrics", "artifacts/train", "build/records", str(MEASURED)):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  measure: {cmd: x, deps: [artifacts/train]}\n")
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    (tmp_path / "artifacts" / "train" / "model.json").write_text("1")
    scores = {"dense": {split: {"roc_auc": 0.75} for split in ("validation", "test")}}
    (tmp_path / "metrics" / "evaluate.json").write_text(json.dumps(scores))
    for place, cpu, p50_us in (("metrics", "another processor", 111.0), (MEASURED, processor_name(), 222.0)):
        latency = {"device": {"cpu": cpu, "threads": 1}, "models": {"dense": {"p50_us": p50_us}, "dense_onnx": {"p50_us": p50_us / 3}}}
        (tmp_path / place / "latency.json").write_text(json.dumps(latency))
        (tmp_path / place / "budget.json").write_text(json.dumps({"serve": "dense", "keeps": True, "clauses": {"dense": []}}))
        (tmp_path / place / "latency.png").write_bytes(b"png")
    (tmp_path / "build" / "records" / "measure.json").write_text(json.dumps({"outputs": outputs_hash("measure", tmp_path)}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys, **given) -> str:
    """What `prodml results` prints."""
    cli.show_results(Namespace(**{"split": "test", "measure": True, "record": False, "next": False} | given))
    return capsys.readouterr().out


def test_results_are_this_machines_if_there_are_any_and_say_so(project, capsys):
    text = shown(capsys)
    assert "222" in text and "111" not in text and "build/measure/, measured here" in text and "dense in ONNX Runtime" in text
    assert "111" in (project / "metrics" / "latency.json").read_text(), "nothing was recorded"
    shutil.rmtree(project / MEASURED)
    text = shown(capsys, measure=False)
    assert "111" in text and "another processor" in text and "metrics/, a committed record" in text


def test_a_record_is_made_when_asked_and_only_of_these_models(project, capsys):
    assert "recorded: metrics/latency.json" in shown(capsys, record=True)
    assert all((project / "metrics" / name).read_bytes() == (project / MEASURED / name).read_bytes() for name in MEASUREMENTS)
    (project / "artifacts" / "train" / "model.json").write_text("2")
    with pytest.raises(InputError, match="were not measured on this machine"):
        shown(capsys, measure=False, record=True)


@pytest.mark.parametrize("change", [{"examples": False}, {"data": {"sample_fraction": 0.05}}], ids=["run=smoke", "a sample"])
def test_a_sample_is_never_recorded(project, capsys, change):
    settings = yaml.safe_load((project / "params.yaml").read_text())
    settings["data"] |= change.get("data", {})
    (project / "params.yaml").write_text(yaml.safe_dump(settings | {key: value for key, value in change.items() if key != "data"}))
    with pytest.raises(InputError, match="sample"):
        shown(capsys, record=True)
    with pytest.raises(InputError, match="sample"):
        results_path("serve.json", True)
    assert results_path("serve.json", False) == project / "build" / "bench" / "serve.json"
    assert "111" in (project / "metrics" / "latency.json").read_text()


@pytest.mark.parametrize("overrides, sentence", [
    (["run=smoke"], "run on a sample"), (["model.name=mine"], "conf/model has no file of that name"),
], ids=["a sample", "a network without a file"])
def test_a_search_whose_choice_could_not_be_kept_is_refused_before_it_starts(overrides, sentence):
    before = (ROOT / "bench" / "results" / "compress.json").read_bytes()
    with pytest.raises(InputError, match=sentence):
        cli.search_compression(Namespace(overrides=overrides, write=True))
    assert (ROOT / "bench" / "results" / "compress.json").read_bytes() == before
