"""Requests a second of `prodml serve` with the bundle of the pipeline, beside a constant from its own HTTP stack, in one run.

Each request is another flight of one day, as a client sends it. Contract, prediction log and metrics are on. The online
table was filled by a round of the materialiser. Three cases: every flight is in the table (`look-ups`), every second one
is (`mixed`), none is (`unknown`: row-wise features alone). The constant reads the first request and answers by as many
bytes as ours. Each server runs on one core, the load comes from the other (wrk); the servers take turns, and medians of
the ratios within rounds are compared. Needs `make run` and wrk. Written to build/bench/serve_flights.json.

One row in process is timed too: from the request's JSON, and from features that are ready.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from online import micros, requests_of  # noqa: E402
from serve import CONSTANT, Server, free_port, load_by_wrk, median  # noqa: E402

from prodml.bundle.bundle import open_bundle  # noqa: E402
from prodml.core.config import read_params  # noqa: E402
from prodml.core.files import artifact, write_json  # noqa: E402
from prodml.core.records import results_path  # noqa: E402
from prodml.data.materialise import Horizon, refresh  # noqa: E402
from prodml.model.measure import device_facts  # noqa: E402
from prodml.serve.request_profile import profile_request  # noqa: E402

BUNDLE, FOLDER, CONNECTIONS = ROOT / "bundle", ROOT / "build" / "bench" / "serve_flights", (16, 64)
CASES = ("look-ups", "mixed", "unknown")
WANTED = {"look-ups": 0.55, "unknown": 0.45}
WANTED_US = {"from the request": 40.0, "from ready features": 20.0}
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local requests, place = {}, 0
function init(args)
  for body in io.lines("BODIES") do requests[#requests + 1] = wrk.format(nil, "/v1/predict", nil, body) end
end
function request()
  place = place % #requests + 1
  return requests[place]
end
"""


class Flights(Server):
    """`prodml serve` with the bundle and an online table, and the requests that it is sent."""

    def __init__(self, name: str, bodies: list[bytes], url: str):
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.port, self.path, self.body = name, free_port(), "/v1/predict", bodies[0]
        (folder / "bodies.jsonl").write_bytes(b"\n".join(bodies) + b"\n")
        self.lua = LUA.replace("BODIES", str(folder / "bodies.jsonl"))
        (folder / "server.toml").write_text(f'[online]\nurl = "{url}"\n')
        options = ["--unsigned", "--rejected", "--port", str(self.port), "--settings", str(folder / "server.toml")]
        command = [sys.executable, "-m", "prodml.cli", "serve", str(BUNDLE), *options, "--log", str(folder / f"log-{time.time_ns()}")]
        self.said = (folder / "said.txt").open("w")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=self.said, stderr=self.said,
            start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        )
        self._wait()


def bodies_of(day: datetime.datetime, names: list[str]) -> list[bytes]:
    """The flights of a day, as clients send them."""
    end = day + datetime.timedelta(days=1)
    flights = pq.read_table(artifact("clean", "flights.parquet"), filters=[("time_hour", ">=", day), ("time_hour", "<", end)])
    rows = requests_of(flights, names)
    return [json.dumps({name: values[0] for name, values in row.items()}, separators=(",", ":")).encode() for row in rows]


def unknown(body: bytes) -> bytes:
    """The same for a flight that no table has."""
    row = json.loads(body)
    return json.dumps(row | {"flight": row["flight"] + 10_000}, separators=(",", ":")).encode()


def filled(bundle: Any, day: datetime.datetime, data: dict[str, Any]) -> str:
    """An online table with the flights of the day; its path."""
    path = FOLDER / "online.sqlite"
    path.unlink(missing_ok=True)
    horizon = Horizon(ahead_hours=0, behind_hours=36)
    refresh([(bundle.rowwise, bundle.encoding)], str(path), None, day + datetime.timedelta(hours=30), data, ROOT, horizon)
    return str(path)


def degraded_share(server: Flights, bodies: list[bytes]) -> float:
    """The share of answers that name a missing group."""
    import urllib.request

    told = []
    for body in bodies:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/v1/predict", body, {"Content-Type": "application/json"})
        told.append(bool(json.loads(urllib.request.urlopen(request).read())["degraded"]))
    return sum(told) / len(told)


def measured(servers: dict[str, Server], rounds: int, seconds: float) -> dict[str, dict[str, list]]:
    """Per server and number of connections what each round gave."""
    lines: dict[str, dict[str, list]] = {name: {str(number): [] for number in CONNECTIONS} for name in servers}
    for turn in range(rounds + 1):
        for connections in CONNECTIONS:
            for name, server in servers.items():
                server.resume()
                time.sleep(0.2)
                before = server.cpu_seconds()
                told = load_by_wrk(server, connections, seconds if turn else 1, server.lua if isinstance(server, Flights) else None)
                told["cpu_us"] = (server.cpu_seconds() - before) / max(1, told["requests"]) * 1e6
                server.pause()
                if turn: # the first turn warms up
                    lines[name][str(connections)].append(told)
    return lines


