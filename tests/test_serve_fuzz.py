"""The server under attack: whatever comes, it answers by its description, within its bounds, and says nothing of itself."""

import gzip
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contract import TYPES, rules
from test_serve_access import certificate

from prodml.bundle.contract import row_contract
from prodml.bundle.one_row import QuickChecker
from prodml.core.errors import InputError
from prodml.serve.access import new_api_key, revoke_key
from prodml.serve.page import add_page
from prodml.serve.server import all_settings, check_safe, make_service, running

ROW = {"delay": 0.4, "wind": None, "carrier": "UA"}
BODY = json.dumps(ROW).encode()
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
ARROW = "application/vnd.apache.arrow.stream"


@contextmanager
def serving(bundle: Path, **more):
    """The address of a server, and its service."""
    chosen = all_settings({"server": {"port": 0}, "models": {"unsigned": True}} | more)
    service = make_service([bundle], chosen)
    if "/" not in {route.path for route in service.app.routes}:
        add_page(service.app)
    with running(service, chosen) as address:
        yield address.partition("://")[2], service


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def operator(keys) -> str:
    """A key that may do all."""
    return new_api_key(keys, "operator", ["predict", "explain", "feedback", "operate", "audit"]).reveal()


@pytest.fixture(scope="module")
def full(small_bundle, keys, operator, tmp_path_factory):
    """A server with all there is: keys, log, metrics, page, gRPC, the Open Inference Protocol, a folder of releases."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "releases").mkdir()
    with serving(small_bundle, server={"port": 0, "releases": str(folder / "releases")}, log={"folder": str(folder / "log")}, grpc={"port": 0}, access={"keys": str(keys), "reload_s": 0.05}) as found:
        yield found


@pytest.fixture(scope="module")
def quick(small_bundle):
    """An open server that is soon out of patience."""
    with serving(small_bundle, limits={"seconds": 1.0}) as found:
        yield found


@pytest.fixture(scope="module")
def plain(small_bundle):
    """An open server."""
    with serving(small_bundle) as found:
        yield found


def exchanged(address: str, *parts: bytes, pause: float = 0.02, timeout: float = 5.0) -> bytes:
    """What comes back until the server closes, `<open>` at the end if it does not in time."""
    host, port = address.split(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            connection.settimeout(timeout)
            while piece := connection.recv(65_536):
                got += piece
        except TimeoutError:
            got += b"<open>"
        except OSError:
            pass
    return got


def post(path: str, body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (path.encode(), HOST, b"".join(headers), len(body) if length is None else length, body)


def asked(address: str, path: str, body=None, method: str | None = None, **headers: str):
    """Status, headers in lower case, and body of one request."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, ({"Content-Type": "application/json"} if body is not None else {}) | {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def alive(address: str) -> bool:
    return asked(address, "/health/live")[0] == 200 and asked(address, "/v1/predict", BODY)[0] in (200, 401)


# By the description


def test_the_description_leaves_out_the_page_alone(full, operator):
    address, service = full
    told = json.loads(asked(address, "/openapi.json")[2])["paths"]
    described = {(path, method.upper()) for path, methods in told.items() for method in methods}
    routes = {(route.path, route.method) for route in service.app.routes}
    assert described <= routes and {path for path, _ in routes - described} == {"/", "/card", "/figures.json"}
    assert {"/v2/models/{name}/infer", "/v1/feedback", "/metrics", "/health/startup"} <= set(told)


def fuzzed(address: str, key: str, folder: Path, *more: str) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests" / "schemathesis.toml"), "--no-color", "run", f"http://{address}/openapi.json", "-H", f"Authorization: Bearer {key}", "--generation-database", "none", *more]
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=folder, env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[:6000] + done.stdout[-3000:] + done.stderr[-2000:]


def test_answers_are_as_described(full, operator, tmp_path):
    """schemathesis makes requests from the description, good and bad, and holds every answer against it."""
    fuzzed(full[0], operator, tmp_path, "--max-examples", "8", "--seed", "1", "--phases", "fuzzing")


@pytest.mark.slow
def test_answers_are_as_described_for_longer(full, operator, tmp_path):
    fuzzed(full[0], operator, tmp_path, "--max-examples", "40", "--seed", "2", "--phases", "examples,coverage,fuzzing,stateful")


# HTTP that is none


