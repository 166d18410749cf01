"""What features at serving cost, and whether they are the pipeline's.

One day of flights is replayed against `prodml serve` in a process of its own: two rounds of the materialiser over the cleaned tables,
then every flight is asked about over HTTP, alone, as a client would, after the round in which its question was due, and once more
from sixteen connections at once. Its features are held against those in artifacts/features, the probability in the answer against
the one in artifacts/evaluate, bit for bit. Timed are a round for a day of coming flights (all features,
from the Parquet files to the online table) and a look-up by a server: fresh, of another aircraft, unknown, many at once.
Needs the pipeline's artifacts and its bundle. Written to build/bench/online.json.
"""

import argparse
import contextlib
import datetime
import http.client
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prodml.bundle.bundle import open_bundle
from prodml.bundle.encode import input_names
from prodml.core.config import read_params
from prodml.core.files import artifact, project_root, write_json
from prodml.core.records import results_path
from prodml.data.materialise import Horizon, refresh
from prodml.data.rowwise import serving_document
from prodml.data.validate import read_tables
from prodml.serve.online import FeatureSource, OnlineSettings

MINUTE_US = 60_000_000


def micros(call: Callable, times: int) -> float:
    """The median over seven runs of what one call takes, in microseconds."""
    runs = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(times):
            call()
        runs.append((time.perf_counter() - start) / times * 1e6)
    return round(statistics.median(runs), 2)


def minute(moment: datetime.datetime) -> int:
    """Minutes since 1970."""
    return int((moment - datetime.datetime(1970, 1, 1)).total_seconds() // 60)


def requests_of(flights: pa.Table, names: list[str]) -> list[dict[str, list]]:
    """Each flight as a client sends it, a time as text."""
    rows = flights.select(names).to_pylist()
    return [{name: [f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime.datetime) else value] for name, value in row.items()} for row in rows]


@contextlib.contextmanager
def serving(bundle: Path, url: str, folder: Path) -> Iterator[int]:
    """`prodml serve` with an online table, as a process; the port on which it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / "server.toml"
    settings.write_text(f'[online]\nurl = "{url}"\ncheck_s = 0.01\nretry_s = 0.01\n')
    command = [sys.executable, "-m", "prodml.cli", "serve", str(bundle), "--settings", str(settings), "--port", str(port), "--unsigned", "--rejected"]
    with subprocess.Popen(command) as process:
        try:
            wait_for(port, process)
            yield port
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Return when the server is ready."""
    while process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"the server ended with {process.returncode}")


