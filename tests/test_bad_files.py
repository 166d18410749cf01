"""A bad raw file is read with its meaning, set aside row by row where that is declared, or named with its file, row, column and a remedy."""

import codecs
import decimal
import gzip
import itertools
import json
import subprocess
import sys
import time
import zipfile
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_bad_input import FEATURES, RULES, TARGET, people, run_data_floor, stopped

from prodml.core.errors import InputError
from prodml.data.csv_rows import Rejects, csv_batches
from prodml.data.ingest import ingest

NULLS = ["", "NA"]


def ingested(folder: Path, content: bytes | str | pa.Table, name: str = "t.csv", nulls=NULLS, **table) -> list[dict]:
    """The rows that come out of one raw file."""
    path = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    ingest(folder, {"t": {"file": name, **table}}, folder / "out", nulls, "t", 1.0)
    return pq.read_table(folder / "out" / "t.parquet").to_pylist()


def refused(folder: Path, content: bytes | str | pa.Table, *sentences: str, row: int | None = None, column: str | None = None, **given) -> None:
    """The file stops the run, the message has the sentences, the place is named, and nothing is left."""
    with pytest.raises(InputError) as caught:
        ingested(folder, content, **given)
    for sentence in sentences:
        assert sentence in str(caught.value), caught.value
    assert (caught.value.row, caught.value.column) == (row, column), caught.value
    assert not (folder / "out").exists() and not list(folder.glob(".*"))


def values(rows: list[dict], column: str) -> list:
    return [row[column] for row in rows]


# Encodings


def test_mixed_encodings_name_line_byte_row_and_remedy(tmp_path):
    text = "town,n\nKöln,1\nBonn,2\n".encode() + "Köln,3\n".encode("cp1252")
    refused(tmp_path, text, "'K\\xf6ln' is not UTF-8 text", "line 4, byte 24", "tables.<table>.encoding: cp1252 would read 'Köln'", row=3, column="town")
    assert text[23:24] == b"\xf6"


def test_a_declared_encoding_is_read(tmp_path):
    text = "town,price\nKöln,5 €\n"
    assert values(ingested(tmp_path, text.encode("cp1252"), encoding="cp1252", columns={"price": "text"}), "price") == ["5 €"]
    assert values(ingested(tmp_path, "town,n\n東京,1\n".encode("shift_jis"), encoding="shift_jis"), "town") == ["東京"]
    refused_folder = tmp_path / "unknown"
    refused_folder.mkdir()
    refused(refused_folder, text, "the encoding 'klingon'", encoding="klingon")


@pytest.mark.parametrize("bom, codec", [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_LE, "utf-32-le")])
def test_a_byte_order_mark_settles_the_encoding(tmp_path, bom, codec):
    assert ingested(tmp_path, bom + "town,n\nKöln,1\n".encode(codec)) == [{"town": "Köln", "n": 1, "source_row": 1}]


def test_utf_16_without_its_mark(tmp_path):
    refused(tmp_path, "town,n\nUlm,1\n".encode("utf-16-le"), "the header is not UTF-8 text", "utf-16-le")
    assert ingested(tmp_path, "town,n\nUlm,1\n".encode("utf-16-le"), encoding="utf-16-le") == [{"town": "Ulm", "n": 1, "source_row": 1}]


def test_a_nul_byte(tmp_path):
    refused(tmp_path, b"town,n\nUlm,1\nBo\0nn,2\n", "'Bo\\x00nn' has a NUL byte", "damaged", row=2, column="town")


# Lines, quotes, rows


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end(tmp_path, end):
    rows = ingested(tmp_path, end.join(["a,b", '1,"x', 'y"', "", "2,z", ""]))
    assert rows == [{"a": 1, "b": f"x{end}y", "source_row": 1}, {"a": 2, "b": "z", "source_row": 2}]


@pytest.mark.parametrize("bad, said", [("4", "1 value where the header has 2"), ("4,5,6", "3 values where the header has 2")])
def test_a_ragged_row_is_named(tmp_path, bad, said):
    refused(tmp_path, f'a,b\n1,2\n3,"x\ny"\n\n{bad}\n7,8\n', said, "max_rejected_fraction", row=3)


def test_a_header_in_the_middle(tmp_path):
    refused(tmp_path, "a,b\nx,y\na,b\nz,w\n", "the header comes again", "without their headers", row=2)
    refused(tmp_path, "a,b\nx,y\nb,a\nz,w\n", "the header comes again", row=2)


