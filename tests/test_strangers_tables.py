"""Tables as strangers bring them: no column vanishes without a word, and what is in doubt is asked with an answer that can be copied."""

import argparse
import gzip
import io
import json
import tarfile
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_bad_files import ingested

from prodml.bundle.contract import RowChecker, read_value
from prodml.cli import main, receive_files
from prodml.core.errors import InputError
from prodml.core.files import read_json
from prodml.data.clean import clean
from prodml.data.column_looks import Doubt, as_yaml
from prodml.data.ingest import ingest
from prodml.data.partitions import declared_feeds, read_manifest, receive, verify
from prodml.data.validate import validate
from prodml.serve.rows import read_csv, read_number
from prodml.serve.score import _as_numbers

NULLS = ["", "NA"]
NOW = datetime(2024, 6, 1)


def took(folder: Path, content: bytes | str | pa.Table, name: str = "t.csv", nulls: list[str] = NULLS, **table) -> tuple[pa.Table, dict[str, dict]]:
    """The rows that come out of one raw file, and what the report says of each column."""
    ingested(folder, content, name, nulls, **table)
    return pq.read_table(folder / "out" / "t.parquet"), {column["column"]: column for column in read_json(folder / "out" / "columns.json")["t"]}


def asked(folder: Path, content: bytes | str | pa.Table, **given) -> Doubt:
    """The question that ingest stops with."""
    with pytest.raises(Doubt) as caught:
        took(folder, content, **given)
    assert not (folder / "out").exists()
    return caught.value


def answered(folder: Path, content: str | bytes, **table) -> tuple[pa.Table, dict[str, dict]]:
    """Takes the first proposal of each question, as it is shown, until ingest has none."""
    for _ in range(4):
        try:
            return took(folder, content, **table)
        except Doubt as doubt:
            for one in (doubt, *doubt.others):
                declaration = yaml.safe_load(as_yaml(one.proposals[0].declaration))
                table = {**table, **declaration} if one.column is None else {**table, "columns": {**table.get("columns", {}), one.column: declaration}}
    raise AssertionError(f"questions without end: {table}")


def csv(**columns: list) -> str:
    return pd.DataFrame(columns).to_csv(index=False)


HANDS = {
    "percent": (["45%", "3.5%", "100%"], [45.0, 3.5, 100.0]), "dollars": (["$2,000.00", "$5.10", "-$7.00"], [2000.0, 5.1, -7.0]), "euros": (["1.234,50 €", "3,00 €", "-1,20 €"], [1234.5, 3.0, -1.2]),
    "a code of a currency": (["USD 5", "USD 1,200", "USD 7"], [5, 1200, 7]), "accounts": (["(12.30)", "4.00", "1,100.00"], [-12.3, 4.0, 1100.0]), "a trailing minus": (["12.3-", "4.0", "5.5"], [-12.3, 4.0, 5.5]),
    "doses": (["300 mg", "0.3 g", "1.566 g"], [300.0, 300.0, 1566.0]), "months": (["36 months", "60 months", "1 month"], [36, 60, 1]), "followers": (["1.2k", "3M", "800"], [1200.0, 3_000_000.0, 800.0]),
    "millions with points": (["1.234.567", "12", "3"], [1234567, 12, 3]), "thousands": (["1,234,567.5", "12", "3"], [1234567.5, 12.0, 3.0]), "Swiss of Windows": (["1\u2019234.5", "12", "3"], [1234.5, 12.0, 3.0]), "powers of ten": (["3,23e+01", "4,1E-02", "2e3"], [32.3, 0.041, 2000.0]), "Swiss": (["1'234.5", "12", "3"], [1234.5, 12.0, 3.0]), "French": (["1 234,5", "12", "3"], [1234.5, 12.0, 3.0]), "a narrow blank": (["1\u202f234,5", "1\u202f000", "3"], [1234.5, 1000.0, 3.0]),
    "clock": (["08:30", "17:45", "23:59"], [510, 1065, 1439]), "an American clock": (["8:30 AM", "12:15 AM", "1:00 pm"], [510, 15, 780]), "durations": (["1:02:30", "0:00:30", "100:00:00"], [62.5, 0.5, 6000.0]),
    "question marks": (["5", "?", "7"], [5, None, 7]), "dashes": (["5.5", "-", "7"], [5.5, None, 7.0]), "unknown dollars": (["$5", "unknown", "$7"], [5, None, 7]), "degrees": (["21.5 °C", "-3 °C", "0 °C"], [21.5, -3.0, 0.0]),
}


