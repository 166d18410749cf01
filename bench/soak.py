"""Minutes of steady load on `prodml serve` while it is reloaded, a canary goes through, and two others are taken back.

The server is a process on one core, with contract, prediction log, metrics, registry and rollout on. The load comes from
the other core, at 70% of the most that the same client gets out of the server: requests are due at fixed times, whether
or not the server is slow, and latency counts from when a request was due. Of each hundred answers one gets its label by
/v1/feedback. Meanwhile:

- every 30 seconds the link to the bundle is turned to another one and the server gets SIGHUP;
- `prodml rollout start` brings v1.1.0, the same network in another bundle, which goes through its steps and is promoted;
- v1.2.0, whose logits are shifted by 2, is started, and must be rolled back by the server itself;
- v1.3.0 is started and rolled back by hand, and the time is taken until no answer comes from it.

Wanted: no request fails, no connection is reset, resident memory is flat within 5% (the median of the last fifth against
that of the second fifth, the first being warm-up), and a rollback takes effect in less than a second. Written to
bench/results/soak.json and soak.png.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench" / "soak"
RESULTS = ROOT / "bench" / "results"
SHARE = 0.7  # of the maximum
CONNECTIONS, KEYS, LABELLED = 32, 2_000, 100
WANTED = {"failed requests": 0, "broken connections": 0, "memory, last fifth over second fifth": 1.05, "seconds until a rollback by hand took effect": 1.0}


# The bundles.


def make_releases() -> dict[str, Path]:
    """The bundle of bench/serve.py and four like it, signed; `shifted` answers otherwise."""
    import onnx
    from serve import make_bundle

    from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest
    from prodml.bundle.sign import new_key, private_key, signature_of
    from prodml.core.files import write_json

    shutil.rmtree(FOLDER, ignore_errors=True)
    row = make_bundle(FOLDER / "first")
    new_key(FOLDER / "key")
    releases = {"first": FOLDER / "first"}
    for number, name in enumerate(("again", "good", "shifted", "taken back"), start=1):
        releases[name] = Path(shutil.copytree(FOLDER / "first", FOLDER / name.replace(" ", "_")))
        write_json(releases[name] / "metrics.json", {"made": number})  # another bundle, with the same answers
    graph = onnx.load(releases["shifted"] / "dense.onnx")
    last = next(node for node in reversed(graph.graph.node) if node.op_type == "Sigmoid")
    graph.graph.initializer.append(onnx.helper.make_tensor("shift", onnx.TensorProto.FLOAT, [1], [2.0]))
    at = list(graph.graph.node).index(last)
    graph.graph.node.insert(at, onnx.helper.make_node("Add", [last.input[0], "shift"], ["shifted"]))
    last.input[0] = "shifted"
    (releases["shifted"] / "dense.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    for folder in releases.values():
        write_manifest(folder, {})
        (folder / SIGNATURE).write_bytes(signature_of((folder / MANIFEST).read_bytes(), private_key(FOLDER / "key")))
    (FOLDER / "row.json").write_text(json.dumps(row))
    return releases


def settings_for(seconds: float, port: int) -> Path:
    """The server's settings; the steps of a rollout take an eighth of the time together."""
    step = seconds / 32
    plan = "".join(f"[[rollout.steps]]\n{kind}\nmin_seconds = {step:.1f}\nmin_observations = 200\n\n" for kind in ("shadow = true", "weight = 0.05", "weight = 0.25", "weight = 0.5"))
    path = FOLDER / "serve.toml"
    # Wide margins: the two versions answer alike, and latency on two shared cores says nothing of them.
    path.write_text(
        f'[server]\nport = {port}\nregistry = "{FOLDER / "registry"}"\n\n[models]\ntrusted = ["{FOLDER / "key.pub"}"]\n\n[log]\nfolder = "{FOLDER / "log"}"\n\n'
        f"[rollout]\nlatency_margin = 0.2\nlatency_tolerated = 3.0\nlatency_effect = 6.0\nerror_margin = 0.02\nloss_margin = 0.1\n\n{plan}"
    )
    return path


