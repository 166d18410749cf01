"""Requests a second of `prodml serve`, one row each, against other servers of the same model and against a constant, in one run.

The model is a network 40-64-32-1 with 36 numbers and 4 categories, trained on nothing: only its time counts. Every server
runs on one core, in an environment of its own under build/peers (made on the first run, from the package index), and
gets the same row as JSON. `prodml serve` runs as it is meant to: contract, prediction log and metrics on. `constant` is
its own stack (uvicorn, uvloop, httptools, plain ASGI) that reads the same request and answers a constant of the same
length. The peers answer as their tutorials show it, with one worker.

The load comes from the other core: from wrk where it is installed, else from a client below, on uvloop, which is slower
and then bounds the fastest servers. The servers take turns: in every round each is asked for some seconds at 1, 16 and
64 connections, and what is compared are medians of the ratios within rounds. Those that are not in turn are stopped (SIGSTOP), for some
of them never sleep. On a busy machine a server loses its core
now and then; so processor time a request is told too, and every ratio is given by both. Written to
build/bench/serve.json and serve.png.

`--where` asks `prodml serve` alone, at 64 connections, and tells the processor time of a request part by part; written to
build/bench/serve_where.json.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench" / "serve"
CONNECTIONS = (1, 16, 64)
OURS, CONSTANT, TUTORIAL = "prodml serve", "constant", "FastAPI"
# The packages of each peer; their code is below.
PEERS: dict[str, list[str]] = {
    TUTORIAL: ["fastapi", "uvicorn[standard]", "onnxruntime", "numpy"],
    "FastAPI async": ["fastapi", "uvicorn[standard]", "onnxruntime", "numpy"],
    "LitServe": ["litserve", "onnxruntime", "numpy"],
    "BentoML": ["bentoml", "onnxruntime", "numpy"],
    "MLServer": ["mlserver", "onnxruntime", "numpy<2"],
    "Ray Serve": ["ray[serve]", "onnxruntime", "numpy"],
}
HEAVY = ("LitServe", "BentoML", "MLServer", "Ray Serve")
WANTED = {"over FastAPI": 5.0, "over the best of the others": 8.0, "of the constant": 0.4}
AIM_CONSTANT = 0.6


# The model and the row.


def make_bundle(folder: Path) -> dict[str, Any]:
    """Write the bundle, and beside it what the peers read; the row."""
    import numpy as np
    import torch

    from prodml.bundle.bundle import write_manifest
    from prodml.core.files import write_json, written_folder
    from prodml.model.export import to_onnx
    from prodml.model.networks import build_network

    torch.manual_seed(0)
    numbers, words = [f"number_{place}" for place in range(36)], [f"word_{place}" for place in range(4)]
    encoding = {
        "target": "late", "positive": "1", "numeric": [{"name": name, "mean": 0.0, "std": 1.0, "missing": False} for name in numbers],
        "categorical": [{"name": name, "vocabulary": [f"w{word}" for word in range(20)]} for name in words],
    }
    rules = [{"name": f"{name} is possible", "rule": "range", "columns": [name], "min": -100, "max": 100, "severity": "error"} for name in numbers[:8]]
    rules += [{"name": "words are known", "rule": "not_null", "columns": words, "severity": "error"}]
    contract = {"table": "rows", "types": {name: "float" for name in numbers} | {name: "text" for name in words}, "rules": rules}
    parts = {
        "model": {"name": "bench", "serves": "dense", "graphs": {"dense": "dense.onnx"}}, "encoding": encoding, "contract": {"columns": [], "row": contract}, "thresholds": {"dense": 0.5},
        "conformal": {"method": "marginal", "alpha": 0.1, "quantiles": [0.7, 0.7], "rows": [1, 1]},
    }
    with written_folder(folder) as aside:
        for name, value in parts.items():
            write_json(aside / f"{name}.json", value)
        (aside / "dense.onnx").write_bytes(to_onnx(build_network({"name": "bench", "kind": "mlp", "hidden": [64, 32]}, encoding)).SerializeToString(deterministic=True))
        write_manifest(aside, {})
    draw = np.random.default_rng(0)
    return {name: round(float(value), 3) for name, value in zip(numbers, draw.normal(size=36))} | {name: f"w{draw.integers(20)}" for name in words}


# The servers. The sources of the peers are written to files of their own and run in their environments; each is what
# its tutorial shows: a model that is loaded once, a function of a row.


COMMON = '''
import json, numpy as np, onnxruntime
FOLDER = {bundle!r}
ENCODING = json.load(open(FOLDER + "/encoding.json"))
NUMBERS = [column["name"] for column in ENCODING["numeric"]]
WORDS = {{column["name"]: {{word: code for code, word in enumerate(column["vocabulary"], 1)}} for column in ENCODING["categorical"]}}


def load():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(FOLDER + "/dense.onnx", options)


def predict(session, row):
    numbers = np.array([[row[name] for name in NUMBERS]], np.float32)
    codes = np.array([[lookup.get(row[name], 0) for name, lookup in WORDS.items()]], np.int64)
    return float(session.run(None, {{"numbers": numbers, "codes": codes}})[0][0])
'''
FASTAPI = '''
from fastapi import FastAPI
from pydantic import create_model
Row = create_model("Row", **{{name: (float, ...) for name in NUMBERS}}, **{{name: (str, ...) for name in WORDS}})
app, session = FastAPI(), load()


@app.post("/v1/predict")
{kind}def answer(row: Row):
    return {{"probability": predict(session, row.model_dump())}}
'''
LITSERVE = '''
import litserve


class Api(litserve.LitAPI):
    def setup(self, device):
        self.session = load()

    def decode_request(self, request):
        return request

    def predict(self, row):
        return predict(self.session, row)

    def encode_response(self, probability):
        return {{"probability": probability}}


if __name__ == "__main__":
    litserve.LitServer(Api(api_path="/v1/predict"), accelerator="cpu").run(port={port}, host="127.0.0.1", generate_client_file=False, log_level="error")
'''
BENTOML = '''
import bentoml


@bentoml.service(workers=1)
class Bench:
    def __init__(self):
        self.session = load()

    @bentoml.api(route="/v1/predict")
    def predict(self, row: dict) -> dict:
        return {{"probability": predict(self.session, row)}}
'''
MLSERVER = '''
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class Bench(MLModel):
    async def load(self) -> bool:
        self.session = load()
        return True

    async def predict(self, payload):
        row = {{one.name: one.data.root[0] for one in payload.inputs}}
        told = predict(self.session, row)
        return InferenceResponse(model_name=self.name, outputs=[ResponseOutput(name="probability", shape=[1], datatype="FP32", data=[told])])
'''
RAY = '''
import ray
from ray import serve


@serve.deployment
class Bench:
    def __init__(self):
        self.session = load()

    async def __call__(self, request):
        return {{"probability": predict(self.session, await request.json())}}


if __name__ == "__main__":
    import time

    ray.init(num_cpus=1, include_dashboard=False)
    serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
    serve.run(Bench.bind(), route_prefix="/v1/predict")
    while True:
        time.sleep(1)
'''
CONSTANT_APP = '''
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len({answer!r}))]


async def app(scope, receive, send):
    await receive()
    await send({{"type": "http.response.start", "status": 200, "headers": HEADERS}})
    await send({{"type": "http.response.body", "body": {answer!r}}})
'''
UVICORN = ["--host", "127.0.0.1", "--no-access-log", "--log-level", "error"]


def environment(name: str) -> Path:
    """The Python of a peer, made if it is not there."""
    folder = ROOT / "build" / "peers" / f"serve_{name.replace(' ', '_').lower().removesuffix('_async')}"
    python, ready, wanted = folder / "bin" / "python", folder / "ready", "\n".join(PEERS[name])
    if not ready.exists() or ready.read_text() != wanted:
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, env=alone)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-input", *PEERS[name]], check=True, env=alone)
        ready.write_text(wanted)
    return python


def source(name: str, text: str, **values: Any) -> Path:
    """A file of the server's code in a folder of its own."""
    folder = FOLDER / name.replace(" ", "_").lower()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "served.py").write_text(text.format(**values))
    return folder


