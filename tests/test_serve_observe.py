"""What is counted is counted right, whoever is asked; dashboard, alerts and table say the same."""

import gzip
import http.server
import io
import json
import logging
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prodml.bundle.bundle import MANIFEST, SIGNATURE, write_manifest
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.core.errors import InputError
from prodml.core.files import write_json
from prodml.serve.access import new_api_key
from prodml.serve.observe import METRICS, PROBABILITIES, REQUEST_SECONDS, STAGE_SECONDS, Metrics, ObserveSettings, adopt
from prodml.serve.operations import alerts_of, dashboard, operations_files, queries, stale_files, unknown_in, write_files
from prodml.serve.registry import Registry
from prodml.serve.server import all_settings, make_service, running
from prodml.serve.traces import JsonLines, RequestLog, Trace, Tracing, is_sampled, start_logs, trace_of

ROOT = Path(__file__).resolve().parent.parent
PANELS = [(metric, panel) for metric in METRICS for panel in metric.panels]


def read(metrics: Metrics) -> dict:
    """Samples by name and labels, as Prometheus's own library reads them."""
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in text_string_to_metric_families(metrics.render().decode()) for sample in family.samples}


# One process


seconds = st.floats(0, 100) | st.sampled_from(REQUEST_SECONDS) | st.sampled_from(STAGE_SECONDS)
probability = st.floats(0, 1) | st.sampled_from(PROBABILITIES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["predict", "explain"]), st.sampled_from([200, 422, 503]), seconds), max_size=20), st.lists(st.tuples(st.sampled_from(["1", "2"]), probability), max_size=20))
def test_the_numbers_are_those_of_the_client_library(requests, chances):
    registry, metrics = prometheus_client.CollectorRegistry(), Metrics()
    counter = prometheus_client.Counter("prodml_requests", "x", ["route", "status"], registry=registry)
    latency = prometheus_client.Histogram("prodml_request_seconds", "x", ["route"], buckets=REQUEST_SECONDS, registry=registry)
    chance = prometheus_client.Histogram("prodml_prediction_probability", "x", ["version"], buckets=PROBABILITIES, registry=registry)
    for route, status, value in requests:
        metrics.request(route, status, value)
        counter.labels(route, str(status)).inc()
        latency.labels(route).observe(value)
    for version, value in chances:
        metrics.prediction(version, value)
        chance.labels(version).observe(value)
    mine = read(metrics)
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = {name: f"{float(value):g}" if name == "le" and value != "+Inf" else value for name, value in sample.labels.items()}
                assert mine[(sample.name, *sorted(labels.items()))] == pytest.approx(sample.value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=10, unique=True))
def test_any_text_may_be_a_label(names):
    metrics = Metrics()
    for at, name in enumerate(names):
        metrics.broken_rule(name, at + 1)
    found = {dict(key[1:])["rule"]: value for key, value in read(metrics).items() if key[0] == "prodml_broken_rules_total"}
    assert sum(found.values()) == sum(range(1, len(names) + 1))


def test_half_a_sign_and_a_long_label_do_no_harm():
    metrics = Metrics()
    for name in ("\ud800", "x" * 100_000, "x" * 99_999, "\x00", 'a"b\\c\nd'):
        metrics.broken_rule(name)
        metrics.degraded(name)
    found = {dict(key[1:])["rule"]: value for key, value in read(metrics).items() if key[0] == "prodml_broken_rules_total"}
    assert found == {"?": 1, "x" * 200: 2, "\x00": 1, 'a"b\\c\nd': 1}


def test_series_are_bounded_whatever_comes():
    metrics = Metrics()
    before = len(metrics.numbers.values)
    for at in range(2000):
        metrics.broken_rule(f"r{at}")
        metrics.degraded(f"c{at}")
        metrics.prediction(f"v{at}", 0.5)
        metrics.request(f"p{at % 300}", 200 + at % 300, 0.01)
        metrics.refused(f"why{at}")
    for index, metric in enumerate(METRICS):
        assert len(metrics.numbers.series[index]) <= metric.most
    found = read(metrics)
    total = lambda name: sum(value for key, value in found.items() if key[0] == name)
    assert total("prodml_broken_rules_total") == total("prodml_degraded_total") == total("prodml_prediction_probability_count") == total("prodml_requests_total") == total("prodml_request_seconds_count") == total("prodml_refused_total") == 2000
    assert len(metrics.numbers.values) == before and len(metrics._rules) < 300