HEALTH = b"GET /health/live HTTP/1.1\r\n" + HOST
CHUNKED = b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("sent", [
    CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + HEALTH + b"\r\n", HEALTH + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456", HEALTH + b"Content-Length: +5\r\n\r\n12345", HEALTH + b"Content-Length: -1\r\n\r\n",
    HEALTH + b"Content-Length: 99999999999999999999999\r\n\r\n", HEALTH + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", HEALTH + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", HEALTH + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    HEALTH + b"X: a\r\n b\r\n\r\n", HEALTH + b"X: a\rb\r\n\r\n", HEALTH + b"X: a\0b\r\n\r\n", b"GET /health/live HTTP/1.1\nHost: localhost\n\n", CHUNKED + b"\r\nffffffffffffffffff\r\nabc", CHUNKED + b"\r\n28\n" + BODY + b"\n0\n\n",
    b"GET /v1/\xff HTTP/1.1\r\n" + HOST + b"\r\n", b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n", bytes.fromhex("16030100a5010000a10303") + bytes(100), b"\0\1\2\r\n\r\n",
])
def test_what_two_could_read_in_two_ways_is_refused_and_the_door_closed(quick, sent):
    got = exchanged(quick[0], sent)
    assert got.startswith(b"HTTP/1.1 400 ") and got.count(b"HTTP/1.1 ") == 1 and not got.endswith(b"<open>"), got