@pytest.mark.parametrize("text", ['a,b\n1,"2\n3,4\n5,6\n', 'a,b\n1,"2\n3,4\n5,6', 'a,b\n1,"2\n3,4\n5,"x"\n7,8\n'])
def test_a_quote_that_never_closes(tmp_path, text):
    refused(tmp_path, text, "a quote is opened and never closed", row=1, column="b")


def test_quotes_that_are_well_used_are_no_error(tmp_path):
    rows = ingested(tmp_path, 'a,b\n1,"say ""hi"",\nplease"\n2,5" pipe\n3,""\n')
    assert values(rows, "b") == ['say "hi",\nplease', '5" pipe', None]


def test_a_cell_of_ten_megabytes_is_read_and_an_endless_row_is_not(tmp_path):
    assert len(ingested(tmp_path, "a,b\n1," + "x" * 10_000_000 + "\n")[0]["b"]) == 10_000_000
    other = tmp_path / "endless"
    other.mkdir()
    refused(other, 'a,b\n1,"' + "2\n3,4" * 10_000_000, "a row is longer than 16 MB", "never closed")


def test_bad_rows_are_set_aside_with_number_reason_and_line(tmp_path):
    lines = [f"{n},Ulm" for n in range(1, 101)]
    lines[9], lines[19], lines[29], lines[39] = "ten", "20,K\xf6ln", "n,town", "forty,Bonn"
    text = ("n,town\n" + "\n".join(lines) + "\n").encode("latin-1")
    rows = ingested(tmp_path, text, max_rejected_fraction=0.05)
    assert [row["source_row"] for row in rows] == [row["n"] for row in rows] == [n for n in range(1, 101) if n not in (10, 20, 30, 40)]
    aside = sorted(pq.read_table(tmp_path / "out" / "rejected" / "t.parquet").to_pylist(), key=lambda row: row["row"])
    assert [(row["row"], row["column"], row["line"]) for row in aside] == [(10, None, "ten"), (20, "town", "20,K\\xf6ln"), (30, None, "n,town"), (40, "n", "forty,Bonn")]
    assert aside[3]["reason"] == "'forty' is not a number" and {row["file"] for row in aside} == {"t.csv"}
    other = tmp_path / "more"
    other.mkdir()
    refused(other, text, "4 of 100 rows cannot be read, 4.00%, where 3.00% is tolerated; the first are row ", max_rejected_fraction=0.03)


def test_rows_keep_their_numbers_across_pieces(tmp_path):
    lines = [f"{n},{'x' * 200}" for n in range(1, 200_001)]
    for n in range(1, 200_001, 5_001):
        lines[n - 1] = "ragged"
    rows = pa.Table.from_pylist(ingested(tmp_path, "n,text\n" + "\n".join(lines), max_rejected_fraction=0.01))
    assert rows["n"].equals(rows["source_row"]) and rows.num_rows == 200_000 - len(range(1, 200_001, 5_001))


# Values


@pytest.mark.parametrize("text", ["", "NA", "NaN", "null"])
def test_declared_null_values_are_missing(tmp_path, text):
    assert values(ingested(tmp_path, f"a,b\n1,x\n{text},y\n", nulls=["", "NA", "NaN", "null"]), "a") == [1, None]


def test_an_undeclared_null_is_named(tmp_path):
    refused(tmp_path, "a,b\n" + "1,x\n" * 40 + "NaN,y\n", "'NaN' is not a number", "null_values", row=41, column="a")


@pytest.mark.parametrize("value, declared, number", [('"1,234"', {"thousands": ","}, 1234), ('"1.234,5"', {"thousands": ".", "decimal": ","}, 1234.5), ('"12,5"', {"decimal": ","}, 12.5), ("1'234", {"thousands": "'"}, 1234)])
def test_separators_in_numbers_are_recognised_and_declarable(tmp_path, value, declared, number):
    text = f"a,n\nx,7\ny,{value}\n"
    refused(tmp_path, text, value.strip('"'), "could be numbers with", "; ".join(f'"{key}": "{sign}"' for key, sign in sorted(declared.items())[:1]), row=2, column="n")
    assert values(ingested(tmp_path, text, **declared), "n") == [7, number]
    assert values(ingested(tmp_path, text, columns={"n": {"type": "float", **declared}}), "n") == [7, number]
    assert values(ingested(tmp_path, text, columns={"n": "text"}), "n") == ["7", value.strip('"')]