def test_what_is_no_number_spoils_nothing():
    metrics = Metrics()
    for value in (math.nan, -1.0, 0.5):
        metrics.request("predict", 200, value)
        metrics.stage("predict", value)
        metrics.prediction("1", value)
    metrics.predictions("1", np.array([np.nan, -0.1, 0.25], np.float32))
    metrics.predictions("1", np.array([], np.float32))
    found = read(metrics)
    assert found["prodml_requests_total", ("route", "predict"), ("status", "200")] == 3
    assert found["prodml_request_seconds_count", ("route", "predict")] == found["prodml_stage_seconds_count", ("stage", "predict")] == 1
    assert found["prodml_prediction_probability_sum", ("version", "1")] == 0.75 and found["prodml_prediction_probability_count", ("version", "1")] == 2


def test_a_name_that_is_not_in_the_table_cannot_be_counted():
    for call in (lambda: Metrics().count("prodml_request_total", "a"), lambda: Metrics().set("x", 1), lambda: Metrics().watch("prodml_nothing", lambda: 1)):
        with pytest.raises(KeyError):
            call()


def test_a_number_that_cannot_be_had_hides_no_other(caplog):
    metrics = filled()
    metrics.watch("prodml_log_waiting_records", lambda: 1 / 0)
    metrics.watch("prodml_in_flight_requests", lambda: 3)
    assert read(metrics)["prodml_in_flight_requests",] == 3 and "could not be had" in caplog.text


def test_what_alerts_ask_for_is_there_from_the_start():
    """`increase` does not see a counter that begins at 1."""
    found = read(Metrics())
    assert found["prodml_rollout_verdicts_total", ("verdict", "rollback")] == found["prodml_log_lost_total",] == found["prodml_refused_total", ("reason", "unknown")] == 0
    assert found["prodml_workers",] == 1 and abs(found["prodml_start_time_seconds",] - time.time()) < 60 and found["process_resident_memory_bytes",] > 1e6


# Several processes


WORKER = """
import os, sys, time
from prodml.serve.observe import Metrics
metrics = Metrics(sys.argv[1])
print("ready", flush=True)
at = 0
while True:
    metrics.request("predict", 200, 0.001)
    metrics.broken_rule(f"rule {at % 50}")
    at += 1
    if at % 1000 == 0:
        time.sleep(0.001)
"""


def test_counts_never_go_down_while_workers_are_killed(tmp_path):
    watcher, last = Metrics(tmp_path), 0.0
    key = "prodml_requests_total", ("route", "predict"), ("status", "200")
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        worker.stdout.readline()
        for _ in range(10):
            now = read(watcher).get(key, 0)
            assert now >= last
            last = now
            time.sleep(0.005)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
    left = read(watcher)
    assert left[key] >= last > 0 and left["prodml_workers",] == 1
    heir = Metrics(tmp_path)
    after = read(watcher)
    assert after[key] == left[key] and after["prodml_workers",] == 2 and len(list(tmp_path.glob("*.values"))) == len(list(tmp_path.glob("*.series"))) == 2
    assert sum(value for name, value in after.items() if name[0] == "prodml_broken_rules_total") == sum(value for name, value in left.items() if name[0] == "prodml_broken_rules_total")
    heir.close()


def test_two_heirs_do_not_both_inherit(tmp_path):
    dead = Metrics(tmp_path)
    dead.request("predict", 200, 0.1)
    dead.close()
    code = f"from prodml.serve.observe import Metrics; import time; metrics = Metrics({str(tmp_path)!r}); print('ready', flush=True); time.sleep(60)"
    heirs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        assert [heir.stdout.readline() for heir in heirs] == [b"ready\n"] * 3
        found = read(Metrics(tmp_path))
        assert found["prodml_requests_total", ("route", "predict"), ("status", "200")] == 1 and found["prodml_workers",] == 4
        assert len(list(tmp_path.iterdir())) == 8
    finally:
        for heir in heirs:
            heir.kill()
            heir.wait()
            heir.stdout.close()


