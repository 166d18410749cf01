"""The server from outside: real HTTP, real processes, and what must hold of every row."""

import http.client
import json
import math
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contract import TYPES, VALUES, rules

from prodml.bundle.bundle import open_bundle, write_manifest
from prodml.bundle.contract import row_contract
from prodml.bundle.encode import RowEncoder
from prodml.bundle.one_row import QuickChecker, RowPacker
from prodml.core.errors import InputError
from prodml.core.files import write_json
from prodml.serve.reader import RowReader, as_dict
from prodml.serve.request_profile import _median_us, profile_request
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
# The sign of NaN means nothing, and no caller can send one.
FLOATS = st.floats().map(lambda value: math.nan if math.isnan(value) else value)
ANY = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FLOATS | st.sampled_from(["x", "7", "2.5", "", "é", b"x", 7, 7.0, 2.5, -0.0, 1e39, np.float32(0.1), [1], {}]) | st.text(max_size=3)


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
        if all(name in row for name in (*encoder.numeric, *encoder.lookups)):
            assert outcome(lambda: RowPacker(encoder).values(tuple(row[name] for name in (*encoder.numeric, *encoder.lookups)))) == expected


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


@settings(max_examples=300, deadline=None)
@given(row=ROWS, made=st.lists(rules(), max_size=5), dropped=st.none() | st.sampled_from(sorted(TYPES)))
def test_a_row_that_is_read_by_its_contract_breaks_no_rule(row, made, dropped):
    check = QuickChecker(row_contract("rows", TYPES, [rule | {"name": f"rule {number}"} for number, rule in enumerate(made)], "no target"))
    body = msgspec.json.encode({name: value for name, value in row.items() if name != dropped})
    row, read = msgspec.json.decode(body), RowReader(check, sorted(check.types))(body)
    if read is not None:
        assert not check({name: [value] for name, value in row.items()}) and as_dict(read) == {name: row[name] for name in sorted(row)}


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


def test_requests_in_pieces_in_a_row_and_in_every_way_get_one_answer_each_in_order(server):
    """What goes straight and what takes the way of ASGI cannot be told apart by the caller."""
    host, port = server[0].removeprefix("http://").split(":")
    body = json.dumps(ROW).encode()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    bad = json.dumps(ROW | {"delay": 50}).encode()
    requests = [
        (whole, 200), (head + b"Content-Length: %d\r\n\r\n" % len(bad) + bad, 422), (b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", 200), (whole, 200), (whole.replace(b"predict", b"nothing"), 404),
        (head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), 200), (head + b"Content-Length: 1\r\n\r\n{", 400), (whole.replace(b"Host", b"Accept: image/png\r\nHost"), 406),
        (whole.replace(b"localhost", b"elsewhere.example"), 403), (whole.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    ]
    data = b"".join(request for request, _ in requests)
    for size in (len(data), 7, 100, len(whole) + 3):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            for start in range(0, len(data), size):
                connection.sendall(data[start : start + size])
            stream, found = connection.makefile("rb"), []
            for _ in requests:
                status = int(stream.readline().split()[1])
                headers = dict(line.rstrip(b"\r\n").split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
                told = json.loads(stream.read(int(headers[b"content-length"])))
                assert {b"date", b"content-type"} <= headers.keys()
                found.append((status, told.get("probability")))
            assert stream.read() == b"", "HTTP/1.0 ends the connection"
        assert [status for status, _ in found] == [status for _, status in requests]
        assert len({probability for _, probability in found if probability is not None}) == 1


def test_an_idle_connection_is_closed_and_one_in_use_is_not(small_bundle):
    with serving(small_bundle, server={"port": 0, "keep_alive_seconds": 1}) as (address, _):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        for _ in range(6):
            connection.request("POST", "/v1/predict", json.dumps(ROW).encode(), {"Content-Type": "application/json"})
            assert connection.getresponse().read()
            time.sleep(0.25)
        assert connection.sock is not None and connection.sock.recv(1) == b"", "closed by the server"


def test_what_the_model_cannot_answer_is_refused_and_its_neighbours_are_answered(small_bundle):
    with serving(small_bundle) as (address, service):
        served = service.models.get()
        predict = served.predict

        def overflowing(numbers, codes):
            told = predict(numbers, codes)
            told[numbers[:, 0] == 5] = np.nan
            return told

        served.predict, served.batcher = overflowing, None
        for body in (ROW | {"delay": 5}, [ROW, ROW | {"delay": 5}]):
            for path in ("/v1/predict", "/v1/explain"):
                status, _, told = ask(address, path, body)
                assert status == 422 and "no answer" in told["title"]
        assert ask(address, "/v1/predict", ROW)[0] == 200


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


def test_a_text_of_a_csv_that_meant_missing_in_training_means_it_here(server):
    address, _ = server
    answers = [ask(address, "/v1/predict", f"delay,wind,carrier\n0.5,{cell},{cell}\n".encode(), Content_Type="text/csv") for cell in ("", "NA", "NaN")]
    assert [status for status, *_ in answers] == [200, 200, 422]
    assert answers[0][2]["predictions"][0]["probability"] == answers[1][2]["predictions"][0]["probability"]


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
    ("/v1/models/..9/load", {}, None, {}, 422), ("/v1/models/-9/load", {}, None, {}, 422),
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


def variant(bundle: Path, folder: Path, threshold: float) -> Path:
    """The bundle with another threshold, which makes it another version."""
    shutil.copytree(bundle, folder)
    write_json(folder / "thresholds.json", {"dense": threshold})
    write_manifest(folder, {"variant": "0" * 64})
    return folder


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


def test_a_profile_takes_each_request_through_all_parts_before_the_next():
    """A part that is repeated at once runs from warm caches: the parts would be a half of the whole."""
    seen = []
    assert _median_us({name: (lambda value, name=name: seen.append((name, value)), [1, 2]) for name in ("whole", "reading")}, 2).keys() == {"whole", "reading"}
    assert seen == [("whole", 1), ("reading", 1), ("whole", 2), ("reading", 2)] * 2


@pytest.mark.parametrize(("line", "said"), [
    ("delay,wind,carrier", "row 2: the line is no JSON object"),
    ("[1, 2]", "row 2: the line is no JSON object"),
    (json.dumps(ROW | {"wind": "strong"}), "column wind, row 2: the value 'strong' breaks the rule 'type of wind'"),
    (json.dumps(ROW | {"more": 1}), "row 2: the server answers the request, but not by the quick way"),
], ids=["csv", "list", "type", "more columns"])
def test_a_request_that_is_not_timed_is_told_why(small_bundle, tmp_path, line, said):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(InputError) as error:
        profile_request(small_bundle, tmp_path / "rows.jsonl", rounds=2)
    assert str(error.value).startswith(said)
