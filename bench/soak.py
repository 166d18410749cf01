"""Minutes of load on `prodml serve` while everything changes: reloads, canaries, a promotion, rollbacks. Nothing may fail, and memory may not grow.

A registry has a champion and challengers; the server is a process of its own, with contract, log and metrics on, on the
first core. wrk, or the client of bench/serve.py, finds the most requests a second in a burst. Then a client on the
second core sends 70% of it, in an open loop: requests leave when they are due, whatever became of those before, and a
latency counts from when it was due. Each has a routing key of its own. Meanwhile, as other processes:

- every 30 s the link of a further bundle is turned and the server told so (SIGHUP): it opens the bundle, and lets the one before go;
- `prodml rollout start` begins a canary as good as the champion, which goes through its steps and is promoted;
- a second one answers with other probabilities, and has to be rolled back by the server itself;
- a third one is taken back by hand, `prodml rollout rollback`;
- labels come for a part of the answers, through /v1/feedback.

How soon a rollback takes effect is the time from the event in the registry's history to the last answer that the version
rolled back gave to a client. Resident memory is that of /proc, every 5 s; after a warm-up of a fifth of the time it is
held to the median of the fifth that follows. Written to build/bench/soak.json and soak.png.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from array import array
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from serve import free_port, load_by_uvloop, load_by_wrk, make_bundle  # noqa: E402

from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest  # noqa: E402
from prodml.bundle.sign import new_key, private_key, signature_of  # noqa: E402
from prodml.core.files import read_json, write_json, written  # noqa: E402
from prodml.core.records import results_path  # noqa: E402
from prodml.serve.registry import Registry  # noqa: E402

FOLDER = ROOT / "build" / "bench" / "soak"
MODEL, CONNECTIONS, SHARE = "bench", 64, 0.7
RELOAD_SECONDS, MEMORY_SECONDS = 30.0, 5.0
ROWS, LABELLED = 2_000, 50 # rows that take turns; every 50th answer gets a label
MOST_GROWTH, MOST_ROLLBACK_SECONDS = 0.05, 1.0


# What is served.


def signed(folder: Path, key: Path) -> Path:
    """The bundle with a manifest of what is in it now, and a signature."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_manifest(folder, {"code": "0" * 64})
    (folder / SIGNATURE).write_bytes(signature_of((folder / MANIFEST).read_bytes(), private_key(key)))
    return folder


def variant(bundle: Path, folder: Path, key: Path, threshold: float, shift: float = 0.0) -> Path:
    """The bundle under another threshold; with a shift its logits lie higher, as those of a model that was trained on the wrong labels."""
    import onnx
    from onnx import numpy_helper

    shutil.copytree(bundle, folder)
    write_json(folder / "thresholds.json", {"dense": threshold})
    if shift:
        graph = onnx.load(folder / "dense.onnx")
        last = [one for one in graph.graph.initializer if numpy_helper.to_array(one).shape == (1,) and one.data_type == onnx.TensorProto.FLOAT][-1]
        last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + np.float32(shift), last.name))
        (folder / "dense.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    return signed(folder, key)


def prepare() -> tuple[Registry, list[Path], list[dict[str, Any]]]:
    """A registry of a champion, v1.0.0, and three challengers; two further bundles that take turns; the rows."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    row, public = make_bundle(FOLDER / "bundle"), new_key(FOLDER / "key")
    made = {"v1.0.0": (0.5, 0.0), "v1.0.1": (0.51, 0.0), "v1.0.2": (0.52, 1.5), "v1.0.3": (0.53, 0.0)}
    registry = Registry(FOLDER / "registry", trusted=[public])
    for version, (threshold, shift) in made.items():
        registry.register(variant(FOLDER / "bundle", FOLDER / version, FOLDER / "key", threshold, shift), "soak", "Made for this run.", version)
    registry.assign(MODEL, "champion", "v1.0.0", "soak", "The first one.")
    further = [variant(FOLDER / "bundle", FOLDER / f"further{number}", FOLDER / "key", 0.6 + number / 10) for number in range(2)]
    (FOLDER / "current").symlink_to(further[0])
    draw = np.random.default_rng(1)
    rows = [{name: round(float(draw.normal()), 3) if isinstance(value, float) else f"w{draw.integers(20)}" for name, value in row.items()} for _ in range(ROWS)]
    return registry, further, rows


SETTINGS = """
[server]
registry = "{folder}/registry"
port = {port}

[models]
trusted = ["{folder}/key.pub"]

[log]
folder = "{folder}/log"
"""
# Steps of seconds, so that all of it fits in here.
PLANS = {
    "promoted": "[rollout]\nsteps = [{{shadow = true, min_seconds = {step}}}, {{weight = 0.05, min_seconds = {step}}}, {{weight = 0.25, min_seconds = {step}}}, {{weight = 0.5, min_seconds = {step}}}]\n",
    "watched": "[rollout]\nsteps = [{{weight = 0.25, min_seconds = 3600}}]\n",
}


class Server:
    """`prodml serve` in a process on the first core."""

    path = "/v1/predict"

    def __init__(self, row: dict[str, Any]):
        self.port, self.body, self.said = free_port(), json.dumps(row, separators=(",", ":")).encode(), FOLDER / "server.out"
        (FOLDER / "serve.toml").write_text(SETTINGS.format(folder=FOLDER, port=self.port))
        command = [sys.executable, "-m", "prodml.cli", "serve", str(FOLDER / "current"), "--settings", str(FOLDER / "serve.toml")]
        with self.said.open("w") as stream:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
        end = time.monotonic() + 60
        while "answers on" not in self.said.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self.said.read_text()}")
            time.sleep(0.05)

    def resident_mb(self) -> float:
        """What /proc says is in memory of it."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def asked(self, path: str, body: Any = None) -> Any:
        """What it answers."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}), timeout=20) as answer:
            return json.load(answer)

    def stop(self) -> int:
        """How it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


# The load.


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: "Load"):
        import httptools

        self.load, self.parser, self.body, self.due = load, httptools.HttpResponseParser(self), b"", None

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.load.is_free(self)

    def send(self, due: float, request: bytes) -> None:
        self.due, self.body = due, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        due, self.due = self.due, None
        self.load.answered(due, self.parser.get_status_code(), self.body)
        if self.parser.should_keep_alive():
            self.load.is_free(self)
        else:
            self.transport.close()

    def connection_lost(self, error) -> None:
        self.load.lost(self, error)