def in_process(bundle: Any) -> dict[str, Any]:
    """Microseconds of one row, and their parts."""
    profiled = profile_request(BUNDLE)
    row = {column["name"]: [column["mean"]] for column in bundle.encoding["numeric"] if "indicator_of" not in column}
    row |= {column["name"]: [column["vocabulary"][0]] for column in bundle.encoding["categorical"]}
    encoded = bundle.encoded(row)
    ready = micros(lambda: bundle.predict_encoded(*encoded), 2000)
    return {"from the request": profiled["whole_us"], "parts": profiled["parts"], "from ready features": ready, "from the model's columns": micros(lambda: bundle.predict(row), 1000)}


def clauses(lines: dict[str, dict[str, list]], alone: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure to reach, and whether it was."""
    made = []
    for case, wanted in WANTED.items():
        for connections in map(str, CONNECTIONS):
            both = list(zip(lines[case][connections], lines[CONSTANT][connections]))
            share = median([own["rate"] / other["rate"] for own, other in both])
            made.append({"name": f"{case}, share of the constant at {connections}", "measured": round(share, 3), "wanted": wanted, "met": share >= wanted})
    for name, wanted in WANTED_US.items():
        made.append({"name": f"one row in process {name}, µs", "measured": alone[name], "wanted": wanted, "met": alone[name] <= wanted})
    failed = sum(told["failed"] for rounds in lines.values() for side in rounds.values() for told in side)
    return [*made, {"name": "failed requests", "measured": failed, "wanted": 0, "met": not failed}]


def show(record: dict[str, Any]) -> None:
    """Print the table, and each figure to reach with its verdict."""
    print(f"\n{record['device']['cpu']}; {record['rounds']} rounds of {record['seconds']:g} s; {record['flights']} flights")
    print(f"{'':12}{'connections':>12}{'requests/s':>12}{'p50 µs':>10}{'p99 µs':>10}{'CPU µs':>9}")
    for name, rounds in record["servers"].items():
        for connections, told in rounds.items():
            middle = {key: median([one[key] for one in told]) for key in ("rate", "p50_us", "p99_us", "cpu_us")}
            print(f"{name:12}{connections:>12}{middle['rate']:>12,.0f}{middle['p50_us']:>10,.0f}{middle['p99_us']:>10,.0f}{middle['cpu_us']:>9,.1f}")
    print(f"degraded: {record['degraded']}; in process, µs: {record['in_process']}")
    for clause in record["clauses"]:
        print(f"  {'met    ' if clause['met'] else 'NOT MET'} {clause['name']}: {clause['measured']:g}, wanted {clause['wanted']:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--day", type=datetime.datetime.fromisoformat, default=datetime.datetime(2013, 11, 20), help="whose flights are asked about (UTC)")
    parser.add_argument("--rounds", type=int, default=5, help="times that every server gets its turn")
    parser.add_argument("--seconds", type=int, default=4, help="of each turn")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (ROOT / "build" / "bench" / "serve").mkdir(parents=True, exist_ok=True)
    bundle, data = open_bundle(BUNDLE, unsigned=True, rejected=True), read_params()["data"]
    alone, url = in_process(bundle), filled(bundle, given.day, data)
    known = bodies_of(given.day, list(bundle.contract["row"]["types"]))
    strange = [unknown(body) for body in known]
    sent = dict(zip(CASES, (known, [one[place % 2] for place, one in enumerate(zip(known, strange))], strange)))
    servers: dict[str, Server] = {}
    try:
        for name, bodies in sent.items():
            servers[name] = Flights(name.replace("-", "_"), bodies, url)
        degraded = {name: round(degraded_share(servers[name], bodies), 3) for name, bodies in sent.items()}
        for server in servers.values():
            server.pause()
        first = servers["look-ups"]
        servers[CONSTANT] = Server(CONSTANT, BUNDLE, json.loads(first.body), first.answer)
        servers[CONSTANT].pause()
        lines = measured(servers, given.rounds, given.seconds)
    finally:
        for server in servers.values():
            server.close()
    record = {
        "device": device_facts(threads=1), "rounds": given.rounds, "seconds": given.seconds, "day": str(given.day.date()), "flights": len(known),
        "degraded": degraded, "servers": lines, "in_process": alone, "clauses": clauses(lines, alone),
    }
    write_json(results_path("serve_flights.json", given.write, ROOT), record)
    show(record)


if __name__ == "__main__":
    main()