def command(name: str, port: int, bundle: Path, answer: bytes) -> tuple[list[str], Path]:
    """What starts a server, and in which folder."""
    values = {"bundle": str(bundle), "port": port, "answer": answer, "kind": "async " if name.endswith("async") else ""}
    if name == OURS:
        log = FOLDER / "log"
        shutil.rmtree(log, ignore_errors=True)
        return [sys.executable, "-m", "prodml.serve.server", str(bundle), "--unsigned", "--port", str(port), "--log", str(log)], ROOT
    if name == CONSTANT:
        return [sys.executable, "-m", "uvicorn", "served:app", "--port", str(port), *UVICORN, "--loop", "uvloop", "--http", "httptools", "--no-server-header"], source(name, CONSTANT_APP, **values)
    python = str(environment(name))
    match name:
        case "FastAPI" | "FastAPI async":
            return [python, "-m", "uvicorn", "served:app", "--port", str(port), *UVICORN], source(name, COMMON + FASTAPI, **values)
        case "LitServe":
            return [python, "served.py"], source(name, COMMON + LITSERVE, **values)
        case "BentoML":
            return [python, "-m", "bentoml", "serve", "served:Bench", "--port", str(port), "--host", "127.0.0.1"], source(name, COMMON + BENTOML, **values)
        case "MLServer":
            folder = source(name, COMMON + MLSERVER, **values)
            (folder / "settings.json").write_text(json.dumps({"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1", "parallel_workers": 0, "debug": False}))
            (folder / "model-settings.json").write_text(json.dumps({"name": "bench", "implementation": "served.Bench"}))
            return [str(Path(python).with_name("mlserver")), "start", "."], folder
        case "Ray Serve":
            return [python, "served.py"], source(name, COMMON + RAY, **values)
    raise ValueError(name)