def test_gauges_are_added_or_the_largest_is_taken_and_the_dead_have_none(tmp_path):
    workers = [Metrics(tmp_path) for _ in range(3)]
    for at, worker in enumerate(workers):
        worker.set("prodml_in_flight_requests", at + 1)
        worker.set("prodml_online_age_seconds", 10 * at)
        worker.set("prodml_model_loaded", 1, "flights", "1")
    found = read(workers[0])
    assert (found["prodml_in_flight_requests",], found["prodml_online_age_seconds",], found["prodml_model_loaded", ("model", "flights"), ("version", "1")]) == (6, 20, 1)
    workers[2].close()
    found = read(workers[0])
    assert (found["prodml_in_flight_requests",], found["prodml_online_age_seconds",], found["prodml_workers",]) == (3, 10, 2)


def test_what_all_workers_read_from_one_place_is_not_added(tmp_path):
    """Decisions about rollouts stand in the registry; a dead worker leaves none to its heir."""
    workers = [Metrics(tmp_path) for _ in range(3)]
    for worker in workers:
        worker.set("prodml_rollout_verdicts_total", 2, "promote")
    key = "prodml_rollout_verdicts_total", ("verdict", "promote")
    assert read(workers[0])[key] == 2
    workers[2].close()
    heir = Metrics(tmp_path)
    heir.set("prodml_rollout_verdicts_total", 3, "promote")
    assert read(workers[0])[key] == 3


def test_a_counter_that_is_watched_adds_to_what_a_dead_worker_left(tmp_path):
    dead, lost = Metrics(tmp_path), 5
    dead.watch("prodml_log_lost_total", lambda: lost)
    assert read(dead)["prodml_log_lost_total",] == read(dead)["prodml_log_lost_total",] == 5
    dead.close()
    heir, lost = Metrics(tmp_path), 1
    heir.watch("prodml_log_lost_total", lambda: lost)
    assert read(heir)["prodml_log_lost_total",] == 6


def test_a_line_that_is_half_written_waits(tmp_path):
    one, two = Metrics(tmp_path), Metrics(tmp_path)
    two.broken_rule("whole")
    with open(two.numbers.path.with_suffix(".series"), "ab") as stream:
        stream.write(b'[9, "hal')
    found = read(one)
    assert found["prodml_broken_rules_total", ("rule", "whole")] == 1


def test_files_of_another_table_are_left_out_and_removed(tmp_path):
    for name in ("0123456789ab-1-a.values", "0123456789ab-1-a.series"):
        (tmp_path / name).write_bytes(b"x" * 80)
    metrics = Metrics(tmp_path)
    assert read(metrics) and adopt(metrics.numbers) == 0 and not list(tmp_path.glob("0123*"))


# Dashboard and alerts


def test_the_files_in_ops_are_what_the_table_says():
    assert stale_files(ROOT / "ops") == [], "run `prodml observe`"


def test_files_are_written_once_and_missed_when_changed(tmp_path):
    assert len(write_files(tmp_path)) == 5 and write_files(tmp_path) == []
    (tmp_path / "grafana/prodml.json").write_text("{}")
    assert stale_files(tmp_path) == ["grafana/prodml.json"]
    done = subprocess.run([sys.executable, "-m", "prodml.cli", "observe", "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "grafana/prodml.json\n" and stale_files(tmp_path) == [], done.stderr


def test_every_expression_asks_for_what_there_is():
    shown = {name for name, *_ in read(Metrics())} | {f"{metric.name}{suffix}" for metric in METRICS for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))}
    for alert in alerts_of():
        assert unknown_in(alert.expression) == []
        assert all(series.partition("{")[0] in shown for series in [*alert.fires, *alert.silent] if series != "other_metric")
    for metric, panel in PANELS:
        for expression, _ in queries(metric, panel):
            assert unknown_in(expression) == [] and metric.name in expression


