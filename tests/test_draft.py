"""`prodml data draft`: tables as strangers bring them become a conf/data file that works, or one clear question."""

import csv
import decimal
import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import run

from prodml.core.config import unescaped
from prodml.core.errors import InputError
from prodml.data.features import ID_NAME
from prodml.data.draft import Given, draft, given_name, guess_targets, safe_name, summary, table_facts

ROWS = 400


def table(folder, name="table.csv", delimiter=",", header=True, **columns):
    """A CSV of a number, a category and a target that follows the number, with more columns or others."""
    draw = np.random.default_rng(0)
    age = draw.normal(45, 15, ROWS).round(1)
    plain = {"age": age, "plan": draw.choice(["basic", "plus"], ROWS, p=[0.3, 0.7]), "extra": draw.choice(["a", "b", "c"], ROWS)}
    wanted = {**plain, **columns}
    wanted.setdefault("churned", np.where(age + draw.normal(0, 10, ROWS) > 50, "yes", "no"))
    wanted = {key: values for key, values in wanted.items() if values is not None}
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(wanted)
        writer.writerows(zip(*(list(values) for values in wanted.values())))
    return path


def drafted(path, **given):
    """The settings of a draft, as text and as they are read back."""
    made = draft([path], Given(**given))
    return made, unescaped(yaml.safe_load(made.text))


def became(made):
    return {own.column: own.became for own in made.columns[made.read.main]}


def days(every=1):
    return (np.datetime64("2021-01-01") + every * np.arange(ROWS) % 600).astype(str)


@pytest.mark.parametrize("text", ["2024", "true", "null", "1e3", "données", "sales (1)", "../x", "a=b", 'o"x', "y", "", "都市", "defaults", "x" * 300])
def test_a_name_is_safe_or_refused_with_one_that_is(text):
    name = safe_name(text)
    assert given_name(name) == name and yaml.safe_load(f"a: {name}") == {"a": name}
    if text != "x" * 300 and text != "":
        with pytest.raises(InputError, match=f"--name {name}"):
            given_name(text)


def test_the_hand_of_a_file_is_found_and_written(tmp_path):
    """Semicolons, decimal commas, a word for missing, percent: declared, and named as doubts, all at once."""
    draw = np.random.default_rng(1)
    income = [f"{value:.2f}".replace(".", ",") for value in draw.normal(3000, 500, ROWS)]
    visits = ["?" if place % 6 == 0 else str(place % 9) for place in range(ROWS)]
    path = table(tmp_path, delimiter=";", age=income, visits=visits, share=[f"{place % 90}%" for place in range(ROWS)])
    made, settings = drafted(path)
    about = settings["tables"]["table"]
    assert about["delimiter"] == ";" and about["columns"]["age"]["decimal"] == "," and "?" in about["columns"]["visits"]["null_values"]
    assert about["columns"]["share"]["units"] == {"%": 1} and became(made)["visits"] == "number"
    assert all(any(name in doubt for doubt in made.doubts) for name in ("';'", "age", "visits", "share"))


def test_what_a_person_says_holds(tmp_path):
    path = table(tmp_path, age=[f"{place % 28 + 1:02}/0{place % 9 + 1}/2021" for place in range(ROWS)], other=np.arange(ROWS) % 3)
    _, settings = drafted(path, dates=("%d/%m/%Y",), null=("a",), target="plan", positive="basic", name="mine")
    assert settings["tables"]["table"]["columns"]["age"] == "time" and settings["name"] == "mine" and "a" in settings["null_values"]
    assert settings["target"] == {"column": "plan", "positive": "basic"}
    with pytest.raises(InputError, match="has no value 'gold'"):
        drafted(path, dates=("%d/%m/%Y",), target="plan", positive="gold")
    with pytest.raises(InputError, match="column is missing"):
        drafted(path, dates=("%d/%m/%Y",), target="plans")


