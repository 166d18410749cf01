"""Experiments of DVC on copies of the project."""

import pytest
from conftest import edit, git, run

pytestmark = pytest.mark.long


def test_experiments_run_the_copys_code(checkout):
    """`dvc exp run` composes conf/ itself; a queued run in a copy imports the copy's package."""
    check = "\nimport prodml\nassert __import__('pathlib').Path(prodml.__file__).resolve().is_relative_to(project_root().resolve()), prodml.__file__"
    edit(checkout / "nbs" / "1_data" / "01_ingest.ipynb", "run", check)
    git(checkout, "commit", "-qam", "look where the package comes from")
    queued = run("dvc", "exp", "run", "--queue", "-S", "data=breast_cancer", "-S", "model=logistic,mlp", "-S", "run=smoke", "-S", "data.sample_fraction=1.0", "evaluate", cwd=checkout)
    assert queued.returncode == 0, queued.stderr
    done = run("dvc", "exp", "run", "--run-all", cwd=checkout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = run("dvc", "exp", "show", "--csv", cwd=checkout).stdout
    assert "logistic" in table and table.count("breast_cancer") >= 2, table
    names = run("dvc", "exp", "list", "--name-only", cwd=checkout).stdout.split()
    assert len(names) == 2, names