@pytest.mark.parametrize("apart", [False, True])
def test_an_upgrade_smuggles_no_second_request_in(quick, apart):
    """httptools leaves the body of such a request out, and then takes it for a request of its own."""
    hidden = HEALTH + b"\r\n"
    head = b"POST /v1/predict HTTP/1.1\r\n" + HOST + JSON + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    got = exchanged(quick[0], *((head, hidden) if apart else (head + hidden,)))
    assert got.startswith(b"HTTP/1.1 501 ") and b'"live"' not in got and b"<open>" not in got
    assert exchanged(quick[0], HEALTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", HEALTH + b"Connection: close\r\n\r\n").count(b'"live"') == 2, "without a body it may be left unheard"


# Who is slow


@pytest.mark.parametrize("parts", [
    (b"GET /health/live HTTP/1.1\r\nHost: ",), (HEALTH + b"\r\n", b"GET /health/live HTTP/1.1\r\nHost: "), (HEALTH + b"\r\n", b"\r\n"), (CHUNKED + b"\r\n", b"5\r\nab"),
    (b"POST /v1/nothing HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n", b"a", b"a"), (b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n", b"{"),
], ids=["first header", "later header", "empty line", "chunk", "body that was refused", "body"])
def test_who_stops_half_way_is_given_up(quick, parts):
    assert b"<open>" not in exchanged(quick[0], *parts, timeout=8.0)


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_given_up(small_bundle):
    rows = json.dumps([ROW] * 10_000).encode()
    with serving(small_bundle, limits={"seconds": 3.0}) as (address, service), socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address.split(":")
        reader.connect((host, int(port)))
        reader.settimeout(10)
        for _ in range(6):
            reader.sendall(b"POST /v1/predict HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: %d\r\n\r\n" % len(rows) + rows)
        time.sleep(12)
        got = 0
        try:
            while piece := reader.recv(1 << 20):
                got += len(piece)
        except ConnectionResetError:
            pass
        assert got < 5_000_000 and alive(address), "six answers would be more"


# Bodies


def stream(*batches) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def of_carriers(words: int, batches: int) -> bytes:
    """A dictionary that is sent once and stands in each batch."""
    carriers = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([f"w{number}" for number in range(words)]))
    return stream(*[pa.record_batch([pa.array([0.4]), pa.array([0.1]), carriers], ["delay", "wind", "carrier"])] * batches)


def declared(rows: int) -> bytes:
    """Seven rows that say they are others."""
    return stream(pa.record_batch([pa.nulls(7)], ["delay"])).replace((7).to_bytes(8, "little"), rows.to_bytes(8, "little", signed=True))


nested = pa.float64()
for _ in range(50):
    nested = pa.list_(nested)
NAMED = of_carriers(1, 1)
ARROWS = {
    "dictionary in many batches": (of_carriers(50_000, 2_000), 413), "one long word": (stream(pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([0] * 9_000, pa.int32()), pa.array(["a" * 900_000]))], ["carrier"])), 413), "2^40 rows": (declared(2**40), 413), "2^62 rows": (declared(2**62), 413), "-5 rows": (declared(-5), 400),
    "nested": (stream(pa.record_batch([pa.nulls(1, nested)], ["delay"])), 400), "runs": (stream(pa.record_batch([pa.RunEndEncodedArray.from_arrays(pa.array([2**30], pa.int32()), pa.array([1.0]))], ["delay"])), 400), "many columns": (stream(pa.record_batch([pa.array([1.0])] * 5_000, [str(number) for number in range(5_000)])), 422),
    "a name that is no text": (NAMED.replace(b"carrier", b"car\xff\xfeer"), 400), "a value that is no text": (NAMED.replace(b"w0", b"\xff\xfe"), 400), "cut": (NAMED[:-40], 400), "a file, not a stream": (b"ARROW1\0\0" + NAMED, 400),
}
TEXTS = {
    "many columns": (",".join(f"c{number}" for number in range(100_000)).encode() + b"\n" + b"," * 99_999 + b"\n", 422), "quotes": (b'delay,wind,carrier\n"' + b'"' * 1_000_001, 400), "a long number": (b"delay,wind,carrier\n" + b"9" * 100_000 + b",,UA\n", 422), "a long cell": (b"delay,wind,carrier\n0.1,," + b"a" * 200_000, 400),
    "empty lines": (b"delay,wind,carrier\n" + b"\n" * 500_000, 200), "nothing": (b"", 400), "zeros": (b"delay,wind,carrier\n\0,,\n", 422), "one name twice": (b"delay,delay,wind,carrier\n1,1,1,UA\n", 400),
}
JSONS = {
    "out of range": (b'{"delay":1e400,"wind":null,"carrier":"UA"}', 400), "NaN": (b'{"delay":NaN,"wind":null,"carrier":"UA"}', 400), "Infinity": (b'[{"delay":-Infinity,"wind":null,"carrier":"UA"}]', 400), "a long integer": (b'{"delay":' + b"1" * 400 + b',"wind":null,"carrier":"UA"}', 422), "too long for an integer": (b'{"delay":' + b"1" * 5_000 + b',"wind":null,"carrier":"UA"}', 400),
    "larger than a float of the network": (b'{"delay":0,"wind":1e300,"carrier":"UA"}', 422), "the last of two counts": (b'{"delay":1,"delay":99,"wind":null,"carrier":"UA"}', 422), "half a sign": (b'{"delay":1,"wind":null,"carrier":"\\ud800"}', 400), "no UTF-8": (b'{"delay":1,"wind":null,"carrier":"\xff"}', 400), "UTF-16": (BODY.decode().encode("utf-16"), 400), "a mark before it": (b"\xef\xbb\xbf" + BODY, 400),
    "deep": (b'{"a":' * 100_000, 400), "deep lists": (b"[" * 9 + b"]" * 9, 400), "many keys": (b"{" + b",".join(b'"k%d":1' % number for number in range(200_000)) + b"}", 422), "many rows": (b"[" + b",".join([b"{}"] * 500_000) + b"]", 413), "a long column": (b'{"delay":[' + b",".join([b"1"] * 1_000_000) + b"]}", 413),
}


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain"])
@pytest.mark.parametrize("kind, cases", [(ARROW, ARROWS), ("text/csv", TEXTS), ("application/json", JSONS)], ids=["arrow", "csv", "json"])
def test_a_body_that_means_harm_is_refused_before_the_server_gives_up(plain, path, kind, cases):
    for name, (body, status) in cases.items():
        found, told, answer = asked(plain[0], path, body, Content_Type=kind)
        assert found == status, (name, found, answer[:300])
        assert status == 200 or told["content-type"] == "application/problem+json" and len(answer) < 60_000 and json.loads(answer)["detail"], name
    assert alive(plain[0])


def test_lengths_that_lie_and_bodies_beyond_the_limit(quick):
    address = quick[0]
    assert exchanged(address, post("/v1/predict", BODY, JSON, length=len(BODY) + 50), timeout=8).startswith(b"HTTP/1.1 408 ")
    assert exchanged(address, post("/v1/predict", b"", JSON, length=2**40) + b"a" * 100_000, timeout=8).startswith(b"HTTP/1.1 4")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    assert exchanged(address, CHUNKED + JSON + b"\r\n", *[chunk] * 66, pause=0).startswith(b"HTTP/1.1 413 ")
    assert exchanged(address, post("/v1/predict", BODY, JSON, length=5), timeout=8).count(b"HTTP/1.1 ") == 1, "what follows the last request of a connection is none"
    for encoding in ("gzip", "br", "x"):
        assert asked(address, "/v1/predict", gzip.compress(bytes(10**8), 1), Content_Encoding=encoding)[0] == 415
    assert asked(address, "/v1/predict?" + "&".join(f"a{number}=1" for number in range(200)), BODY)[0] == 422 and alive(address)