def test_what_only_a_person_knows_is_asked_together(tmp_path):
    """Days up to 12 leave day and month open, in both columns."""
    ambiguous = [f"{place % 12 + 1:02}/{place % 11 + 1:02}/2021" for place in range(ROWS)]
    with pytest.raises(InputError, match="2 questions are open") as asked:
        drafted(table(tmp_path, age=ambiguous, since=ambiguous[::-1]))
    assert "age" in str(asked.value) and "since" in str(asked.value) and "--dates" in str(asked.value)


def test_a_file_without_a_header_is_asked_about_and_read_as_told(tmp_path):
    path = table(tmp_path, header=False)
    with pytest.raises(InputError, match="--no-header"):
        drafted(table(tmp_path, "numbers.csv", header=False, plan=None, extra=None, size=np.arange(ROWS) / 3, churned=np.arange(ROWS) % 2))
    made, settings = drafted(path, no_header=True)
    assert list(settings["tables"]["table"]["columns"]) == ["column_1", "column_2", "column_3", "column_4"] and made.rows[0] == ROWS


def test_texts_of_the_data_stay_texts(tmp_path):
    """Category values, a column and a file that YAML or OmegaConf would read as something else."""
    odd = ["1e3", "null", "${oc.env:HOME}", "yes", "???", 'a "b"\nc']
    path = table(tmp_path, "1e3.csv", extra=[odd[place % 6] for place in range(ROWS)], **{"2e4": np.arange(ROWS) % 7, "a.${x}": np.arange(ROWS) % 5})
    _, settings = drafted(path)
    values = next(rule["values"] for rule in settings["rules"] if rule["columns"] == ["extra"])
    assert settings["name"] == settings["main"] == "data_1e3" and set(values) == set(odd) - {"null"}
    assert {"2e4", "a.${x}"} < set(settings["tables"]["data_1e3"]["columns"])


def test_identifiers_are_dropped_and_flags_kept(tmp_path):
    path = table(
        tmp_path, rowno=np.arange(ROWS), customer=[f"C{place * 7919 % 100003}" for place in range(ROWS)],
        flag=["Y" if place % 5 == 0 else "" for place in range(ROWS)], one=["x"] * ROWS, none=[""] * ROWS,
    )
    made, settings = drafted(path)
    assert became(made) == {"age": "number", "plan": "category", "extra": "category", "rowno": "identifier", "customer": "identifier", "flag": "flag", "one": "constant", "none": "empty", "churned": "target"}
    assert settings["features"]["kinds"] == {"rowno": "drop", "customer": "drop"} and set(settings["roles"].values()) == {"identifier"}
    assert not [rule for rule in settings["rules"] if rule["rule"] == "range" and rule["columns"] == ["rowno"]]
    assert "rowno" in summary(made) and "each whole number from 0 to 399 once" in made.text


def test_a_name_that_the_tables_of_features_use_is_no_hindrance(tmp_path):
    made, settings = drafted(table(tmp_path, month=np.arange(ROWS) % 12 + 1, Label=np.arange(ROWS) % 5 / 2))
    why = {own.column: own.why for own in made.columns[made.read.main]}
    assert why["month"].endswith("as a feature month_") and why["Label"].endswith("as a feature Label_") and "as a feature" not in why["age"]
    assert {"month", "Label"} < set(settings["tables"]["table"]["columns"])


def test_rows_of_a_group_stay_together(tmp_path):
    user = np.random.default_rng(2).integers(0, 40, ROWS)
    made, settings = drafted(table(tmp_path, user=[f"u{number:03}" for number in user], churned=np.where(user % 2, "yes", "no")))
    assert settings["split"]["by"] == "random" and settings["split"]["column"] == "user" and became(made)["user"] == "group"
    made, settings = drafted(table(tmp_path, "chance.csv", user=[f"u{number:03}" for number in user]))
    assert "column" not in settings["split"], "a label that does not follow the user"


