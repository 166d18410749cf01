"""Notebooks as a person runs them: cell by cell, in a Jupyter kernel that starts in the notebook's folder."""

import ast
import json
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


def failure_by_hand(notebook: Path, root: Path) -> str:
    """Run a notebook of the project `root` from top to bottom; what stopped it, empty if nothing did."""
    content = nbformat.read(notebook, as_version=4)
    own = {**os.environ, "PYTHONPATH": str(root)}
    client = NotebookClient(content, kernel_name="python3", timeout=900, resources={"metadata": {"path": str(notebook.parent)}})
    try:
        client.execute(env=own)
    except (CellExecutionError, DeadKernelError) as error:
        return str(error)[-1500:]
    return ""


def is_stage(notebook: Path) -> bool:
    """Whether the pipeline runs the notebook: it has a cell of parameters."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any("parameters" in cell["metadata"].get("tags", []) for cell in cells)


def mixes_imports(source: str) -> bool:
    """Whether a cell has imports beside other statements; the documentation build would run all of it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic
        return False
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return bool(imports) and not all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