@pytest.mark.parametrize(("expression", "unknown"), [
    ("rate(prodml_request_total[5m])", ["prodml_request_total"]), ("sum by (code) (prodml_requests_total)", ["code"]), ('prodml_requests_total{code="200"}', ["code"]), ("prodml_request_seconds", ["prodml_request_seconds"]),
    ('prodml_requests_total{le="1"}', ["le"]), ("sum without (x) (prodml_workers)", ["x"]), ("process_resident_memory", ["process_resident_memory"]), ('prodml_stage_seconds_bucket{stage!~"a",le="1"}', []),
])
def test_a_misspelt_name_is_found(expression, unknown):
    assert unknown_in(expression) == unknown


def test_the_dashboard_shows_every_metric_and_no_panel_hides_another():
    board = dashboard()
    text = json.dumps(board)
    assert all(metric.name in text for metric in METRICS) and all(alert.summary in text for alert in alerts_of())
    cells = [(x, y) for panel in board["panels"] for box in [panel["gridPos"]] for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert all(target["datasource"]["uid"] == "${source}" and target["expr"] for panel in board["panels"] for target in panel.get("targets", []))


promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not on PATH (Debian: prometheus)")


def run_promtool(*arguments: str, **named) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, **named)


@promtool
def test_promtool_accepts_rules_and_configuration_and_the_rules_pass_their_tests():
    for arguments in (("check", "rules", "alerts.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "alerts.test.yaml"), ("test", "rules", "alerts.long.test.yaml")):
        done = run_promtool(*arguments, cwd=ROOT / "ops/prometheus")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@promtool
@pytest.mark.parametrize(("expression", "half"), [("vector(1)", "is silent"), ("vector(1) > 2", "fires")])
def test_each_alert_has_tests_that_can_fail(tmp_path, expression, half):
    """An alert that always fires fails its silent test, one that never does fails the other."""
    write_files(tmp_path)
    folder = tmp_path / "prometheus"
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = expression
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
    done = run_promtool("test", "rules", "alerts.test.yaml", "alerts.long.test.yaml", cwd=folder)
    assert done.returncode != 0 and {f"{alert.name} {half}" for alert in alerts_of()} <= set(re.findall("name: (.* (?:is silent|fires)),", done.stdout + done.stderr))


@promtool
def test_promtool_reads_the_panels_and_the_metrics(tmp_path):
    words = [expression.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$job", ".*") for metric, panel in PANELS for expression, _ in queries(metric, panel)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": [{"record": f"panel:{at}", "expr": word} for at, word in enumerate(words)]}]}))
    done = run_promtool("check", "rules", str(tmp_path / "panels.yaml"))
    assert done.returncode == 0 and f"{len(words)} rules found" in done.stdout, done.stdout + done.stderr
    done = run_promtool("check", "metrics", input=filled().render().decode())
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr


def filled() -> Metrics:
    """Metrics of which each has a series."""
    metrics = Metrics()
    metrics.request("predict", 200, 0.001)
    metrics.stage("predict", 0.0005)
    metrics.batch(3)
    metrics.predictions("1", np.linspace(0, 1, 11))
    metrics.broken_rule("range")
    metrics.degraded("lag")
    metrics.set("prodml_model_loaded", 1, "flights", "1")
    metrics.count("prodml_rollout_verdicts_total", "promote")
    return metrics


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not on PATH (Debian: prometheus)")
def test_prometheus_scrapes_it_and_every_panel_has_an_answer(tmp_path):
    metrics = filled()

    class Served(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            metrics.request("predict", 200, 0.001)
            metrics.predictions("1", np.linspace(0, 1, 11))
            metrics.batch(8)
            metrics.stage("predict", 0.0005)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(metrics.render())

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_files(tmp_path)
    config = yaml.safe_load((tmp_path / "prometheus/prometheus.yaml").read_text())
    config["global"]["scrape_interval"] = "200ms"
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.server_port}"]
    (tmp_path / "prometheus/prometheus.yaml").write_text(yaml.safe_dump(config))
    running = subprocess.Popen(["prometheus", f"--config.file={tmp_path}/prometheus/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/db", f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def asked(expression):
        words = expression.replace("$__rate_interval", "10s").replace("$__range", "10s").replace("$job", "prodml")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(words)}", timeout=5) as answer:
            return json.load(answer)["data"]["result"]

    wanted = {expression for metric, panel in PANELS for expression, _ in queries(metric, panel)}
    try:
        end = time.monotonic() + 30
        while wanted and time.monotonic() < end:
            time.sleep(0.5)
            try:
                wanted = {expression for expression in wanted if not asked(expression)}
            except OSError:
                continue
        assert not wanted
    finally:
        running.terminate()
        running.wait()
        server.shutdown()
        server.server_close()


# Traces


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,5})?", fullmatch=True))
def test_whatever_is_sent_the_trace_is_whole(value):
    trace = trace_of([(b"traceparent", value)], 0.5)
    again = trace_of([(b"traceparent", trace.header())])
    assert (again.trace_id, again.parent_id, again.sampled) == (trace.trace_id, trace.span_id, trace.sampled)
    if trace.parent_id:
        assert value[3:35].decode() == trace.trace_id and value[36:52].decode() == trace.parent_id


def test_a_share_is_a_share_and_the_same_everywhere():
    traces = [trace_of([]).trace_id for _ in range(4000)]
    assert not any(is_sampled(trace, 0) for trace in traces) and all(is_sampled(trace, 1) for trace in traces)
    chosen = [trace for trace in traces if is_sampled(trace, 0.25)]
    assert 800 < len(chosen) < 1200 and set(trace for trace in traces if is_sampled(trace, 0.1)) < set(chosen)


def test_opentelemetry_is_imported_only_when_it_is_asked_for():
    code = "import sys; from prodml.serve.observe import *; from prodml.serve.traces import *; Metrics().render(); trace_of([]); RequestLog(ObserveSettings()); print([name for name in ('opentelemetry', 'jwt', 'yaml', 'uvicorn', 'torch', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@contextmanager
def collector():
    """The address of a collector of OpenTelemetry, and what it got."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append(ExportTraceServiceRequest.FromString(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    server.got = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", server.got
    finally:
        server.shutdown()
        server.server_close()


def _told_to(address: str) -> Trace:
    """Tell of a request that failed and of one that is not sampled; the trace of the first."""
    tracing = Tracing(ObserveSettings(traces=address, service="flights"))
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace = trace_of([(b"traceparent", parent.encode())])
    tracing.record(trace, "predict", 503, 0.004, [("read", 0.001), ("predict", 0.002)])
    tracing.record(Trace("1" * 32, "2" * 16, None, False), "predict", 200, 0.004, [])
    tracing.close()
    return trace


def test_spans_reach_a_collector():
    with collector() as (address, got):
        trace = _told_to(address)
    [resource] = got[0].resource_spans
    spans = {span.name: span for span in resource.scope_spans[0].spans}
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "flights" and set(spans) == {"read", "predict"} | {"predict"}
    everything = list(resource.scope_spans[0].spans)
    root = next(span for span in everything if span.span_id.hex() == trace.span_id)
    assert len(everything) == 3 and root.parent_span_id.hex() == "00f067aa0ba902b7" and root.status.code == 2 and root.end_time_unix_nano - root.start_time_unix_nano == 4_000_000
    children = [span for span in everything if span.parent_span_id == root.span_id]
    assert len(children) == 2 and all(root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano for span in children)


def test_a_collector_that_is_gone_does_not_hold_the_server(caplog):
    tracing = Tracing(ObserveSettings(traces="http://127.0.0.1:9/v1/traces"))
    tracing.record(trace_of([], 1), "predict", 200, 0.001, [])
    tracing.close(seconds=0.1)
    assert "were not taken" in caplog.text


@pytest.mark.parametrize("table", [{"requests_share": 2}, {"traces_share": -1}, {"log_form": "xml"}, {"log_level": "loud"}, {"traces": "collector:4318"}, {"requests_share": math.nan}])
def test_settings_that_mean_nothing_are_refused(table):
    with pytest.raises(InputError):
        ObserveSettings(**table)


# Logs


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["caller", "password", "note", "token"]), st.text(max_size=60) | st.integers() | st.lists(st.text(max_size=10), max_size=2), max_size=3))
def test_a_log_line_is_one_json_object_whatever_is_in_it(message, fields):
    record = logging.makeLogRecord({"msg": message, "fields": fields, "levelname": "INFO", "name": "x"})
    line = JsonLines().format(record)
    assert "\n" not in line and "\r" not in line
    assert set(json.loads(line)) == {"time", "level", "logger", "message", *fields}


def test_requests_that_fail_always_get_a_line_and_no_other_unasked():
    stream, logger = io.StringIO(), logging.getLogger("prodml.serve.requests")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    before, logger.level = logger.level, logging.INFO
    try:
        requests = RequestLog(ObserveSettings())
        for status in (200, 422, 429, 500, 503):
            requests.done(trace_of([]), "predict", status, 0.0012, "key:batch", version="1")
    finally:
        logger.removeHandler(handler)
        logger.level = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [500, 503] and all(line["milliseconds"] == 1.2 and line["caller"] == "key:batch" and line["version"] == "1" and len(line["trace_id"]) == 32 for line in lines)


def test_logs_of_a_server_are_of_one_form_and_hold_no_secret():
    code = """