def test_a_split_is_never_silently_at_random(tmp_path):
    _, settings = drafted(table(tmp_path, since=days()))
    assert settings["split"]["by"] == "time" and settings["split"]["column"] == "since"
    for name, values, why in (
        ("holes.csv", {"since": ["" if place % 5 == 0 else day for place, day in enumerate(days())]}, "80 of 400 rows have no since"),
        ("born.csv", {"born": days(40)}, "born is a date of birth by its name"),
        ("span.csv", {"since": (np.datetime64("1930-01-01") + 60 * np.arange(ROWS)).astype(str)}, "spans 65 years"),
    ):
        made, settings = drafted(table(tmp_path, name, **values))
        assert settings["split"]["by"] == "random" and any(why in doubt for doubt in made.doubts), name


def test_one_missing_time_is_set_aside_by_a_rule(tmp_path):
    made, settings = drafted(table(tmp_path, since=["", *days()[1:]]))
    assert settings["split"]["by"] == "time" and any("a rule sets them aside" in doubt for doubt in made.doubts)
    assert [rule["rule"] for rule in settings["rules"] if rule["columns"] == ["since"]][0] == "not_null"


@pytest.mark.parametrize(("values", "wanted"), [
    ([["0.0", "1.0", ""][place % 3] for place in range(ROWS)], {"column": "churned", "positive": 1.0}),
    ([max(0, place % 10 - 7) for place in range(ROWS)], {"column": "churned", "at_least": 1}),
    ([["low", "mid", "mid", "high"][place % 4] for place in range(ROWS)], {"column": "churned", "positive": "high", "against": "rest"}),
    ([["no", "yes ", "no", " yes"][place * 7 % 4] for place in range(ROWS)], {"column": "churned", "positive": "yes"}),
])
def test_the_target(tmp_path, values, wanted):
    """A number of two values, counts that are mostly zero, several classes, blanks around values."""
    _, settings = drafted(table(tmp_path, plan=None, churned=values))
    assert settings["target"] == wanted


def test_few_cases_and_a_twin_of_the_target_are_named(tmp_path):
    target = np.where(np.arange(ROWS) % 40 == 7, "yes", "no")
    made, _ = drafted(table(tmp_path, since=days(), state=np.where(target == "yes", "closed", "open"), churned=target))
    assert any("state tells churned alone" in doubt for doubt in made.doubts)
    assert any("10 of 400 rows (" in doubt for doubt in made.doubts)
    with pytest.raises(InputError, match="no guess of the target works"):
        drafted(table(tmp_path, "two.csv", churned=["yes"] * 2 + ["no"] * (ROWS - 2)), target="churned")


def test_a_number_as_target_is_named_as_a_guess_unless_asked_for(tmp_path):
    path = table(tmp_path, plan=None, churned=[max(0, place % 10 - 7) for place in range(ROWS)])
    assert any("churned as the target is a guess" in doubt for doubt in drafted(path)[0].doubts)
    assert not any("is a guess" in doubt for doubt in drafted(path, target="churned")[0].doubts)


def test_a_folder_is_not_called_missing(tmp_path):
    with pytest.raises(InputError, match="this is a folder"):
        draft([tmp_path])