@pytest.mark.parametrize("hand", HANDS)
def test_numbers_in_another_hand(tmp_path, hand):
    written, meant = HANDS[hand]
    text = csv(word=["x", "y", "z"] * 5, c=written * 5)
    doubt = asked(tmp_path, text)
    assert doubt.column == "c" and as_yaml({"c": doubt.proposals[0].declaration}) in str(doubt) and '{"c": "text"}' in str(doubt) and doubt.row
    table, columns = answered(tmp_path, text)
    assert table["c"].to_pylist() == meant * 5 and columns["c"]["type"] in ("int", "float")
    assert took(tmp_path, text, columns={"c": "text"})[0]["c"].to_pylist() == written * 5


DATES = {
    "20210524T131500Z": datetime(2021, 5, 24, 13, 15), "20210524T1315": datetime(2021, 5, 24, 13, 15),
    "24-May-2021": datetime(2021, 5, 24), "24 May 2021": datetime(2021, 5, 24), "May 24, 2021": datetime(2021, 5, 24), "September 24, 2021": datetime(2021, 9, 24), "24/05/2021": datetime(2021, 5, 24), "05/24/2021": datetime(2021, 5, 24),
    "24.05.2021": datetime(2021, 5, 24), "5/24/21": datetime(2021, 5, 24), "2021/05/24": datetime(2021, 5, 24), "24.05.2021 15:03": datetime(2021, 5, 24, 15, 3), "05/24/2021 03:15 PM": datetime(2021, 5, 24, 15, 15), "2021-05": datetime(2021, 5, 1),
    "2021-5-24": datetime(2021, 5, 24), "Mon, 24 May 2021": datetime(2021, 5, 24), "24MAY2021": datetime(2021, 5, 24), "May 2021": datetime(2021, 5, 1), "24/May/2021:15:03:11": datetime(2021, 5, 24, 15, 3, 11),
    "24/05/2021 10:00:00.5": datetime(2021, 5, 24, 10, 0, 0, 500_000), "Mon, 24 May 2021 10:00:00 GMT": datetime(2021, 5, 24, 10), "Mon May 24 10:00:00 2021": datetime(2021, 5, 24, 10),
}


@pytest.mark.parametrize("written", DATES)
def test_dates_in_another_form(tmp_path, written):
    text = csv(word=["x", "y"] * 4, at=[written] * 8)
    assert asked(tmp_path, text).proposals[0].declaration["type"] == "time"
    table, _ = answered(tmp_path, text)
    assert table["at"].to_pylist() == [DATES[written]] * 8


@pytest.mark.parametrize("written", ["2021-05-24 10:00:00+00", "2021-05-24T10:00:00.123456789Z", "2021-05-24 10:00:00 UTC", "2021-05-24T12:00:00 +0200"])
def test_iso_8601_as_others_write_it(tmp_path, written):
    table, columns = took(tmp_path, csv(word=["x"], at=[written]))
    assert columns["at"]["type"] == "time" and table["at"][0].as_py().replace(microsecond=0) == datetime(2021, 5, 24, 10)


def test_day_or_month_first_is_for_a_person_to_say(tmp_path):
    doubt = asked(tmp_path, csv(at=["02/01/2021", "03/04/2021"] * 5))
    assert [one.declaration["time_format"] for one in doubt.proposals] == ["%d/%m/%Y", "%m/%d/%Y"] and "%m/%d/%Y" in str(doubt)
    assert asked(tmp_path, csv(at=["02/01/2021", "03/14/2021"] * 5)).proposals[0].declaration["time_format"] == "%m/%d/%Y"


def test_days_before_and_after_months_in_one_column_are_for_a_person_to_order(tmp_path):
    text = csv(at=["24/05/2021", "05/24/2021", "03/04/2021"] * 5)
    doubt = asked(tmp_path, text)
    assert [one.declaration["time_format"] for one in doubt.proposals] == [["%d/%m/%Y", "%m/%d/%Y"], ["%m/%d/%Y", "%d/%m/%Y"]]
    assert doubt.proposals[0].share == doubt.proposals[1].share == 1
    for one, third in zip(doubt.proposals, (datetime(2021, 4, 3), datetime(2021, 3, 4))):
        table, _ = took(tmp_path, text, columns={"at": one.declaration})
        assert table["at"].to_pylist()[:3] == [datetime(2021, 5, 24)] * 2 + [third]


def test_numbers_beside_percents_are_named(tmp_path):
    doubt = asked(tmp_path, csv(c=["45%", "0.45", "46%"] * 5))
    assert "33.3% have no unit and are taken as they stand" in doubt.proposals[0].why