import logging, sys
from prodml.serve.observe import ObserveSettings
from prodml.serve.traces import start_logs
start_logs(ObserveSettings(log_form=sys.argv[1]))
logging.getLogger("uvicorn.error").warning("token=%s", "hunter2")
logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "192.0.2.1:1", "GET", "/?api_key=hunter2", "1.1", 200)
try:
    raise ValueError("redis://u:hunter2@store/")
except ValueError:
    logging.getLogger("prodml").exception("failed", extra={"fields": {"headers": [("authorization", "Bearer hunter2")]}})
"""
    for form in ("json", "text"):
        done = subprocess.run([sys.executable, "-c", code, form], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and "hunter2" not in done.stdout + done.stderr and "ValueError" in done.stderr, done.stderr
        if form == "json":
            assert [json.loads(line)["logger"] for line in done.stderr.splitlines()] == ["uvicorn.error", "uvicorn.access", "prodml"]


# The real server


PREDICT, ROW = "/v1/predict", {"delay": 0.4, "wind": 1.5, "carrier": "UA"}
# What needs an online table (tests/test_online.py) or a log that is full.
ELSEWHERE = {"prodml_degraded_total", "prodml_online_age_seconds", "prodml_log_lost_total", "prodml_log_troubled_workers", "prodml_log_waiting_records"}


def released(bundle: Path, folder: Path, threshold: float, key: Path) -> Path:
    """A signed copy with another threshold."""
    copy = shutil.copytree(bundle, folder)
    write_json(copy / "thresholds.json", {"dense": threshold})
    write_manifest(copy, {})
    (copy / SIGNATURE).write_bytes(signature_of((copy / MANIFEST).read_bytes(), private_key(key)))
    return copy


@pytest.fixture(scope="module")
def watched(small_bundle, tmp_path_factory):
    """The address of a server with everything on, its key, service and collected spans."""
    folder = tmp_path_factory.mktemp("watched")
    public = new_key(folder / "signer")
    registry = Registry(folder / "registry", trusted=[public])
    folders = [released(small_bundle, folder / str(at), 0.5 + at / 10, folder / "signer") for at in range(2)]
    for each in folders:
        registry.register(each, "Ada", "A week's model.")
    registry.assign("made_up", "champion", "v1.0.0", "Ada", "The first one.")
    registry.store.close()
    key = new_api_key(folder / "keys.json", "Ada", ["predict", "explain", "feedback", "audit"]).reveal()
    with collector() as (traces, spans):
        chosen = all_settings({
            "server": {"port": 0, "registry": str(folder / "registry")}, "models": {"trusted": [str(public)]}, "access": {"keys": str(folder / "keys.json")}, "log": {"folder": str(folder / "log")},
            "observe": {"traces": traces, "requests_share": 1.0}, "rollout": {"steps": [{"weight": 0.5}]},
        })
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds until spans are sent
            service = make_service(folders[:1], chosen, folder / "metrics")
        with running(service, chosen) as address:
            yield address, key, service, spans


def ask(address: str, path: str, key: str | None, body=None, **headers: str):
    """Status and body."""
    own = {name.replace("_", "-"): value for name, value in headers.items()} | ({"Authorization": f"Bearer {key}"} if key else {}) | ({"Content-Type": "application/json"} if body is not None else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, None if body is None else json.dumps(body).encode(), own), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def told_by(address: str, key: str) -> dict:
    """What /metrics says, as Prometheus's own library reads it."""
    families = text_string_to_metric_families(ask(address, "/metrics", key)[1].decode())
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}


