"""The server from outside: real HTTP, real processes, and what must hold of every row."""

import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contract import TYPES, VALUES, rules

from prodml.bundle.bundle import open_bundle, write_manifest
from prodml.bundle.contract import row_contract
from prodml.bundle.encode import RowEncoder
from prodml.bundle.one_row import QuickChecker, RowPacker
from prodml.core.errors import InputError
from prodml.core.files import write_json
from prodml.serve.server import all_settings, make_service, running

ROW = {"delay": 0.4, "wind": None, "carrier": "UA"}

# Rows: the quick way and the thorough one.

ENCODING = {
    "numeric": [{"name": "a"}, {"name": "b"}, {"name": "a_missing", "indicator_of": "a"}, {"name": "k_missing", "indicator_of": "k"}],
    "categorical": [{"name": "k", "vocabulary": ["x", "7", "true", "", "2.5"]}, {"name": "l", "vocabulary": ["x"]}],
    "imputation": [{"form": "value", "by": "k", "columns": [{"name": "a", "value": 0.1, "groups": {"7": -3.5}}]}, {"form": "value", "by": None, "columns": [{"name": "k", "value": "x", "groups": {}}]}],
}
PLAIN = {"numeric": [{"name": "a"}, {"name": "b"}], "categorical": ENCODING["categorical"]}
LINEAR = PLAIN | {"imputation": [{"form": "linear", "columns": ["a", "b"], "mean": [0, 1], "std": [1, 2], "low": [-5, -5], "high": [5, 5], "chain": [{"column": 1, "weights": [2.0, 0.0], "intercept": 0.5}]}]}
ANY = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["x", "7", "2.5", "", "é", b"x", 7, 7.0, 2.5, -0.0, 1e39, np.float32(0.1), [1], {}]) | st.text(max_size=3)


def outcome(function):
    """What a function gives, or how it refuses."""
    try:
        return function()
    except InputError as error:
        return error.problem, error.column, error.row


@settings(max_examples=400, deadline=None)
@given(encoding=st.sampled_from([PLAIN, ENCODING, LINEAR]), row=st.fixed_dictionaries({"a": ANY, "b": ANY, "l": ANY}, optional={"k": ANY, "more": ANY}))
def test_a_packed_row_is_the_encoded_one(encoding, row):
    encoder = RowEncoder(encoding)
    with np.errstate(over="ignore"):
        expected = outcome(lambda: tuple(part.tobytes() for part in encoder({name: [value] for name, value in row.items()})))
        assert outcome(lambda: RowPacker(encoder)(row)) == expected


AS_JSON = {kind: (values.map(lambda value: value.isoformat()) if kind == "time" else values) for kind, values in VALUES.items()}
ROWS = st.fixed_dictionaries({name: st.none() | AS_JSON[kind] | st.sampled_from([True, 5, 5.5, "5", 2**63, "2013-02-30", [1]]) for name, kind in TYPES.items()})


@settings(max_examples=300, deadline=None)
@given(row=ROWS, made=st.lists(rules(), max_size=5), dropped=st.none() | st.sampled_from(sorted(TYPES)))
def test_a_row_that_passes_breaks_no_rule(row, made, dropped):
    check = QuickChecker(row_contract("rows", TYPES, [rule | {"name": f"rule {number}"} for number, rule in enumerate(made)], "no target"))
    row = {name: value for name, value in row.items() if name != dropped}
    good, passes = not check({name: [value] for name, value in row.items()}), check.passes(row)
    assert good or not passes
    usual = {"int": (int,), "float": (int, float), "text": (str,), "time": (str,)}
    if all(value is None or (type(value) in usual[TYPES[name]] and value == value and not (type(value) is int and abs(value) > 2**53)) for name, value in row.items()):
        assert passes == good, "only values of another type, and what is no number, which may still be right, are left to the checker"


# A server in a thread, asked over HTTP.


def tables(**more) -> dict:
    return {"server": {"port": 0}, "models": {"unsigned": True}} | more


@contextmanager
def serving(bundle: Path, **more):
    """The address of a server, and its service."""
    chosen = all_settings(tables(**more))
    service = make_service([bundle], chosen)
    with running(service, chosen) as address:
        yield address, service


@pytest.fixture(scope="module")
def server(small_bundle, tmp_path_factory):
    with serving(small_bundle, log={"folder": str(tmp_path_factory.mktemp("log"))}) as found:
        yield found


