"""The serving install: every command of serving runs where nothing is installed but what `prodml[serve]` asks for."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT, run
from packaging.requirements import Requirement

from prodml.cli import SERVING

HEAVY = {"torch", "pandas", "ibis", "duckdb", "scipy", "sklearn", "IPython", "jupyter_core", "nbformat", "matplotlib", "onnx", "hydra", "lightgbm"}
ROW = {"delay": 0.4, "wind": None, "carrier": "UA"}
ABSENT = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(project: dict) -> set[str]:
    """The distributions that `pip install prodml[serve]` brings, by what each says that it needs."""
    found, waiting = {"prodml"}, [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["serve"]]]
    while waiting:
        wanted = waiting.pop()
        name = canonical(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            extras = ["", *wanted.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> str:
    """A folder for PYTHONPATH with which Python finds nothing that the serving install would lack, in this process' children and theirs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    kept = asked_for(project)
    absent = {module for module, owners in metadata.packages_distributions().items() if not {canonical(owner) for owner in owners} & kept}
    assert HEAVY <= absent and not {"numpy", "onnxruntime", "msgspec", "uvicorn", "prodml"} & absent
    folder = tmp_path_factory.mktemp("light")
    (folder / "sitecustomize.py").write_text(f"NAMES = {sorted(absent)!r}\n{ABSENT}")
    return f"{folder}:{ROOT}"


@pytest.fixture(scope="module")
def command(light, tmp_path_factory):
    """Runs `prodml` in the light install, in a folder of its own that is no project."""
    folder = tmp_path_factory.mktemp("somewhere")

    def prodml(*words: str):
        return run(sys.executable, "-m", "prodml.cli", *map(str, words), cwd=folder, PYTHONPATH=light)

    return prodml


def test_every_command_tells_how_it_is_used_or_what_it_needs(light):
    code = f"""
import contextlib, io, json, sys
from prodml.cli import main
told = {{}}
for name in ["", *{list(SERVING)!r}]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main([name, "--help"] if name else ["--help"])
        except SystemExit as end:
            code = end.code
    told[name] = code, out.getvalue() + err.getvalue()
print(json.dumps(told))
"""
    done = run(sys.executable, "-c", code, PYTHONPATH=light)
    told = json.loads(done.stdout)
    code, text = told.pop("materialise")
    assert code == 1 and "pip install 'prodml[pipeline]'" in text and "Traceback" not in text
    assert all(code == 0 and "usage: prodml" in text for code, text in told.values()), told


def test_what_is_no_part_of_serving_says_what_to_install(command):
    done = command("run", "train")
    assert done.returncode == 1 and "pip install 'prodml[pipeline]'" in done.stderr and "Traceback" not in done.stderr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(light, small_bundle, tmp_path_factory):
    """`prodml serve` as a process of the light install, with a log: its port and the folder of the log."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    words = ["serve", str(small_bundle), "--unsigned", "--port", str(port), "--grpc-port", str(free_port()), "--log", str(folder / "log")]
    with open(folder / "said", "wb") as said, subprocess.Popen([sys.executable, "-m", "prodml.cli", *words], cwd=folder, env={"PYTHONPATH": light}, stderr=said) as process:
        try:
            while not ready(port):
                assert process.poll() is None, (folder / "said").read_text()
                time.sleep(0.02)
            yield port, folder / "log"
        finally:
            process.terminate()
    assert process.returncode == 0 and "Traceback" not in (folder / "said").read_text(), (folder / "said").read_text()


def ready(port: int) -> bool:
    try:
        return ask(port, "/health/ready")[0] == 200
    except OSError:
        return False


def ask(port: int, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    """The status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"content-type": kind} if body is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_server_answers_in_every_form(server):
    port, _ = server
    stream = pa.BufferOutputStream()
    table = pa.Table.from_pylist([ROW], pa.schema({"delay": pa.float64(), "wind": pa.float64(), "carrier": pa.string()}))
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    bodies = {"application/json": json.dumps([ROW]).encode(), "text/csv": b"delay,wind,carrier\n0.4,,UA\n", "application/vnd.apache.arrow.stream": stream.getvalue().to_pybytes()}
    for kind, body in bodies.items():
        assert ask(port, "/v1/predict", body, kind)[0] == 200, kind
    assert ask(port, "/v1/explain", json.dumps(ROW).encode())[0] == 200 and ask(port, "/v1/predict", json.dumps({**ROW, "delay": 99}).encode())[0] == 422
    for path in ("/", "/openapi.json", "/metrics", "/v1/model", "/v2/health/ready", "/health/live", "/health/startup"):
        assert ask(port, path)[0] == 200, path


def test_an_answer_is_recorded_labelled_shown_and_replayed(server, command, small_bundle):
    port, log = server
    told = json.loads(ask(port, "/v1/predict", json.dumps(ROW).encode())[1])
    assert json.loads(ask(port, "/v1/feedback", json.dumps({"id": told["id"], "label": 1}).encode())[1])["accepted"] == 1
    words = {"show": [told["id"]], "verify": [], "replay": [told["id"], "--bundles", str(small_bundle), "--unsigned"]}
    for action, more in words.items():
        done = command("audit", action, *more, "--log", log)
        assert done.returncode == 0, done
    assert "identical" in done.stdout


def test_a_file_is_scored_and_the_other_commands_do_their_work(command, small_bundle, tmp_path):
    (tmp_path / "in.csv").write_text("delay,wind,carrier\n0.4,,UA\n-1,2,AA\n")
    for target in ("out.csv", "out.parquet"):
        done = command("score", tmp_path / "in.csv", tmp_path / target, "--bundle", small_bundle, "--unsigned")
        assert done.returncode == 0 and "2 of 2 rows" in done.stdout, done
    made = command("keys", "new", "--file", tmp_path / "keys.json", "--name", "someone", "--roles", "predict")
    assert made.stdout.startswith("prodml_") and "someone" in command("keys", "list", "--file", tmp_path / "keys.json").stdout
    assert "prodml rollout register" in command("rollout", "status", "small", "--registry", tmp_path / "registry").stderr, "there is no registry yet"
    done = command("observe", "--folder", tmp_path / "ops")
    assert done.returncode == 0 and len(list(Path(tmp_path, "ops").iterdir())) >= 2, done