def test_dates_in_two_formats(tmp_path):
    text = "a,day\nx,2013-01-02\ny,02/01/2013\n"
    refused(tmp_path, text, "'02/01/2013' is no plain number or ISO 8601 time; 100% of the values could be times of the form %d/%m/%Y", "%m/%d/%Y", '["%Y-%m-%d", "%d/%m/%Y"]', row=2, column="day")
    refused(tmp_path, text, "'2013-01-02' is not a time (%d/%m/%Y)", row=1, column="day", columns={"day": {"type": "time", "time_format": "%d/%m/%Y"}})
    assert values(ingested(tmp_path, text, time_format=["%Y-%m-%d", "%d/%m/%Y"]), "day") == [datetime(2013, 1, 2)] * 2


def test_a_day_that_does_not_exist(tmp_path):
    refused(tmp_path, "day\n2013-01-31\n2013-02-31\n", "'2013-02-31' is not a time", row=2, column="day")
    refused(tmp_path, "day\n31/01/2013\n31/02/2013\n", "'31/02/2013' is not a time", row=2, column="day", columns={"day": {"type": "time", "time_format": "%d/%m/%Y"}})


@pytest.mark.parametrize("big", ["9223372036854775808", "-9223372036854775809", "123456789012345678901234567890"])
def test_a_whole_number_that_overflows(tmp_path, big):
    refused(tmp_path, f"key\n9223372036854775807\n{big}\n", f"'{big}' does not fit into 64 bits", '{"key": "text"}', row=2, column="key")
    assert values(ingested(tmp_path, f"key\n{big}\n", columns={"key": "text"}), "key") == [big]


@pytest.mark.parametrize("infinite", ["inf", "-Infinity", "1e400"])
def test_infinity(tmp_path, infinite):
    refused(tmp_path, f"x\n1.5\n{infinite}\n", f"'{infinite}' is not a number: it is infinite", row=2, column="x", columns={"x": "float"})


def test_codes_keep_their_zeros(tmp_path):
    assert values(ingested(tmp_path, "zip,n\n00501,1\n10001,2\n"), "zip") == ["00501", "10001"]


# Columns and delimiters


def test_odd_names_go_through_the_whole_floor(tmp_path):
    odd = people().rename(columns={"town": "größe, 'in' \"m\""}).assign(**{" padded ": range(200), "select": range(200), "a.b": range(200), "{x}": range(200), "broken_0": range(200), "order;": range(200)})
    report = run_data_floor(tmp_path, odd, rules=RULES[:1])
    assert sum(report["rows"]) == 200 and {" padded ", "größe, 'in' \"m\"", "{x}", "a.b"} <= set(report["kinds"])


@pytest.mark.parametrize("header, said, column", [("a,,c", "column 2 of 3 has no name", None), ("a,b,a", "two columns have the same name", "a"), ("Age,b,age", "upper and lower case count as the same", "age"), ("a,source_row,c", "the name is taken", "source_row")])
def test_names_that_cannot_be(tmp_path, header, said, column):
    refused(tmp_path, f"{header}\n1,2,3\n", said, column=column)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_delimiter_is_recognised_and_declarable(tmp_path, sign):
    refused(tmp_path, f"a{sign}b\n1{sign}2,5\n", f"in which {sign!r} separates", f'tables.<table>: "delimiter": {json.dumps(sign)}')
    assert ingested(tmp_path, f"a{sign}b\n1{sign}2,5\n", delimiter=sign, decimal=",") == [{"a": 1, "b": 2.5, "source_row": 1}]


def test_declarations_are_checked(tmp_path):
    refused(tmp_path, "a\n1\n", "declares encodng for the table", "encoding", encodng="cp1252")
    refused(tmp_path, "a\n1\n", "the delimiter ';;'", delimiter=";;")
    for sign in ("é", "\0", "\u2028"):
        refused(tmp_path, "a,b\n1,2\n", f"the delimiter {sign!r}", delimiter=sign)
    for codec in ("idna", "punycode", "undefined", "rot13"):
        refused(tmp_path, "a\n1\n", f"the encoding '{codec}'", encoding=codec)
    for sign in ("5", "e", "-"):
        refused(tmp_path, "a\n1\n", f"thousands separator '{sign}'", thousands=sign)
    refused(tmp_path, "a\n1\n", "max_rejected_fraction: 2", max_rejected_fraction=2)
    refused(tmp_path, "a\n1\n", "time_format '%Q'", time_format="%Q")
    for key, value in {"columns": ["a"], "encoding": 5, "thousands": None, "time_format": 5}.items():
        refused(tmp_path, "a\n1\n", f"declares {key}: {value!r}", **{key: value})
    refused(tmp_path, pa.table({"a": [1]}), "declares encoding for the table", name="t.parquet", encoding="cp1252")