def test_one_column_is_named_with_what_may_separate_more(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("churned\n" + "yes\nno\n" * 50)
    with pytest.raises(InputError, match="one column, 'churned'.*--delimiter"):
        draft([path])
    path.write_text("age^churned\n" + "".join(f"{row}^{row % 2}\n" for row in range(50)))
    with pytest.raises(InputError, match=r"one column, 'age\^churned'.*--delimiter"):
        draft([path])


def test_no_column_to_predict_from_says_what_became_of_each(tmp_path):
    path = table(tmp_path, age=None, plan=["same"] * ROWS, extra=range(ROWS))
    with pytest.raises(InputError, match="churned: no column is left to predict it from.*plan: constant.*extra: identifier"):
        draft([path])


def test_a_table_in_which_no_rule_holds_is_drafted(tmp_path):
    draw = np.random.default_rng(0)
    note = [f"n{value}" if value else "" for value in draw.integers(0, 90, ROWS)]
    made, settings = drafted(table(tmp_path, age=None, plan=None, extra=None, note=note, churned=draw.choice(["yes", "no", ""], ROWS)))
    assert all(rule["columns"] == ["churned"] for rule in settings["rules"])
    path = table(tmp_path, age=None, plan=None, extra=None, note=note, code=note[::-1], churned=[f"c{value}" for value in draw.integers(0, 40, ROWS)])
    made, settings = drafted(path, target="churned", positive="c1")
    assert settings["rules"] == []


def test_a_pipe_is_not_called_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file but a pipe or a device. Write it to a file first"):
        draft([tmp_path / "pipe"])


def test_a_day_that_does_not_exist_is_answered_with_an_option(tmp_path):
    path = table(tmp_path, at=["2021-02-30", *days()[1:]])
    with pytest.raises(InputError, match="'2021-02-30' is not a time.*For a draft: --null and the text, or --max-rejected 0.01"):
        drafted(path)
    assert became(drafted(path, null=("2021-02-30",))[0])["at"] == "time"


def test_nothing_to_predict_says_so(tmp_path):
    (tmp_path / "names.csv").write_text("name,born in\nAnna,Rome\nBert,Bern\nCleo,Kyiv\n")
    with pytest.raises(InputError, match="no column could be predicted"):
        drafted(tmp_path / "names.csv")


def test_facts_of_many_columns(tmp_path):
    """More columns than one query asks for, with all kinds among them."""
    columns = {f"c{place}": np.arange(50) % (place % 60 + 1) for place in range(230)}
    pq.write_table(pa.table({"source_row": np.arange(50), **columns}), tmp_path / "wide.parquet")
    facts = table_facts(tmp_path / "wide.parquet")
    assert [fact.values for fact in facts.values()] == [len(set(values.tolist())) for values in columns.values()]
    assert guess_targets(facts, Given())[0].declared["column"] in {name for name, fact in facts.items() if fact.values == 2}


def test_the_command_writes_what_the_pipeline_takes(checkout):
    """A name that Hydra cannot take, `--write`, `prodml params`, and the stages of data up to the features."""
    (checkout / "shop").mkdir()
    table(checkout / "shop", "2024.csv", delimiter=";", customer=[f"C{place:04}" for place in range(ROWS)], since=days())
    command = ("python", "-m", "prodml.cli", "data", "draft", "shop/2024.csv", "--write")
    done = run(*command, cwd=checkout)
    assert done.returncode == 0 and "prodml trial build/data_2024 data=data_2024" in done.stdout, done.stdout + done.stderr
    again = run(*command, cwd=checkout)
    assert again.returncode == 1 and "is there already" in again.stderr
    assert run("python", "-m", "prodml.cli", "params", "data=data_2024", cwd=checkout).returncode == 0
    for stage in ("ingest", "validate", "clean", "features"):
        done = run("python", "-m", "prodml.core.runner", stage, cwd=checkout)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads((checkout / "artifacts" / "validate" / "report.json").read_text())
    assert not [rule["name"] for rule in report["rules"] if rule["rows"]], "what was drafted from a table holds in it"


def test_whole_numbers_beyond_64_bits_are_drafted_as_text_in_doubt(tmp_path):
    made, settings = drafted(table(tmp_path, account=[10**22 + 7 * place for place in range(ROWS)]))
    assert settings["tables"]["table"]["columns"]["account"] == {"type": "text"} and became(made)["account"] == "identifier"
    assert any("account" in doubt and "64 bits" in doubt for doubt in made.doubts)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("start", [b"", b"a,b\n1,2\n", b"\xff\xfe"])
def test_bytes_that_are_no_text_are_refused(tmp_path, seed, start):
    path = tmp_path / "image.csv"
    path.write_bytes(start + np.random.default_rng(seed).bytes(6000))
    with pytest.raises(InputError, match="not a text table") as caught:
        drafted(path)
    assert caught.value.problem.isprintable() and "cp1252" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "cp1252", "shift_jis"])
