"""A day of flights is asked about at serving, and every answer is the pipeline's own, bit for bit."""

import argparse
import datetime
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT

from prodml.bundle.bundle import open_bundle, write_manifest
from prodml.bundle.contract import RowChecker, row_contract
from prodml.bundle.encode import encode, input_names
from prodml.bundle.online import OnlineTable, RowFormat, open_store
from prodml.bundle.rowwise import Steps
from prodml.core.config import compose
from prodml.core.errors import InputError
from prodml.core.files import read_json, write_json
from prodml.data.clean import clean
from prodml.data.features import make_features
from prodml.data.flights import with_clocks
from prodml.data.ingest import ingest
from prodml.data.materialise import Horizon, compute_ahead, materialise, open_documents, refresh, run_materialise
from prodml.data.partitions import declared_feeds, receive
from prodml.data.rowwise import serving_document
from prodml.data.validate import read_tables, write_table
from prodml.model.export import export_onnx
from prodml.model.networks import build_network
from prodml.serve.online import FeatureSource, OnlineSettings, feature_source
from prodml.serve.server import all_settings, make_service, running

UTC_DAY = datetime.datetime(2013, 4, 2)
ROUNDS = [UTC_DAY + datetime.timedelta(hours=hours) for hours in (16, 26)]  # ten hours of questions each
HORIZON = Horizon(ahead_hours=2, behind_hours=10)
MINUTE_US = 60_000_000


def both_ways(source: FeatureSource, columns: dict, now_us: int) -> tuple:
    """What the source gives for columns; each row alone has the same bytes, also when it comes again."""
    numbers, codes, degraded = source(columns, now_us)
    rows = zip(*(columns[name] if isinstance(columns[name], list) else columns[name].to_pylist() for name in source.inputs))
    for place, sent in enumerate(rows):
        for _ in range(2):
            assert source.row(sent, now_us) == (numbers[place].tobytes(), codes[place].tobytes(), degraded[place])
    return numbers, codes, degraded