def test_a_long_text_among_numbers_is_no_word_for_missing(tmp_path):
    said = str(asked(tmp_path, csv(c=["5", "x" * 1_000_000] + ["6"] * 50)))
    assert len(said) < 1000 and "null_values: " not in said
    assert took(tmp_path, csv(c=["5", "x" * 1_000_000] + ["6"] * 5))[1]["c"]["type"] == "text"


@pytest.mark.parametrize("written, form", [("202105", "%Y%m"), ("20210524", "%Y%m%d"), ("1621814400", "epoch_s"), ("1621814400000", "epoch_ms")])
def test_whole_numbers_that_are_times_are_noted_and_declarable(tmp_path, written, form):
    text = csv(at=[written, str(int(written) + 1)])
    table, columns = took(tmp_path, text)
    assert columns["at"]["type"] == "int" and form in columns["at"]["notes"][0]
    meant = datetime(2021, 5, 1 if form == "%Y%m" else 24)
    assert took(tmp_path, text, columns={"at": {"type": "time", "time_format": form}})[0]["at"][0].as_py() == meant


def test_moments_with_a_fraction_are_noted(tmp_path):
    text = csv(at=["1621814400.25", "1621814401.5"])
    _, columns = took(tmp_path, text)
    assert columns["at"]["type"] == "float" and "times written as numbers (epoch_s)" in columns["at"]["notes"][0]
    read = took(tmp_path, text, columns={"at": {"type": "time", "time_format": "epoch_s"}})[0]["at"][0].as_py()
    assert read == datetime(2021, 5, 24, 0, 0, 0, 250_000)


def test_all_questions_of_a_table_come_at_once(tmp_path):
    text = csv(price=["$5", "$7"] * 5, age=["3", "?"] * 5, at=["24-May-2021", "1-Jun-2021"] * 5, word=["x", "y"] * 5)
    doubt = asked(tmp_path, text)
    assert [one.column for one in (doubt, *doubt.others)] == ["price", "age", "at"] and all(name in str(doubt) for name in ("price", "age", "at"))
    _, columns = answered(tmp_path, text)
    assert {name: column["type"] for name, column in columns.items()} == {"price": "int", "age": "int", "at": "time", "word": "text"}


@pytest.mark.parametrize("values", [["A/5 21171", "113803", "PC 17599", "347082"], ["12B", "7A", "3C", "14"], ["0", "1", "2", "3+"], ["N14228", "N24211"], ["1st", "2nd"], ["5 Main St", "7 Oak Ave"], ["yes", "no"], ["1.2.3", "1.10.0"], ["10.0.0.1", "10.0.0.2"], ["120/80", "130/85"], ["10+ years", "< 1 year", "3 years"]])
def test_what_is_text_is_not_asked_about(tmp_path, values):
    table, columns = took(tmp_path, csv(c=values * 5))
    assert columns["c"]["type"] == "text" and table["c"].to_pylist() == values * 5


def test_words_among_numbers_are_noted(tmp_path):
    _, columns = took(tmp_path, csv(ticket=["113803", "A/5 21171", "PC 17599", "STON/O2 3101282", "17463"]))
    assert "40% of the values are numbers" in columns["ticket"]["notes"][0] and "'A/5 21171'" in columns["ticket"]["notes"][0]


@pytest.mark.parametrize("values, said", [(["24 mai 2021", "3 juin 2021"], "look like dates"), (["2021-W03", "2021-W04"], "look like dates"), (["120/80", "130/85"], "begin with a number"), (["40.7N", "39.1N"], "begin with a number"), (["5 ± 1", "7 ± 2"], "begin with a number")])
def test_what_a_person_would_read_as_a_date_or_number_is_noted(tmp_path, values, said):
    _, columns = took(tmp_path, csv(c=values * 5))
    assert columns["c"]["type"] == "text" and said in columns["c"]["notes"][0] and repr(values[0]) in columns["c"]["notes"][0]


def test_dates_of_zeros_mean_missing(tmp_path):
    table, _ = answered(tmp_path, csv(at=["24/05/2021", "00/00/0000", "25/05/2021", "26/05/2021"] * 5))
    assert table["at"].to_pylist()[:2] == [datetime(2021, 5, 24), None]


def test_one_point_and_three_digits_may_be_a_thousand(tmp_path):
    doubt = asked(tmp_path, csv(c=["€1.234", "€2.500"] * 5))
    assert [one.declaration.get("thousands") for one in doubt.proposals] == [".", None] and "or numbers with" in str(doubt)


