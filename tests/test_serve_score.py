"""Batch scoring from outside: the answers of the bundle, no row lost, and the same bytes after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contract import TYPES, VALUES, rules

from prodml.bundle.bundle import open_bundle
from prodml.bundle.contract import RowChecker, row_contract
from prodml.core.errors import InputError
from prodml.serve.models import Served
from prodml.serve.rows import read_number
from prodml.serve.score import Doubt, Scoring, Source, TooManyRejected, _as_numbers, _plainly, folder_of, rejects_of, score

ROWS = 2_000


@pytest.fixture(scope="module")
def served(small_bundle):
    return Served(open_bundle(small_bundle, unsigned=True), "1", small_bundle)


def rows(count=ROWS, bad=0):
    """Rows with a key; every hundredth is bad if some are."""
    draw = np.random.default_rng(5)
    delay = draw.normal(size=count)
    delay[:: 100] = np.where(bad, 99.0, delay[:: 100])
    wind = [None if missing else value for missing, value in zip(draw.random(count) < 0.2, draw.normal(size=count).tolist())]
    return pa.table({"key": [f"k{number}" for number in range(count)], "delay": delay, "wind": wind, "carrier": draw.choice(["AA", "B6", "UA", "ZZ"], count)})


def write(table, path):
    (pa_csv.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return path


def read(path):
    return pa_csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)


@pytest.mark.parametrize("source", ["in.parquet", "in.csv"])
@pytest.mark.parametrize("target", ["out.parquet", "out.csv"])
def test_the_answers_are_those_of_the_bundle(served, tmp_path, source, target):
    table = rows()
    told = score(write(table, tmp_path / source), tmp_path / target, served, Scoring(("key",), 300, threads=2))
    found, expected = read(tmp_path / target), served.bundle.predict({name: table[name].to_pylist() for name in served.columns})
    assert told.scored == ROWS and told.parts == 7 and told.warnings == {"carrier is known to us": table["carrier"].to_pylist().count("ZZ")}
    assert found["row"].to_pylist() == list(range(1, ROWS + 1)) and found["key"].to_pylist() == table["key"].to_pylist()
    assert np.array_equal(found["probability"].to_numpy().astype(np.float32), expected)
    assert found["decision"].to_pylist() == (expected >= served.threshold).tolist()
    assert np.array_equal(np.column_stack([found["may_be_0"], found["may_be_1"]]), served.bundle.sets(expected))


def test_a_text_that_meant_missing_in_training_means_it_here(served, tmp_path):
    (tmp_path / "in.csv").write_text("delay,wind,carrier\n0.5,1,NA\n0.5,1, NA \n0.5,1,\n0.5,1,ZZ\n")
    told = score(tmp_path / "in.csv", tmp_path / "out.parquet", served, Scoring())
    found = pq.read_table(tmp_path / "out.parquet")["probability"].to_numpy().astype(np.float32)
    expected = served.bundle.predict({"delay": [0.5] * 4, "wind": [1] * 4, "carrier": [None] * 3 + ["ZZ"]})
    assert np.array_equal(found, expected) and told.warnings == {"carrier is known to us": 1}, "NA is no unknown carrier"


@pytest.mark.parametrize("source", ["in.parquet", "in.csv"])
def test_a_bad_row_is_kept_aside_with_its_reason(served, tmp_path, source):
    table, target = rows(bad=1), tmp_path / "out.parquet"
    with pytest.raises(TooManyRejected, match="20 of 2,000"):
        score(write(table, tmp_path / source), target, served, Scoring(part_rows=300))
    assert not target.exists() and len(pq.read_table(rejects_of(target))) == 20
    told = score(tmp_path / source, target, served, Scoring(part_rows=300, max_rejected=0.01))
    aside, good = pq.read_table(rejects_of(target)), pq.read_table(target)
    assert told.found == 7 and told.rejected == 20
    assert sorted([*good["row"].to_pylist(), *aside["row"].to_pylist()]) == list(range(1, ROWS + 1))
    assert aside.slice(1, 1).to_pylist()[0]["row"] == 101 and {*aside["value"].to_pylist()} <= {"99.0", "99"} and {*aside["remedy"].to_pylist()} == {"Send a value from -10 and up to 10."}
    assert '"carrier": ' in aside["sent"][0].as_py()


@pytest.mark.parametrize("part_rows", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("done", range(5))
def test_lines_that_are_no_rows_are_numbered_and_kept(tmp_path, part_rows, done):
    (path := tmp_path / "in.csv").write_text("a,b\nx\n1,2\n\n3\n4,5\n6,7,8\n9,\"1\n0\"\n11,12\n1\n2\n")
    parts = list(Source(path, ["b", "a"], part_rows).parts())
    assert [row for part in parts for row in part.rows] == [2, 4, 6, 7]
    assert [line for part in parts for line in part.malformed] == [(1, "x"), (3, "3"), (5, "6,7,8"), (8, "1"), (9, "2")]
    assert [cell for part in parts for cell in part.table["b"].to_pylist()] == ["2", "5", "1\n0", "12"]
    if done <= len(parts):
        again = list(Source(path, ["b", "a"], part_rows).parts(done)) if done else parts
        assert [(part.number, part.rows.tolist(), part.malformed) for part in again] == [(part.number, part.rows.tolist(), part.malformed) for part in parts[done:]]


@pytest.mark.parametrize(("group_rows", "part_rows"), [(1, 3), (4, 3), (7, 100), (100, 7)])
def test_parts_do_not_depend_on_row_groups(tmp_path, group_rows, part_rows):
    pq.write_table(pa.table({"a": range(20)}), tmp_path / "in.parquet", row_group_size=group_rows)
    parts = list(Source(tmp_path / "in.parquet", ["a"], part_rows).parts())
    assert [len(part.rows) for part in parts] == [part_rows] * (20 // part_rows) + [20 % part_rows] * bool(20 % part_rows)
    for done in range(len(parts)):
        for one, other in zip(parts[done:], Source(tmp_path / "in.parquet", ["a"], part_rows).parts(done), strict=True):
            assert one.number == other.number and one.table["a"].to_pylist() == other.table["a"].to_pylist() == (other.rows - 1).tolist()


def test_memory_does_not_grow_with_the_file(tmp_path):
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(400_000)}), tmp_path / "in.parquet", row_group_size=10_000)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in Source(tmp_path / "in.parquet", ["a"], 10_000).parts()]
    assert len(held) == 40 and max(held) < 1_000_000, "the file has 3.2 MB of numbers, a part 80 kB"


def test_an_empty_file_gives_an_empty_result(served, tmp_path):
    for name in ("in.parquet", "in.csv"):
        told = score(write(rows(0), tmp_path / name), tmp_path / "out.parquet", served, Scoring(("key",), overwrite=True))
        assert told.rows == 0 and pq.read_table(tmp_path / "out.parquet").column_names[:3] == ["row", "key", "probability"]


COMMAND = "import argparse, sys; from prodml.serve.score import *; p = argparse.ArgumentParser(); score_arguments(p); sys.exit(run_score(p.parse_args(sys.argv[1:])))"


@pytest.mark.parametrize(("source", "target", "threads"), [("in.parquet", "out.parquet", 1), ("in.csv", "out.csv", 2)])
def test_killed_and_resumed_gives_the_same_bytes(served, small_bundle, tmp_path, source, target, threads):
    path = write(rows(10_000, bad=1), tmp_path / source)
    options = ["--bundle", str(small_bundle), "--unsigned", "--part-rows", "50", "--max-rejected", "0.1", "--keep", "key", "--threads", str(threads)]
    command, records = [sys.executable, "-c", COMMAND, str(path), str(tmp_path / target), *options], folder_of(tmp_path / target)
    killed = 0
    for wanted in (5, 60, 150):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(records.glob("0*.json"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert not (tmp_path / target).exists()
    assert killed == 3
    # The disk loses a part of which the record is there.
    (records / "000002.scored").write_bytes(b"PAR1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "parts were there" in done.stdout, done
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([source, target, rejects_of(target).name])
    whole = tmp_path / f"whole{os.path.splitext(target)[1]}"
    score(path, whole, served, Scoring(("key",), 50, max_rejected=0.1))
    assert whole.read_bytes() == (tmp_path / target).read_bytes() and rejects_of(whole).read_bytes() == rejects_of(tmp_path / target).read_bytes()


def interrupted(served, path, target):
    """Leave parts: too many rows are bad."""
    with pytest.raises(TooManyRejected):
        score(path, target, served, Scoring(part_rows=300))


def test_another_input_or_option_does_not_mix_with_old_parts(served, tmp_path):
    path, target = write(rows(bad=1), tmp_path / "in.parquet"), tmp_path / "out.parquet"
    interrupted(served, path, target)
    with pytest.raises(InputError, match="another options"):
        score(path, target, served, Scoring(("key",), 300, max_rejected=1.0))
    with pytest.raises(InputError, match="another options"):
        score(path, target, served, Scoring(part_rows=300, max_rejected=1.0), now_us=7)
    write(rows(1_999, bad=1), path)
    with pytest.raises(InputError, match="another input"):
        score(path, target, served, Scoring(part_rows=300, max_rejected=1.0))
    assert score(path, target, served, Scoring(part_rows=300, max_rejected=1.0, restart=True)).found == 0
    with pytest.raises(InputError, match="there already"):
        score(path, target, served)


def test_two_processes_do_not_write_one_result(served, tmp_path):
    from prodml.serve.score import alone

    with alone(folder_of(tmp_path / "out.csv")), pytest.raises(InputError, match="another process"):
        score(write(rows(10), tmp_path / "in.csv"), tmp_path / "out.csv", served)


def test_what_cannot_be_scored_is_told_before_it_begins(served, tmp_path):
    for name, text, said in [("a.csv", "delay,wind\n1,2\n", "lacks 1 column"), ("b.csv", "delay,delay,wind,carrier\n", "two columns"), ("c.txt", "", "neither"), ("d.parquet", "no", "no parquet"), ("e.csv", "", "no csv")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            score(tmp_path / name, tmp_path / "out.csv", served)
    with pytest.raises(InputError, match="cannot be read"):
        score(tmp_path / "none.csv", tmp_path / "out.csv", served)
    with pytest.raises(InputError, match="uses itself"):
        Scoring(("row",))


def test_a_step_makes_the_columns_and_says_what_fell_back(served, tmp_path):
    asked = []

    def step(columns, now):
        asked.append(now)
        numbers, codes = served.encode(columns)
        return numbers, codes, [["wind", "past weeks"] if value.as_py() is None else [] for value in columns["wind"]]

    step.inputs = ()
    stepped = Served(served.bundle, "1", served.folder, step)
    path, target = write(rows(100), tmp_path / "in.parquet"), tmp_path / "out.csv"
    score(path, target, stepped, Scoring(part_rows=30), now_us=7)
    found = pa_csv.read_csv(target)
    assert {*asked} == {7} and [text == "wind;past weeks" for text in found["degraded"].to_pylist()] == [value is None for value in pq.read_table(path)["wind"].to_pylist()]


def test_a_rejected_row_is_json_whatever_it_held(served, tmp_path):
    table = pa.table({"key": [1, 2], "delay": [float("nan"), float("inf")], "wind": [float("-inf"), 1.0], "carrier": ["é\n", None], "at": pa.array([0, 1], pa.timestamp("s"))})
    score(write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet", served, Scoring(("at",), max_rejected=1.0))
    sent = [json.loads(text, parse_constant=pytest.fail) for text in pq.read_table(rejects_of(tmp_path / "out.parquet"))["sent"].to_pylist()]
    assert sent[0] == {"carrier": "é\n", "delay": "nan", "wind": "-inf", "at": "1970-01-01 00:00:00"} and sent[-1]["delay"] == "inf"


ARROW = {"int": [pa.int64(), pa.int32(), pa.float64()], "float": [pa.float64(), pa.float32(), pa.int64()], "text": [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], "time": [pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("us", "Europe/Paris")]}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), made=st.lists(rules(), max_size=5))
def test_a_row_without_doubt_breaks_no_rule(data, made):
    check = RowChecker(row_contract("rows", TYPES, [rule | {"name": f"rule {number}"} for number, rule in enumerate(made)], "no target"))
    columns = {}
    for name, kind in TYPES.items():
        values = data.draw(st.lists(st.none() | VALUES[kind], min_size=6, max_size=6))
        try:
            column = pa.chunked_array([pa.array(values)]).cast(data.draw(st.sampled_from(ARROW[kind])), safe=False)
        except pa.ArrowException:
            column = pa.chunked_array([pa.array(values)])
        columns[name] = _plainly(column)
    broken = {verdict.row - 1 for verdict in check(columns)}
    doubted = np.flatnonzero(Doubt(check)(columns, 6)).tolist()
    assert broken <= set(doubted)


def test_a_time_beyond_the_calendar_is_no_time():
    check = RowChecker({"types": {"at": "time"}, "rules": []})
    for unit, beyond in (("s", 10**12), ("ms", 10**15), ("us", 10**18)):
        column = pa.chunked_array([pa.array([0, beyond, None], pa.int64()).cast(pa.timestamp(unit))])
        assert [verdict.row for verdict in check({"at": _plainly(column)})] == [2]


def test_doubt_is_rare(served):
    table = rows(bad=1)
    doubt = Doubt(served.check)({name: table[name] for name in served.columns}, ROWS)
    assert doubt.sum() == len({verdict.row for verdict in served.check({name: table[name] for name in served.columns})}), "else all is left to the slow checker"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.from_regex(r"[+-]?[0-9]{0,20}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,3})?", fullmatch=True) | st.sampled_from(["nan", "inf", " 1", "1 ", "0x10", "1_0", "true", "١"]), max_size=4))
def test_cells_are_numbers_as_in_a_request(cells):
    cells = [cell or None for cell in cells]
    told = _as_numbers(pa.chunked_array([pa.array(cells, pa.string())]))
    expected = [None if cell is None else read_number(cell) for cell in cells]
    assert [one if isinstance(one, str) or one is None else float(one) for one in (told if isinstance(told, list) else told.to_pylist())] == [one if isinstance(one, str) or one is None else float(one) for one in expected]


def test_scoring_needs_nothing_heavy():
    code = "import sys, prodml.serve.score; print(sorted({'torch', 'pandas', 'ibis', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