# Paths and names


@pytest.mark.parametrize("version", ["..%2f..%2fetc", "%252e%252e%252fetc", "%00", "%0d%0aX-Evil:1", "a" * 5_000, "%ff%fe", "%25%32%65"])
def test_no_name_of_a_version_leads_elsewhere(full, operator, version):
    bearer = {"Authorization": f"Bearer {operator}"}
    for path in (f"/v1/models/{version}/load", f"/v1/models/{version}/unload", f"/v1/models/{version}/use", f"/v2/repository/models/{version}/load", f"/v2/repository/models/{version}/unload", f"/v2/models/{version}/infer"):
        status, told, body = asked(full[0], path, b"", **bearer)
        assert status in (400, 404, 422) and "x-evil" not in told and b"Traceback" not in body and len(body) < 1_000, (path, status, body)


def test_no_folder_outside_of_the_releases_is_loaded(full, operator, small_bundle, tmp_path):
    releases = full[1].app.releases
    for name, target in {"out": small_bundle, "up": releases.parent, "file": Path("/etc/passwd")}.items():
        (releases / name).symlink_to(target)
    for folder in ("..", "../log", "/etc", ".", "", "a/../..", "out", "up", "up/log", "\0", "out/../../log", str(small_bundle), "~", "file", "a" * 5_000, "none"):
        status, _, body = asked(full[0], "/v1/models/x/load", json.dumps({"folder": folder}).encode(), Authorization=f"Bearer {operator}")
        assert status in (409, 422) and b"Traceback" not in body and str(releases).encode() not in body and b"root:" not in body, (folder, status, body)


# Who asks


def test_roles_hold_on_every_route(full, keys):
    """A key with one role gets no further than its routes, on any path there is."""
    address, service = full
    key, roles = new_api_key(keys, "narrow", ["feedback"]).reveal(), {}
    time.sleep(0.2)
    for route in service.app.routes:
        path = route.path.replace("{version}", "0").replace("{name}", "none")
        for held, header in (("none", {}), ("feedback", {"Authorization": f"Bearer {key}"}), ("wrong", {"X-API-Key": key[:-1] + ("0" if key[-1] != "0" else "1")})):
            status = asked(address, path, b"" if route.method == "POST" else None, route.method, **header)[0]
            roles.setdefault((route.role, held), set()).add(status in (401, 403, 429))
    assert roles.pop(("feedback", "feedback")) == {False} and roles.pop((None, "none")) <= {False, True}
    assert all(refused == {role is not None} for (role, held), refused in roles.items() if role is not None), roles


def test_a_revoked_key_stops_and_a_rate_is_kept_whatever_address_is_claimed(full, keys):
    address = full[0]
    key = new_api_key(keys, "guest", ["predict"], rate_per_s=0.5, burst=3).reveal()
    time.sleep(0.2)
    asked_as = lambda number: asked(address, "/v1/predict", BODY, Authorization=f"Bearer {key}", X_Forwarded_For=f"10.0.0.{number}", X_Real_IP=f"10.0.1.{number}", Forwarded=f"for=10.0.2.{number}")
    answers = [asked_as(number) for number in range(6)]
    assert [status for status, *_ in answers][:3] == [200, 200, 200] and answers[-1][0] == 429 and int(answers[-1][1]["retry-after"]) >= 1
    revoke_key(keys, key)
    deadline = time.monotonic() + 10
    while (status := asked_as(9)[0]) != 401 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == 401


def test_no_guess_gets_in_by_claiming_other_addresses(full):
    statuses = [asked(full[0], "/v1/model", Authorization=f"Bearer prodml_{number:012x}_{'0' * 64}", X_Forwarded_For=f"10.1.{number}.1")[0] for number in range(30)]
    assert set(statuses) <= {401, 429} and statuses[-1] == 429


# What is said


BROKEN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[4])
from pathlib import Path
from prodml.serve.observe import ObserveSettings
from prodml.serve.traces import start_logs
from test_serve_fuzz import BODY, asked, serving
start_logs(ObserveSettings(requests_share=1.0))
with serving(Path(sys.argv[1]), access={"keys": sys.argv[2]}) as (address, service):
    def broken(*arrays):
        raise RuntimeError("no answer for " + sys.argv[3])
    service.models.get().predict, service.models.get().batcher = broken, None
    for path in ("/v1/predict", "/v1/predict?token=" + sys.argv[3], "/v1/%0aERROR%20forged", "/v2/models/made_up/infer"):
        status, told, body = asked(address, path, BODY, Authorization="Bearer " + sys.argv[3], X_Request_ID="a\tERROR forged", traceparent="forged")
        print(status, body.decode())