def test_a_column_named_like_a_part_of_a_time(tmp_path):
    stopped(tmp_path, "features", "column since_hour", "the columns since and since_hour both become", "Rename one", people=people().assign(since_hour=range(200)))


# Files


def test_a_file_that_grows_or_is_replaced_while_it_is_read(tmp_path):
    path = tmp_path / "t.csv"
    for change in (lambda: path.open("a").write("3,4\n"), lambda: (tmp_path / "new.csv").replace(path), path.unlink):
        path.write_text("a,b\n" + "1,2\n" * 10)
        (tmp_path / "new.csv").write_text(path.read_text())
        batches = csv_batches(path, [], {}, Rejects(path.name, 0.0, tmp_path / "aside.parquet"))
        next(batches)
        change()
        with pytest.raises(InputError, match="the file changed while it was read"):
            list(batches)


def test_zero_rows_and_one_row(tmp_path):
    refused(tmp_path, "a,b\n", "the file has a header and no rows")
    refused(tmp_path, pa.table({"a": pa.array([], pa.int64())}), "the file has no rows", name="t.parquet")
    assert ingested(tmp_path, "a,b\n1,x") == [{"a": 1, "b": "x", "source_row": 1}]
    stopped(tmp_path, "validate", "one class", people=people().assign(paid="yes")[:1])


def test_archives(tmp_path):
    assert ingested(tmp_path, gzip.compress(b"a,b\n1,2\n"), name="t.csv.gz") == [{"a": 1, "b": 2, "source_row": 1}]

    def packed(members: dict[str, bytes | str]) -> bytes:
        with zipfile.ZipFile(tmp_path / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.mkdir(name) if name.endswith("/") else archive.writestr(name, text)
        return (tmp_path / "made.zip").read_bytes()

    one = packed({"f/": "", "f/t.csv": "a,b\n1,2\n", "__MACOSX/f/._t.csv": "x"})
    assert ingested(tmp_path, one, name="t.zip") == [{"a": 1, "b": 2, "source_row": 1}]
    other = tmp_path / "other"
    other.mkdir()
    refused(other, packed({"f/": ""}), "holds 0 files", name="t.zip")
    refused(other, packed({"a.csv": "a\n1\n", "b.csv": "a\n2\n"}), "holds 2 files", "an archive of its own", name="t.zip")
    refused(other, packed({"[Content_Types].xml": "<x/>", "xl/workbook.xml": "<x/>"}), "an Excel workbook", "CSV", name="t.zip")
    refused(other, packed({"xl/workbook.xml": "<x/>"}), "a zip archive or an Excel workbook, not CSV text", name="t.xlsx")
    refused(other, gzip.compress(b"a\n1\n"), "a gzip file, not CSV text", name="t.csv")
    refused(other, gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:60], "cut short", name="t.csv.gz")
    encrypted = bytearray(one)
    for start in (b"PK\x03\x04", b"PK\x01\x02"):  # the flag that says so, in each member's two headers
        for place in [i for i in range(len(encrypted)) if encrypted[i : i + 4] == start]:
            encrypted[place + (6 if start.endswith(b"\x04") else 8)] |= 1
    refused(other, bytes(encrypted), "encrypted", name="t.zip")