class Second:
    """What came of the requests that were answered in one second."""

    def __init__(self):
        self.latencies, self.versions = array("d"), Counter()


class Load:
    """Requests that leave when they are due, and what came of them."""

    def __init__(self, port: int, rows: list[dict[str, Any]], rate: float):
        self.port, self.rate, self.began = port, rate, 0.0
        bodies = [json.dumps(row, separators=(",", ":")).encode() for row in rows]
        header = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nX-Routing-Key: %d\r\nContent-Length: "
        self.requests = [f"{header}{len(body)}\r\n\r\n".encode() + body.replace(b"%", b"%%") for body in bodies]
        self.free: deque[Connection] = deque()
        self.waiting: deque[float] = deque() # when they were due, for want of a connection
        self.called = self.sent = 0
        self.failures: list[Any] = []
        self.resets: list[Any] = []
        self.seconds = [Second()]
        self.last: dict[str, float] = {} # of each version, when its last answer came
        self.ids: deque[str] = deque(maxlen=5_000) # of answers whose label comes later
        self.stopping = False

    def now(self) -> float:
        """Seconds since it began."""
        return time.time() - self.began

    def is_free(self, connection: Connection) -> None:
        if self.waiting:
            self.send(connection)
        else:
            self.free.append(connection)

    def send(self, connection: Connection) -> None:
        request = self.requests[self.sent % len(self.requests)] % self.sent
        self.sent += 1
        connection.send(self.waiting.popleft(), request)

    def answered(self, due: float, status: int, body: bytes) -> None:
        now = self.now()
        while len(self.seconds) <= now:
            self.seconds.append(Second())
        second = self.seconds[-1]
        second.latencies.append(now - due)
        if status != 200:
            self.failures.append([round(now, 3), status, body[:300].decode("utf-8", "replace")])
            return
        version = re.search(rb'"version":"([^"]+)"', body)[1].decode()
        second.versions[version] += 1
        self.last[version] = now
        if len(second.latencies) % LABELLED == 0:
            self.ids.append(re.search(rb'"id":"([^"]+)"', body)[1].decode())

    def lost(self, connection: Connection, error: Exception | None) -> None:
        if self.stopping:
            return
        if connection.due is not None or error is not None:
            self.resets.append([round(self.now(), 3), repr(error), "answer awaited" if connection.due is not None else "idle"])
        if connection in self.free:
            self.free.remove(connection)
        asyncio.ensure_future(self.connect())

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: Connection(self), "127.0.0.1", self.port)

    async def run(self, seconds: float) -> None:
        """Send for so long, and wait for what is still to come."""
        for _ in range(CONNECTIONS):
            await self.connect()
        self.began = time.time()
        while (now := self.now()) < seconds:
            while self.called < now * self.rate:
                self.waiting.append(self.called / self.rate)
                self.called += 1
            while self.waiting and self.free:
                self.send(self.free.popleft())
            await asyncio.sleep(0.001)
        while len(self.free) < CONNECTIONS and self.now() < seconds + 10:
            await asyncio.sleep(0.01)
        self.stopping = True
        for connection in list(self.free):
            connection.transport.close()
        await asyncio.sleep(0.1)