def test_null_values_of_a_table_and_of_a_column(tmp_path):
    text = "age,code,zone\n5,-,NA\n?,NA,-\n -1 , ? ,x\n"
    table, _ = took(tmp_path, text, null_values=["", "?"], columns={"age": {"type": "int", "null_values": ["?", "-1"]}, "code": "text", "zone": {"type": "text", "null_values": ["-"]}})
    assert table["age"].to_pylist() == [5, None, None] and table["code"].to_pylist() == ["-", "NA", None] and table["zone"].to_pylist() == ["NA", None, "x"]


def test_blanks_that_nobody_sees(tmp_path):
    table, columns = took(tmp_path, "total,kind,n\n29.85,a, 1\n ,b,2 \n30.1,a ,3\n")
    assert table["total"].to_pylist() == [29.85, None, 30.1] and table["n"].to_pylist() == [1, 2, 3]
    assert "'a '" in columns["kind"]["notes"][0] and "trim" in columns["kind"]["notes"][0]


# Where the table lies in the file

ROWS = "47.0,Lyon,2021-05-24,no\n43.5,Paris,2021-09-11,no\n55.0,Lyon,2022-01-21,yes\n" * 4


def test_a_line_for_excel(tmp_path):
    table, _ = answered(tmp_path, "sep=;\na;b\n1,5;x\n2,5;y\n")
    assert table["a"].to_pylist() == [1.5, 2.5] and table["b"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize("above", ["Sales report\n", "Sales report\nof 2021, all shops\n\n", '"Report; made by x"\n\n\n', "Report,,,\n,,,\n", "# made by a tool\n# version 3\n"])
def test_lines_above_the_header(tmp_path, above):
    doubt = asked(tmp_path, above + "age,city,at,paid\n" + ROWS)
    assert doubt.proposals[0].declaration == {"skip": above.count("\n")} and f'"skip": {above.count(chr(10))}' in str(doubt)
    table, _ = answered(tmp_path, above + "age,city,at,paid\n" + ROWS)
    assert table.column_names == ["age", "city", "at", "paid", "source_row"] and table.num_rows == 12


def test_no_row_becomes_the_header_where_the_header_does_not_fit(tmp_path):
    for header in ("id,age,city,at,paid\n", "age,city,at,paid,\n", "Report,2021\n"):
        with pytest.raises(InputError, match="most rows have 4.*--skip 1 --no-header") as caught:
            took(tmp_path, header + ROWS)
        assert not isinstance(caught.value, Doubt)
    assert took(tmp_path, "id,age,city,at,paid\n" + ROWS, skip=1, header=["a", "b", "c", "d"])[0].num_rows == 12


def test_no_header(tmp_path):
    assert "no header" in str(asked(tmp_path, ROWS))
    assert asked(tmp_path, "p,x,s\ne,x,s\np,y,n\n" * 3).proposals[0].declaration == {"header": ["column_1", "column_2", "column_3"]}
    assert asked(tmp_path, "0.02,0.03,R\n0.05,0.01,M\n0.02,0.1,R\n").column is None
    table, _ = took(tmp_path, ROWS, header=["age", "city", "at", "paid"])
    assert table.num_rows == 12 and table["age"][0].as_py() == 47.0
    assert took(tmp_path, ROWS.split("\n", 1)[0] + "\n9,Metz,2020-01-01,no\n8,Metz,2020-01-02,no\n", skip=0)[0].num_rows == 2, "skip: 0 takes the first line for the header"
    assert took(tmp_path, "x\n" + ROWS, skip=1, header=["age", "city", "at", "paid"])[0].num_rows == 12
    with pytest.raises(InputError, match="names 2 columns .* has 4 values"):
        took(tmp_path, ROWS, header=["age", "city"])


@pytest.mark.parametrize("names", ["id,2019,2020,2021", "0,1,2,3", "a,b,c,1e3", "q1,q2,q3,q4"])
def test_odd_names_are_names(tmp_path, names):
    assert took(tmp_path, f"{names}\n1,2,3,4\n5,6,7,8\n")[0].column_names[:4] == names.split(",")


def test_an_index_without_a_name(tmp_path):
    table, columns = took(tmp_path, ",a,b\n0,1,x\n1,2,y\n")
    assert table.column_names[0] == "unnamed_1" and "index" in columns["unnamed_1"]["notes"][0]
    _, columns = took(tmp_path, "a,b,\n1,x,\n2,y,\n")
    assert columns["unnamed_3"]["type"] == "text" and columns["unnamed_3"]["why"] == "no row has a value"
    table, _ = answered(tmp_path, '"a" "b"\n"1" 5 "x"\n"2" 6 "y"\n"3" 7 "z"\n', delimiter=" ")
    assert table.column_names == ["row_name", "a", "b", "source_row"], "as R writes it"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_delimiter_with_decimal_commas(tmp_path, sign, end):
    text = end.join([sign.join(row) for row in [["age", "income", "city"], *[["47,0", "19.356,47", "Lyon"], ["43,5", "9914,3", "Paris"]] * 5]]) + end
    table, _ = answered(tmp_path, text)
    assert table["income"].to_pylist()[:2] == [19356.47, 9914.3] and table["age"][1].as_py() == 43.5


def test_a_second_header_of_units(tmp_path):
    text = "weight,height\nkg,cm\n" + "70,180\n65,172\n" * 40
    with pytest.raises(InputError) as caught:
        took(tmp_path, text, columns={"weight": "float", "height": "float"})
    assert caught.value.row == 1 and "skip and header" in str(caught.value)
    assert took(tmp_path, text, skip=2, header=["weight", "height"])[0].num_rows == 80


def test_dropped_columns(tmp_path):
    table, columns = took(tmp_path, "a,b,c\n1,x,$5\n2,y,?\n", drop=["c"])
    assert table.column_names == ["a", "b", "source_row"] and columns["c"]["type"] == "dropped"
    with pytest.raises(InputError, match="drops the column"):
        took(tmp_path, "a,b\n1,x\n", drop=["z"])


WRONG = {
    "JSON": b'[{"a": 1}, {"a": 2}]', "JSON lines": b'{"a": 1}\n{"a": 2}\n', "an HTML page": b"<!DOCTYPE html><html><body>Log in</body></html>", "XML": b'<?xml version="1.0"?><rows/>', "a SQLite database": b"SQLite format 3\0" + b"\0" * 100,
    "an Excel workbook": b"PK\x03\x04" + b"\0" * 60, "an old Excel workbook": b"\xd0\xcf\x11\xe0" + b"\0" * 60, "an HDF5 file": b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "a Python pickle": b"\x80\x04\x95" + b"\0" * 60, "a Parquet file": b"PAR1" + b"\0" * 60,
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("packed", ["t.csv", "t.csv.gz", "t.zip"])
def test_what_is_no_csv_is_told_as_what_it_is(tmp_path, kind, packed):
    content = WRONG[kind]
    if packed.endswith(".gz"):
        content = gzip.compress(content)
    elif packed.endswith(".zip"):
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            archive.writestr("t.csv", WRONG[kind])
        content = held.getvalue()
    with pytest.raises(InputError, match=kind.split(" lines")[0]) as caught:
        took(tmp_path, content, name=packed)
    assert "not CSV text" in str(caught.value) and caught.value.remedy


# Parquet


def test_a_file_under_another_kind_of_name_is_told_which_name(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.pq")
    for name, content, said in (
        ("t.pq", (tmp_path / "t.pq").read_bytes(), "Name it .parquet"),
        ("t.parquet", b"a,b\n1,2\n", "Name it .csv if it is text"),
        ("t.parquet", b"PAR1" + b"\0" * 100, r"Parquet or is cut short .*\. Fetch the file again"),
    ):
        with pytest.raises(InputError, match=said):
            took(tmp_path, content, name)


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_a_tar_archive_is_told_as_what_it_is(tmp_path, name):
    (tmp_path / "inner.csv").write_text("a,b\n1,2\n")
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(tmp_path / "inner.csv", "inner.csv")
    with pytest.raises(InputError, match="a tar archive, not CSV text. Take the table out"):
        took(tmp_path, (tmp_path / name).read_bytes(), name)


def test_no_parquet_type_refuses_the_table(tmp_path):
    day, second = datetime(2021, 5, 24), np.timedelta64(1_500, "ms")
    table = pa.table({
        "n": [1, 2], "tags": [["x"], []], "place": [{"lat": 1.0}, None], "more": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), "none": pa.nulls(2), "ns": pa.array([1_621_814_400_000_000_001, None], pa.timestamp("ns")),
        "price": pa.array(["1.50", None]).cast(pa.decimal128(10, 2)), "whole": pa.array(["15", None]).cast(pa.decimal128(18, 0)), "u": pa.array([2**63 - 1, 5], pa.uint64()), "clock": pa.array([3_600_000, None], pa.time32("ms")), "precise": pa.array([1, None], pa.time64("ns")),
        "took": pa.array([second, None], pa.duration("ms")), "word": pa.array(["a", None]).dictionary_encode(), "number": pa.array([7, 7]).dictionary_encode(), "raw": [b"text", b"m\xc3\xa9"], "blob": [b"\xff\x00", None], "half": pa.array([1.5, None], pa.float16()), "day": pa.array([day.date(), None]),
    })
    rows, columns = took(tmp_path, table, name="t.parquet")
    first = rows.to_pylist()[0]
    assert [name for name, column in columns.items() if column["type"] == "dropped"] == ["tags", "place", "more", "blob"] and all("no single" in columns[name]["why"] for name in ("tags", "place", "more"))
    assert first == {"n": 1, "none": None, "ns": day, "price": 1.5, "whole": 15, "u": 2**63 - 1, "clock": 3600.0, "precise": 1e-9, "took": 1.5, "word": "a", "number": 7, "raw": "text", "half": 1.5, "day": day, "source_row": 1}
    assert columns["ns"]["notes"] == ["1 times were cut to microseconds"] and set(columns) == set(table.column_names)


def test_parquet_columns_that_need_a_word(tmp_path):
    with pytest.raises(InputError, match="list"):
        took(tmp_path, pa.table({"n": [1], "tags": [["x"]]}), name="t.parquet", columns={"tags": "text"})
    with pytest.raises(InputError, match="does not fit the type int"):
        took(tmp_path, pa.table({"u": pa.array([2**63], pa.uint64())}), name="t.parquet")
    assert took(tmp_path, pa.table({"u": pa.array([2**63], pa.uint64())}), name="t.parquet", columns={"u": "text"})[0]["u"].to_pylist() == [str(2**63)]
    _, columns = took(tmp_path, pa.table({"n": ["1", "2"], "p": ["45%", "3%"], "w": ["Lyon", "LYON"]}), name="t.parquet")
    assert "all values are of the type int" in columns["n"]["notes"][0] and "45%" in columns["p"]["notes"][0] and "'LYON'" in columns["w"]["notes"][0]


# The target, times, whole numbers


def test_a_target_under_several_spellings(tmp_path):
    text = csv(age=range(40), paid=["no", "no ", "yes", "Yes"] * 10)
    took(tmp_path, text)
    target, repairs = {"column": "paid", "positive": "yes"}, [{"name": "one spelling", "table": "t", "repair": kind, "columns": ["paid"]} for kind in ("trim", "casefold")]
    repairs[1]["name"] = "small letters"
    with pytest.raises(InputError, match="'no', 'no ', 'yes'.*repairs: trim, casefold"):
        validate(tmp_path / "out", tmp_path / "v", tmp_path / "r", [], "t", target)
    report = validate(tmp_path / "out", tmp_path / "v", tmp_path / "r", [], "t", target, repairs)
    assert report["target"] == {"positive": 20, "negative": 20, "unlabelled": 0}
    ledger = clean(tmp_path / "v", tmp_path / "c", repairs)
    assert [entry["cells_changed"] for entry in ledger] == [10, 10] and set(pq.read_table(tmp_path / "c" / "t.parquet")["paid"].to_pylist()) == {"yes", "no"}


def test_times_with_and_without_an_offset(tmp_path):
    text = csv(at=["2022-10-29T02:00:00", "2022-10-29T02:05:00+0200"] * 5)
    doubt = asked(tmp_path, text)
    assert "50% of the times have an offset" in str(doubt)
    table, columns = answered(tmp_path, text)
    assert table["at"].to_pylist()[:2] == [datetime(2022, 10, 29, 2), datetime(2022, 10, 29, 0, 5)] and "read as UTC" in columns["at"]["notes"][0]


CELLS = ["2", "2.0", "2.", " 2", "2 ", "+2", "-2.00", "2e3", "2.5", ".5", "1e400", "inf", "nan", "0x10", "1_000", "1,5", "9007199254740993", "9223372036854775807", "9223372036854775808", "1e19", "٣", "two", "--2"]


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("cell", CELLS)
def test_training_scoring_and_serving_read_a_cell_alike(tmp_path, kind, cell):
    try:
        learned = took(tmp_path, csv(n=[cell, "1"], w=["x", "y"]), columns={"n": kind})[0]["n"][0].as_py()
    except InputError:
        learned = "refused"
    check = RowChecker({"types": {"n": kind}, "rules": []})
    served = read_csv(f'n\n"{cell}"\n'.encode(), {"n"}).columns["n"]
    scored = _as_numbers(pa.chunked_array([[cell]]))
    for values in (served, scored, [read_number(cell)], _as_numbers(pa.chunked_array([[cell, "x"]]))[:1]):
        values = values if isinstance(values, list) else values.to_pylist()
        assert ("refused" if check({"n": values}) else read_value(values[0], kind)) == learned, (cell, values)


def test_whole_numbers_with_a_point_are_whole_numbers_next_month(tmp_path):
    declared = {"columns": {"visits": "int"}}
    assert took(tmp_path, "visits\n2\n6\n", **declared)[0]["visits"].to_pylist() == took(tmp_path, "visits\n2.0\n6.0\n", **declared)[0]["visits"].to_pylist()[:2] == [2, 6]
    with pytest.raises(InputError, match="'2.5' is not a whole number"):
        took(tmp_path, "visits\n2.0\n2.5\n", **declared)


# Feeds


def feed_of(folder: Path, columns: dict, **more):
    data = {"tables": {"sales": {"file": "s.csv", "columns": columns, **more.pop("table", {})}}, "null_values": NULLS, "main": "sales", "target": {"column": "churned"}}
    feed = {"folder": "feed", "time": "at", "keys": ["id"], "allowed_lateness_hours": 24, "silence_budget_hours": 24, **more}
    return declared_feeds({**data, "feeds": {"sales": feed}}, folder)["sales"]


def sent(folder: Path, name: str, **columns) -> Path:
    pd.DataFrame(columns).to_csv(folder / name, index=False)
    return folder / name


SALES = {"id": "int", "at": "time", "amount": "float", "churned": "text"}


def test_a_label_that_comes_later_fills_a_feed(tmp_path):
    feed, ids, at = feed_of(tmp_path, SALES), [1, 2], ["2024-01-10T20:24:00"] * 2
    first = receive(feed, sent(tmp_path, "a.csv", id=ids, at=at, amount=[8.5, 9.5], churned=[None, None]), NOW)
    receive(feed, sent(tmp_path, "b.csv", id=[3], at=["2024-02-10"], amount=[1.5], churned=[None]), NOW)
    later = receive(feed, sent(tmp_path, "c.csv", id=ids, at=at, amount=[8.5, 9.5], churned=["yes", None]), NOW)
    assert (first.verdict, later.verdict, later.rows_filled, later.rows_new, later.rows_known) == ("accepted", "merged", 1, 0, 1)
    other = receive(feed, sent(tmp_path, "d.csv", id=[1], at=at[:1], amount=[8.5], churned=["no"]), NOW)
    changed = receive(feed, sent(tmp_path, "e.csv", id=[2], at=at[:1], amount=[7.5], churned=["yes"]), NOW)
    assert other.verdict == changed.verdict == "quarantined" and "churned was yes and is no" in other.reason and "amount was 9.5 and is 7.5" in changed.reason
    assert verify(feed) == 2 and pq.read_table(feed.folder / "partitions" / "2024-01-10.parquet")["churned"].to_pylist() == ["yes", None]
    chain = [entry["changed"]["2024-01-10"] for entry in read_manifest(feed.folder)["deliveries"].values() if "2024-01-10" in entry["changed"]]
    chain.sort(key=lambda pair: pair[0] is not None)
    assert chain[0][0] is None and chain[0][1] == chain[1][0] and chain[1][1] == read_manifest(feed.folder)["partitions"]["2024-01-10"]["sha256"]


def test_labels_leave_no_trace_of_the_order(tmp_path):
    parts = [dict(id=[1, 2], at=["2024-01-10"] * 2, amount=[1.5, 2.5]), dict(id=[1], at=["2024-01-10"], amount=[1.5], churned=["yes"]), dict(id=[1, 2], at=["2024-01-10"] * 2, amount=[1.5, 2.5], churned=[None, "no"])]
    bytes_of = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2, 1]):
        folder = tmp_path / "".join(map(str, order))
        folder.mkdir()
        feed = feed_of(folder, SALES)
        assert "quarantined" not in {receive(feed, sent(folder, f"{place}.csv", **parts[number]), NOW).verdict for place, number in enumerate(order)}
        bytes_of.append((feed.folder / "partitions" / "2024-01-10.parquet").read_bytes())
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