PEAK = """
import resource, sys
from pathlib import Path
from prodml.data.ingest import ingest
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    ingest(folder, {"t": {"file": sys.argv[2]}}, folder / "out", [""], "t", 1.0)
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak(folder: Path, name: str) -> tuple[str, float]:
    """What ingest says in a process of its own, and the MB that it took."""
    *said, mb = subprocess.run([sys.executable, "-c", PEAK, str(folder), name], capture_output=True, text=True, check=True).stdout.splitlines()
    return " ".join(said), float(mb)


def test_a_bomb_is_unpacked_in_pieces(tmp_path):
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("t.csv", "w") as stream:
        stream.write(b"a,b\n")
        for _ in range(640):
            stream.write(b"0" * (1 << 20))
    said, mb = peak(tmp_path, "zeros.zip")
    assert "a row is longer than 16 MB" in said and mb < 500


@pytest.mark.slow
def test_a_million_categories(tmp_path):
    n = 1_000_000
    with open(tmp_path / "t.csv", "w") as stream:
        stream.write("id,age,paid\n")
        for i in range(n):
            stream.write(f"user-{i:07}-{i * 2654435761 % 2**32},{i % 80},{'yes' if i % 3 else 'no'}\n")
    said, mb = peak(tmp_path, "t.csv")
    assert not said and mb < 700
    from prodml.data.clean import clean
    from prodml.data.features import make_features
    from prodml.data.validate import validate

    validate(tmp_path / "out", tmp_path / "validate", tmp_path / "rejected", [], "t", TARGET)
    clean(tmp_path / "validate", tmp_path / "clean", [])
    split = {"by": "random", "validation": 0.2, "test": 0.2, "seed": 0}
    assert make_features(tmp_path / "clean", tmp_path / "features", "t", TARGET, FEATURES, split)["kinds"]["id"] == ("drop", "an identifier: more than 20 values")


# Parquet


def test_parquet_types(tmp_path):
    # From the moment in UTC: how Arrow takes a datetime with a zone depends on what else was imported.
    noon = int(datetime(2013, 1, 2, 12, tzinfo=timezone(timedelta(hours=2))).timestamp()) * 1_000_000
    table = pa.table({
        "yes": [True, None], "day": [date(2013, 1, 2), None], "at": pa.array([noon, None], pa.timestamp("us", "+02:00")),
        "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)), "word": pa.array(["a", None]).dictionary_encode(), "x": [float("nan"), 2.0],
    })
    first, second = ingested(tmp_path, table, name="t.parquet", columns={"price": "float"})
    assert first == {"yes": "true", "day": datetime(2013, 1, 2), "at": datetime(2013, 1, 2, 10), "price": 1.5, "word": "a", "x": None, "source_row": 1}
    assert second["x"] == 2.0 and second["yes"] is None


@pytest.mark.parametrize(
    "column, said, row",
    [
        (pa.array([[1], [2]]), "no column can be read", None), (pa.array([b"\xff", b"b"]), "no column can be read", None),
        (pa.array([decimal.Decimal("1234567890.123456789"), None]), "Declare it as float or text", None), (pa.array([1.0, float("inf")]), "the value is infinite", 2),
        (pa.array([1, 2**64 - 1], pa.uint64()), "does not fit the type int", None),
    ],
)
def test_parquet_that_is_refused(tmp_path, column, said, row):
    refused(tmp_path, pa.table({"c": column}), said, name="t.parquet", row=row, column=None if "no column" in said else "c")


def test_parquet_text_that_is_declared_a_number(tmp_path):
    refused(tmp_path, pa.table({"n": ["1", "two"]}), "'two' is not a whole number", name="t.parquet", row=2, column="n", columns={"n": "int"})


def test_damaged_parquet(tmp_path):
    pq.write_table(pa.table({"n": np.arange(100_000)}), tmp_path / "whole.parquet", compression="zstd", write_page_checksum=True)
    data = bytearray((tmp_path / "whole.parquet").read_bytes())
    refused(tmp_path, bytes(data[:-100]), "not Parquet or is cut short", name="t.parquet")
    data[2000:3000] = b"\xff" * 1000
    refused(tmp_path, bytes(data), "not Parquet or is cut short", name="t.parquet")


# Between rows and tables


def test_a_doubled_key(tmp_path):
    rule = {"name": "row is unique", "table": "people", "rule": "unique", "columns": ["age", "town", "since"], "severity": "error"}
    twice = pd.concat([people(), people()[:2]])
    stopped(tmp_path, "validate", "'row is unique' (unique) is broken by 2 rows", "rows [201, 202]", people=twice, rules=[rule])


def test_a_foreign_key_without_its_match(tmp_path):
    bad = people()
    bad.loc[4, "town"] = "Atlantis"
    stopped(tmp_path, "validate", "'town is known' (reference) is broken by 1 rows", "rows [5]", "column town", people=bad, rules=[{**RULES[1], "severity": "error"}])


def test_the_bytes_of_a_run_repeat(tmp_path):
    text = "n,town\n" + "".join(f"{n},Ulm\n" for n in range(100)) + "ragged\n"
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ingested(tmp_path / name, text, max_rejected_fraction=0.1)
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name / "out").rglob("*.*"))})
    assert made[0] == made[1] and len(list(itertools.chain(*made))) == 8


def test_a_stopped_stream_has_told_its_end_to_whoever_reads_ahead(tmp_path):
    import io
    import threading

    from prodml.data.byte_streams import Utf8Stream

    stream, ends = Utf8Stream(io.BytesIO(b"a,b\n1,2\n" * 1_000_000), None, tmp_path / "t.csv"), []

    def read_ahead() -> None:
        while stream.read(100):
            time.sleep(0.05) # it comes again later, and must not when the process is ending
        ends.append("told")

    reader = threading.Thread(target=read_ahead)
    reader.start()
    time.sleep(0.02)
    stream.stop()
    assert ends == ["told"]
    reader.join()
