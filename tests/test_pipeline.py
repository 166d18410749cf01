"""dvc.yaml says what the notebooks import and read."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from prodml.core.config import declared_parameters, read_params
from prodml.core.runner import stage_notebook

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NOTEBOOK_STAGES = [name for name in STAGES if name != "export"]
# What looks at the finished models: it chooses nothing, so it may see the test rows.
TRUST = ("uncertainty", "slices", "fairness", "behaviour", "explain", "robustness", "transparent", "autopsy")


def sources(stage: str) -> list[str]:
    """The code cells of a stage's notebook."""
    cells = json.loads(stage_notebook(stage, ROOT).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def module_file(name: str) -> Path | None:
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if path.exists() else None


def imports(code: str, package: str) -> set[Path]:
    """The project's modules that a piece of code names in imports, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: 1 - node.level] if node.level > 1 else [package]) if node.level else ""
            name = f"{base}.{node.module}" if node.level else node.module
            found |= {file for file in [module_file(name), *(module_file(f"{name}.{item.name}") for item in node.names)] if file}
    return {file for file in found if file.name != "__init__.py"}


def needed_modules(stage: str) -> set[str]:
    """All modules that the stage's notebook imports, directly or through others, relative to the project."""
    cells = sources(stage)
    own = next(cell.split()[2] for cell in cells if cell.startswith("#| default_exp"))
    floor = own.split(".")[0]
    todo = {ROOT / f"prodml/{own.replace('.', '/')}.py"}
    for cell in cells:
        if not cell.lstrip().startswith("%"):
            todo |= imports(cell, f"prodml.{floor}")
    if stage in ("features", "behaviour", "bundle"):  # they import the module that conf/data names
        named = [yaml.safe_load(path.read_text()).get("features", {}).get("module") for path in ROOT.glob("conf/data/*.yaml")]
        todo |= {ROOT / f"prodml/data/{name}.py" for name in named if name}
    done: set[Path] = set()
    while todo:
        path = todo.pop()
        done.add(path)
        todo |= imports(path.read_text(), f"prodml.{path.parent.name}") - done
    return {str(path.relative_to(ROOT)) for path in done}


@pytest.mark.parametrize("stage", NOTEBOOK_STAGES)
def test_a_stage_depends_on_the_modules_it_imports(stage):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("prodml/")}
    needed = needed_modules(stage)
    assert listed == needed, f"missing {sorted(needed - listed)}, superfluous {sorted(listed - needed)}"
    assert f"build/stages/{stage}.py" in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", NOTEBOOK_STAGES)
def test_a_stage_reads_the_parameters_that_it_lists(stage):
    cells = [cell for cell in sources(stage) if cell.startswith("#| stage")]
    declared = declared_parameters(cells[0])
    listed = {key.rsplit(".", 1)[-1] for key in STAGES[stage].get("params", [])}
    assert set(declared) == listed
    used = {node.id for cell in cells[1:] for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)}
    assert set(declared) <= used, f"never read: {sorted(set(declared) - used)}"


def test_every_setting_is_read_by_a_stage():
    """A key in conf/ that no stage lists does nothing."""
    listed = [key for stage in STAGES.values() for key in stage.get("params", [])]

    def leaves(value, prefix):
        if prefix in listed or not isinstance(value, dict):
            return [prefix]
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{prefix}.{key}" if prefix else key)]

    unread = [leaf for leaf in leaves(read_params(ROOT), "") if leaf not in listed]
    unread = [leaf for leaf in unread if not leaf.startswith("compress.")]  # `prodml compress` reads that group
    assert set(unread) <= {"data.name", "examples"}, unread  # the runner itself reads whether examples run


def test_only_the_last_look_reads_the_test_rows():
    """Training, pruning and quantizing cannot see the test rows: no Run section names them, and no selection does."""
    readers = {name for name in NOTEBOOK_STAGES if any("test.parquet" in cell or '"test"' in cell for cell in sources(name) if cell.startswith("#| stage"))}
    assert readers <= {"features", "evaluate", "leaks", "drift", "measure", *TRUST}  # drift compares their columns and reads no label: tests/test_drift.py
    for path in (ROOT / "bench").glob("select_*.py"):
        text = path.read_text()
        assert "test.parquet" not in text and '"test"' not in text, path.name


def test_the_stages_read_like_a_sentence():
    beside = ("reference", "leaks", "imbalance", "labels", "drift", "incremental", *TRUST)
    order = [name for name in STAGES if name not in beside]
    assert order == ["export", "ingest", "validate", "clean", "features", "train", "distill", "prune", "quantize", "evaluate", "bundle", "measure"]


def test_nothing_measured_in_seconds_is_a_stage_output():
    assert "outs" not in STAGES["measure"] and "metrics" not in STAGES["measure"]
    for name, stage in STAGES.items():
        assert "latency" not in json.dumps([stage.get("outs"), stage.get("metrics")]), name