# What changes meanwhile, each in a thread that sleeps most of the time.


class Changes:
    """Reloads, canaries, labels and a look at the memory, until the load ends; what happened when."""

    def __init__(self, server: Server, load: Load, registry: Registry, further: list[Path], seconds: float):
        self.server, self.load, self.registry, self.further, self.seconds = server, load, registry, further, seconds
        self.memory: list[list[float]] = []
        self.story: list[list[Any]] = [] # second, what
        self.rollbacks: list[dict[str, Any]] = []
        self.reloads = self.labels = 0
        self.troubles: list[str] = []
        self._threads = [threading.Thread(target=self._careful, args=(act,), daemon=True) for act in (self._watch_memory, self._reload, self._roll_out, self._label)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)

    def _careful(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error: # it belongs in the record
            self.troubles.append(f"{act.__name__.strip('_')}: {type(error).__name__}: {error}")

    @property
    def over(self) -> bool:
        return self.load.now() >= self.seconds

    def _happened(self, what: str) -> None:
        self.story.append([round(self.load.now(), 2), what])
        print(f"{self.load.now():7.1f} s  {what}", file=sys.stderr)

    def _watch_memory(self) -> None:
        while not self.over:
            self.memory.append([round(self.load.now(), 1), round(self.server.resident_mb(), 2)])
            time.sleep(MEMORY_SECONDS)

    def _reload(self) -> None:
        from prodml.serve.models import version_of

        pause = min(RELOAD_SECONDS, self.seconds / 6)
        while self.load.now() + pause + 10 < self.seconds:
            time.sleep(pause)
            folder = self.further[(self.reloads + 1) % 2]
            (FOLDER / "next").symlink_to(folder)
            (FOLDER / "next").replace(FOLDER / "current")
            self.server.process.send_signal(signal.SIGHUP)
            self._until(lambda: version_of(folder) in self.server.asked("/v1/model")["versions"], f"the reload of {folder.name}", 10)
            self.server.asked(f"/v1/predict?version={version_of(folder)}", json.loads(self.server.body))
            self.reloads += 1

    def _label(self) -> None:
        draw = np.random.default_rng(3)
        while not self.over:
            time.sleep(1)
            labels = [{"id": self.load.ids.popleft(), "label": int(draw.random() < 0.5)} for _ in range(len(self.load.ids))]
            if labels:
                told = self.server.asked("/v1/feedback", labels)
                self.labels += told["accepted"]
                if told["unknown"]:
                    raise RuntimeError(f"{len(told['unknown'])} answers are not in the log")

    def _until(self, condition: Callable[[], Any], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.over:
                raise RuntimeError(f"{what} did not come about in time")
            time.sleep(0.2)

    def _command(self, action: str, what: str, plan: str, why: str) -> None:
        """`prodml rollout` as someone at a keyboard runs it; it yields to the load."""
        command = [sys.executable, "-m", "prodml.cli", "rollout", action, what, "--registry", str(self.registry.folder), "--trusted", str(FOLDER / "key.pub"), "--settings", str(FOLDER / f"{plan}.toml"), "--who", "soak", "--why", why]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: os.nice(10))
        if done.returncode:
            raise RuntimeError(f"prodml rollout {action} {what}: {done.stderr}")

    def _roll_out(self) -> None:
        time.sleep(0.1 * self.seconds)
        self._start("v1.0.1", "promoted")
        self._ended("v1.0.1", "promote", 0.4 * self.seconds)
        self._start("v1.0.2", "watched")
        self._ended("v1.0.2", "rollback", 0.3 * self.seconds)
        while self.load.now() + 15 < self.seconds:
            self._start("v1.0.3", "watched")
            self._until(lambda: self.load.seconds[-1].versions["v1.0.3"], "an answer of v1.0.3", 10)
            time.sleep(3)
            self._command("rollback", f"{MODEL}@v1.0.3", "watched", "By hand.")
            self._ended("v1.0.3", "rollback", 10)
            time.sleep(max(0.0, min(20, self.seconds - self.load.now() - 30)))

    def _start(self, version: str, plan: str) -> None:
        self._command("start", f"{MODEL}@{version}", plan, "A canary.")
        self._happened(f"canary {version} started")

    def _ended(self, version: str, action: str, seconds: float) -> None:
        """Wait for the end of a rollout; after a rollback, see when the version answered last."""
        find = lambda: next((event for event in reversed(self.registry.events(MODEL)) if event.action in ("promote", "rollback", "start")), None)
        self._until(lambda: find().action != "start", f"the end of {version}", seconds)
        event = find()
        self._happened(f"{event.action} of {event.version}: {event.why}")
        if (event.action, event.version) != (action, version):
            raise RuntimeError(f"{action} of {version} was expected")
        if action == "rollback":
            time.sleep(2)
            at = event.at_us / 1e6 - self.load.began
            self.rollbacks.append({"version": version, "by": event.who, "at": round(at, 3), "seconds": round(max(0.0, self.load.last.get(version, 0.0) - at), 3)})


# What came out.


def growth(memory: list[list[float]], seconds: float) -> float:
    """By how much the memory rose, at most, above the median of the second fifth of the time."""
    base = [mb for at, mb in memory if 0.2 * seconds <= at < 0.4 * seconds]
    return max(mb for at, mb in memory if at >= 0.4 * seconds) / float(np.median(base)) - 1


def logged_answers() -> int:
    """Answers in the log, those of shadows as well."""
    from prodml.serve.log import read_frames
    from prodml.serve.log_format import chain_folders, segment_paths

    return sum(frame.kind == "prediction" for chain in chain_folders(FOLDER / "log") for path in segment_paths(chain) for frame in read_frames(path))


def record_of(load: Load, changes: Changes, most: float, stopped: int, seconds: float) -> dict[str, Any]:
    """All of it, and each figure to reach with its verdict."""
    latencies = np.concatenate([np.asarray(second.latencies) for second in load.seconds])
    answers = sum((second.versions for second in load.seconds), Counter())
    p50, p99, p999 = (round(float(value) * 1e6) for value in np.percentile(latencies, (50, 99, 99.9)))
    acts = [what.split(":")[0] for _, what in changes.story]
    slowest, rise, logged = max((one["seconds"] for one in changes.rollbacks), default=None), round(growth(changes.memory, seconds), 4), logged_answers()

    def clause(name: str, measured: Any, wanted: Any, met: bool) -> dict[str, Any]:
        return {"name": name, "measured": measured, "wanted": wanted, "met": bool(met)}

    lost = load.called - len(latencies)
    clauses = [
        clause("failed requests", len(load.failures), 0, not load.failures), clause("requests without an answer", lost, 0, not lost), clause("connections reset", len(load.resets), 0, not load.resets),
        clause("answers that are not in the log", max(0, sum(answers.values()) - logged), 0, sum(answers.values()) <= logged),
        clause("slowest rollback, s", slowest, MOST_ROLLBACK_SECONDS, slowest is not None and slowest < MOST_ROLLBACK_SECONDS),
        clause("rise of resident memory", rise, MOST_GROWTH, rise <= MOST_GROWTH),
        clause("promoted by proof", acts.count("promote of v1.0.1"), 1, acts.count("promote of v1.0.1") == 1),
        clause("rolled back by itself", sum(one["by"] != "soak" for one in changes.rollbacks), 1, any(one["by"] != "soak" for one in changes.rollbacks)),
        clause("trouble in between", len(changes.troubles), 0, not changes.troubles), clause("exit status", stopped, 0, stopped == 0),
    ]
    return {
        "seconds": seconds, "most_per_s": round(most), "asked_per_s": round(load.rate), "connections": CONNECTIONS, "requests": load.called, "answers": dict(sorted(answers.items())), "labels": changes.labels, "reloads": changes.reloads,
        "p50_us": p50, "p99_us": p99, "p999_us": p999, "rollbacks": changes.rollbacks, "story": changes.story, "failures": load.failures[:50], "resets": load.resets[:50], "troubles": changes.troubles,
        "memory_mb": changes.memory, "clauses": clauses,
        "by_second": {
            "p50_us": [round(float(np.median(second.latencies)) * 1e6) if second.latencies else None for second in load.seconds], "p99_us": [round(float(np.percentile(second.latencies, 99)) * 1e6) if second.latencies else None for second in load.seconds],
            "answers": {version: [second.versions[version] for second in load.seconds] for version in sorted(answers)},
        },
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Who answered, how fast, and how much memory it took, over time."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    who, fast, memory = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    told, colours = record["by_second"], {"v1.0.0": "tab:blue", "v1.0.1": "tab:cyan", "v1.0.2": "tab:red", "v1.0.3": "tab:orange"}
    # The last second is not a whole one.
    seconds = range(int(record["seconds"]))
    who.stackplot(seconds, *(values[:len(seconds)] for values in told["answers"].values()), labels=list(told["answers"]), colors=[colours[version] for version in told["answers"]], linewidth=0)
    who.set(ylabel="answers/s", ylim=(0, None))
    who.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, title=None)
    for name, colour in (("p50_us", "tab:blue"), ("p99_us", "tab:grey")):
        values = np.array([np.nan if value is None else value for value in told[name]][:len(seconds)]) / 1e3
        fast.plot(seconds, values, color=colour, linewidth=1)
        fast.annotate(name[:3], (len(seconds) - 1, float(np.nanmedian(values[-30:]))), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    fast.set(ylabel="latency, ms", yscale="log")
    fast.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    fast.yaxis.set_minor_formatter(NullFormatter())
    at, megabytes = zip(*record["memory_mb"])
    base = float(np.median([mb for second, mb in record["memory_mb"] if 0.2 * record["seconds"] <= second < 0.4 * record["seconds"]]))
    memory.axhspan(base, base * (1 + MOST_GROWTH), color="tab:green", alpha=0.15, linewidth=0)
    memory.plot(at, megabytes, color="tab:blue", linewidth=1.5)
    memory.set(ylabel="resident, MB", xlabel="seconds", ylim=(0, max(megabytes) * 1.15), xlim=(0, len(seconds) * 1.04))
    for axis in (who, fast, memory):
        axis.spines[["top", "right"]].set_visible(False)
        for one in record["rollbacks"]:
            axis.axvline(one["at"], color="black", linewidth=0.6, linestyle=":")
    with written(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def show(record: dict[str, Any]) -> None:
    """Print what happened, and each figure to reach with its verdict."""
    print(f"\n{record['requests']:,} requests in {record['seconds']:,.0f} s, {record['asked_per_s']:,} a second, {record['asked_per_s'] / record['most_per_s']:.0%} of {record['most_per_s']:,}; {record['connections']} connections, {record['reloads']} reloads, {record['labels']:,} labels")
    print(f"latency from when a request was due: p50 {record['p50_us'] / 1e3:,.2f} ms, p99 {record['p99_us'] / 1e3:,.2f} ms, p99.9 {record['p999_us'] / 1e3:,.2f} ms; answers: {', '.join(f'{version} {count:,}' for version, count in record['answers'].items())}\n")
    for clause in record["clauses"]:
        print(f"  {'met    ' if clause['met'] else 'NOT MET'} {clause['name']}: {clause['measured']}, wanted {clause['wanted']}")
    for name in ("troubles", "failures", "resets"):
        for one in record[name][:5]:
            print(f"  {name}: {one}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of load (default: 10, which --write asks for)")
    parser.add_argument("--rate", type=float, help="requests a second, instead of 70%% of the most")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw and print the last record")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    if given.write and given.minutes < 10:
        parser.error("a soak of less than 10 minutes is not worth a record: leave --write out, or give --minutes 10 or more")
    path = results_path("soak.json", given.write, ROOT)
    if given.redraw:
        record = read_json(path)
        draw(record, path.with_suffix(".png"))
        return show(record)
    import uvloop

    from prodml.model.measure import device_facts

    device, seconds = device_facts(threads=1), 60 * given.minutes
    registry, further, rows = prepare()
    for name, plan in PLANS.items():
        (FOLDER / f"{name}.toml").write_text(plan.format(step=round(seconds / 40, 1)))
    server = Server(rows[0])
    try:
        burst = load_by_wrk if shutil.which("wrk") else load_by_uvloop
        burst(server, CONNECTIONS, 2) # warms up
        most = burst(server, CONNECTIONS, 5)["rate"]
        load = Load(server.port, rows, given.rate or SHARE * most)
        changes = Changes(server, load, registry, further, seconds)
        os.sched_setaffinity(0, {1})
        load.began = time.time()
        changes.start()
        uvloop.run(load.run(seconds))
        changes.join()
        stopped = server.stop()
    finally:
        server.process.kill()
        registry.store.close()
    record = {"device": device} | record_of(load, changes, most, stopped, seconds)
    write_json(path, record)
    draw(record, path.with_suffix(".png"))
    show(record)
    if not all(clause["met"] for clause in record["clauses"]):
        print(f"\nThe server said (the end of {server.said}):\n{server.said.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