def body_for(name: str, row: dict[str, Any]) -> tuple[str, bytes]:
    """Path and body: BentoML names its argument, MLServer speaks the Open Inference Protocol."""
    if name == "BentoML":
        return "/v1/predict", json.dumps({"row": row}).encode()
    if name == "MLServer":
        inputs = [{"name": key, "shape": [1], "datatype": "BYTES" if isinstance(value, str) else "FP32", "data": [value]} for key, value in row.items()]
        return "/v2/models/bench/infer", json.dumps({"inputs": inputs}).encode()
    return "/v1/predict", json.dumps(row, separators=(",", ":")).encode()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A server process on the first core."""

    def __init__(self, name: str, bundle: Path, row: dict[str, Any], answer: bytes):
        self.name, self.port = name, free_port()
        self.path, self.body = body_for(name, row)
        arguments, folder = command(name, self.port, bundle, answer)
        variables = {**os.environ, "PYTHONPATH": str(ROOT) if name == OURS else "", "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
        if name == OURS:
            variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        elif name == CONSTANT:
            variables["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        self.said = (FOLDER / f"{name.replace(' ', '_')}.out").open("w")
        self.process = subprocess.Popen(arguments, cwd=folder, env=variables, stdout=self.said, stderr=self.said, start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
        self._wait()

    def _wait(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path}", self.body, {"Content-Type": "application/json"})
                self.answer = urllib.request.urlopen(request, timeout=5).read()
                return
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.2)
        self.close()
        raise RuntimeError(f"{self.name} did not answer; see {self.said.name}")

    def _family(self) -> dict[int, int]:
        """Clock ticks so far of it and of all that it started, in whatever session, by process id."""
        times, parents = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            number = int(stat.parent.name)
            times[number], parents[number] = int(fields[11]) + int(fields[12]), self.process.pid if int(fields[3]) == self.process.pid else int(fields[1])
        own = {self.process.pid}
        while more := {number for number, parent in parents.items() if parent in own} - own:
            own |= more
        return {number: times[number] for number in own if number in times}

    def cpu_seconds(self) -> float:
        """Processor time so far of the server and what it started."""
        return sum(self._family().values()) / os.sysconf("SC_CLK_TCK")

    def _send(self, number: int) -> None:
        for process in self._family():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def pause(self) -> None:
        """Hold it and what it started, so that it takes no processor time from the others."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def close(self) -> None:
        """End it and what it started."""
        self.resume()
        family = self._family()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in family:
                try:
                    os.kill(process, number)
                except ProcessLookupError:
                    continue
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                continue
        self.said.close()


# The load.