def test_text_of_any_encoding_is_no_bytes(tmp_path, encoding):
    words = {"cp1252": ["Müller", "Ávila"], "shift_jis": ["東京都", "大阪府"]}.get(encoding, ["Łódź", "東京都"])
    path = table(tmp_path, plan=[words[place % 7 // 3 % 2] for place in range(ROWS)])
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert became(drafted(path, encoding=encoding)[0])["plan"] == "category"


def test_decimals_and_numbers_beyond_64_bits_of_a_parquet_file_are_drafted_in_doubt(tmp_path):
    draw = np.random.default_rng(0)
    age = draw.normal(45, 15, ROWS)
    wide = pa.array([decimal.Decimal(int(value)) / 100 for value in draw.integers(1, 9_999, ROWS)], pa.decimal128(38, 2))
    big = pa.array([2**64 - 1 - int(value) for value in draw.integers(0, 9, ROWS)], pa.uint64())
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"age": age, "wide": wide, "big": big, "churned": np.where(age > 45, "yes", "no")}), path)
    made, settings = drafted(path)
    assert became(made) == {"age": "number", "wide": "number", "big": "category", "churned": "target"}
    assert settings["tables"]["table"]["columns"]["wide"] == {"type": "float"}
    assert any("wide: numbers of the type decimal128(38, 2), rounded" in doubt for doubt in made.doubts)
    assert any("big: uint64 beyond the type int, kept as text" in doubt for doubt in made.doubts)


@pytest.mark.parametrize("kind", ["time", "float"])
def test_a_column_that_is_only_known_for_one_label_is_named(tmp_path, kind):
    churned = np.random.default_rng(0).choice(["yes", "no"], ROWS)
    values = days() if kind == "time" else np.round(np.random.default_rng(1).normal(size=ROWS), 4).astype(str)
    made, _ = drafted(table(tmp_path, closed=np.where(churned == "yes", values, ""), churned=churned))
    assert any("closed tells churned alone (it is known for one label and missing for the other)" in doubt for doubt in made.doubts)
    some = np.where(np.arange(ROWS) % 3, values, "")
    assert not any("tells churned" in doubt for doubt in drafted(table(tmp_path, closed=some, churned=churned))[0].doubts)


def test_an_estimate_of_the_number_of_values_is_no_more_than_there_are_rows_and_is_called_one(tmp_path):
    draw = np.random.default_rng(0)
    made, _ = drafted(table(tmp_path, extra=[f"u{value}" for value in draw.integers(0, 150, ROWS)], code=draw.normal(size=ROWS)))
    assert [own.why for own in made.columns["table"] if own.column == "extra"][0].startswith("about ")
    with pytest.raises(InputError, match="about (400|3..) values.*Leave --positive out"):
        drafted(table(tmp_path, code=draw.normal(size=ROWS)), target="code", positive="3")