def difference(after: dict, before: dict, name: str, **labels: str) -> float:
    """How much a number grew, over all series with these labels."""
    chosen = [key for key in after if key[0] == name and set(labels.items()) <= set(key[1:])]
    assert chosen, (name, labels)
    return sum(after[key] - before.get(key, 0) for key in chosen)


def test_every_number_moves_when_it_should(watched):
    address, key, service, _ = watched
    before = told_by(address, key)
    with ThreadPoolExecutor(8) as pool:
        answers = [json.loads(told) for _, told in pool.map(lambda _: ask(address, PREDICT, key, ROW), range(40))]
    assert ask(address, PREDICT, key, [ROW] * 5)[0] == 200
    status, refused = ask(address, PREDICT, key, {"wind": 1.0})
    rules = [one["rule"] for one in json.loads(refused)["errors"]]
    assert status == 422 and rules
    assert ask(address, "/v1/explain", key, ROW)[0] == 200 and ask(address, PREDICT, "prodml_" + "0" * 12 + "_" + "0" * 64, ROW)[0] == 401
    assert ask(address, "/nothing", key)[0] == 404
    service.app.log.flush()
    assert ask(address, "/v1/feedback", key, [{"id": answers[0]["id"], "label": 1}, {"id": "unknown", "label": 0}])[0] == 200
    service.app.rollout.start("v1.0.1", "Ada", "A week later.")
    service.app.rollout.rollback("Ada", "It was a test.")
    verdict, end = {"name": "prodml_rollout_verdicts_total", "verdict": "rollback"}, time.monotonic() + 10
    while not difference(after := told_by(address, key), before, **verdict) and time.monotonic() < end:
        pass
    grew = lambda name, **labels: difference(after, before, name, **labels)
    assert grew("prodml_requests_total", route=PREDICT, status="200") == 41 and grew("prodml_requests_total", route=PREDICT, status="422") == grew("prodml_requests_total", route=PREDICT, status="401") == 1
    assert grew("prodml_requests_total", route="none", status="404") == 1 and grew("prodml_request_seconds_count", route=PREDICT) == 43
    assert grew("prodml_prediction_probability_count") == grew("prodml_batch_rows_sum") == 45 and 0 < grew("prodml_batch_rows_count") <= 41
    assert grew("prodml_prediction_probability_sum") == pytest.approx(45 * answers[0]["probability"])
    assert grew("prodml_stage_seconds_count", stage="features") == grew("prodml_stage_seconds_count", stage="predict") >= 40 and grew("prodml_stage_seconds_count", stage="explain") == 1
    assert grew("prodml_broken_rules_total") == len(rules) and all(grew("prodml_broken_rules_total", rule=rule) == 1 for rule in rules)
    assert grew("prodml_feedback_total") == grew("prodml_refused_total", reason="unknown") == 1
    assert grew("prodml_rollout_verdicts_total", verdict="start") == grew("prodml_rollout_verdicts_total", verdict="rollback") == 1
    assert after["prodml_model_loaded", ("model", "made_up"), ("version", "v1.0.0")] == after["prodml_workers",] == 1 and after["prodml_in_flight_requests",] >= 1
    assert abs(after["prodml_start_time_seconds",] - time.time()) < 600 and after["process_resident_memory_bytes",] > 1e7 and grew("process_cpu_seconds_total") > 0
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for (name, *_), value in after.items() if value > 0}
    assert {metric.name for metric in METRICS} - shown <= ELSEWHERE