def load_by_wrk(server: Server, connections: int, seconds: float, lua: str | None = None) -> dict[str, float]:
    """Requests a second and latencies, by wrk on the second core; `lua` is its script where the requests differ."""
    script = FOLDER / "wrk.lua"
    script.write_text(lua or 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[' + server.body.decode() + "]==]\n")
    line = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-s", str(script), f"http://127.0.0.1:{server.port}{server.path}"]
    told = subprocess.run(line, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {1})).stdout
    found = {share: float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit] for share, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", told)}
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    return {
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]), "requests": int(re.search(r"(\d+) requests in", told)[1]), "failed": int(failed[1]) if failed else 0,
        "p50_us": found["50"], "p99_us": found["99"],
    }


class Caller(asyncio.Protocol):
    """One connection that sends the next request when the answer is whole."""

    def __init__(self, request: bytes, end: float, times: list[float], failures: list[int], done: asyncio.Future):
        import httptools

        self.request, self.end, self.times, self.failures, self.done = request, end, times, failures, done
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.times.append(now - self.sent)
        if self.parser.get_status_code() != 200:
            self.failures.append(self.parser.get_status_code())
        if now < self.end:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _load(server: Server, connections: int, seconds: float) -> dict[str, float]:
    import numpy as np

    loop, times, failures, began = asyncio.get_running_loop(), [], [], time.perf_counter()
    request = f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\nContent-Length: {len(server.body)}\r\n\r\n".encode() + server.body
    waiting = [loop.create_future() for _ in range(connections)]
    for done in waiting:
        await loop.create_connection(lambda done=done: Caller(request, began + seconds, times, failures, done), "127.0.0.1", server.port)
    await asyncio.gather(*waiting)
    p50, p99 = (float(value) * 1e6 for value in np.percentile(times, (50, 99)))
    return {"rate": len(times) / (time.perf_counter() - began), "requests": len(times), "failed": len(failures), "p50_us": p50, "p99_us": p99}


def load_by_uvloop(server: Server, connections: int, seconds: float) -> dict[str, float]:
    """The same by a client of this file, on the second core."""
    import uvloop

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {1})
    try:
        return uvloop.run(_load(server, connections, seconds))
    finally:
        os.sched_setaffinity(0, before)


def measured(names: list[str], rounds: int, seconds: float, load) -> tuple[dict[str, dict[str, list]], dict[str, str]]:
    """Per server and number of connections what each round gave, and why servers are missing."""
    bundle = FOLDER / "bundle"
    row = make_bundle(bundle)
    servers, failed = {}, {}
    answer = b'{"probability": 0.5}'
    for name in names:
        try:
            servers[name] = Server(name, bundle, row, answer)
            answer = servers[name].answer if name == OURS else answer
            servers[name].pause()
            print(f"{name}: {servers[name].answer[:100].decode()}", file=sys.stderr)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            failed[name] = str(error)
    lines = {name: {str(connections): [] for connections in CONNECTIONS} for name in servers}
    try:
        for turn in range(rounds + 1):
            for connections in CONNECTIONS:
                for name, server in servers.items():
                    server.resume()
                    time.sleep(0.2) # what gathered while it was held
                    before = server.cpu_seconds()
                    told = load(server, connections, seconds if turn else 1)
                    told["cpu_us"] = (server.cpu_seconds() - before) / max(1, told["requests"]) * 1e6
                    server.pause()
                    if turn: # the first turn warms up
                        lines[name][str(connections)].append(told)
    finally:
        for server in servers.values():
            server.close()
    return lines, failed


# Where the time goes: parts of the server are asked alone, in a process of their own, with the row of the benchmark.