def answers_of(port: int, requests: list[dict[str, list]]) -> list[dict]:
    """The answers to the requests, one after the other over one connection."""
    connection, told = http.client.HTTPConnection("127.0.0.1", port, timeout=30), []
    for request in requests:
        connection.request("POST", "/v1/predict", json.dumps({name: values[0] for name, values in request.items()}), {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        told.append(json.loads(content))
    connection.close()
    return told


def together(port: int, requests: list[dict[str, list]], connections: int = 16) -> list[dict]:
    """The same answers from many connections at once, in the order of the requests."""
    with ThreadPoolExecutor(connections) as pool:
        parts = list(pool.map(lambda start: answers_of(port, requests[start::connections]), range(connections)))
    return [parts[place % connections][place // connections] for place in range(len(requests))]


def replay(source: FeatureSource, bundle, port: int, documents, url: str, day: datetime.datetime, data: dict) -> dict:
    """How many flights of the day were asked about, and how many had the features and probabilities of the pipeline to the last bit."""
    flights = pq.read_table(artifact("clean", "flights.parquet"), filters=[("time_hour", ">=", day), ("time_hour", "<", day + datetime.timedelta(days=2))])
    hour = flights["time_hour"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() // MINUTE_US
    due = hour + flights["minute"].to_numpy() - data["features"]["options"]["lead_minutes"]
    answers, before = {}, day + datetime.timedelta(hours=6)
    for now in (day + datetime.timedelta(hours=16), day + datetime.timedelta(hours=26)):
        refresh(documents, url, None, now, data, project_root(), Horizon(ahead_hours=0, behind_hours=10))
        asked = flights.filter((due > minute(before)) & (due <= minute(now)))
        requests = requests_of(asked, list(bundle.contract["row"]["types"]))
        time.sleep(0.1) # until the server has seen the round
        for key, request, alone, crowded in zip(asked["source_row"].to_pylist(), requests, answers_of(port, requests), together(port, requests)):
            numbers, codes, degraded = source(request, minute(now) * MINUTE_US)
            assert degraded == [[]] and alone["degraded"] == [] and crowded["degraded"] == [], (request, degraded, alone, crowded)
            answers[key] = numbers, codes, alone["probability"], crowded["probability"]
        before = now
    parts = [pq.read_table(artifact("features", f"{part}.parquet"), filters=[("key", "in", list(answers))]) for part in ("train", "validation", "test")]
    offline = pa.concat_tables(parts)
    numbers, codes = bundle._encode({name: offline[name] for name in input_names(bundle.encoding)})
    evaluated = pq.read_table(artifact("evaluate", "predictions.parquet"), columns=["key", bundle.graph]).to_pydict()
    evaluated = dict(zip(evaluated["key"], evaluated[bundle.graph]))
    keys = offline["key"].to_pylist()
    same = [answers[key][0].tobytes() == numbers[place].tobytes() and answers[key][1].tobytes() == codes[place].tobytes() for place, key in enumerate(keys)]
    alone, crowded = ([abs(answers[key][place] - evaluated[key]) for key in keys if key in evaluated] for place in (2, 3))
    return {
        "asked": len(answers), "with_a_label": len(keys), "same_features": sum(same), "evaluated": len(alone), "same_probability": sum(gap == 0 for gap in alone), "largest_difference": max(alone, default=0.0),
        "same_probability_from_16_connections": sum(gap == 0 for gap in crowded), "largest_difference_from_16_connections": max(crowded, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--day", type=datetime.datetime.fromisoformat, default=datetime.datetime(2013, 11, 20), help="to replay (UTC)")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    root, data = project_root(), read_params()["data"]
    path = results_path("online.json", given.write, root)
    bundle = open_bundle(root / "bundle", unsigned=True, rejected=True)
    document = bundle.rowwise or serving_document(read_tables(artifact("clean")), data, bundle.encoding, bundle.contract["row"]["types"])
    documents = [(document, bundle.encoding)]
    with tempfile.TemporaryDirectory() as folder:
        url, noon = str(Path(folder) / "online.sqlite"), given.day + datetime.timedelta(hours=12)
        source = FeatureSource(document, bundle.encoding, OnlineSettings(url=url))
        rounds = []
        for _ in range(3):
            used = resource.getrusage(resource.RUSAGE_SELF)
            report = refresh(documents, url, None, noon, data, root)
            now = resource.getrusage(resource.RUSAGE_SELF)
            rounds.append({"seconds": report["seconds"], "cpu_seconds": round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 3), "rows": report["rows"]})
        kilobytes = round(sum(file.stat().st_size for file in Path(folder).iterdir()) / 1024)
        with serving(root / "bundle", url, Path(folder)) as port:
            replayed = replay(source, bundle, port, documents, url, given.day, data)
        flights = pq.read_table(artifact("clean", "flights.parquet"), filters=[("time_hour", ">=", given.day + datetime.timedelta(hours=18)), ("time_hour", "<", given.day + datetime.timedelta(hours=22))])
        rows = requests_of(flights, list(bundle.contract["row"]["types"]))
        one, at = rows[0], minute(given.day + datetime.timedelta(hours=23)) * MINUTE_US
        many = {name: [row[name][0] for row in rows] for name in rows[0]}
        ready = ready_row(bundle)
        fresh, other, unknown = (tuple((one | change)[name][0] for name in source.inputs) for change in ({}, {"tailnum": ["N1"]}, {"flight": [0]}))
        lookups = {
            "fresh": micros(lambda: source.row(fresh, at), 2000), "another_aircraft": micros(lambda: source.row(other, at), 500), "unknown": micros(lambda: source.row(unknown, at), 500),
            f"each_of_{len(rows)}_at_once": round(micros(lambda: source(many, at), 10) / len(rows), 2), "encoding_of_ready_features": micros(lambda: bundle._encode(ready), 200),
        }
    found = {"day": str(given.day.date()), "rounds": rounds, "table_kilobytes": kilobytes, "replayed": replayed, "lookup_us": lookups}
    write_json(path, found)
    for name, value in found.items():
        print(f"{name}: {value}")


def ready_row(bundle) -> dict[str, list]:
    """The features of one flight as plain values, for comparison: what encoding them would cost at each request."""
    row = pq.read_table(artifact("features", "test.parquet")).slice(0, 1)
    return {name: row[name].to_pylist() for name in input_names(bundle.encoding)}


if __name__ == "__main__":
    main()
