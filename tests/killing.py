"""A real server under load from callers that remember what they were told, to be killed; `bench/log.py --kill 50` uses it too."""

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from prodml.serve.audit import merged, verify

ROOT = Path(__file__).resolve().parent.parent
QUEUE, PREDICTING, LABELLING = 4000, 6, 3
ROWS = [{"delay": number * 0.1 - 3, "wind": [None, 1.5][number % 2], "carrier": ["AA", "UA", "nobody"][number % 3]} for number in range(60)]


class Told(NamedTuple):
    """What a caller was told, and when: seconds of the monotonic clock."""

    at: float
    id: str
    asked: float


class Place(NamedTuple):
    """A server's folder, bundle and address."""

    bundle: Path
    settings: Path
    log: Path
    port: int


def place_in(folder: Path, bundle: Path) -> Place:
    """Settings in the folder, and a free port, which a server that is started again takes again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, log = folder / "serve.toml", folder / "log"
    settings.write_text(f'[server]\nport = {port}\n\n[log]\nfolder = "{log}"\nqueue = {QUEUE}\nsegment_mb = 1\n')
    return Place(bundle, settings, log, port)


def start(place: Place, *more: str) -> subprocess.Popen:
    """The server, once it is ready."""
    process = subprocess.Popen([sys.executable, "-m", "prodml.serve.server", str(place.bundle), "--settings", str(place.settings), "--unsigned", *more], cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "the server did not start on the folder of the one that was killed"
        try:
            if ask(connection(place), "GET", "/health/ready")[0] == 200:
                return process
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise AssertionError("the server was not ready within a minute")


def connection(place: Place) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", place.port, timeout=20)


def ask(caller: http.client.HTTPConnection, method: str, path: str, body=None) -> tuple[int, dict]:
    """Status and answer; OSError when the server is gone."""
    try:
        caller.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
        answer = caller.getresponse()
        return answer.status, json.loads(answer.read())
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from None


class Load:
    """Callers that predict and label until nobody answers."""

    def __init__(self, place: Place):
        self.answers: list[Told] = []
        self.labels: list[Told] = []
        self.refused: list[tuple[int, str]] = []  # status, and the id that was labelled
        self._place, self._stop = place, threading.Event()
        self._threads = [threading.Thread(target=self._endless, args=(turn, number)) for turn, count in ((self._predict, PREDICTING), (self._label, LABELLING)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _endless(self, turn, number: int) -> None:
        caller, chance = connection(self._place), random.Random(number)
        while not self._stop.is_set():
            try:
                turn(caller, chance)
            except OSError:  # killed: another one may answer
                caller.close()
                time.sleep(0.01)

    def _told(self, caller, path: str, body) -> tuple[float, float, dict] | None:
        asked = time.monotonic()
        status, answer = ask(caller, "POST", path, body)
        if status == 200:
            return asked, time.monotonic(), answer
        self.refused.append((status, body["id"] if path == "/v1/feedback" else ""))
        return None

    def _predict(self, caller, chance) -> None:
        several = chance.random() < 0.1
        told = self._told(caller, "/v1/predict", ROWS if several else chance.choice(ROWS))
        if told:
            asked, at, answer = told
            self.answers += [Told(at, one["id"], asked) for one in (answer["predictions"] if several else [answer])]

    def _label(self, caller, chance) -> None:
        if not self.answers:
            time.sleep(0.001)
            return
        own = self.answers[-1].id
        told = self._told(caller, "/v1/feedback", {"id": own, "label": chance.randrange(2)})
        if told:
            self.labels.append(Told(told[1], own, told[0]))

    def wait(self, labels: int) -> None:
        """Until so many labels were acknowledged."""
        until = time.monotonic() + 60
        while len(self.labels) < labels:
            assert time.monotonic() < until, "no label was acknowledged"
            time.sleep(0.005)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Kept(NamedTuple):
    """What the log holds."""

    answers: set[str]
    labels: set[str]


def kept_in(folder: Path) -> Kept:
    """The log's ids; it must be sound, also while a server writes."""
    report = verify(folder)
    assert report.sound, report.findings[:3]
    kept = Kept(set(), set())
    for entered in merged(folder):
        if entered.frame.kind in ("prediction", "feedback"):
            kept[entered.frame.kind == "feedback"].add(entered.content.id)
    return kept


def check(load: Load, kept: Kept, alone: bool = True) -> list[Told]:
    """The answers that are lost: within the bound, and of a server that is alone none from before a label."""
    assert {one.id for one in load.labels} <= kept.labels, "an acknowledged label is lost"
    wrong = [(status, own) for status, own in load.refused if status != 503 and not (status == 404 and own not in kept.answers)]
    assert not wrong, "nothing is refused but what the queue has no room for, and labels of answers that are lost"
    lost = [one for one in load.answers if one.id not in kept.answers]
    assert len(lost) <= QUEUE, "more is lost than the queue holds"
    # A label waits for all that its process has taken before it.
    safe = max([label.asked for label in load.labels], default=0.0) if alone else 0.0
    assert not [one for one in lost if one.at < safe], "an answer is lost that was given before a label that was acknowledged"
    return lost


class Fate(NamedTuple):
    """What became of a server's answers."""

    answers: int
    labels: int
    lost: int
    oldest_ms: float  # how long before the kill the oldest of the lost answers was given
    restart_seconds: float


def killed_under_load(
    place: Place,  # of a server that may have been killed before
    chance: random.Random,  # how long it lives
) -> Fate:
    """Start the server, kill it in the middle of load, start it again, and look at what is there."""
    process = start(place)
    try:
        load = Load(place)
        load.wait(labels=3)
        time.sleep(chance.random() * 0.3)
    finally:
        process.kill()
    killed = time.monotonic()
    process.wait()
    load.end()
    began = time.monotonic()
    process = start(place)
    try:
        restart, kept = time.monotonic() - began, kept_in(place.log)
        lost = check(load, kept)
        if lost:
            status, _ = ask(connection(place), "POST", "/v1/feedback", {"id": lost[0].id, "label": 1})
            assert status == 404, "an answer that is lost is not found again"
    finally:
        process.terminate()
        assert process.wait(30) == 0
    return Fate(len(load.answers), len(load.labels), len(lost), max([(killed - one.at) * 1000 for one in lost], default=0.0), restart)