def ask(address: str, path: str, body=None, method: str | None = None, **headers: str):
    """Status, headers and body, decoded where it is JSON."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method or ("POST" if body is not None else "GET"), path, data, ({"Content-Type": "application/json"} if data is not None else {}) | {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    told = dict((name.lower(), value) for name, value in answer.getheaders())
    return answer.status, told, json.loads(text) if "json" in told.get("content-type", "") and text else text


def test_one_row_gets_the_answer_of_the_bundle(server, small_bundle):
    address, service = server
    status, _, told = ask(address, "/v1/predict", ROW)
    bundle = open_bundle(small_bundle, unsigned=True)
    expected = bundle.predict({name: [value] for name, value in ROW.items()})
    assert status == 200 and told["probability"] == float(expected[0]) and told["decision"] == (expected[0] >= bundle.threshold)
    assert told["set"] == [label for label in (0, 1) if bundle.sets(expected)[0, label]] and told["degraded"] == [] and len(told["id"]) == 24
    assert told["version"] == service.models.get().version and told["model"] == "made_up"


def test_rows_in_every_form_get_one_answer(server):
    address, service = server
    draw = np.random.default_rng(0)
    rows = [{"delay": float(a), "wind": None if a > 1 else float(b), "carrier": str(c)} for a, b, c in zip(draw.normal(size=700), draw.normal(size=700), draw.choice(["AA", "UA", "ZZ"], 700))]
    columns = {name: [row[name] for row in rows] for name in ROW}
    expected = service.models.get().bundle.predict(columns).tolist()
    arrow = pa.BufferOutputStream()
    with pa.ipc.new_stream(arrow, (table := pa.table(columns)).schema) as writer:
        writer.write_table(table)
    text = ",".join(ROW) + "\n" + "".join(",".join("" if value is None else str(value) for value in row.values()) + "\n" for row in rows)
    for body, kind in ((rows, "application/json"), (columns, "application/json"), (text.encode(), "text/csv"), (arrow.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream")):
        status, _, told = ask(address, "/v1/predict", body, Content_Type=kind)
        assert status == 200 and [one["probability"] for one in told["predictions"]] == expected and [one["row"] for one in told["predictions"]] == list(range(1, 701))
    _, headers, body = ask(address, "/v1/predict", columns, Accept="application/vnd.apache.arrow.stream")
    assert headers["content-type"] == "application/vnd.apache.arrow.stream" and pa.ipc.open_stream(body).read_all()["probability"].to_pylist() == expected


def test_a_bad_row_is_named_and_the_others_may_be_answered(server):
    address, _ = server
    rows = [ROW, ROW | {"delay": 11}, {"delay": 1}, ROW | {"wind": "calm"}]
    status, headers, told = ask(address, "/v1/predict", rows)
    assert status == 422 and headers["content-type"] == "application/problem+json"
    assert [(one["row"], one["column"]) for one in told["errors"]] == [(2, "delay"), (3, "carrier"), (3, "wind"), (4, "wind")]
    assert told["errors"][0] == {"row": 2, "column": "delay", "rule": "delay is possible", "severity": "error", "value": 11, "remedy": "Send a value from -10 and up to 10."}
    status, _, told = ask(address, "/v1/predict?partial=true", rows)
    assert status == 200 and [one["row"] for one in told["predictions"]] == [1] and len(told["errors"]) == 4


@pytest.mark.parametrize("path, body, method, headers, status", [
    ("/v1/predict", b"{", None, {}, 400), ("/v1/predict", b"\xff", None, {}, 400), ("/v1/predict", b"[" * 100_000, None, {}, 400), ("/v1/predict", b"7", None, {}, 422), ("/v1/predict", b"{}", None, {}, 422),
    ("/v1/predict", {"delay": {"__class__": "x"}, "wind": 1, "carrier": "AA"}, None, {}, 422), ("/v1/predict", b" " * 5_000_000, None, {}, 413), ("/v1/predict", b"a", None, {"Content_Type": "application/x-python"}, 415),
    ("/v1/predict", ROW, None, {"Accept": "image/png"}, 406), ("/v1/predict", None, "GET", {}, 405), ("/v1/nothing", None, "GET", {}, 404), ("/v1/predict?version=no", ROW, None, {}, 404),
    ("/v1/explain", [ROW] * 101, None, {}, 413), ("/v1/feedback", {"id": "0" * 24, "label": 1}, None, {}, 404), ("/v1/feedback", {"id": "a", "label": 2}, None, {}, 422),
    ("/v1/models/9/load", {"folder": "../../etc"}, None, {}, 403), ("/v1/models/9/use", b"", None, {}, 404),
])
def test_what_cannot_be_answered_is_refused_in_one_form(server, path, body, method, headers, status):
    found, told, problem = ask(server[0], path, body, method, **headers)
    assert (found, told["content-type"], problem["status"]) == (status, "application/problem+json", status) and problem["detail"] and "Traceback" not in json.dumps(problem)


def test_an_explanation_adds_up_and_a_label_finds_its_answer(server):
    address, _ = server
    _, _, told = ask(address, "/v1/explain", ROW)
    (one,) = told["explanations"]
    assert math.isclose(1 / (1 + math.exp(-one["base"] - sum(one["shares"].values()))), one["probability"], rel_tol=1e-5)
    _, _, answer = ask(address, "/v1/predict", ROW)
    assert ask(address, "/v1/feedback", [{"id": answer["id"], "label": 1}, {"id": "0" * 24, "label": 0}])[2] == {"accepted": 1, "unknown": ["0" * 24]}
    assert ask(address, "/v1/feedback", {"id": one["id"], "label": 0})[0] in (200, 404)


def test_two_versions_answer_and_one_is_let_go(small_bundle, tmp_path):
    other = variant(small_bundle, tmp_path / "releases" / "two", 0.9)
    with serving(small_bundle, server={"port": 0, "releases": str(tmp_path / "releases")}) as (address, service):
        first = service.models.get().version
        for wanted, status in (({"folder": "../two"}, 422), ({"folder": "none"}, 409)):
            assert ask(address, "/v1/models/two/load", wanted)[0] == status
        assert ask(address, "/v1/models/two/load", {"folder": "two"})[2]["live"] == first
        told = [ask(address, f"/v1/predict?version={version}", ROW)[2] for version in (first, "two")]
        assert [one["decision"] for one in told] == [one["probability"] >= open_bundle(folder, unsigned=True).threshold for one, folder in zip(told, (small_bundle, other))] and [one["version"] for one in told] == [first, "two"]
        assert ask(address, "/v1/models/two/use", b"")[2]["live"] == "two" and ask(address, "/v1/predict", ROW)[2]["version"] == "two"
        assert ask(address, f"/v1/models/{first}/unload", b"")[2]["versions"] == ["two"] and ask(address, f"/v1/predict?version={first}", ROW)[0] == 404


def test_a_slow_body_and_a_header_that_never_ends_are_given_up(small_bundle):
    with serving(small_bundle, limits={"seconds": 0.5}) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow, socket.create_connection((host, int(port)), timeout=10) as endless:
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            endless.sendall(b"GET /health/live HTTP/1.1\r\nHost: ")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408")
            try:
                assert endless.recv(65536) == b""
            except ConnectionResetError:
                pass


def test_beyond_its_limit_a_server_says_so_and_stays_alive(small_bundle):
    with serving(small_bundle, limits={"in_flight": 2}, server={"port": 0}) as (address, service):
        held = threading.Event()
        predict = service.models.get().predict
        service.models.get().batcher = None
        service.models.get().predict = lambda *arrays: (held.wait(10), predict(*arrays))[1]
        service.app.batching = service.app.batching.__class__(thread_rows=1)
        rows, found = [ROW] * 3, []
        threads = [threading.Thread(target=lambda: found.append(ask(address, "/v1/predict", rows)[:2])) for _ in range(6)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while sum(status == 503 for status, _ in found) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ask(address, "/health/live")[0] == 200
        held.set()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in found) == [200, 200, 503, 503, 503, 503]
        assert all(headers["retry-after"] == "1" for status, headers in found if status == 503)


# A process, and its signals.


@contextmanager
def process(*arguments: str):
    """A server process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = subprocess.Popen([sys.executable, "-m", "prodml.serve.server", *arguments, "--port", str(port)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(started.stderr))
    reader.start()
    try:
        for _ in range(200):
            try:
                if ask(f"127.0.0.1:{port}", "/health/ready")[0] == 200:
                    break
            except OSError:
                pass
            if started.poll() is not None:
                break
            time.sleep(0.1)
        yield started, f"127.0.0.1:{port}", lines
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        reader.join()


class Callers:
    """Threads that ask over kept connections until they are told to stop, and remember what they got."""

    def __init__(self, address: str, count: int = 4):
        self.address, self.statuses, self.versions, self.failures, self._stop = address, [], set(), [], threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        body = json.dumps(ROW).encode()
        connection = None
        while not self._stop.is_set():
            try:
                connection = connection or http.client.HTTPConnection(self.address, timeout=20)
                connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                told = json.loads(answer.read())
                self.statuses.append(answer.status)
                self.versions.add(told.get("version"))
                if answer.getheader("connection") == "close":
                    connection.close()
                    connection = None
            except OSError as error:
                # Nobody listens any more: the way a stopped server looks from outside.
                if not isinstance(error, ConnectionRefusedError):
                    self.failures.append(error)
                return

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def variant(bundle: Path, folder: Path, threshold: float) -> Path:
    """The bundle with another threshold, which makes it another version."""
    shutil.copytree(bundle, folder)
    write_json(folder / "thresholds.json", {"dense": threshold})
    write_manifest(folder, {"variant": "0" * 64})
    return folder


def test_a_reload_drops_nothing(tmp_path, small_bundle):
    bundles, current = [variant(small_bundle, tmp_path / str(number), 0.1 + number / 10) for number in range(4)], tmp_path / "current"

    def release(bundle: Path) -> None:
        """Turn the link, in one step."""
        (tmp_path / "next").symlink_to(bundle)
        (tmp_path / "next").replace(current)

    release(bundles[0])
    with process(str(current), "--unsigned") as (server, address, lines):
        callers = Callers(address)
        for bundle in bundles[1:]:
            release(bundle)
            seen = len(callers.versions)
            server.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 20
            while len(callers.versions) <= seen and time.monotonic() < deadline:
                time.sleep(0.05)
        (bundles[0] / "dense.onnx").write_bytes(b"no graph")
        release(bundles[0])
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while not any("was not loaded" in line for line in lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        callers.stop()
        assert len(callers.versions) == 4 and set(callers.statuses) == {200} and not callers.failures, (callers.failures, lines)
        assert any("was not loaded" in line for line in lines) and len(ask(address, "/v1/model")[2]["versions"]) == 1


def test_it_drains_when_it_is_told_to_stop(tmp_path, small_bundle):
    settings_file = tmp_path / "serve.toml"
    settings_file.write_text('[server]\nnotice_seconds = 0.5\n')
    with process(str(small_bundle), "--unsigned", "--settings", str(settings_file), "--log", str(tmp_path / "log")) as (server, address, lines):
        callers = Callers(address)
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert ask(address, "/health/ready")[0] == 503 and ask(address, "/health/live")[0] == 200
        assert server.wait(20) == 0
        callers.stop()
        assert set(callers.statuses) == {200} and len(callers.statuses) > 50 and not callers.failures, (callers.failures, lines)
    from prodml.serve.log import read_chain

    logged = sum(entered.frame.kind == "prediction" for chain in (tmp_path / "log").iterdir() if chain.is_dir() for entered in read_chain(chain))
    assert logged == len(callers.statuses), "every answer is in the log"


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(small_bundle):
    with process(str(small_bundle), "--unsigned", "--workers", "2") as (server, address, lines):
        children = lambda: [int(one) for one in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        before = children()
        assert len(before) == 2 and ask(address, "/v1/predict", ROW)[0] == 200 and ask(address, "/v1/models/1/use", b"")[0] == 404
        os.kill(before[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while (len(children()) < 2 or before[0] in children()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(children()) == 2 and before[1] in children()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


@pytest.mark.parametrize("arguments, sentence", [
    (["--host", "0.0.0.0", "--unsigned"], "whoever reaches 0.0.0.0"), ([], "nobody has signed this bundle"), (["--settings", "none.toml"], "cannot be read"),
])
def test_it_refuses_to_start_open_or_unsigned(small_bundle, arguments, sentence):
    done = subprocess.run([sys.executable, "-m", "prodml.serve.server", str(small_bundle), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_answers_has_loaded_nothing_heavy(small_bundle):
    code = f"""
import json, sys, urllib.request
from prodml.serve.server import all_settings, make_service, running
chosen = all_settings({{"server": {{"port": 0}}, "models": {{"unsigned": True}}}})
with running(make_service([{str(small_bundle)!r}], chosen), chosen) as address:
    urllib.request.urlopen(urllib.request.Request(address + "/v1/predict", json.dumps({ROW!r}).encode(), {{"content-type": "application/json"}})).read()
print(sorted({{"torch", "pandas", "ibis", "duckdb", "scipy", "sklearn", "pyarrow", "grpc", "redis", "psycopg", "opentelemetry", "matplotlib", "IPython"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.slow
def test_fuzzing_by_the_description_finds_no_breach(server, tmp_path):
    """schemathesis makes requests from the OpenAPI document, good and bad, and holds every answer against it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server[0]}/openapi.json", "--checks", "all", "--max-examples", "30", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