def test_late_columns_are_declared(tmp_path):
    feed = feed_of(tmp_path, SALES, late_columns=[])
    receive(feed, sent(tmp_path, "a.csv", id=[1], at=["2024-01-10"], amount=[1.5], churned=[None]), NOW)
    assert "churned was None and is yes" in receive(feed, sent(tmp_path, "b.csv", id=[1], at=["2024-01-10"], amount=[1.5], churned=["yes"]), NOW).reason
    with pytest.raises(InputError, match="identifies a row"):
        feed_of(tmp_path, SALES, late_columns=["id"])


def test_a_feed_is_read_as_its_table_is_declared(tmp_path):
    columns = {"id": "int", "at": {"type": "time", "time_format": "%d/%m/%Y"}, "amount": {"type": "float", "units": {"€": 1}}, "churned": "text"}
    feed = feed_of(tmp_path, columns, table={"delimiter": ";", "decimal": ",", "skip": 1, "null_values": ["-"]})
    (tmp_path / "a.csv").write_text("Report\nid;at;amount;churned\n1;10/01/2024;8,75 €;-\n2,0;10/01/2024;-;no\n")
    verdict = receive(feed, tmp_path / "a.csv", NOW)
    assert verdict.verdict == "accepted", verdict.reason
    assert pq.read_table(feed.folder / "partitions" / "2024-01-10.parquet").to_pylist() == [{"id": 1, "at": datetime(2024, 1, 10), "amount": 8.75, "churned": None}, {"id": 2, "at": datetime(2024, 1, 10), "amount": None, "churned": "no"}]


