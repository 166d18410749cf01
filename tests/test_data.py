"""The raw tables: from the package, under DVC's eye, to and from a team's remote."""

import shutil

import pytest
from conftest import git, run

from prodml.core.files import sha256_of_folder


def test_a_fresh_clone_gets_the_tables_and_dvc_agrees(checkout, root):
    assert not (checkout / "data").exists()
    assert run("python", "-m", "prodml.cli", "data", "fetch", cwd=checkout).returncode == 0
    assert sha256_of_folder(checkout / "data") == sha256_of_folder(root / "data")
    assert "up to date" in run("dvc", "status", "data.dvc", cwd=checkout).stdout
    assert git(checkout, "status", "--porcelain") == ""


def test_a_changed_or_missing_table_is_noticed(checkout):
    fetch = ["python", "-m", "prodml.cli", "data", "fetch"]
    assert run(*fetch, cwd=checkout).returncode == 0
    with open(checkout / "data" / "weather.csv", "a") as stream:
        stream.write("EWR,2013\n")
    done = run(*fetch, cwd=checkout)
    assert done.returncode == 1 and "not those that data.dvc names" in done.stderr
    shutil.rmtree(checkout / "data")
    assert run(*fetch, cwd=checkout).returncode == 0
    (checkout / "data" / "planes.csv").unlink()
    done = run(*fetch, cwd=checkout)
    assert done.returncode == 1 and "removed" in done.stderr
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_plain_repro_refuses_a_changed_table(checkout):
    assert run("python", "-m", "prodml.cli", "data", "fetch", cwd=checkout).returncode == 0
    weather = checkout / "data" / "weather.csv"
    weather.write_text(weather.read_text().replace("39.02", "38.02", 1))
    done = run("dvc", "repro", "ingest", cwd=checkout)
    assert done.returncode and "weather.csv: the file is not the one that conf/data declares" in done.stderr, done.stderr
    assert not (checkout / "artifacts" / "ingest").exists()


def test_a_team_can_push_and_pull(checkout, tmp_path):
    assert run("python", "-m", "prodml.cli", "data", "fetch", cwd=checkout).returncode == 0
    before = sha256_of_folder(checkout / "data")
    assert run("dvc", "remote", "add", "-d", "ours", str(tmp_path / "remote"), cwd=checkout).returncode == 0
    assert run("dvc", "push", "data.dvc", cwd=checkout).returncode == 0
    shutil.rmtree(checkout / "data")
    shutil.rmtree(checkout / ".dvc" / "cache")
    done = run("dvc", "pull", "data.dvc", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert sha256_of_folder(checkout / "data") == before


def test_the_second_table_is_scikit_learns(root):
    import sys

    import pyarrow.parquet as pq

    sys.path.insert(0, str(root / "examples" / "breast_cancer"))
    from make_table import tumours

    assert pq.read_table(root / "examples" / "breast_cancer" / "tumours.parquet").equals(tumours())
