"""Partitions that come late, twice, out of order, contradicting or not at all; killed receivers; tampered files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prodml.cli import main
from prodml.core.errors import InputError
from prodml.core.files import sha256_of
from prodml.data.ingest import ingest, verified_partitions
from prodml.data.partitions import Feed, FreshnessError, check_freshness, declared_feeds, feed_state, locked, read_manifest, receive, verify

NOW = datetime(2020, 2, 1)
COLUMNS = {"station": "text", "at": "time", "temp": "float"}
DATA = {
    "folder": "raw", "null_values": ["", "NA"], "main": "weather", "tables": {"weather": {"file": "weather", "columns": COLUMNS}},
    "feeds": {"weather": {"folder": "raw/weather", "time": "at", "keys": ["station", "at"], "allowed_lateness_hours": 48, "silence_budget_hours": 24}},
}


def made_feed(folder: Path, lateness_hours: float = 48) -> Feed:
    feed = declared_feeds(DATA, folder)["weather"]
    return Feed(**{**vars(feed), "allowed_lateness": timedelta(hours=lateness_hours)})


def delivery(folder: Path, day: int, stations: str = "AB", temp: float = 0.0, hours: range = range(0, 24, 6), name: str | None = None) -> Path:
    """A row for each station and hour of a day of January 2020."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"day-{day:02d}-{stations}.csv")
    rows = [f"{station},2020-01-{day:02d}T{hour:02d}:00:00Z,{temp + day + hour / 100 if hour else 'NA'},dry" for station in stations for hour in hours]
    path.write_text("\n".join(["station,at,temp,sky", *rows]) + "\n")
    return path


def bytes_of(feed: Feed) -> tuple:
    """The accepted days, to the byte, and what the manifest says of them."""
    files = {path.name: path.read_bytes() for path in verified_partitions(feed.folder)}
    return files, read_manifest(feed.folder)["partitions"]


def no_leftovers(feed: Feed) -> bool:
    return {path.name for path in feed.folder.iterdir()} <= {"manifest.json", "partitions", "quarantine", ".lock"}


DELIVERIES = [(1, "AB"), (2, "AB"), (2, "BC"), (3, "A"), (3, "AB"), (4, "ABC"), (5, "B")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(7)), repeats=st.lists(st.integers(0, 6), max_size=6), chance=st.randoms(use_true_random=False))
def test_any_order_with_any_repeats_gives_the_same_bytes(tmp_path_factory, order, repeats, chance):
    folder = tmp_path_factory.mktemp("feed")
    paths = [delivery(folder / "sent", day, stations) for day, stations in DELIVERIES]
    straight = made_feed(folder / "straight", lateness_hours=120)
    for path in paths:
        assert receive(straight, path, NOW).verdict != "quarantined"
    shuffled = list(order)
    for number in repeats:
        shuffled.insert(chance.randint(0, len(shuffled)), number)
    other = made_feed(folder / "other", lateness_hours=120)
    for number in shuffled:
        assert receive(other, paths[number], NOW).verdict != "quarantined"
    assert bytes_of(other) == bytes_of(straight) and no_leftovers(other)
    shutil.rmtree(folder)


def test_each_verdict(tmp_path):
    feed, sent = made_feed(tmp_path), tmp_path / "sent"
    assert receive(feed, delivery(sent, 10), NOW).verdict == "accepted"
    assert receive(feed, delivery(sent, 10, name="again.csv"), NOW).reason == "the same bytes came before, as day-10-AB.csv"
    part = receive(feed, delivery(sent, 10, "A"), NOW)
    assert (part.verdict, part.rows_new, part.rows_known) == ("ignored", 0, 4), "other bytes, the same rows"
    more = receive(feed, delivery(sent, 10, "BC"), NOW)
    assert (more.verdict, more.rows_new, more.rows_known) == ("accepted", 4, 4), "only the new rows are added"
    assert receive(feed, delivery(sent, 12), NOW).verdict == "accepted"
    assert receive(feed, delivery(sent, 11), NOW).verdict == "merged"
    before = bytes_of(feed)
    late = receive(feed, delivery(sent, 9), NOW)
    assert late.verdict == "quarantined" and "2020-01-09, which is closed: the watermark is 2020-01-10 18:00:00" in late.reason
    assert bytes_of(feed) == before and no_leftovers(feed)
    # A late copy of what a closed day already holds changes nothing, so it is no reason to wake anybody.
    receive(feed, delivery(sent, 15), NOW)
    assert receive(feed, delivery(sent, 10, "C"), NOW).verdict == "ignored"