def test_declarations_that_make_no_sense(tmp_path):
    for table, said in [({"skip": -1}, "skip: -1"), ({"skip": "1"}, "skip: '1'"), ({"header": "a"}, "header: 'a'"), ({"drop": [1]}, "drop: \\[1\\]"), ({"null_values": "?"}, "null_values"), ({"columns": {"a": {"type": "int", "units": {}}}}, "units"), ({"columns": {"a": {"clock": "days"}}}, "clock")]:
        with pytest.raises(InputError, match=said):
            took(tmp_path, "a\n1\n", **table)


def test_the_report_names_every_column(tmp_path):
    _, columns = took(tmp_path, csv(a=[1, 2], b=["x", "y"], c=["00501", "10001"], d=[None, None]))
    assert {name: (column["type"], column["why"]) for name, column in columns.items()} == {
        "a": ("int", "all values are whole numbers"), "b": ("text", "the values are text"), "c": ("text", "whole numbers with leading zeros are codes"), "d": ("text", "no row has a value"),
    }
    assert json.loads((tmp_path / "out" / "types.json").read_text())["t"] == {"a": "int", "b": "text", "c": "text", "d": "text"}


def test_receive_prints_the_rows_that_were_filled_late(tmp_path, monkeypatch, capsys):
    feed, ids, at = feed_of(tmp_path, SALES), [1, 2], ["2024-01-10T20:24:00"] * 2
    monkeypatch.setattr("prodml.cli.feed_named", lambda name: [feed])
    files = [sent(tmp_path, name, id=ids, at=at, amount=[8.5, 9.5], churned=churned) for name, churned in (("a.csv", [None, None]), ("b.csv", ["yes", None]))]
    assert receive_files(argparse.Namespace(feed="sales", files=files, now=NOW)) == 0
    head, _, filled = (line.split("  ") for line in capsys.readouterr().out.strip().splitlines())
    assert dict(zip([*filter(None, map(str.strip, head))], [*filter(None, map(str.strip, filled))])) == {"file": "b.csv", "verdict": "merged", "new rows": "0", "filled rows": "1", "known rows": "1"}