"""


def test_no_answer_tells_where_it_runs_and_no_line_holds_a_key(small_bundle, keys, operator):
    """The model breaks, with a key in its last words."""
    done = subprocess.run([sys.executable, "-c", BROKEN, str(small_bundle), str(keys), operator, json.dumps([str(ROOT / "tests"), str(ROOT)])], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("500 ") and "Traceback" in done.stderr, "the log has it, the answer has not"
    assert str(ROOT) not in done.stdout and "Traceback" not in done.stdout and "RuntimeError" not in done.stdout
    assert operator[20:] not in done.stdout + done.stderr and not any(line.startswith("ERROR forged") for line in done.stderr.splitlines())


# Too many


def test_five_hundred_at_once_are_answered_or_told_to_come_back(small_bundle):
    with serving(small_bundle, limits={"in_flight": 50, "seconds": 20.0}) as (address, service):
        held, served = threading.Event(), service.models.get()
        predict, served.batcher = served.predict, None
        served.predict = lambda *arrays: (held.wait(20), predict(*arrays))[1]
        service.app.batching = service.app.batching.__class__(thread_rows=1)
        host, port = address.split(":")
        # Two rows, for one alone is answered at once.
        request = post("/v1/predict", json.dumps([ROW, ROW]).encode(), JSON)
        connections = [socket.create_connection((host, int(port)), timeout=20) for _ in range(500)]
        for connection in connections:
            connection.sendall(request)
        deadline = time.monotonic() + 20
        refused: list[bytes] = []
        waiting = list(connections)
        while len(refused) < 450 and time.monotonic() < deadline:
            for connection in list(waiting):
                connection.setblocking(False)
                try:
                    refused.append(connection.recv(65_536))
                    waiting.remove(connection)
                except BlockingIOError:
                    pass
        assert len(refused) == 450 and all(answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in answer for answer in refused)
        assert asked(address, "/health/live")[0] == 200
        held.set()
        for connection in waiting:
            connection.settimeout(20)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        for connection in connections:
            connection.close()
        assert asked(address, "/v1/predict", BODY)[0] == 200 and not service.app.running


# Locked, through the real process


@contextmanager
def process(*arguments: str):
    """A server process, and its lines."""
    started = subprocess.Popen([sys.executable, "-m", "prodml.serve.server", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(started.stderr))
    reader.start()
    try:
        until(lambda: any("answers on" in line for line in lines) or started.poll() is not None)
        yield started, lines
    finally:
        started.kill()
        started.wait()
        reader.join()


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def shown(port: int, folder: Path, name: str) -> str:
    """The serial number of the certificate that a server shows, in TLS as HTTP or gRPC begins it."""
    context = ssl.create_default_context(cafile=folder / "authority.pem")
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("localhost", port), timeout=10) as plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
        return connection.getpeercert()["serialNumber"]


def test_mutual_tls_and_keys_hold_for_http_and_grpc_and_a_renewed_certificate_is_taken(small_bundle, tmp_path):
    grpc = pytest.importorskip("grpc")
    authority, other = certificate(tmp_path, "authority"), certificate(tmp_path, "other")
    for name, issuer in {"server": authority, "next": authority, "client": authority, "stranger": other}.items():
        certificate(tmp_path, name, issuer)
    key, web, remote = new_api_key(tmp_path / "keys.json", "batch", ["predict"]).reveal(), free_port(), free_port()
    (tmp_path / "serve.toml").write_text(f'[access]\nkeys = "{tmp_path}/keys.json"\nreload_s = 0.1\n[tls]\ncertificate = "{tmp_path}/server.pem"\nkey = "{tmp_path}/server.key"\nclient_ca = "{tmp_path}/authority.pem"\n')
    read = lambda name: (tmp_path / name).read_bytes()

    def over_http(client: str, **headers: str) -> int:
        context = ssl.create_default_context(cafile=tmp_path / "authority.pem")
        context.load_cert_chain(tmp_path / f"{client}.pem", tmp_path / f"{client}.key")
        connection = http.client.HTTPSConnection("localhost", web, context=context, timeout=10)
        connection.request("POST", "/v1/predict", BODY, {"Content-Type": "application/json", **headers})
        status = connection.getresponse().status
        connection.close()
        return status

    def over_grpc(client: str, *metadata: tuple[str, str]):
        credentials = grpc.ssl_channel_credentials(read("authority.pem"), read(f"{client}.key"), read(f"{client}.pem"))
        with grpc.secure_channel(f"localhost:{remote}", credentials) as channel:
            try:
                channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")(b"", timeout=5, metadata=metadata)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    with process(str(small_bundle), "--unsigned", "--port", str(web), "--grpc-port", str(remote), "--settings", str(tmp_path / "serve.toml")) as (server, lines):
        assert over_http("client", Authorization=f"Bearer {key}") == 200 and over_http("client") == 401
        assert over_grpc("client", ("authorization", f"Bearer {key}")) == grpc.StatusCode.OK and over_grpc("client") == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises((OSError, http.client.HTTPException)):
            over_http("stranger", Authorization=f"Bearer {key}")
        assert over_grpc("stranger", ("authorization", f"Bearer {key}")) == grpc.StatusCode.UNAVAILABLE
        before = shown(web, tmp_path, "client")
        assert shown(remote, tmp_path, "client") == before
        (tmp_path / "server.pem").write_bytes(read("next.pem"))
        server.send_signal(signal.SIGHUP)
        until(lambda: any("old certificate stays" in line for line in lines))
        assert shown(web, tmp_path, "client") == before == shown(remote, tmp_path, "client")
        (tmp_path / "server.key").write_bytes(read("next.key"))
        server.send_signal(signal.SIGHUP)
        until(lambda: any("read again" in line for line in lines))
        assert shown(web, tmp_path, "client") == shown(remote, tmp_path, "client") != before
        assert over_http("client", Authorization=f"Bearer {key}") == 200
        assert subprocess.run([sys.executable, "-m", "prodml.cli", "keys", "revoke", "--file", str(tmp_path / "keys.json"), "--id", key], cwd=ROOT, capture_output=True).returncode == 0
        until(lambda: over_http("client", Authorization=f"Bearer {key}") == 401)
        assert over_grpc("client", ("authorization", f"Bearer {key}")) == grpc.StatusCode.UNAUTHENTICATED and "Traceback" not in "".join(lines)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "no.such.host.invalid", "::ffff:0.0.0.0"])
def test_it_does_not_start_open_to_others(host, keys, operator):
    """Neither without keys, nor with keys in the clear; it says what to do."""
    for access, sentence in ({}, "whoever reaches"), ({"keys": str(keys)}, "unencrypted"):
        with pytest.raises(InputError, match=sentence):
            check_safe(all_settings({"server": {"host": host}, "access": access}))
    check_safe(all_settings({"server": {"host": host}, "access": {"keys": str(keys), "tls_elsewhere": True}}))
    with pytest.raises(InputError, match="unsigned"):
        check_safe(all_settings({"server": {"host": host}, "access": {"keys": str(keys), "tls_elsewhere": True}, "models": {"unsigned": True}}))


# What no sender of rows should be able to do


HOSTILE = st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | st.text(max_size=4) | st.sampled_from(["\ud800", "\0", "٣", "1e400", "nan", "2013-13-01", "2013-02-29T00:00:00Z", "2013-01-01T24:00:00Z", "2013-01-01T10:00:00+99:00", "0000-01-01", "9999-12-31T23:59:59.999999Z", -0.0, 5e-324, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, [], [[1]], {}, {"a": 1}, b"x"])
HOSTILE_ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(TYPES, HOSTILE)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(rows=HOSTILE_ROWS, made=st.lists(rules(), max_size=5))
def test_no_value_gets_by_the_quick_check_or_hides_among_others(rows, made):
    """What the quick check passes breaks no rule; and a row has the same verdicts alone as between others."""
    check = QuickChecker(row_contract("rows", TYPES, [rule | {"name": f"rule {number}"} for number, rule in enumerate(made)], "no target"))
    told = lambda verdicts, place=None: sorted((place or one.row or 0, one.column or "", one.rule, one.severity) for one in verdicts)
    alone = []
    for place, row in enumerate(rows, start=1):
        verdicts = check({name: [value] for name, value in row.items()})
        assert not (check.passes(row) and verdicts), (row, verdicts)
        alone += told(verdicts, place)
    assert told(check({name: [row[name] for row in rows] for name in TYPES})) == sorted(alone)
