"""What several tests share."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def postgresql():
    """The address of an empty PostgreSQL database, dropped afterwards. PRODML_TEST_POSTGRESQL names a server; else it is the one on this machine."""
    import psycopg

    server = os.environ.get("PRODML_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres")
    name = f"prodml_test_{os.getpid()}"
    try:
        connection = psycopg.connect(server, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no PostgreSQL answers (PRODML_TEST_POSTGRESQL names another server): {error}")
    with connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
        yield f"{server.rpartition('/')[0]}/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project."""
    return ROOT


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of the project's environment; its output is kept as text."""
    own = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environment}
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> str:
    """Run git as a committer of its own, and give back what it prints."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def stages_run(done: subprocess.CompletedProcess) -> list[str]:
    """The stages that a `dvc repro` ran, in order."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return re.findall(r"Running stage '(\w+)'", done.stdout)


def edit(notebook: Path, kind: str, text: str) -> None:
    """Append a text to the last markdown cell, or to the last stage cell, of a notebook."""
    content = json.loads(notebook.read_text())
    fits = (lambda cell: cell["cell_type"] == "markdown") if kind == "prose" else (lambda cell: "".join(cell["source"]).startswith("#| stage"))
    [cell for cell in content["cells"] if fits(cell)][-1]["source"].append(text)
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def make_checkout(folder: Path) -> Path:
    """A git checkout of the project as it is now, committed or not, with its own DVC cache."""
    from prodml.core.trial import project_files

    for name in [*project_files(ROOT), Path("params.yaml"), Path("dvc.lock")]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "start")
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a test's own."""
    return make_checkout(tmp_path / "checkout")


def drop_layers(checkout: Path, *layers: str) -> None:
    """Remove the notebooks of layers that a test does not run: an export of them is most of its time. Their modules stay."""
    for layer in layers:
        shutil.rmtree(checkout / "nbs" / layer)


@pytest.fixture(scope="session")
def made_up(tmp_path_factory) -> Callable[[int], Path]:
    """Gives the made-up bundle of a seed, to be copied before it is changed. An export takes seconds, so that each is made once for all workers."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-up"
    shared.mkdir(exist_ok=True)

    def bundle(seed: int) -> Path:
        from prodml.trust.bundle import made_up_bundle

        folder = shared / str(seed) / "small"
        with open(shared / f"{seed}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return folder if folder.exists() else made_up_bundle(folder, seed)

    return bundle


@pytest.fixture(scope="session")
def small_bundle(made_up) -> Path:
    """An unsigned bundle of a small network on made-up rows: delay and wind are numbers, carrier a category."""
    return made_up(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with slow tests come first: of two workers, the one that gets a long file last would finish alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
