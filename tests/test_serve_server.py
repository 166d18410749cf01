"""The server as a process: what it says, its signals, its workers, and a rollout under way in it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest
from conftest import ROOT
from test_serve_core import ROW, ask, variant

from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.core.files import write_json
from prodml.serve.access import AccessSettings, JwtSettings, TlsSettings
from prodml.serve.batching import Batching
from prodml.serve.grpc import GrpcSettings
from prodml.serve.limits import Limits, read_settings
from prodml.serve.log import LogSettings, read_chain
from prodml.serve.models import Opening
from prodml.serve.observe import ObserveSettings
from prodml.serve.online import OnlineSettings
from prodml.serve.registry import Registry
from prodml.serve.rollout import Rollout, RolloutSettings, Step
from prodml.serve.server import ServerSettings, all_settings, make_service, running


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


@pytest.mark.slow
def test_workers_do_not_outlive_their_parent(small_bundle):
    with process(str(small_bundle), "--unsigned", "--workers", "2") as (server, address, lines):
        workers = [int(one) for one in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        server.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)


def serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """The command, where it does not come to serve."""
    return subprocess.run([sys.executable, "-m", "prodml.cli", "serve", *arguments], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments, sentence", [
    (["BUNDLE", "--host", "0.0.0.0", "--unsigned"], "whoever reaches 0.0.0.0"), (["BUNDLE"], "say that you take it unsigned: --unsigned on the command line,"), (["BUNDLE", "--settings", "none.toml"], "file none.toml: the settings cannot be read"),
    ([], "there is nothing to serve"), (["no-folder", "--unsigned"], "there is no bundle here"), (["--registry", "no-folder"], "there is no registry here"), (["BUNDLE", "--unsigned", "--port", "TAKEN"], "Choose another --port"),
    (["BUNDLE", "--unsigned", "--port", "TAKEN", "--workers", "2"], "Choose another --port"), (["BUNDLE", "--settings", "FILE"], "[server] has the unknown key 'prot'. Did you mean port?"), (["REJECTED", "--unsigned"], "say that you take a rejected one: --rejected on the command line"),
    (["BUNDLE", "--port", "FREE", "--workers", "2"], "nobody has signed"),
    (["BUNDLE", "--port", "70000"], "[server] port is 70000. Give a port, from 0 to 65535."),
    (["BUNDLE", "--port", "-1"], "[server] port is -1. Give a number, 0 or more."),
    (["BUNDLE", "--workers", "0"], "[server] workers is 0. Give a number, 1 or more."),
    (["BUNDLE", "--grpc-port", "99999"], "[grpc] port is 99999. Give a port, from 0 to 65535."),
    (["BUNDLE", "--unsigned", "--host", "unix:/tmp/socket"], "'unix:/tmp/socket' is no address of a network"),
    (["BUNDLE", "--unsigned", "--port", "8123", "--grpc-port", "8123"], "HTTP and gRPC both have the port 8123"),
])
def test_what_keeps_it_from_starting_is_said_in_a_sentence(small_bundle, tmp_path, arguments, sentence):
    (tmp_path / "serve.toml").write_text("[server]\nprot = 1\n")
    rejected = variant(small_bundle, tmp_path / "rejected", 0.4)
    write_json(rejected / "gates.json", {"gates": [], "rejected": ["worst slice"]})
    write_manifest(rejected, {"variant": "0" * 64})
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        ports = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        values = {"BUNDLE": str(small_bundle), "REJECTED": str(rejected), "FILE": str(tmp_path / "serve.toml"), "TAKEN": str(ports[0]), "FREE": str(ports[1])}
        done = serve(*(values.get(word, word) for word in arguments))
    assert done.returncode == 1 and done.stderr.count(sentence) == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(" Give ") <= 1, "one remedy, once"


def test_a_replay_finds_bundles_and_trust_in_the_servers_settings(small_bundle, tmp_path):
    (tmp_path / "serve.toml").write_text(
        f'[server]\nport = 0\nreleases = "{small_bundle.parent}"\n[models]\nunsigned = true\n[log]\nfolder = "{tmp_path / "log"}"\n'
    )
    chosen = all_settings(read_settings(tmp_path / "serve.toml"))
    with running(make_service([small_bundle], chosen), chosen) as address:
        name = ask(address, "/v1/predict", ROW)[2]["id"]
    audit = [sys.executable, "-m", "prodml.cli", "audit", "replay", name]
    done = subprocess.run([*audit, "--settings", str(tmp_path / "serve.toml")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("identical"), done.stdout + done.stderr
    done = subprocess.run([*audit, "--log", str(tmp_path / "log")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "identical" not in done.stdout, "without the settings it looks in releases/"


def test_a_server_that_answers_has_loaded_nothing_heavy(small_bundle):
    code = f"""
import json, sys, urllib.request
from prodml.serve.reader import RowReader, as_dict
from prodml.serve.server import all_settings, make_service, running
chosen = all_settings({{"server": {{"port": 0}}, "models": {{"unsigned": True}}}})
with running(make_service([{str(small_bundle)!r}], chosen), chosen) as address:
    urllib.request.urlopen(urllib.request.Request(address + "/v1/predict", json.dumps({ROW!r}).encode(), {{"content-type": "application/json"}})).read()