WHERE = """
import json, statistics, sys, tempfile, time
from pathlib import Path

import msgspec
from prodml.serve.app import Prediction, encode
from prodml.serve.log import Chain, Index, Policy, LogSettings
from prodml.serve.log_format import CODES, Record, id_key
from prodml.serve.models import Models, Opening
from prodml.serve.observe import Metrics

served = Models(Opening(unsigned=True)).load(sys.argv[1])
body = Path(sys.argv[2]).read_bytes()
row = served.read(body)
numbers, codes, _ = served.packed_read(row, 0)
metrics, told = Metrics(), Prediction("0" * 24, served.name, served.version, 0.5, True, served.labels(0.5), [])
records = [Record(f"{place:024x}", place, served.name, served.version, "predict", "anyone", row, 0.5, [], None, served.digest) for place in range(750)]
policy, folder = Policy(LogSettings(), None), tempfile.TemporaryDirectory()
chain = Chain(Path(folder.name) / "worker-00")
index = Index(chain.folder)


def count():
    metrics.stage("features", 1e-5), metrics.stage("predict", 1e-3), metrics.prediction(served.version, 0.5), metrics.request("/v1/predict", 200, 1e-3)


def entries():
    return [(CODES["prediction"], record.at_us, id_key(record.id), policy.content(record)) for record in records]


places = chain.write(entries())
parts = {
    "read and check the row": (lambda: served.read(body), 1), "pack it": (lambda: served.packed_read(row, 0), 1), "the network, 64 rows a call": (lambda: served.predict(*served.pack.arrays(numbers * 64, codes * 64)).tolist(), 64),
    "write the answer": (lambda: encode(told), 1), "count": (count, 1), "log: encode and find a key": (entries, 750), "log: chain and write": (lambda: chain.write(made), 750), "log: index": (lambda: index.add(places, 1, 1), 750),
}
made, found = entries(), {}
for name, (part, requests) in parts.items():
    times, repeats = [], max(1, 2000 // requests)
    for _ in range(9):
        began = time.process_time_ns()
        for _ in range(repeats):
            part()
        times.append((time.process_time_ns() - began) / repeats / requests / 1000)
    found[name] = statistics.median(times)
print(json.dumps(found))
index.close(), chain.close()
"""


def where(load) -> dict[str, Any]:
    """Processor time of a request in µs: the whole at 64 connections, and its parts; the rest is HTTP, the loop and the kernel."""
    bundle = FOLDER / "bundle"
    row = make_bundle(bundle)
    (FOLDER / "where.py").write_text(WHERE)
    (FOLDER / "row.json").write_bytes(body_for(OURS, row)[1])
    told = subprocess.run([sys.executable, str(FOLDER / "where.py"), str(bundle), str(FOLDER / "row.json")], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=lambda: os.sched_setaffinity(0, {0})).stdout
    whole = {}
    for name in (OURS, CONSTANT):
        server = Server(name, bundle, row, b'{"probability": 0.5}')
        try:
            load(server, 64, 2)
            whole[name] = median([_cpu_us(server, load) for _ in range(5)])
        finally:
            server.close()
    parts = json.loads(told)
    return {"whole": whole, "parts": parts | {"HTTP, the loop and the kernel (the rest)": whole[OURS] - sum(parts.values())}}


def _cpu_us(server: Server, load) -> float:
    before = server.cpu_seconds()
    requests = load(server, 64, 3)["requests"]
    return (server.cpu_seconds() - before) / requests * 1e6


def show_where(record: dict[str, Any]) -> None:
    """Print the parts."""
    for name, microseconds in record["parts"].items():
        print(f"{name:45}{microseconds:7.1f} µs")
    print(f"{OURS:45}{record['whole'][OURS]:7.1f} µs\n{CONSTANT:45}{record['whole'][CONSTANT]:7.1f} µs")


# What came out.


