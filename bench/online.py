"""What features at serving cost, and whether they are the pipeline's.

One day of flights is replayed: two rounds of the materialiser over the cleaned tables, then every flight is asked about alone,
as a client would, after the round in which its question was due. Its features are held against those in artifacts/features,
its probability against the one in artifacts/evaluate, bit for bit. Timed are a round for a day of coming flights (all features,
from the Parquet files to the online table) and a look-up by a server: fresh, of another aircraft, unknown, many at once.
Needs the pipeline's artifacts and its bundle. Written to bench/results/online.json.
"""

import argparse
import datetime
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prodml.bundle.bundle import open_bundle
from prodml.bundle.encode import input_names
from prodml.core.config import read_params
from prodml.core.files import artifact, project_root, write_json
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


def replay(source: FeatureSource, bundle, documents, url: str, day: datetime.datetime, data: dict) -> dict:
    """How many flights of the day were asked about, and how many had the features and probabilities of the pipeline to the last bit."""
    flights = pq.read_table(artifact("clean", "flights.parquet"), filters=[("time_hour", ">=", day), ("time_hour", "<", day + datetime.timedelta(days=2))])
    hour = flights["time_hour"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() // MINUTE_US
    due = hour + flights["minute"].to_numpy() - data["features"]["options"]["lead_minutes"]
    answers, before = {}, day + datetime.timedelta(hours=6)
    for now in (day + datetime.timedelta(hours=16), day + datetime.timedelta(hours=26)):
        refresh(documents, url, None, now, data, project_root(), Horizon(ahead_hours=0, behind_hours=10))
        asked = flights.filter((due > minute(before)) & (due <= minute(now)))
        for key, request in zip(asked["source_row"].to_pylist(), requests_of(asked, list(bundle.contract["row"]["types"]))):
            numbers, codes, degraded = source(request, minute(now) * MINUTE_US)
            assert degraded == [[]], (request, degraded)
            answers[key] = numbers, codes, float(bundle.predict_encoded(numbers, codes)[0])
        before = now
    parts = [pq.read_table(artifact("features", f"{part}.parquet"), filters=[("key", "in", list(answers))]) for part in ("train", "validation", "test")]
    offline = pa.concat_tables(parts)
    numbers, codes = bundle._encode({name: offline[name] for name in input_names(bundle.encoding)})
    evaluated = pq.read_table(artifact("evaluate", "predictions.parquet"), columns=["key", bundle.graph]).to_pydict()
    evaluated = dict(zip(evaluated["key"], evaluated[bundle.graph]))
    keys = offline["key"].to_pylist()
    same = [answers[key][0].tobytes() == numbers[place].tobytes() and answers[key][1].tobytes() == codes[place].tobytes() for place, key in enumerate(keys)]
    gaps = [abs(answers[key][2] - evaluated[key]) for key in keys if key in evaluated]
    return {"asked": len(answers), "with_a_label": len(keys), "same_features": sum(same), "evaluated": len(gaps), "same_probability": sum(gap == 0 for gap in gaps), "largest_difference": max(gaps, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--day", type=datetime.datetime.fromisoformat, default=datetime.datetime(2013, 11, 20), help="to replay (UTC)")
    given = parser.parse_args()
    root, data = project_root(), read_params()["data"]
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
        replayed = replay(source, bundle, documents, url, given.day, data)
        flights = pq.read_table(artifact("clean", "flights.parquet"), filters=[("time_hour", ">=", given.day + datetime.timedelta(hours=18)), ("time_hour", "<", given.day + datetime.timedelta(hours=22))])
        rows = requests_of(flights, list(bundle.contract["row"]["types"]))
        one, at = rows[0], minute(given.day + datetime.timedelta(hours=23)) * MINUTE_US
        many = {name: [row[name][0] for row in rows] for name in rows[0]}
        ready = ready_row(bundle)
        lookups = {
            "fresh": micros(lambda: source(one, at), 2000), "another_aircraft": micros(lambda: source({**one, "tailnum": ["N1"]}, at), 500), "unknown": micros(lambda: source({**one, "flight": [0]}, at), 500),
            f"each_of_{len(rows)}_at_once": round(micros(lambda: source(many, at), 10) / len(rows), 2), "encoding_of_ready_features": micros(lambda: bundle._encode(ready), 200),
        }
    found = {"day": str(given.day.date()), "rounds": rounds, "table_kilobytes": kilobytes, "replayed": replayed, "lookup_us": lookups}
    write_json(root / "bench" / "results" / "online.json", found)
    for name, value in found.items():
        print(f"{name}: {value}")


def ready_row(bundle) -> dict[str, list]:
    """The features of one flight as plain values, for comparison: what encoding them would cost at each request."""
    row = pq.read_table(artifact("features", "test.parquet")).slice(0, 1)
    return {name: row[name].to_pylist() for name in input_names(bundle.encoding)}


if __name__ == "__main__":
    main()