def test_another_worker_sees_the_states_of_this_one(watched):
    service = watched[2]
    other = Metrics(service.app.metrics.numbers.path.parent)
    end = time.monotonic() + 10
    while ("prodml_model_loaded", ("model", "made_up"), ("version", "v1.0.0")) not in (found := read(other)) and time.monotonic() < end:
        time.sleep(0.05)
    assert found["prodml_model_loaded", ("model", "made_up"), ("version", "v1.0.0")] == 1 and found["prodml_workers",] == 2
    other.close()


def test_alerts_ask_for_routes_that_the_server_has(watched):
    """An alert on a route that nothing is called by would never fire."""
    from prodml.serve.grpc import PACKAGE

    service = watched[2]
    routes = {route.path for route in service.app.routes} | {f"/{PACKAGE}.GRPCInferenceService/ModelInfer", f"/{PACKAGE}.GRPCInferenceService/ServerLive"}
    asked = {pattern for alert in alerts_of() for pattern in re.findall(r'route=~"([^"]*)"', alert.expression)}
    assert asked and not [alert.name for alert in alerts_of() if re.search(r'route="', alert.expression)]
    for pattern in asked:
        found = {route for route in routes if re.fullmatch(pattern, route)}
        assert PREDICT in found and f"/{PACKAGE}.GRPCInferenceService/ModelInfer" in found and any(route.startswith("/v2/") for route in found)
        assert not [route for route in found if "health" in route or "Live" in route or "explain" in route]
    history = {route for alert in alerts_of() for series in [*alert.fires, *alert.silent] for route in re.findall(r'route="([^"]*)"', series)}
    assert history <= routes


def test_a_log_that_cannot_be_written_is_told(watched, monkeypatch):
    address, key, service, _ = watched

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fdatasync", full)
        assert ask(address, PREDICT, key, ROW)[0] == 200
        end = time.monotonic() + 10
        while not service.app.log.trouble and time.monotonic() < end:
            time.sleep(0.02)
        found = told_by(address, key)
        assert found["prodml_log_troubled_workers",] == 1 and found["prodml_log_waiting_records",] >= 1
    service.app.log.flush()
    found = told_by(address, key)
    assert found["prodml_log_troubled_workers",] == found["prodml_log_waiting_records",] == 0


def test_requests_are_traced_and_logged_without_a_secret(watched):
    address, key, service, spans = watched
    stream, logger = io.StringIO(), logging.getLogger("prodml.serve.requests")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    try:
        assert ask(address, PREDICT, key, ROW, traceparent=parent)[0] == 200 and ask(address, f"{PREDICT}?api_key={key}", key, {"wind": 1.0}, traceparent=parent)[0] == 422
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["route"], line["status"], line["trace_id"]) for line in lines] == [(PREDICT, status, parent[3:35]) for status in (200, 422)]
    assert all(line["caller"] == "key:Ada" and line["milliseconds"] > 0 for line in lines) and key not in stream.getvalue() and key[20:] not in stream.getvalue()
    end = time.monotonic() + 20
    mine = []
    while len(mine) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        mine = [span for batch in list(spans) for resource in batch.resource_spans for scope in resource.scope_spans for span in scope.spans if span.trace_id.hex() == parent[3:35]]
    assert {span.parent_span_id.hex() for span in mine} == {"00f067aa0ba902b7"} and {span.name for span in mine} == {PREDICT} and {span.span_id.hex() for span in mine} == {line["span_id"] for line in lines}
    assert not [batch for batch in spans if key in str(batch)]