def prodml(*words: str) -> str:
    """Run a command of the project on the second core; what it printed."""
    done = subprocess.run([sys.executable, "-m", "prodml.cli", *words], cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {1}), env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise SystemExit(f"prodml {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def rollout(action: str, what: str) -> str:
    """`prodml rollout`, on the registry of the server."""
    return prodml("rollout", action, what, "--registry", str(FOLDER / "registry"), "--trusted", str(FOLDER / "key.pub"), "--settings", str(FOLDER / "serve.toml"), "--why", "soak")


# The load.


class Load:
    """Requests at fixed times over some connections, and what became of them."""

    def __init__(self, port: int, row: dict[str, Any]):
        body = json.dumps(row, separators=(",", ":")).encode()
        self.port, self.loop = port, asyncio.get_running_loop()
        self.requests = itertools.cycle([
            f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-Routing-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for key in range(KEYS)
        ])
        self.idle: list[Connection] = []
        self.open = self.sent = self.answered = self.labelled = self.broken = 0
        self.failures: dict[str, int] = {}
        self.late: list[float] = []  # seconds from when a request was due to its answer, since the last `told`
        self.seen: dict[str, tuple[float, float, int]] = {}  # version -> time of its first and last answer, and how many
        self.draw = random.Random(0)
        self.pace: float | None = None  # requests a second; None asks again as soon as there is an answer
        self.running = True

    async def connect(self, count: int) -> None:
        """Open connections."""
        for _ in range(count):
            await self.loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)

    def closed(self, connection: "Connection", busy: bool) -> None:
        """A connection has gone; one with a request on it is a failure, an idle one is opened anew."""
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if busy:
            self.broken += 1
        if self.running:
            self.loop.create_task(self.connect(1))

    def done(self, connection: "Connection", status: int, body: bytes, due: float, labelling: bool) -> None:
        """Note an answer, and send what follows."""
        now = time.perf_counter()
        if status != 200:
            self.failures[f"{status} {body[:160].decode(errors='replace')}"] = self.failures.get(f"{status} {body[:160].decode(errors='replace')}", 0) + 1
        elif labelling:
            self.labelled += 1
        else:
            self.late.append(now - due)
            self.answered += 1
            version = body[body.index(b'"version":"') + 11 :].split(b'"', 1)[0].decode()
            first, _, count = self.seen.get(version, (time.time(), 0, 0))
            self.seen[version] = first, time.time(), count + 1
            if self.answered % LABELLED == 0:
                told = json.loads(body)
                label = json.dumps({"id": told["id"], "label": int(self.draw.random() < told["probability"])}).encode()
                return connection.send(b"POST /v1/feedback HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(label) + label, now, True)
        if self.pace is None and self.running:
            self.sent += 1
            return connection.send(next(self.requests), now, False)
        self.idle.append(connection)

    async def run(self, seconds: float) -> None:
        """Send for so long, at the pace; a request that finds no idle connection waits for one and is late."""
        began, sent = time.perf_counter(), 0
        if self.pace is None:
            while self.idle:
                self.sent += 1
                self.idle.pop().send(next(self.requests), began, False)
            return await asyncio.sleep(seconds)
        while (now := time.perf_counter()) < began + seconds:
            due = int((now - began) * self.pace)
            while sent < due and self.idle:
                self.idle.pop().send(next(self.requests), began + (sent + 1) / self.pace, False)
                sent += 1
            await asyncio.sleep(0.001)
        self.sent += sent

    async def finish(self) -> None:
        """Wait for the last answers, and close."""
        self.pace, end = 1.0, time.perf_counter() + 10
        while len(self.idle) < self.open and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        self.running = False
        for connection in list(self.idle):
            connection.transport.close()
        await asyncio.sleep(0.05)


class Connection(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self, load: Load):
        import httptools

        self.load, self.busy, self.body = load, False, []
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.load.open += 1
        self.load.idle.append(self)

    def send(self, request: bytes, due: float, labelling: bool) -> None:
        self.busy, self.due, self.labelling, self.body = True, due, labelling, []
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.busy = False
        self.load.done(self, self.parser.get_status_code(), b"".join(self.body), self.due, self.labelling)

    def connection_lost(self, error) -> None:
        self.load.closed(self, self.busy)


# What goes on meanwhile.


class Meanwhile:
    """Reloads, rollouts and looks at the memory, each in a task beside the load."""

    def __init__(self, server: subprocess.Popen, load: Load, seconds: float, releases: dict[str, Path]):
        self.server, self.load, self.seconds, self.releases = server, load, seconds, releases
        self.began, self.events, self.memory, self.rollback_s = time.time(), [], [], None
        self.errors: list[str] = []

    def note(self, what: str) -> None:
        self.events.append({"at_s": round(time.time() - self.began, 2), "what": what})
        print(f"{self.events[-1]['at_s']:7.1f} s  {what}", file=sys.stderr)

    async def command(self, action: str, what: str) -> str:
        """A rollout command in a process of its own."""
        said = await asyncio.get_running_loop().run_in_executor(None, rollout, action, what)
        self.note(f"prodml rollout {action} {what}")
        return said

    async def reloads(self) -> None:
        """Turn the link and send SIGHUP."""
        for name in itertools.cycle(("again", "first")):
            await asyncio.sleep(min(30, self.seconds / 6))
            link = FOLDER / "live.part"
            link.symlink_to(self.releases[name])
            os.replace(link, FOLDER / "live")
            self.server.send_signal(signal.SIGHUP)
            self.note("reload")

    async def looks(self) -> None:
        """Resident memory and latency every five seconds."""
        import numpy as np

        while True:
            before = self.load.answered
            await asyncio.sleep(5)
            resident = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.server.pid}/status").read_text())[1]) / 1024
            late, self.load.late = self.load.late, []
            p50, p99 = (float(value) * 1e3 for value in np.percentile(late, (50, 99))) if late else (0.0, 0.0)
            self.memory.append({"at_s": round(time.time() - self.began, 1), "resident_mb": round(resident, 2), "rate": round((self.load.answered - before) / 5, 1), "p50_ms": round(p50, 3), "p99_ms": round(p99, 3)})

    async def until(self, action: str, version: str, end: float) -> None:
        """Wait until the rollout of this version has ended so; an error if it does not in time."""
        from prodml.serve.registry import Registry

        registry = Registry(FOLDER / "registry", trusted=[FOLDER / "key.pub"])
        try:
            while time.time() - self.began < end:
                ended = [event for event in registry.events("bench") if event.version == version and event.action in ("promoted", "rolled back", "champion", "no challenger", "rollback", "promote")]
                if any(event.action == action for event in ended):
                    event = next(event for event in ended if event.action == action)
                    return self.note(f"{version}: {action} by {event.who}: {event.why[:120]}")
                await asyncio.sleep(0.25)
            self.errors.append(f"{version} had no {action!r} in time: {[(event.action, event.version, event.why) for event in registry.events('bench')][-6:]}")
        finally:
            registry.store.close()

    async def rollouts(self) -> None:
        """One is promoted, one is rolled back by the server, one by hand."""
        await asyncio.sleep(self.seconds * 0.1)
        await self.command("start", "bench@v1.1.0")
        await self.until("champion", "v1.1.0", self.seconds * 0.5)
        await self.command("start", "bench@v1.2.0")
        await self.until("rollback", "v1.2.0", self.seconds * 0.75)
        await self.command("start", "bench@v1.3.0")
        end = time.time() + self.seconds * 0.2
        while "v1.3.0" not in self.load.seen and time.time() < end:
            await asyncio.sleep(0.1)
        if "v1.3.0" not in self.load.seen:
            return self.errors.append("v1.3.0 never answered")
        await asyncio.sleep(2)
        said = await self.command("rollback", "bench")
        at = self._event_time()
        await asyncio.sleep(5)
        self.rollback_s = round(self.load.seen["v1.3.0"][1] - at, 3)
        self.note(f"last answer of v1.3.0 {self.rollback_s:+.3f} s after its rollback was written: {said.splitlines()[0]}")

    def _event_time(self) -> float:
        from prodml.serve.registry import Registry

        registry = Registry(FOLDER / "registry", trusted=[FOLDER / "key.pub"])
        try:
            return registry.events("bench")[-1].at_us / 1e6
        finally:
            registry.store.close()


