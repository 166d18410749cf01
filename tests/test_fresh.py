"""What is generated is what the notebooks and conf/ would generate now."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import run

from prodml.core.config import compose, read_params
from prodml.core.runner import parameters_of

NOTEBOOKS = sorted(Path(__file__).resolve().parent.parent.glob("nbs/**/*.ipynb"))
STAGES = [path for path in NOTEBOOKS if any("parameters" in cell["metadata"].get("tags", []) for cell in json.loads(path.read_text())["cells"])]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory, root):
    """A copy of the project in which everything was cleaned and exported anew."""
    folder = tmp_path_factory.mktemp("regenerated")
    for name in ("nbs", "prodml"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy2(root / name, folder / name)
    done = run("nbdev_clean", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run("python", "nbs/export.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_package_is_what_the_notebooks_export(regenerated, root):
    made = {path.relative_to(regenerated): path.read_text() for path in regenerated.glob("prodml/**/*.py")}
    kept = {path.relative_to(root): path.read_text() for path in root.glob("prodml/**/*.py")}
    assert sorted(made) == sorted(kept), "a module without a notebook, or a notebook without a module: run `python nbs/export.py`"
    stale = [str(name) for name in made if made[name] != kept[name]]
    assert not stale, f"stale, run `python nbs/export.py`: {stale}"
    assert (regenerated / "pyproject.toml").read_text() == (root / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean(path, regenerated, root):
    assert (regenerated / path.relative_to(root)).read_text() == path.read_text(), "run nbdev_clean"


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_the_parameters_tag_survives_cleaning(path, regenerated, root):
    notebook = nbformat.read(regenerated / path.relative_to(root), as_version=4)
    assert parameters_of(notebook, path)


def test_params_are_what_conf_composes_to():
    assert compose() == read_params(), "run `prodml params`"


def test_the_readme_is_what_the_index_notebook_says(root):
    from prodml.core.site import readme_text

    def words(text: str) -> str:  # the figures are of the last run, which may be newer than the README, on another processor
        text = re.sub(r"On .+?, one core:", "On this processor, one core:", text)
        return re.sub(r"[-+\d.,–]+", "#", re.sub(r" +", " ", text)).replace("# #", "#")

    assert words(readme_text(root)) == words((root / "README.md").read_text()), "run `python -m prodml.core.site --readme`"


@pytest.mark.skipif("CI" in os.environ, reason="CI runs the same cells in kernels: test_notebooks.py and test_trials.py")
def test_all_notebooks_pass():
    done = run("nbdev_test", "--n_workers", "2", "--do_print")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