def test_a_target_of_one_value_and_blanks_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="one value, 'yes' and 200 rows without one.*write it as one in the file"):
        drafted(table(tmp_path, churned=["yes", ""] * (ROWS // 2)), target="churned")
    with pytest.raises(InputError, match="has no value, so"):
        drafted(table(tmp_path, churned=[""] * ROWS), target="churned")


@pytest.mark.parametrize("values, positive, wanted", [([1, 0], "1.0", 1), (["Yes", "No"], "yes", "Yes"), (["yes ", "no"], "yes", "yes "), (["Yes", "yes"], "yes", "yes")])
def test_the_value_that_a_person_names_is_found_in_another_writing(tmp_path, values, positive, wanted):
    churned = np.array(values, object)[np.random.default_rng(0).integers(0, 2, ROWS)]
    for given in ({}, {"target": "churned"}):
        made, settings = drafted(table(tmp_path, churned=churned, plan=None, extra=None), positive=positive, **given)
        assert settings["target"] == {"column": "churned", "positive": wanted}


@pytest.mark.parametrize("name, values, became_", [
    ("", np.arange(ROWS) * 2 + 5, "identifier"), ("no", np.random.default_rng(0).permutation(ROWS) + 1.0, "identifier"),
    ("no", np.random.default_rng(0).permutation(ROWS) + 0.5, "number"), ("no", np.arange(ROWS) // 2 * 1.0, "number"),
])
def test_an_index_with_gaps_and_row_numbers_with_a_point_are_no_features(tmp_path, name, values, became_):
    path = table(tmp_path, **{name: values})
    lines = [row.split(",") for row in path.read_text().splitlines()]
    path.write_text("".join(",".join([*row[3:], *row[:3]]) + "\n" for row in lines))
    assert became(drafted(path)[0])[name or "unnamed_1"] == became_
    age = np.random.default_rng(1).normal(size=ROWS)
    frame = pd.DataFrame({"age": age, "churned": np.where(np.arange(ROWS) % 3, "yes", "no"), "__index_level_0__": np.arange(ROWS) * 2 + 5})
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), tmp_path / "frame.parquet")
    assert became(drafted(tmp_path / "frame.parquet", target="churned")[0])["__index_level_0__"] == "identifier"


def test_a_column_that_features_drops_is_not_called_a_number(tmp_path):
    made, settings = drafted(table(tmp_path, step=np.arange(ROWS) * 2 + 5))
    assert became(made)["step"] == "dropped" and "step: int   # dropped: by features: a row number" in made.text
    assert any("step is no feature: a row number" in doubt and "features.kinds: number" in doubt for doubt in made.doubts)


@pytest.mark.parametrize("values, said", [(["a", "b"], True), ([1, 2], True), ([0, 1], False), ([-1, 1], False), (["yes", "no"], False)])
def test_which_value_is_label_1_is_in_doubt_where_nothing_says_it(tmp_path, values, said):
    churned = np.array(values, object)[np.random.default_rng(0).integers(0, 2, ROWS)]
    path = table(tmp_path, churned=churned, plan=None, extra=None)
    assert any("as label 1 is a guess; if it is another, give --positive" in doubt for doubt in drafted(path)[0].doubts) == said
    assert not any("label 1 is a guess" in doubt for doubt in drafted(path, positive=str(values[0]))[0].doubts)


def test_a_random_split_beside_what_may_be_a_time_is_in_doubt(tmp_path):
    made, settings = drafted(table(tmp_path, sale_date=44_000 + np.arange(ROWS) % 300))
    assert settings["split"]["by"] == "random"
    assert any("at random, and sale_date may be a time by its name" in doubt for doubt in made.doubts)


def test_what_a_person_says_holds_for_a_parquet_file_or_is_named_as_of_no_use(tmp_path):
    age = np.random.default_rng(0).normal(45, 15, ROWS)
    texts = {"code": np.where(np.arange(ROWS) % 3, "5", "?"), "amount": [f"{value:.2f}".replace(".", ",") for value in age]}
    frame = pa.table({"age": age, "at": pc.strftime(pa.array(days()).cast(pa.timestamp("s")), "%d/%m/%Y"), **texts, "churned": np.where(age > 45, "yes", "no")})
    pq.write_table(frame, tmp_path / "table.parquet")
    made, settings = drafted(tmp_path / "table.parquet", dates=("%d/%m/%Y",), null=("?",), decimal=",", encoding="cp1252", skip=1, max_rejected=0.01)
    assert settings["tables"]["table"]["columns"] == {"age": "float", "at": "time", "code": "int", "amount": "float", "churned": "text"}
    assert any("--skip, --encoding, --max-rejected: of no use to a Parquet file" in doubt for doubt in made.doubts)
    assert made.columns["table"][2].became == "flag"


def test_one_endless_cell_takes_no_room_and_no_line(tmp_path):
    long = "x" * 200_000
    extra = np.random.default_rng(0).choice([f"v{number}" for number in range(30)], ROWS).astype(object)
    age = np.random.default_rng(0).normal(45, 15, ROWS).round(1).astype(object)
    extra[7] = age[9] = long
    path = table(tmp_path, extra=extra, age=age, churned=np.where(np.arange(ROWS) % 3, "yes", "no"))
    tracemalloc.start()
    made, settings = drafted(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6, most
    assert settings["tables"]["table"]["columns"]["age"] == {"type": "text"}
    assert any("text, though more than 99% of the values are numbers, as in 'xxx" in doubt for doubt in made.doubts)
    assert max(map(len, summary(made).splitlines())) < 5000


def test_no_sign_of_the_draft_is_hidden(tmp_path):
    """A sign that turns the reading direction, a line end of Unicode, a zero-width space: they come back from YAML and can be seen in the file."""
    signs = "a\u202eb\u2028c\u200bd\x85e\ufefff"
    made, settings = drafted(table(tmp_path, plan=[[signs, "plain"][place % 3 % 2] for place in range(ROWS)], **{"n\u202eame": np.arange(ROWS) % 7}))
    assert all(sign.isprintable() or sign == "\n" for sign in made.text)
    assert "n\u202eame" in settings["tables"]["table"]["columns"] and any(signs in rule.get("values", []) for rule in settings["rules"])


def test_one_pattern_says_what_is_named_like_an_identifier():
    for name in ("id", "user_id", "userId", "userID", "ID number", "row_no", "rownames", "Unnamed: 0", "serial", "customer key"):
        assert ID_NAME.search(name), name
    for name in ("paid", "valid", "grid", "humid", "covid", "keyboard", "identity", "notes"):
        assert not ID_NAME.search(name), name


def test_rows_that_repeat_are_in_doubt(tmp_path):
    table = pd.DataFrame({"a": np.arange(300) / 7, "b": ["x", "y", "z"] * 100, "left": ["yes", "no"] * 150})
    table.iloc[[*range(300), *range(30)]].to_csv(tmp_path / "twice.csv", index=False)
    table.to_csv(tmp_path / "once.csv", index=False)
    assert "30 rows repeat another row in every column" in "\n".join(drafted(tmp_path / "twice.csv")[0].doubts)
    assert "repeat another row" not in "\n".join(drafted(tmp_path / "once.csv")[0].doubts)


def test_a_number_beyond_32_bits_is_no_feature_and_in_doubt(tmp_path):
    table = pd.DataFrame({"a": np.arange(300) / 7, "b": [*range(299), 1e300], "left": ["yes", "no"] * 150})
    table.to_csv(tmp_path / "large.csv", index=False)
    made, settings = drafted(tmp_path / "large.csv")
    assert settings["features"]["kinds"] == {"b": "drop"} and "roles" not in settings
    assert any(doubt.startswith("b: blank what is impossible") for doubt in made.doubts)


def test_rows_that_cannot_be_read_are_set_aside_when_that_is_said(tmp_path):
    table = pd.DataFrame({"a": np.arange(300) / 7, "left": ["yes", "no"] * 150})
    (tmp_path / "total.csv").write_text(table.to_csv(index=False) + "Total,12,,\n")
    with pytest.raises(InputError, match="row 301.*--max-rejected 0.01"):
        drafted(tmp_path / "total.csv")
    made, settings = drafted(tmp_path / "total.csv", max_rejected=0.01)
    assert made.rows[0] == 300 and settings["tables"]["total"]["max_rejected_fraction"] == 0.01


@pytest.mark.parametrize(("name", "form", "as_number"), [
    ("joined", "%Y%m%d", lambda day: int(day.replace("-", ""))),
    ("created_at", "epoch_s", lambda day: int(np.datetime64(day, "s").astype(int))),
    ("created_at", "epoch_ms", lambda day: int(np.datetime64(day, "ms").astype(int))),
])
def test_whole_numbers_that_are_times_are_times_and_split_by(tmp_path, name, form, as_number):
    moments = [as_number(str(day)) for day in days()]
    made, settings = drafted(table(tmp_path, **{name: moments}))
    assert settings["tables"]["table"]["columns"][name] == {"type": "time", "time_format": form}
    assert settings["split"]["by"] == "time" and any(form in doubt for doubt in made.doubts)


def test_a_file_that_is_not_utf_8_is_read_as_cp1252_in_doubt(tmp_path):
    path = table(tmp_path, plan=["Müller", "Ávila"] * (ROWS // 2))
    path.write_bytes(path.read_text(encoding="utf-8").encode("cp1252"))
    made, settings = drafted(path)
    assert settings["tables"]["table"]["encoding"] == "cp1252" and any("read as cp1252" in doubt for doubt in made.doubts)