print(sorted({{"torch", "pandas", "ibis", "duckdb", "scipy", "sklearn", "pyarrow", "grpc", "redis", "psycopg", "opentelemetry", "matplotlib", "IPython"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# What it says of itself, and its settings.


def test_it_says_where_it_listens_what_it_serves_and_who_may_ask(small_bundle):
    with process(str(small_bundle), "--unsigned") as (server, address, lines):
        told = [line.split("prodml.serve: ")[1].strip() for line in lines]
        version = ask(address, "/v1/model")[2]["version"]
        assert told == [f"made_up {version} (unsigned) answers on http://{address}; a page to try it is there, the API is at /openapi.json", "open, to this machine alone; no log: [log] or --log FOLDER keeps the answers"]
        assert b"<html" in ask(address, "/")[2]


TABLES = {
    "server": ServerSettings, "models": Opening, "limits": Limits, "batching": Batching, "access": AccessSettings, "access.jwt": JwtSettings, "tls": TlsSettings, "log": LogSettings, "online": OnlineSettings,
    "grpc": GrpcSettings, "observe": ObserveSettings, "rollout": RolloutSettings,
}


def test_the_example_of_settings_holds_all_of_them_with_their_defaults():
    text = (ROOT / "ops" / "serve.toml").read_text(encoding="utf-8")
    assert all_settings(tomllib.loads(text)) == all_settings({"log": {}, "online": {}, "grpc": {}, "rollout": {}})
    # With what is commented out: lines that are a key and a value, or the name of a table.
    whole = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = |\[)", "", text))
    for name, kind in TABLES.items():
        table = whole["access"]["jwt"] if name == "access.jwt" else {key: value for key, value in whole[name].items() if (name, key) != ("access", "jwt")}
        assert set(table) == {field.name for field in fields(kind)} - ({"jwt"} if name == "access" else set()), name
        hints = get_type_hints(kind)
        for field in fields(kind):
            if field.name in table and field.default is None and name != "tls":
                msgspec.convert(table[field.name], hints[field.name])
    assert all(set(step) == {field.name for field in fields(Step)} for step in whole["rollout"]["steps"])
    assert all(len(line) < 220 for line in text.splitlines())


# A rollout in the server.


def signed(folder: Path, key: Path) -> Path:
    """The bundle with a signature."""
    (folder / SIGNATURE).write_bytes(signature_of((folder / MANIFEST).read_bytes(), private_key(key)))
    return folder


def opposite(bundle: Path) -> None:
    """Turn the weights of the last layer around."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(bundle / "dense.onnx")
    last = [node for node in graph.graph.node if node.op_type == "Gemm"][-1].input[1:]
    for one in graph.graph.initializer:
        if one.name in last:
            one.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(one), one.name))
    (bundle / "dense.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    write_manifest(bundle, {"variant": "0" * 64})


def registry_of(bundle: Path, folder: Path, url: str | None = None) -> Registry:
    """A registry with v1.0.0, the champion, v1.0.1, which differs by its threshold, and v1.0.2, which says the opposite."""
    registry = Registry(folder / "registry", url, trusted=[new_key(folder / "key")])
    for number in range(3):
        made = variant(bundle, folder / f"release{number}", 0.3 + number / 10)
        if number == 2:
            opposite(made)
        registry.register(signed(made, folder / "key"), "Ada", "A week's model.")
    registry.assign("made_up", "champion", "v1.0.0", "Ada", "The first one.")
    return registry


def until(condition, seconds: float = 20.0):
    """What the condition gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return found


SETTINGS = """
[server]
registry = "{folder}/registry"
workers = 2
[models]
trusted = ["{folder}/key.pub"]
[log]
folder = "{folder}/log"
[rollout]
poll_seconds = 0.05
look_seconds = 0.1
steps = [{{weight = 0.5, min_seconds = 3600}}]
"""


@pytest.mark.parametrize("store", ["SQLite", "PostgreSQL"])
def test_two_workers_follow_a_rollout_that_another_process_steers(small_bundle, tmp_path, store, monkeypatch, request):
    url = request.getfixturevalue("postgresql") if store == "PostgreSQL" else None
    if url:
        monkeypatch.setenv("PRODML_REGISTRY_URL", url)
    registry = registry_of(small_bundle, tmp_path, url)
    (tmp_path / "serve.toml").write_text(SETTINGS.format(folder=tmp_path))
    steer = Rollout(registry, "made_up")
    keys = [f"customer {number}" for number in range(40)]

    def command(*words: str) -> None:
        options = ["--registry", str(registry.folder), "--trusted", str(tmp_path / "key.pub"), "--settings", str(tmp_path / "serve.toml"), "--who", "Grace", "--why", "A test."]
        done = subprocess.run([sys.executable, "-m", "prodml.cli", "rollout", *words, *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with process("--settings", str(tmp_path / "serve.toml")) as (server, address, lines):
        def answers() -> list[tuple[str, str]]:
            told = [ask(address, "/v1/predict", ROW, X_Routing_Key=key)[2] for key in keys]
            return [(one["version"], one["id"]) for one in told]

        def versions() -> list[str]:
            return [version for version, _ in answers()]

        early = answers()
        assert {version for version, _ in early} == {"v1.0.0"} and ask(address, "/v1/models/v1.0.0/use", b"")[0] == 404
        command("start", "made_up@v1.0.1")
        met = until(lambda: (found := versions()) == versions() and 8 < found.count("v1.0.1") < 32 and found)
        server.send_signal(signal.SIGHUP)
        assert versions() == met, "a key stays with its version, whichever worker is asked, and through a reload"

        kept = [one for _ in range(3) for one in answers()]
        losses = lambda: steer.status()["tests"]["loss"]["pairs"]
        assert ask(address, "/v1/feedback", [{"id": own, "label": 1} for _, own in early])[2]["accepted"] == 40
        assert ask(address, "/v1/feedback", [{"id": own, "label": 1} for _, own in kept])[2]["accepted"] == 120
        until(losses)
        side = [version for version, _ in kept]
        until(lambda: sum(len(tally.losses) for tally in steer._evidence(1)[1].open) + 2 * losses() >= 2 * min(map(side.count, ("v1.0.0", "v1.0.1"))))
        assert losses() <= side.count("v1.0.1"), "what was answered before the rollout says nothing of it"

        callers = Callers(address)
        command("rollback", "made_up@v1.0.1")
        until(lambda: set(versions()) == {"v1.0.0"})
        command("promote", "made_up@v1.0.1")
        until(lambda: set(versions()) == {"v1.0.1"})
        assert {ask(address, "/v1/model")[2]["live"] for _ in range(10)} == {"v1.0.1"}
        figures = ask(address, "/metrics")[2].decode()
        assert all(f'version="{version}"' in figures for version in ("v1.0.0", "v1.0.1"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        callers.stop()
        assert set(callers.statuses) == {200} and not callers.failures, (callers.failures, lines)
    chains = [chain for chain in (tmp_path / "log").iterdir() if chain.is_dir()]
    logged = {entered.content.id for chain in chains for entered in read_chain(chain) if entered.frame.kind == "prediction"}
    assert len(chains) == 2 and len(logged) >= len(callers.statuses) and {own for _, own in [*early, *kept]} <= logged
    assert registry.verify()
    registry.store.close()


def test_a_challenger_that_says_the_opposite_is_rolled_back_unseen_or_by_its_labels(small_bundle, tmp_path):
    registry = registry_of(small_bundle, tmp_path)
    quick = {"poll_seconds": 0.02, "look_seconds": 0.05}
    chosen = all_settings({"server": {"port": 0, "registry": str(registry.folder)}, "models": {"trusted": [str(tmp_path / "key.pub")]}, "log": {"folder": str(tmp_path / "log")}, "rollout": quick})
    plans = {
        "prediction distribution": RolloutSettings(steps=(Step(shadow=True, min_seconds=3600),), **quick),
        "loss": RolloutSettings(steps=(Step(0.5, min_seconds=3600),), shift_tolerated=0.99, **quick),
    }
    service = make_service([], chosen)
    with running(service, chosen) as address:
        for reason, plan in plans.items():
            rollout, met = Rollout(registry, "made_up", plan), set()
            rollout.start("v1.0.2", "Ada", "Try.")
            rollout.pause("Ada", "No further; and harm still counts.")
            until(lambda: service.rollout.under_way)
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
            for number in range(4_000):
                connection.request("POST", "/v1/predict", json.dumps(ROW | {"delay": 1 + number % 60 / 20}), {"Content-Type": "application/json"})
                told = json.load(connection.getresponse())
                met.add(told["version"])
                if reason == "loss":
                    # What the champion would have said is taken for what happened.
                    happened = (told["probability"] > 0.5) == (told["version"] == "v1.0.0")
                    assert ask(address, "/v1/feedback", {"id": told["id"], "label": int(happened)})[0] == 200
                if rollout._active() is None:
                    break
            connection.close()
            assert rollout.status()["status"] == "rolled_back" and rollout.status()["reason"].startswith(reason), rollout.status()
            assert met == ({"v1.0.0"} if plan.steps[0].shadow else {"v1.0.0", "v1.0.2"})
            until(lambda: not service.rollout.under_way)
        assert ask(address, "/v1/predict", ROW)[2]["version"] == "v1.0.0" and ask(address, "/v1/model")[2]["live"] == "v1.0.0"
        assert {ask(address, f"/v1/models/v1.0.0/{act}", b"")[0] for act in ("load", "unload", "use")} == {409}, "only the rollout loads and unloads"
    shadows = [entered.content for entered in read_chain(tmp_path / "log" / "worker-00") if entered.frame.kind == "prediction" and entered.content.route == "shadow"]
    assert shadows and {one.version for one in shadows} == {"v1.0.2"}
    registry.store.close()
