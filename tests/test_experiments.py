"""Experiments of DVC on copies of the project."""

import pytest
from conftest import drop_layers, edit, git, run

pytestmark = pytest.mark.slow


def test_a_sweep_runs_the_copys_code(checkout):
    """`dvc exp run` composes conf/ itself; a queued run in a copy imports the copy's package."""
    check = "\nimport prodml\nassert __import__('pathlib').Path(prodml.__file__).resolve().is_relative_to(project_root().resolve()), prodml.__file__"
    edit(checkout / "nbs" / "1_data" / "01_ingest.ipynb", "run", check)
    drop_layers(checkout, "3_trust", "4_serve")  # the sweep stops at the first stage that the networks tell apart
    git(checkout, "commit", "-qam", "look where the package comes from")
    table = ("-S", "data=breast_cancer", "-S", "run=smoke", "-S", "data.sample_fraction=1.0")
    queued = run("dvc", "exp", "run", "--queue", "-S", "model=mlp,tabm", *table, "train", cwd=checkout)
    assert queued.returncode == 0, queued.stderr
    done = run("dvc", "exp", "run", "--run-all", cwd=checkout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shown = run("dvc", "exp", "show", "--csv", cwd=checkout).stdout
    assert "tabm" in shown and shown.count("breast_cancer") >= 2, shown
    names = run("dvc", "exp", "list", "--name-only", cwd=checkout).stdout.split()
    locks = {git(checkout, "show", f"{ref.split()[1]}:dvc.lock") for ref in git(checkout, "show-ref").splitlines() if any(ref.endswith(f"/{name}") for name in names)}
    assert len(names) == len(locks) == 2 and all("  train:" in lock for lock in locks), names