async def soak(server: subprocess.Popen, port: int, seconds: float, releases: dict[str, Path]) -> dict[str, Any]:
    """The whole run."""
    load = Load(port, json.loads((FOLDER / "row.json").read_text()))
    await load.connect(CONNECTIONS)
    await load.run(2)  # warm
    before = load.answered
    await load.run(5)
    most = (load.answered - before) / 5
    load.pace = SHARE * most
    while len(load.idle) < load.open:
        await asyncio.sleep(0.01)
    load.late, load.sent, load.answered = [], 0, 0
    print(f"at most {most:,.0f} requests/s; {load.pace:,.0f} from here on", file=sys.stderr)
    meanwhile = Meanwhile(server, load, seconds, releases)
    tasks = [asyncio.ensure_future(task) for task in (meanwhile.reloads(), meanwhile.looks(), meanwhile.rollouts())]
    await load.run(seconds)
    await load.finish()
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            meanwhile.errors.append(repr(ended))
    if meanwhile.rollback_s is None:
        meanwhile.errors.append("the rollback by hand was not reached")
    return {
        "most_per_s": round(most), "pace_per_s": round(SHARE * most), "sent": load.sent, "answered": load.answered, "labels": load.labelled, "failures": load.failures, "broken": load.broken,
        "versions": {version: count for version, (_, _, count) in sorted(load.seen.items())}, "rollback_s": meanwhile.rollback_s, "events": meanwhile.events, "looks": meanwhile.memory, "errors": meanwhile.errors,
    }


# What came out.