def test_a_contradiction_is_set_aside_with_what_differs(tmp_path):
    feed = made_feed(tmp_path)
    receive(feed, delivery(tmp_path, 10), NOW)
    before = bytes_of(feed)
    other = delivery(tmp_path, 10, "BC", temp=0.5, name="corrected.csv")
    verdict = receive(feed, other, NOW)
    assert verdict.verdict == "quarantined" and "temp was 10.06 and is 10.56" in verdict.reason
    assert verdict.differences[0] == {"key": {"station": "B", "at": "2020-01-10 06:00:00"}, "column": "temp", "accepted": "10.06", "delivered": "10.56"}
    kept = feed.folder / "quarantine" / f"{sha256_of(other)}-corrected.csv"
    assert kept.read_bytes() == other.read_bytes()
    assert json.loads(kept.with_name(f"{sha256_of(other)}.json").read_text())["differences"] == [dict(item) for item in verdict.differences]
    assert bytes_of(feed) == before, "a delivery is taken whole or not at all, its new station too"
    assert receive(feed, other, NOW).verdict == "quarantined" and feed_state(feed, NOW)["quarantined"] == 1


def test_a_delivery_that_contradicts_itself_is_set_aside(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("station,at,temp\nA,2020-01-01T00:00:00Z,1\nA,2020-01-01T00:00:00Z,2\n")
    assert "temp was" in receive(made_feed(tmp_path), path, NOW).reason
    path.write_text("station,at,temp\nA,2020-01-01T00:00:00Z,1\nA,2020-01-01T00:00:00Z,1\n")
    verdict = receive(made_feed(tmp_path), path, NOW)
    assert (verdict.verdict, verdict.rows_new, verdict.rows_known) == ("accepted", 1, 1)


BROKEN = {
    "station,at,temp\nA,2020-01-05T00:00:00Z,warm\n": "'warm' is not a number",
    "station,at\nA,2020-01-05T00:00:00Z\n": "column temp: the column is missing",
    "station,at,temp\nA,,1\n": "column at, row 1: a row has no value that identifies it",
    "station,at,temp\nA,2020-01-05T00:00:00Z,1\n,2020-01-05T00:00:00Z,1\n": "column station, row 2",
    "station,at,temp,humid\nA,2020-01-05T00:00:00Z,1,2\n": "the columns are not the feed's; they differ in humid, sky",
    "": "the file is empty",
}


@pytest.mark.parametrize("text", BROKEN, ids=BROKEN.values())
def test_a_delivery_that_cannot_be_read_is_set_aside(tmp_path, text):
    feed = made_feed(tmp_path)
    receive(feed, delivery(tmp_path, 4), NOW)
    before = bytes_of(feed)
    path = tmp_path / "broken.csv"
    path.write_text(text)
    verdict = receive(feed, path, NOW)
    assert verdict.verdict == "quarantined" and BROKEN[text] in verdict.reason
    assert ".next" not in verdict.reason and bytes_of(feed) == before and no_leftovers(feed)


def test_a_row_from_the_future_does_not_close_the_past(tmp_path):
    feed = made_feed(tmp_path)
    early = delivery(tmp_path, 20)
    verdict = receive(feed, early, datetime(2020, 1, 10))
    assert verdict.verdict == "quarantined" and "in the future" in verdict.reason
    assert receive(feed, delivery(tmp_path, 9), datetime(2020, 1, 10)).verdict == "accepted"
    assert receive(feed, early, datetime(2020, 1, 21)).verdict == "accepted", "by then it is true"
    assert not list((feed.folder / "quarantine").iterdir()) and feed_state(feed, NOW)["quarantined"] == 0


def test_csv_and_parquet_of_one_day_are_one_delivery(tmp_path):
    feed = made_feed(tmp_path)
    receive(feed, delivery(tmp_path, 3), NOW)
    table = pq.read_table(feed.folder / "partitions" / "2020-01-03.parquet")
    path = tmp_path / "day.parquet"
    shifted = table.set_column(table.column_names.index("temp"), "temp", pa.array([float("nan") if value is None else value for value in table["temp"].to_pylist()]))
    pq.write_table(shifted.select(["sky", "temp", "at", "station"]), path)
    verdict = receive(feed, path, NOW)
    assert (verdict.verdict, verdict.rows_known) == ("ignored", 8)


def interrupted(feed: Feed, path: Path, step: int, monkeypatch) -> bool:
    """Receive with a crash at the given rename; whether there was one."""
    calls = {"left": step}
    replace = Path.replace

    def failing(self, target):
        if calls["left"] == 0:
            raise MemoryError("the machine went away")
        calls["left"] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        try:
            receive(feed, path, NOW)
        except MemoryError:
            return True
    return False


def two_days(folder: Path) -> Path:
    """A delivery that touches two days, one of them accepted before."""
    path = delivery(folder, 11, "C", name="two.csv")
    path.write_text(path.read_text() + delivery(folder, 10, "C").read_text().split("\n", 1)[1])
    return path


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "quarantined"])
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new(tmp_path, monkeypatch, refused):
    def what(folder):
        return delivery(folder, 10, temp=0.5, name="other.csv") if refused else two_days(folder)

    whole = made_feed(tmp_path / "whole")
    receive(whole, delivery(tmp_path, 10), NOW)
    old = bytes_of(whole)
    receive(whole, what(tmp_path), NOW)
    new = bytes_of(whole)
    step, seen = 0, set()
    while True:
        feed = made_feed(tmp_path / f"crash-{step}")
        receive(feed, delivery(tmp_path, 10), NOW)
        crashed = interrupted(feed, what(tmp_path), step, monkeypatch)
        verify(feed)
        assert bytes_of(feed) in (old, new) and no_leftovers(feed)
        seen.add("new" if read_manifest(feed.folder) == read_manifest(whole.folder) else "old")
        receive(feed, what(tmp_path), NOW)
        assert bytes_of(feed) == new and read_manifest(feed.folder) == read_manifest(whole.folder)
        if not crashed:
            break
        step += 1
    assert step >= 3 and seen == {"old", "new"}, "crashes were before and after the decision"


KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_partitions import NOW, made_feed, receive
replace, left = Path.replace, [int(sys.argv[4])]
def dying(self, target):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return replace(self, target)
Path.replace = dying
receive(made_feed(Path(sys.argv[2])), Path(sys.argv[3]), NOW)
"""


def test_kill_9_at_any_step_is_mended_by_the_next_call(tmp_path):
    whole = made_feed(tmp_path / "whole")
    for path in (delivery(tmp_path, 10), two_days(tmp_path)):
        receive(whole, path, NOW)
    for step in range(100):
        feed = made_feed(tmp_path / f"killed-{step}")
        receive(feed, delivery(tmp_path, 10), NOW)
        done = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / f"killed-{step}"), str(two_days(tmp_path)), str(step)], capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        half_way = (feed.folder / ".next" / "manifest.json").exists()
        if half_way:
            with pytest.raises(InputError, match="not finished"):
                verified_partitions(feed.folder)
        receive(feed, two_days(tmp_path), NOW)
        assert bytes_of(feed) == bytes_of(whole) and no_leftovers(feed)
        if done.returncode == 0:
            break
    assert step >= 3


HOLDER = """
import sys, time
from pathlib import Path
from prodml.data.partitions import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_receiver_is_told_who_is_at_work_and_a_dead_one_leaves_no_lock(tmp_path):
    feed = made_feed(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(feed.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"the process {holder.pid} is working on this feed"):
            receive(feed, delivery(tmp_path, 3), NOW)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert receive(feed, delivery(tmp_path, 3), NOW).verdict == "accepted"


RECEIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_partitions import InputError, NOW, made_feed, receive
feed = made_feed(Path(sys.argv[2]), lateness_hours=1000)
for path in sys.argv[3:]:
    while True:
        try:
            receive(feed, Path(path), NOW)
            break
        except InputError as error:
            assert "is working on this feed" in str(error)
            time.sleep(0.01)
"""


def test_two_receivers_at_once_lose_nothing(tmp_path):
    paths = [delivery(tmp_path / "sent", day, stations) for day in range(1, 9) for stations in ("AB", "BC")]
    straight, shared = made_feed(tmp_path / "straight", 1000), made_feed(tmp_path / "shared", 1000)
    for path in paths:
        receive(straight, path, NOW)
    command = [sys.executable, "-c", RECEIVER, str(Path(__file__).parent), str(tmp_path / "shared")]
    both = [subprocess.Popen([*command, *map(str, part)], stderr=subprocess.PIPE, text=True) for part in (paths[::2] + paths[:4], paths[1::2][::-1])]
    for process in both:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert bytes_of(shared) == bytes_of(straight) and no_leftovers(shared)


def test_the_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError):
        with locked(tmp_path):
            raise RuntimeError
    with locked(tmp_path):
        pass


def test_tampering_is_noticed_before_use_and_named(tmp_path):
    feed = made_feed(tmp_path)
    for day in (1, 2, 3):
        receive(feed, delivery(tmp_path, day), NOW)
    raw, partitions = tmp_path / "raw", feed.folder / "partitions"

    def ingested(name: str) -> dict:
        return ingest(raw, DATA["tables"], tmp_path / name, DATA["null_values"], "weather", 1.0)

    assert ingested("good") == {"weather": {"station": "text", "at": "time", "temp": "float", "sky": "text"}}
    rows = pq.read_table(tmp_path / "good" / "weather.parquet")
    assert rows.num_rows == 24 and rows["source_row"].to_pylist() == list(range(1, 25))
    second = partitions / "2020-01-02.parquet"
    good = second.read_bytes()
    cases = {
        "2020-01-02.parquet was changed": lambda: second.write_bytes(good[:-9] + b"x" + good[-8:]),
        "2020-01-02.parquet was accepted and is gone": second.unlink,
        "2020-01-04.parquet was not accepted": lambda: (second.write_bytes(good), shutil.copy(second, partitions / "2020-01-04.parquet")),
    }
    for sentence, tamper in cases.items():
        tamper()
        with pytest.raises(InputError, match=sentence):
            ingested("bad")
        with pytest.raises(InputError, match=sentence):
            verify(feed)
        assert not (tmp_path / "bad").exists()


def test_a_tampered_day_is_not_given_a_new_hash(tmp_path):
    feed = made_feed(tmp_path)
    receive(feed, delivery(tmp_path, 3), NOW)
    path = feed.folder / "partitions" / "2020-01-03.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match="2020-01-03.parquet: the partition is not the one that was accepted"):
        receive(feed, delivery(tmp_path, 3, "C"), NOW)
    assert no_leftovers(feed)


def test_a_folder_that_is_no_feed_is_not_read(tmp_path):
    (tmp_path / "raw" / "weather").mkdir(parents=True)
    with pytest.raises(InputError, match="the folder is no feed"):
        ingest(tmp_path / "raw", DATA["tables"], tmp_path / "out", [""], "weather", 1.0)


def test_a_silent_feed_raises(tmp_path):
    feed = made_feed(tmp_path)
    with pytest.raises(FreshnessError, match="the feed weather has no accepted row"):
        check_freshness(feed, NOW)
    receive(feed, delivery(tmp_path, 30), NOW)
    assert check_freshness(feed, datetime(2020, 1, 31)) == timedelta(hours=6)
    with pytest.raises(FreshnessError, match=r"weather is silent: its newest event is of 2020-01-30 18:00:00 UTC, 30.0 hours ago, and its budget is 24 hours\. Ask its source"):
        check_freshness(feed, NOW)
    assert check_freshness(feed, NOW, budget=timedelta(hours=30)) == timedelta(hours=30)


def test_the_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": DATA}))
    monkeypatch.chdir(tmp_path)
    first, other = delivery(tmp_path, 3), delivery(tmp_path, 3, temp=1.0, name="other.csv")
    assert main(["data", "receive", "weather", str(first), str(delivery(tmp_path, 4))]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [first.name, "accepted", "8", "0", "0"]
    assert main(["data", "receive", "weather", str(other)]) == 1
    assert "it contradicts a row" in capsys.readouterr().err
    assert main(["data", "receive", "rain", str(first)]) == 1
    assert "conf/data declares under feeds: weather" in capsys.readouterr().err
    assert main(["data", "feeds", "--now", "2020-01-05T00:00:00+02:00"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["weather", "2", "16", "0", *"2020-01-04 18:00:00 2020-01-02 18:00:00 4 h 1".split()]
    assert main(["data", "feeds"]) == 1 and "silent" in capsys.readouterr().out
    assert main(["data", "verify"]) == 0
    (tmp_path / "raw" / "weather" / "partitions" / "2020-01-04.parquet").unlink()
    assert main(["data", "verify"]) == 1
    assert "2020-01-04.parquet was accepted and is gone" in capsys.readouterr().err


def test_the_weather_stands_in_for_as_long_as_its_budget(root):
    import ibis

    from prodml.core.config import compose
    from prodml.data.flights import LATEST, weather_known

    assert compose(["data=flights"])["data"]["features"]["options"]["weather_budget_minutes"] == 360
    weather = ibis.memtable({"source_row": [1], "origin": ["JFK"], "time_hour": [datetime(2013, 12, 30, 23)], **{name: [1.5] for name in LATEST}})
    known = int(datetime(2013, 12, 31).timestamp() - datetime(1970, 1, 1).timestamp()) // 60
    asked = ibis.memtable({"key": [1, 2, 3], "origin": ["JFK"] * 3, "asof": [known - 1, known + 90, known + 91]})
    for budget, keys in ((90, [2]), (1440, [2, 3])):
        rows = weather_known(asked, weather, 60, budget).order_by("key").to_pyarrow().to_pylist()
        assert [row["key"] for row in rows] == keys and rows[0]["weather_age_minutes"] == 90 and rows[0]["temp"] == 1.5


@pytest.mark.parametrize("content", [b"PAR1", b"", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_parquet_file_that_is_broken_is_quarantined(tmp_path, content):
    feed = made_feed(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(content)
    verdict = receive(feed, tmp_path / "broken.parquet", NOW)
    assert verdict.verdict == "quarantined" and "is not Parquet or is cut short" in verdict.reason and no_leftovers(feed)
