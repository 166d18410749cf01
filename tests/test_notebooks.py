"""Notebooks can be read, run by hand and saved: what a person in JupyterLab relies on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import nbformat
import pytest
from conftest import git, run
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from kernels import failure_by_hand, is_stage, mixes_imports

NOTEBOOKS = sorted(Path(__file__).resolve().parent.parent.glob("nbs/**/*.ipynb"))


@pytest.mark.parametrize("source, mixed", [
    ("import os\nfrom pathlib import Path", False),
    ("x = 1", False),
    ("#| hide\nimport os\nprint(os.sep)", True),
    ("with open('x') as stream:\n    import os", True),
    ("def f():\n    import os\n    return os.sep", True),
    ("%matplotlib inline", False),
])
def test_the_rule_for_imports(source, mixed):
    assert mixes_imports(source) == mixed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_holds_imports_or_other_code(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    mixed = [source for source in sources if not source.startswith("#| export") and mixes_imports(source)]
    assert not mixed, f"`make docs` would run these cells whole; give the imports a cell of their own: {mixed}"


STYLED = re.compile(r"(?<!matplotlib)(?<!plt)\.style\b")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_styled_table_is_shown_as_html_with_an_id_of_its_own(path):
    """A Styler shows an id drawn at random and its address in memory, so that a report would be other bytes with each run."""
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if STYLED.search(cell) and not ("set_uuid" in cell and "to_html" in cell)]


@pytest.fixture(scope="module")
def manager(tmp_path_factory, root):
    """JupyterLab's contents manager on a copy of the notebooks, with the hook that `make lab` gives it."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(root / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    hook = re.search(r"--FileContentsManager\.pre_save_hook=(\S+)", (root / "Makefile").read_text())[1]
    return LargeFileManager(root_dir=str(folder), pre_save_hook=hook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_was_run_and_saved_is_unchanged(path, manager, root):
    name = path.relative_to(root).as_posix()
    model = manager.get(name)
    model["content"]["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    model["content"]["metadata"]["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3 (prodml)"}
    for number, cell in enumerate(model["content"]["cells"]):
        cell["metadata"]["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [nbformat.v4.new_output("stream", text="what it printed\n")]
    manager.save(model, name)
    assert Path(manager.root_dir, name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_lab_leaves_git_and_dvc_clean(checkout, root):
    """`make lab`, a notebook opened, run, saved and given a checkpoint."""
    os.symlink(root / ".venv", checkout / ".venv")
    (checkout / ".git" / "info" / "exclude").write_text(".venv\n")
    name = "nbs/0_core/00_errors.ipynb"
    with lab(checkout) as ask:
        content = ask("GET", f"api/contents/{name}")["content"]
        cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
        cell |= {"outputs": [nbformat.v4.new_output("stream", text="what it printed\n")], "execution_count": 3}
        ask("PUT", f"api/contents/{name}", {"type": "notebook", "format": "json", "content": content})
        ask("POST", f"api/contents/{name}/checkpoints")
    left = [str(path.relative_to(checkout)) for path in (checkout / "nbs").rglob(".ipynb_checkpoints/*")]
    assert len(left) == 1, "the checkpoint that neither git nor DVC may see"
    assert git(checkout, "status", "--porcelain") == ""
    assert run("dvc", "check-ignore", *left, cwd=checkout).stdout.split() == left


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if not is_stage(path)], ids=lambda path: path.stem)
def test_a_notebook_runs_by_hand(path, root):
    """In a Jupyter kernel; the notebooks of stages run on a table of their own, in test_trials.py."""
    assert failure_by_hand(path, root) == ""


@pytest.mark.slow
def test_the_site_builds_before_the_first_run(checkout, root):
    shutil.copytree(root / "metrics", checkout / "metrics")
    done = run("python", "-m", "prodml.core.site", cwd=checkout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "There are no reports yet" in done.stderr
    pages = {path.relative_to(checkout / "_docs").as_posix() for path in checkout.glob("_docs/**/*.html")}
    assert {"index.html", "1_data/04_validate.html", "docs/decisions/0009-signed-with-ed25519.html"} <= pages


@contextmanager
def lab(folder: Path) -> Iterator[Callable]:
    """JupyterLab as `make lab` starts it; gives what sends it a request."""
    port, token = free_port(), "secret"
    settings = folder.parent / "jupyter"
    settings.mkdir()
    own = {"ServerApp": {"open_browser": False, "port": port, "port_retries": 0}, "IdentityProvider": {"token": token}}
    (settings / "jupyter_server_config.json").write_text(json.dumps(own))

    def ask(method: str, address: str, body: dict | None = None) -> dict:
        content = None if body is None else json.dumps(body).encode()
        request = Request(f"http://127.0.0.1:{port}/{address}", content, {"Authorization": f"token {token}"}, method=method)
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")

    log = open(folder.parent / "lab.log", "w+")
    process = subprocess.Popen(
        ["make", "--old-file", "data", "lab"], cwd=folder, stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(settings)},
    )
    try:
        for _ in range(600):
            assert process.poll() is None, Path(log.name).read_text()
            try:
                ask("GET", "api")
                break
            except URLError:
                time.sleep(0.2)
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        log.close()


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