def middle(values: list[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]


def clauses(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure to reach, what was measured, and whether it is met."""
    resident = [look["resident_mb"] for look in record["looks"]]
    fifth = max(1, len(resident) // 5)
    measured = {
        "failed requests": max(sum(record["failures"].values()), record["sent"] - record["answered"]), "broken connections": record["broken"],
        "memory, last fifth over second fifth": round(middle(resident[-fifth:]) / middle(resident[fifth : 2 * fifth]), 4), "seconds until a rollback by hand took effect": record["rollback_s"],
    }
    return [{"name": name, "measured": measured[name], "wanted": wanted, "met": measured[name] is not None and measured[name] <= wanted} for name, wanted in WANTED.items()] + [
        {"name": "promoted, rolled back by itself, rolled back by hand", "measured": record["errors"], "wanted": [], "met": not record["errors"]}
    ]


def draw(record: dict[str, Any], path: Path) -> None:
    """Memory, latency and events over time."""
    from matplotlib.figure import Figure

    from prodml.core.files import written

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    times = [look["at_s"] for look in record["looks"]]
    upper.plot(times, [look["resident_mb"] for look in record["looks"]], color="tab:blue")
    upper.set(ylabel="resident, MB", ylim=(0, None))
    lower.plot(times, [look["p99_ms"] for look in record["looks"]], color="tab:blue", label="p99")
    lower.plot(times, [look["p50_ms"] for look in record["looks"]], color="tab:grey", label="p50")
    lower.set(ylabel="ms since due", xlabel="seconds", yscale="log")
    lower.legend(frameon=False, loc="upper left")
    for event in record["events"]:
        reload = event["what"] == "reload"
        for axis in (upper, lower):
            axis.axvline(event["at_s"], color="lightgrey" if reload else "tab:orange", linewidth=1, zorder=0)
        if not reload:
            upper.annotate(event["what"].removeprefix("prodml rollout ").split(" by ")[0].split(" of ")[0][:28], (event["at_s"], 0.04), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right", va="bottom")
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
    with written(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def show(record: dict[str, Any]) -> None:
    """Print what came out."""
    looks = record["looks"]
    print(f"\n{record['device']['cpu']}; {record['minutes']:g} minutes at {record['pace_per_s']:,} requests/s, 70% of {record['most_per_s']:,}: {record['answered']:,} answers, {record['labels']:,} labels")
    print(f"p50 {middle([look['p50_ms'] for look in looks]):.2f} ms, p99 {middle([look['p99_ms'] for look in looks]):.2f} ms (medians over 5 s); resident {min(look['resident_mb'] for look in looks):.0f} to {max(look['resident_mb'] for look in looks):.0f} MB; answers by version {record['versions']}")
    for failure, count in record["failures"].items():
        print(f"  {count} times {failure}")
    for clause in record["clauses"]:
        print(f"  {'met    ' if clause['met'] else 'NOT MET'} {clause['name']}: {clause['measured']}, wanted {clause['wanted']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of the load; a record is written from 10 on")
    given = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
    import uvloop
    from serve import free_port

    from prodml.core.files import write_json
    from prodml.model.measure import device_facts

    releases, port = make_releases(), free_port()
    settings = settings_for(given.minutes * 60, port)
    for name in ("first", "good", "shifted", "taken back"):
        print(prodml("rollout", "register", str(releases[name]), "--registry", str(FOLDER / "registry"), "--trusted", str(FOLDER / "key.pub"), *(["--bump", "minor"] if name != "first" else [])), end="", file=sys.stderr)
    print(rollout("promote", "bench@v1.0.0"), end="", file=sys.stderr)
    (FOLDER / "live").symlink_to(releases["first"])
    said = (FOLDER / "server.out").open("w")
    server = subprocess.Popen([sys.executable, "-m", "prodml.serve.server", str(FOLDER / "live"), "--settings", str(settings)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=said, stderr=said, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
    try:
        import urllib.request

        while True:
            if server.poll() is not None:
                raise SystemExit(f"the server ended; see {said.name}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/health/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.05)
        os.sched_setaffinity(0, {1})
        record = uvloop.run(soak(server, port, given.minutes * 60, releases))
    finally:
        server.terminate()
        server.wait(30)
    record = {"device": device_facts(threads=1), "minutes": given.minutes, **record}
    record["clauses"] = clauses(record)
    record["log"] = prodml("audit", "verify", "--log", str(FOLDER / "log")).splitlines()[-1]
    if given.minutes >= 10:
        write_json(RESULTS / "soak.json", record)
        draw(record, RESULTS / "soak.png")
    else:
        draw(record, FOLDER / "soak.png")
    show(record)


if __name__ == "__main__":
    main()
