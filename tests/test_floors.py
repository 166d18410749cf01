"""A floor uses those below it, never above; the ground floor stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"core": 0, "stats": 0, "bundle": 0, "data": 1, "model": 2, "trust": 3, "serve": 4, "watch": 5}
MODULES = sorted(path for path in ROOT.glob("prodml/*/*.py") if path.name != "__init__.py")
HEAVY = {"torch", "pandas", "ibis", "duckdb", "sklearn", "lightgbm", "captum"}


def imported_floors(path: Path) -> set[str]:
    """The floors that a module imports from, at its top or anywhere inside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.startswith("prodml."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_import_goes_up(path):
    own = path.parent.name
    above = [floor for floor in imported_floors(path) if FLOORS[floor] > FLOORS[own]]
    assert not above, f"{own} may not use {above}"


@pytest.mark.parametrize("floor", ["bundle", "stats", "serve"])
def test_the_serving_floors_import_nothing_heavy(floor):
    modules = [f"prodml.{floor}.{path.stem}" for path in MODULES if path.parent.name == floor]
    code = f"import sys, {', '.join(modules)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_core_imports_no_torch():
    modules = [f"prodml.core.{path.stem}" for path in MODULES if path.parent.name == "core"]
    done = subprocess.run([sys.executable, "-c", f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_no_device_is_named_in_the_code():
    """A device comes from configuration; only the modules that choose one, or are about one, may name it."""
    for path in MODULES:
        if path.stem in ("device", "accelerators") or path.parent.name not in ("model", "trust"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            literal = isinstance(node, ast.Constant) and node.value in ("cuda", "mps", "cuda:0")
            # tensor.cuda() names a device; torch.cuda.Stream and torch.version.cuda ask about the one there is
            method = isinstance(node, ast.Attribute) and node.attr == "cuda" and not ast.unparse(node).startswith("torch.")
            assert not (literal or method), f"{path.name}:{node.lineno} names a device"


def test_no_pickle_is_loaded():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert call not in ("torch.load", "pickle.load", "pickle.loads", "joblib.load"), f"{path.name}:{node.lineno} loads a pickle"