def median(values: list[float]) -> float:
    """The middle one."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def clauses(lines: dict[str, dict[str, list]]) -> list[dict[str, Any]]:
    """Each figure to reach: what was measured, by the clock and by processor time, what is wanted, and whether it is met by the clock."""
    made = []

    def ratio(connections: str, others: list[str], wanted: float, name: str) -> None:
        ours = lines[OURS][connections]
        best = [max((lines[other][connections][turn] for other in others), key=lambda told: told["rate"]) for turn in range(len(ours))]
        by_clock = median([own["rate"] / other["rate"] for own, other in zip(ours, best)])
        by_cpu = median([other["cpu_us"] / own["cpu_us"] for own, other in zip(ours, best)])
        made.append({"name": f"{name} at {connections}", "measured": round(by_clock, 3), "by_processor_time": round(by_cpu, 3), "wanted": wanted, "met": by_clock >= wanted})
        if others != [CONSTANT]:
            own, theirs = (median([told["p99_us"] for told in side]) for side in (ours, best))
            made.append({"name": f"p99 below theirs, {name} at {connections}", "measured": round(own), "wanted": round(theirs), "met": own < theirs})

    for connections in ("16", "64"):
        if TUTORIAL in lines:
            ratio(connections, [TUTORIAL], WANTED["over FastAPI"], "requests/s over FastAPI")
        if others := [name for name in HEAVY if name in lines]:
            ratio(connections, others, WANTED["over the best of the others"], f"requests/s over the best of {', '.join(others)}")
        if CONSTANT in lines:
            ratio(connections, [CONSTANT], WANTED["of the constant"], "share of the constant")
            made[-1]["aim"], made[-1]["aim_met"] = AIM_CONSTANT, made[-1]["measured"] >= AIM_CONSTANT
    made.append({"name": "failed requests", "measured": sum(told["failed"] for rounds in lines[OURS].values() for told in rounds), "wanted": 0, "met": all(not told["failed"] for rounds in lines[OURS].values() for told in rounds)})
    return made


def draw(lines: dict[str, dict[str, list]], path: Path) -> None:
    """Requests a second by connections, a line a server."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from prodml.core.files import written

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, rounds in sorted(lines.items(), key=lambda item: -median([told["rate"] for told in item[1]["64"]])):
        rates = [median([told["rate"] for told in rounds[str(connections)]]) for connections in CONNECTIONS]
        axis.plot(CONNECTIONS, rates, "o-", color="tab:blue" if name == OURS else "tab:orange" if name == CONSTANT else "grey", linewidth=2 if name == OURS else 1)
        axis.annotate(name, (CONNECTIONS[-1], rates[-1]), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9, fontweight="bold" if name == OURS else None)
    axis.set(xscale="log", yscale="log", xlabel="connections", ylabel="requests/s on one core", xticks=CONNECTIONS, xlim=(0.9, 220))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    with written(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def show(record: dict[str, Any]) -> None:
    """Print the table, and each figure to reach with its verdict."""
    print(f"\n{record['device']['cpu']}, load {record['device']['load_1_min']}; {record['rounds']} rounds of {record['seconds']:g} s, load by {record['load']}")
    print(f"{'':16}{'connections':>12}{'requests/s':>12}{'p50 µs':>10}{'p99 µs':>10}{'CPU µs':>9}")
    for name, rounds in record["servers"].items():
        for connections, told in rounds.items():
            middle = {key: median([one[key] for one in told]) for key in ("rate", "p50_us", "p99_us", "cpu_us")}
            print(f"{name:16}{connections:>12}{middle['rate']:>12,.0f}{middle['p50_us']:>10,.0f}{middle['p99_us']:>10,.0f}{middle['cpu_us']:>9,.1f}")
    for name, reason in record["failed"].items():
        print(f"{name:16} failed: {reason}")
    print()
    for clause in record["clauses"]:
        more = f", by processor time {clause['by_processor_time']:g}" if "by_processor_time" in clause else ""
        aim = f" (aim {clause['aim']:g}: {'met' if clause['aim_met'] else 'not met'})" if "aim" in clause else ""
        print(f"  {'met    ' if clause['met'] else 'NOT MET'} {clause['name']}: {clause['measured']:,g}{more}, wanted {clause['wanted']:,g}{aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="times that every server gets its turn")
    parser.add_argument("--seconds", type=int, default=5, help="of each turn")
    parser.add_argument("--only", nargs="*", default=[], help=f"some of {', '.join(PEERS)}; nothing is written then")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw and print the last record")
    parser.add_argument("--where", action="store_true", help="tell where the time of a request goes")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    from prodml.core.files import read_json, write_json
    from prodml.core.records import results_path

    path = results_path("serve_where.json" if given.where else "serve.json", given.write, ROOT)
    if given.redraw:
        record = read_json(path)
        draw(record["servers"], path.with_suffix(".png"))
        return show(record)
    from prodml.model.measure import device_facts

    by_wrk = shutil.which("wrk") is not None
    if given.where:
        record = {"device": device_facts(threads=1)} | where(load_by_wrk if by_wrk else load_by_uvloop)
        write_json(path, record)
        return show_where(record)
    device = device_facts(threads=1)
    lines, failed = measured([OURS, CONSTANT, *(given.only or PEERS)], given.rounds, given.seconds, load_by_wrk if by_wrk else load_by_uvloop)
    record = {
        "device": device, "rounds": given.rounds, "seconds": given.seconds, "load": "wrk" if by_wrk else "the client of bench/serve.py, on uvloop", "packages": PEERS,
        "servers": lines, "failed": failed, "clauses": clauses(lines),
    }
    if not given.only:
        write_json(path, record)
        draw(lines, path.with_suffix(".png"))
    show(record)


if __name__ == "__main__":
    main()