@pytest.mark.parametrize(("cell", "declared", "learned"), [
    ("1,5", {"type": "float", "decimal": ","}, 1.5), ("1 234", {"type": "float", "thousands": " "}, 1234.0), ("45 km", {"type": "float", "units": {"km": 1000}}, 45_000.0),
    ("(12)", {"type": "int", "negative": "parentheses"}, -12), ("1:30", {"type": "int", "clock": "minutes"}, 90), ("24/05/2021", {"type": "time", "time_format": "%d/%m/%Y"}, datetime(2021, 5, 24)),
])
def test_a_cell_in_the_notation_of_the_raw_file_is_refused_and_not_misread(tmp_path, capsys, cell, declared, learned):
    """Scoring and serving read plain numbers and ISO times alone, and the help says so."""
    assert took(tmp_path, csv(n=[cell] * 2, w=["x", "y"]), columns={"n": declared})[0]["n"].to_pylist() == [learned] * 2
    check, numbers = RowChecker({"types": {"n": declared["type"]}, "rules": []}), {"n"} - {"n" if declared["type"] == "time" else ""}
    for values in (read_csv(f'n\n"{cell}"\n'.encode(), numbers).columns["n"], _as_numbers(pa.chunked_array([[cell]]))):
        assert check({"n": values}), values
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "no decimal comma, thousands separator or unit" in " ".join(capsys.readouterr().out.split())