@pytest.fixture(scope="module")
def project(root, tmp_path_factory):
    """The pipeline on the flights from JFK of 24 February to 3 April as far as the features, and a bundle with a network that nobody trained."""
    folder = tmp_path_factory.mktemp("online")
    data = compose(["data=flights"])["data"]
    data["split"] = {**data["split"], "validation_from": "2013-03-28", "test_from": "2013-04-01"}
    ingest(root / "data", data["tables"], folder / "raw", data["null_values"], "flights", 1.0)
    (folder / "valid").mkdir()
    first, last = (ibis.literal(day) for day in (datetime.datetime(2013, 2, 24), datetime.datetime(2013, 4, 4)))
    for name, table in read_tables(folder / "raw").items():
        cut = table.filter((table.origin == "JFK") & (table.time_hour >= first) & (table.time_hour < last)) if "time_hour" in table.columns else table
        write_table(cut, folder / "valid" / f"{name}.parquet")
    clean(folder / "valid", folder / "artifacts" / "clean", data["repairs"])
    make_features(folder / "artifacts" / "clean", folder / "features", "flights", data["target"], data["features"], data["split"])
    types = read_json(folder / "raw" / "types.json")["flights"]
    make_bundle(folder / "bundle", read_tables(folder / "artifacts" / "clean"), data, read_json(folder / "features" / "encoding.json"), types)
    (folder / "dvc.yaml").touch()
    (folder / "params.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder, data


def make_bundle(folder, tables, data, encoding, types):
    network = build_network({"name": "untrained", "kind": "mlp", "hidden": [16]}, encoding).eval()
    folder.mkdir()
    export_onnx(network, folder / "dense.onnx")
    row = row_contract("flights", types, data["rules"], data["target"]["column"], data["request"])
    parts = {
        "model": {"name": "untrained", "serves": "dense", "graphs": {"dense": "dense.onnx"}}, "thresholds": {"dense": 0.5}, "encoding": encoding,
        "contract": {"columns": [], "row": row}, "rowwise": serving_document(tables, data, encoding, row["types"]),
    }
    for name, value in parts.items():
        write_json(folder / f"{name}.json", value)
    write_manifest(folder, {})


@pytest.fixture(scope="module")
def frames(project):
    """The cleaned tables as frames."""
    return {name: table.to_pandas() for name, table in read_tables(project[0] / "artifacts" / "clean").items()}


@pytest.fixture(scope="module")
def documents(project):
    return open_documents([project[0] / "bundle"], unsigned=True)


@pytest.fixture(scope="module")
def bundle(project):
    return open_bundle(project[0] / "bundle", unsigned=True)


def requests_of(flights: pd.DataFrame, contract: dict) -> list[dict]:
    """Each flight as a client would send it: JSON values, a time as text."""
    sent = flights[list(contract["types"])].copy()
    sent["time_hour"] = sent["time_hour"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    sent = sent.astype(object).where(sent.notna(), None)
    return [{name: [value] for name, value in row.items()} for row in sent.to_dict("records")]


def stored(frames: dict, folder) -> dict:
    """The frames as tables that rest in Parquet files."""
    folder.mkdir()
    for name, frame in frames.items():
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / f"{name}.parquet")
    return read_tables(folder)


def minutes(moment: datetime.datetime) -> int:
    return int((moment - datetime.datetime(1970, 1, 1)).total_seconds() // 60)


def minutes_since_1970(column: pd.Series) -> pd.Series:
    return (column - pd.Timestamp(0)) // pd.Timedelta(minutes=1)


class Client:
    """A connection to the server."""

    def __init__(self, address: str):
        host, port = address.removeprefix("http://").split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def ask(self, path: str, body=None, **headers: str):
        """The answer, read if it is JSON; it must be a 200."""
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self.connection.request("GET" if body is None else "POST", path, sent, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content) if answer.headers["content-type"] == "application/json" else content

    def degraded(self) -> dict[str, float]:
        """How often the server counted each group as missing."""
        return {name: float(value) for name, value in re.findall(r'prodml_degraded_total\{column="([^"]+)"\} (\S+)', self.ask("/metrics").decode())}


def with_another_future(tables: dict[str, pd.DataFrame], options: dict, now: int) -> dict[str, pd.DataFrame]:
    """The cleaned tables with every delay, cancellation and measurement changed that becomes known after the minute `now`."""
    draw = np.random.default_rng(now)
    timed = with_clocks(ibis.memtable(tables["flights"]), ibis.memtable(tables["airports"]), options["utc_offsets"], options["lead_minutes"])
    flights = tables["flights"].set_index("source_row").sort_index()
    times = timed.select("key", "sched_dep", "dep_at", "sched_arr", "arr_at").to_pandas().set_index("key").sort_index()
    left_later, landed_later = ~(np.maximum(times.dep_at, times.sched_dep) <= now), ~(times.arr_at <= now)
    # Whatever happens instead must become known after `now` too.
    delays = np.maximum(now + 1 - times.sched_dep, -30) + draw.integers(0, 400, len(flights))
    cancelled = draw.random(len(flights)) < 0.3
    flights.loc[left_later, "dep_delay"] = np.where(cancelled, np.nan, delays)[left_later]
    arrival = now + 1 + draw.integers(0, 500, len(flights)) - times.sched_arr
    flights.loc[landed_later, "arr_delay"] = np.where(cancelled & left_later, np.nan, arrival)[landed_later]
    flights.loc[landed_later, "dep_time"] = 1234
    weather = tables["weather"].copy()
    later = minutes_since_1970(weather["time_hour"]) + options["weather_delay_minutes"] > now
    measured = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    weather.loc[later, measured] = draw.integers(0, 99, (int(later.sum()), len(measured)))
    return {**tables, "flights": flights.reset_index(), "weather": weather}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where the online table will be."""
    return str(tmp_path_factory.mktemp("table") / "online.sqlite")


@pytest.fixture(scope="module")
def server(project, url):
    """A server that was started before the online table was there."""
    settings = all_settings({"server": {"port": 0}, "models": {"unsigned": True}, "online": {"url": url, "check_s": 0.0, "retry_s": 0.0, "budget_minutes": 10, "group_budget_minutes": {"past weeks": 1440}}})
    service = make_service([project[0] / "bundle"], settings)
    with running(service, settings) as address:
        yield address


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


@pytest.fixture(scope="module")
def replayed(project, frames, documents, bundle, url, client, tmp_path_factory):
    """By source_row what was answered on the day: each flight asked about alone, in process and over HTTP, after the round in which its question was due, from tables with another future."""
    folder, data = project
    source, check = feature_source(bundle, OnlineSettings(url=url, check_s=0.0)), RowChecker(bundle.contract["row"])
    flights = frames["flights"]
    due = minutes_since_1970(flights.time_hour) + flights.minute - data["features"]["options"]["lead_minutes"]
    answers, before = {}, ROUNDS[0] - datetime.timedelta(hours=HORIZON.behind_hours)
    for now in ROUNDS:
        tables = with_another_future(frames, data["features"]["options"], minutes(now))
        materialise(stored(tables, tmp_path_factory.mktemp("round") / "tables"), None, now, documents, url, data, HORIZON)
        asked = flights[(due > minutes(before)) & (due <= minutes(now))]
        for row, request in zip(asked.source_row, requests_of(asked, bundle.contract["row"])):
            assert not [verdict for verdict in check(request) if verdict.severity == "error"]
            numbers, codes, degraded = both_ways(source, request, minutes(now) * MINUTE_US)
            told = client.ask("/v1/predict", {name: values[0] for name, values in request.items()}, content_type="application/json")
            answers[row] = numbers.copy(), codes.copy(), degraded[0], told
        before = now
    return answers, url


def test_a_replayed_day_gets_the_probabilities_of_the_pipeline_bit_for_bit(project, bundle, replayed):
    answers, _ = replayed
    offline = pq.read_table(project[0] / "features" / "test.parquet")
    keys = offline["key"].to_pylist()
    places = [place for place, key in enumerate(keys) if key in answers]
    assert len(places) > 250, "the flights of the day that were flown"
    offline = offline.take(places)
    numbers, codes = bundle._encode({name: offline[name] for name in input_names(bundle.encoding)})
    for place, key in enumerate(offline["key"].to_pylist()):
        own_numbers, own_codes, degraded, told = answers[key]
        assert degraded == [] and own_numbers.tobytes() == numbers[place].tobytes() and own_codes.tobytes() == codes[place].tobytes(), key
        assert told["degraded"] == [] and told["probability"] == bundle.predict_encoded(numbers[place : place + 1], codes[place : place + 1]).item()


def test_the_server_answers_them_together_in_every_form(frames, bundle, replayed, client):
    """A hundred flights in one request: as the pipeline's rows are scored together."""
    answers, _ = replayed
    flights = frames["flights"].set_index("source_row").loc[sorted(answers)[-100:]].reset_index()
    rows = [{name: values[0] for name, values in row.items()} for row in requests_of(flights, bundle.contract["row"])]
    table = pa.Table.from_pylist(rows)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    expected = bundle.predict_encoded(*(np.concatenate([answers[row][part] for row in flights.source_row]) for part in (0, 1))).tolist()
    bodies = {"application/json": json.dumps(rows).encode(), "text/csv": pd.DataFrame(rows).to_csv(index=False).encode(), "application/vnd.apache.arrow.stream": stream.getvalue().to_pybytes()}
    for kind, body in [*bodies.items(), ("application/json", json.dumps(table.to_pydict()).encode())]:
        told = client.ask("/v1/predict", body, content_type=kind, accept="application/json")["predictions"]
        assert [one["probability"] for one in told] == expected and all(one["degraded"] == [] for one in told), kind


def test_together_they_are_answered_as_one_by_one(project, frames, bundle, replayed):
    answers, url = replayed
    flights = frames["flights"].set_index("source_row").loc[sorted(answers)[-150:]].reset_index()
    rows = requests_of(flights, bundle.contract["row"])
    source = feature_source(bundle, OnlineSettings(url=url))
    together = {name: [row[name][0] for row in rows] for name in rows[0]}
    for columns in (together, pa.table({**together, "time_hour": flights["time_hour"].astype("datetime64[us]").array})):
        numbers, codes, degraded = both_ways(source, columns, minutes(ROUNDS[-1]) * MINUTE_US)
        assert numbers.tobytes() == np.concatenate([answers[row][0] for row in flights.source_row]).tobytes()
        assert codes.tobytes() == np.concatenate([answers[row][1] for row in flights.source_row]).tobytes()
        assert degraded == [[]] * len(flights)


@pytest.mark.slow
def test_a_row_computed_early_uses_nothing_after_now(project, frames, tmp_path):
    """Rows that are due hours later, from two futures: the same; at a later moment the futures show."""
    _, data = project
    now, later = ROUNDS[0], ROUNDS[1]
    ahead = Horizon(ahead_hours=8, behind_hours=0)
    other = with_another_future(frames, data["features"]["options"], minutes(now))
    now_known, other_known = stored(frames, tmp_path / "one"), stored(other, tmp_path / "other")
    before, after = (compute_ahead(tables, None, now, data, ahead) for tables in (now_known, other_known))
    assert (before.due > before.as_of).sum() > 100 and before.rows.equals(after.rows)
    shown = compute_ahead(other_known, None, later, data, Horizon(ahead_hours=0, behind_hours=2)).rows
    offline = pq.read_table(project[0] / "features" / "test.parquet", columns=["key", "origin_flights_2h"]).to_pydict()
    true = dict(zip(offline["key"], offline["origin_flights_2h"]))
    assert any(true.get(key, count) != count for key, count in zip(shown["key"].to_pylist(), shown["origin_flights_2h"].to_pylist())), "the change must be one that features can see"


def test_the_steps_are_the_expression_on_every_row(project, documents, frames):
    """All flights of six weeks through the interpreter, against what the engine wrote for them."""
    folder, _ = project
    document = documents[0][0]
    steps = Steps(document)
    flights = frames["flights"].set_index("source_row")
    for part in ("train", "validation", "test"):
        offline = pq.read_table(folder / "features" / f"{part}.parquet")
        rows = pa.Table.from_pandas(flights.loc[offline["key"].to_pylist(), list(document["inputs"])], preserve_index=False)
        made = steps(steps.read({name: rows[name].cast(pa.timestamp("us")).to_numpy() if name == "time_hour" else rows[name] for name in document["inputs"]}))
        for name in (name for name in document["outputs"] if name in offline.column_names):
            expected = offline[name]
            if pa.types.is_floating(expected.type):
                own = np.array([np.nan if value is None else value for value in made[name]]).astype(np.float32)
                assert own.tobytes() == expected.to_numpy().astype(np.float32).tobytes(), name
            else:
                assert made[name] == expected.to_pylist(), name


def test_an_answer_says_what_is_missing(project, frames, documents, bundle, replayed):
    answers, url = replayed
    row = max(answers)
    flight = frames["flights"].set_index("source_row").loc[[row]].reset_index()
    (request,) = requests_of(flight, bundle.contract["row"])
    groups = list(bundle.rowwise["online"]["groups"])
    form = RowFormat(*documents[0])
    source = feature_source(bundle, OnlineSettings(url=url, budget_minutes=10, group_budget_minutes={"past weeks": 1440}, check_s=0.0))
    (held,) = source.table.get(form.keys(source.steps.read(request)))
    own = [form.numeric.index(name) for name in bundle.rowwise["outputs"] if name in form.numeric]

    # the same row, computed an hour before its question was due
    source.table.put([(form.keys(source.steps.read(request))[0], held.values.due_us - 60 * MINUTE_US, form.pack(held.values))], held.values.due_us, 10**15)
    numbers, codes, degraded = both_ways(source, request, held.values.due_us)
    assert degraded == [[group for group in groups if group != "past weeks"]]
    weeks = [form.numeric.index(name) for name in bundle.rowwise["online"]["groups"]["past weeks"]["columns"]]
    assert np.isnan(numbers).sum() > 30 and numbers[0, weeks].tobytes() == answers[row][0][0, weeks].tobytes()
    assert not both_ways(source, request, held.values.due_us - 55 * MINUTE_US)[2][0], "five minutes old while the question is still to come"

    # a flight that nobody scheduled, and one with another aircraft
    numbers, codes, degraded = both_ways(source, {**request, "flight": [9999]}, held.values.due_us)
    assert degraded == [groups] and numbers[0, own].tobytes() == answers[row][0][0, own].tobytes() and (codes == answers[row][1]).all()
    assert 0 < bundle.predict_encoded(numbers, codes)[0] < 1
    source.table.put([(form.keys(source.steps.read(request))[0], held.as_of_us, form.pack(held.values))], held.values.due_us, 10**15)
    numbers, codes, degraded = both_ways(source, {**request, "tailnum": ["N14228"]}, held.values.due_us)
    assert degraded == [["aircraft"]] and codes[0, form.categorical.index("plane_maker")] == 1 + bundle.encoding["categorical"][form.categorical.index("plane_maker")]["vocabulary"].index("BOEING")
    aircraft = [form.numeric.index(name) for name in bundle.rowwise["online"]["groups"]["aircraft"]["columns"]]
    assert np.isnan(numbers[0, aircraft]).all() and np.isnan(numbers).sum() < 30


def test_the_server_says_and_counts_what_is_missing(frames, documents, bundle, replayed, client):
    """A row that is stale, one that nobody scheduled and one with another aircraft: named in the answer, counted in the metrics."""
    answers, url = replayed
    row = max(answers)
    (request,) = requests_of(frames["flights"].set_index("source_row").loc[[row]].reset_index(), bundle.contract["row"])
    sent, groups = {name: values[0] for name, values in request.items()}, list(bundle.rowwise["online"]["groups"])
    form = RowFormat(*documents[0])
    table = OnlineTable(open_store(url, form.space), form.unpack)
    (key,) = form.keys(Steps(bundle.rowwise).read(request))
    (held,) = table.get([key])
    before = client.degraded()
    table.put([(key, held.values.due_us - 60 * MINUTE_US, form.pack(held.values))], held.values.due_us, 10**15)
    stale = client.ask("/v1/predict", sent, content_type="application/json")
    table.put([(key, held.as_of_us, form.pack(held.values))], held.values.due_us, 10**15)
    fresh = client.ask("/v1/predict", sent, content_type="application/json")
    unknown = client.ask("/v1/predict", {**sent, "flight": 9999}, content_type="application/json")
    both = client.ask("/v1/predict", [sent, {**sent, "tailnum": "N14228"}], content_type="application/json")["predictions"]
    assert stale["degraded"] == [group for group in groups if group != "past weeks"] and unknown["degraded"] == groups
    assert fresh["degraded"] == [] and fresh["probability"] == answers[row][3]["probability"] != stale["probability"], "no restart is needed for what is written anew"
    assert [one["degraded"] for one in both] == [[], ["aircraft"]]
    counted = {group: client.degraded().get(group, 0) - before.get(group, 0) for group in groups}
    assert counted == {group: 1 + (group != "past weeks") + (group == "aircraft") for group in groups}


WRITER = """
import sys, time
from prodml.bundle.online import SqliteStore
def rows():
    for number in range(4000):
        yield b"[%d]" % number, 2, b"new"
        if number % 1000 == 999:
            print(number, flush=True)
            time.sleep(0.05)
SqliteStore(sys.argv[1], "space").write(rows(), 2, 10**15)
"""


def test_a_writer_that_is_killed_leaves_the_table_whole(tmp_path):
    path = tmp_path / "online.sqlite"
    store = open_store(str(path), "space")
    store.write([(b"[%d]" % number, 1, b"old") for number in range(4000)], 1, 10**15)
    keys = [b"[%d]" % number for number in range(4000)]
    for lines in (1, 3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            for _ in range(lines):
                assert writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        assert {value for _, value in open_store(str(path), "space").read(keys).values()} == {b"old"} and store.state() == {"rows": 4000, "written_us": 1, "batch": 1}
    subprocess.run([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert {value for _, value in store.read(keys).values()} == {b"new"} and store.state()["batch"] == 2


def test_a_reader_does_not_wait_for_the_writer(project, frames, bundle, replayed):
    answers, url = replayed
    flight = frames["flights"].set_index("source_row").loc[[min(answers)]].reset_index()
    (request,) = requests_of(flight, bundle.contract["row"])
    writer = sqlite3.connect(url, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("DELETE FROM online")
    try:
        numbers, _, degraded = feature_source(bundle, OnlineSettings(url=url))(request, minutes(ROUNDS[-1]) * MINUTE_US)
        assert degraded == [[]] and numbers.tobytes() == answers[min(answers)][0].tobytes()
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_broken_table_is_a_table_without_rows(bundle, frames, tmp_path):
    flight = frames["flights"].head(1)
    (request,) = requests_of(flight, bundle.contract["row"])
    path = tmp_path / "online.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    source = feature_source(bundle, OnlineSettings(url=str(path), retry_s=0.0, check_s=0.0))
    assert source(request)[2] == [list(bundle.rowwise["online"]["groups"])] and "DatabaseError" in source.state()["problem"]
    with pytest.raises(InputError, match="names 'storms'"):
        feature_source(bundle, OnlineSettings(group_budget_minutes={"storms": 5}))


@pytest.mark.slow
def test_a_schedule_and_feeds_bring_what_the_pipeline_has_not_seen(project, frames, documents, bundle, tmp_path):
    """Flights come by the day, tomorrow's from a file; a feed that stays silent leaves its groups missing."""
    folder, data = project
    shutil.copytree(folder / "artifacts", tmp_path / "artifacts")
    (tmp_path / "artifacts" / "ingest").mkdir()
    shutil.copy(folder / "raw" / "types.json", tmp_path / "artifacts" / "ingest")
    feeds = declared_feeds({**data, "feeds": {name: {**feed, "folder": str(tmp_path / feed["folder"])} for name, feed in data["feeds"].items()}}, tmp_path)
    raw = {name: pq.read_table(folder / "valid" / f"{name}.parquet").drop(["source_row"]) for name in feeds}
    until = UTC_DAY + datetime.timedelta(hours=5)
    for name, feed in feeds.items():
        times = raw[name]["time_hour"].cast(pa.timestamp("us"))
        pq.write_table(raw[name].filter(pa.compute.less(times, pa.scalar(until, pa.timestamp("us")))), tmp_path / f"{name}.parquet")
        verdict = receive(feed, tmp_path / f"{name}.parquet", datetime.datetime(2013, 5, 1))
        assert verdict.verdict == "accepted", verdict
    coming = frames["flights"][frames["flights"].time_hour >= pd.Timestamp(until)]
    coming[list(data["request"])].to_csv(tmp_path / "schedule.csv", index=False)
    url = str(tmp_path / "online.sqlite")
    report = refresh(documents, url, tmp_path / "schedule.csv", until + datetime.timedelta(hours=6, minutes=30), data, tmp_path, Horizon(ahead_hours=6, behind_hours=0))
    assert report["rows"] > 80 and sorted(report["silent"]) == ["aircraft", "today", "weather"], report
    due = (coming.time_hour - pd.Timestamp(0)) // pd.Timedelta(minutes=1) + coming.minute - 120
    asked = coming[due.between(minutes(until) + 450, minutes(until) + 720)].head(50)
    source = feature_source(bundle, OnlineSettings(url=url))
    rows = requests_of(asked, bundle.contract["row"])
    numbers, _, degraded = both_ways(source, {name: [row[name][0] for row in rows] for name in rows[0]}, (minutes(until) + 391) * MINUTE_US)
    assert degraded == [["aircraft", "today", "weather"]] * 50
    schedule = source.form.numeric.index("origin_scheduled_1h")
    assert (numbers[:, schedule] > 1).all(), "the timetable is known, whoever is silent"


def test_the_command_runs_a_round(project, monkeypatch, capsys, tmp_path):
    folder, _ = project
    monkeypatch.chdir(folder)
    given = argparse.Namespace(bundles=[folder / "bundle"], online=str(tmp_path / "online.sqlite"), schedule=None, ahead_hours=1.0, every_s=None, now=ROUNDS[0].replace(tzinfo=datetime.UTC), trusted=None, unsigned=True)
    assert run_materialise(given) == 0
    assert "rows" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file"):
        run_materialise(argparse.Namespace(**{**vars(given), "schedule": tmp_path / "none.csv"}))


@pytest.mark.skipif(shutil.which("redis-server") is None and "CI" not in os.environ, reason="there is no redis-server on the PATH")
def test_redis_holds_the_same_rows(frames, documents, bundle, replayed, tmp_path):
    answers, _ = replayed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        store = open_store(url, RowFormat(*documents[0]).space)
        for _ in range(100):
            try:
                store.version()
                break
            except store.problems:
                time.sleep(0.05)
        with sqlite3.connect(replayed[1]) as table:
            store.write(list(table.execute("SELECT key, as_of_us, value FROM online")), minutes(ROUNDS[1]) * MINUTE_US, 10**12)
        source = feature_source(bundle, OnlineSettings(url=url, timeout_s=1.0, check_s=0.0, retry_s=0.0))
        row = next(iter(answers))
        (request,) = requests_of(frames["flights"].set_index("source_row").loc[[row]].reset_index(), bundle.contract["row"])
        numbers, codes, degraded = both_ways(source, request, minutes(ROUNDS[1]) * MINUTE_US)
        assert degraded == [[]] and numbers.tobytes() == answers[row][0].tobytes() and codes.tobytes() == answers[row][1].tobytes()
        assert source.state()["rows"] > 250 and source.state()["problem"] is None
    finally:
        server.terminate()
        server.wait()
    _, _, degraded = both_ways(source, request, minutes(ROUNDS[0]) * MINUTE_US)
    assert degraded == [list(source.groups)] and source.table.problem, "a server that is gone is a table without rows"


def test_a_table_without_history_is_served_by_its_steps_alone(root, tmp_path):
    """Tumours: nothing is looked up, and every row gets the pipeline's own numbers."""
    data = compose(["data=breast_cancer"])["data"]
    main = data["main"]
    ingest(root / data["folder"], data["tables"], tmp_path / "raw", data["null_values"], main, 1.0)
    clean(tmp_path / "raw", tmp_path / "clean", data["repairs"])
    make_features(tmp_path / "clean", tmp_path / "features", main, data["target"], data["features"], data["split"])
    encoding, types = read_json(tmp_path / "features" / "encoding.json"), read_json(tmp_path / "raw" / "types.json")[main]
    row = row_contract(main, types, data["rules"], data["target"]["column"], data["request"])
    document = serving_document(read_tables(tmp_path / "clean"), data, encoding, row["types"])
    offline, raw = pq.read_table(tmp_path / "features" / "test.parquet"), pq.read_table(tmp_path / "clean" / f"{main}.parquet")
    places = {key: place for place, key in enumerate(raw["source_row"].to_pylist())}
    numbers, codes, degraded = FeatureSource(document, encoding)(raw.take([places[key] for key in offline["key"].to_pylist()]))
    expected = encode(offline, encoding)
    assert document["online"] is None and degraded == [[]] * len(offline)
    assert numbers.tobytes() == expected[0].tobytes() and codes.tobytes() == expected[1].tobytes()


def test_a_read_that_a_new_batch_overtakes_is_not_remembered():
    """A thread reads that a key is absent, another sees the batch that brings it, and only then does the first go on."""
    class Store:
        problems, rows, number = (OSError,), {}, 1

        def version(self):
            return self.number

        def read(self, keys):
            found = {key: self.rows[key] for key in keys if key in self.rows}
            if self.number == 1:
                self.rows, self.number = {b"late": (5, b"row")}, 2
                table._check()
            return found

    table = OnlineTable(Store(), check_s=0.0)
    assert table.get([b"late"]) == [None]
    assert table.get([b"late"])[0].values == b"row" and table.one(b"never") is None
