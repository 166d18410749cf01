"""Contract validation of the five raw flights tables, ledger on, against pandera on pandas, in one run.

Both read the same Parquet files, check the same rules of conf/data/flights.yaml and must find the same number of broken
rows. Ours: every rule counted, whole example rows, the quarantine written, and the ledger of all repairs written.
The peer: the same rules as pandera checks on pandas frames, lazily, three failure cases each; no quarantine, no ledger,
no repairs. It is timed twice, with and without reading the files; the ratio that counts is the one with reading, since
ours always reads. The rounds alternate, and the medians are compared, by wall clock and by processor time.
Ours builds its queries anew in each round, a fixed cost of some tenths of a second, so the comparison is made on the raw
tables and again on tables of several copies of them, each copy some years later and with rows of its own.
Also timed: the pandera-on-Ibis schemas that `pandera_schema` compiles, which is why the pipeline counts by itself.
Written to build/bench/validate.json.
"""

import argparse
import operator
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pandera.pandas as pandera
import pyarrow.parquet as pq
from pandera.errors import SchemaErrors

from prodml.core.config import compose
from prodml.core.files import artifact, read_json, write_json
from prodml.core.records import results_path
from prodml.data.clean import apply_repairs, write_ledger
from prodml.data.contract import check_rules, pandera_schema
from prodml.data.validate import TABLE_KINDS, count_breaks, read_tables, split_rejected, stop_past_tolerance, write_rejected

OPERATORS = {"<=": operator.le, ">=": operator.ge}


def ours(source: Path, data: dict[str, Any]) -> dict[str, int]:
    """Validate and keep the ledger; the rows that break each rule."""
    tables = read_tables(source)
    check_rules(data["rules"], tables)
    report = count_breaks(data["rules"], tables)
    kept, rejected = split_rejected(data["rules"], tables, report)
    stop_past_tolerance(data["rules"], report)
    with tempfile.TemporaryDirectory() as folder:
        write_rejected(rejected, Path(folder) / "rows.parquet")
        ledger = write_ledger(apply_repairs(kept, data["repairs"]), data["repairs"], Path(folder))
    assert sum(entry["cells_changed"] for entry in ledger) > 500
    return {item["name"]: item["rows"] for item in report}


def load(source: Path, data: dict[str, Any]) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(source / f"{name}.parquet") for name in data["tables"]}


def range_holds(rule: dict[str, Any]) -> Callable:
    def holds(frame: pd.DataFrame) -> pd.Series:
        broken = False
        for name in rule["columns"]:
            broken |= (frame[name] < rule["min"]) if "min" in rule else False
            broken |= (frame[name] > rule["max"]) if "max" in rule else False
        return ~broken

    return holds


def days_hold(rule: dict[str, Any], frames: dict[str, pd.DataFrame]) -> Callable:
    """As one verdict, as pandera has no partitions; how many are outside is kept aside."""
    names, by = rule["columns"], rule.get("by", [])

    def holds(frame: pd.DataFrame) -> bool:
        counts = frame.groupby([*names, *by]).size().reset_index(name="rows")
        counts["day"] = pd.to_datetime(counts[names])
        ends = pd.to_datetime(pd.concat([frames[name][names].drop_duplicates() for name in {rule["table"], rule.get("over", rule["table"])}]))
        days = pd.date_range(ends.min(), ends.max())
        calendar = pd.MultiIndex.from_product([days, *(frame[name].unique() for name in by)]) if by else days
        rows = counts.set_index(["day", *by])["rows"].reindex(calendar, fill_value=0)
        holds.outside = int((~rows.between(rule["min"], rule["max"])).sum())
        return holds.outside == 0

    holds.outside = 0
    return holds


def holds(rule: dict[str, Any], frames: dict[str, pd.DataFrame]) -> Callable:
    """A rule as a pandera check on a pandas frame: true for rows that keep it."""
    names = rule["columns"]
    match rule["rule"]:
        case "not_null":
            return lambda frame: frame[names].notna().all(axis=1)
        case "range":
            return range_holds(rule)
        case "allowed":
            return lambda frame: frame[names[0]].isna() | frame[names[0]].isin(rule["values"])
        case "pattern":
            return lambda frame: frame[names[0]].isna() | frame[names[0]].str.fullmatch(rule["pattern"]).fillna(True).astype(bool)
        case "compare":
            return lambda frame: frame[names].isna().any(axis=1) | OPERATORS[rule["op"]](frame[names[0]], frame[names[1]])
        case "unique":
            return lambda frame: ~frame.duplicated(names)
        case "reference":
            table, key = rule["to"].split(".")
            return lambda frame: frame[names[0]].isna() | frame[names[0]].isin(frames[table][key])
        case "fresh":
            table, key = rule["as_of"].split(".")
            return lambda frame: bool(frames[table][key].max() - frame[names[0]].max() <= pd.Timedelta(minutes=rule["max_age_minutes"]))
    return days_hold(rule, frames)


def peer(frames: dict[str, pd.DataFrame], data: dict[str, Any]) -> dict[str, int]:
    """Validate with pandera on pandas; the rows that break each rule."""
    found = {}
    for name, frame in frames.items():
        checks = {rule["name"]: holds(rule, frames) for rule in data["rules"] if rule["table"] == name}
        schema = pandera.DataFrameSchema({}, checks=[pandera.Check(check, name=rule, ignore_na=False, n_failure_cases=3) for rule, check in checks.items()])
        found |= dict.fromkeys(checks, 0)
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as errors:
            for error in errors.schema_errors:
                output = error.check_output
                found[error.check.name] = int((~output).sum()) if isinstance(output, pd.Series) else getattr(checks[error.check.name], "outside", 1)
    return found


def through_pandera(source: Path, data: dict[str, Any], types: dict[str, dict[str, str]]) -> None:
    """The compiled pandera-on-Ibis schemas, on the same files."""
    tables = read_tables(source)
    for name, table in tables.items():
        schema = pandera_schema(name, types[name], data["rules"], tables)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schema.validate(table, lazy=True)


def blown_up(source: Path, target: Path, copies: int) -> None:
    """Flights and weather several times over, each copy four years after the one before; the other tables as they are."""
    connection = duckdb.connect()
    for path in sorted(source.glob("*.parquet")):
        rows = pq.read_metadata(path).num_rows
        shifted = f"* replace (source_row + copy * {rows} as source_row, year + 4 * copy as year, time_hour + to_years((4 * copy)::int) as time_hour)" if path.stem in ("flights", "weather") else "*"
        select = f"select {shifted.replace('* replace', '* exclude (copy) replace')} from read_parquet('{path}'), range({copies}) c(copy) order by source_row" if shifted != "*" else f"select * from read_parquet('{path}')"
        connection.execute(f"copy ({select}) to '{target / path.name}' (format parquet, compression zstd)")


def timed(run: Callable) -> tuple[dict[str, float], Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}, result


def compared(source: Path, data: dict[str, Any], types: dict[str, dict[str, str]], rounds: int) -> dict[str, Any]:
    """Medians of each way, the ratio, and what was found, which must be the same."""
    times: dict[str, list[dict[str, float]]] = {"ours": [], "pandera on pandas, with reading": [], "pandera on pandas, frames in memory": [], "pandera on Ibis": []}
    for number in range(rounds + 1):
        spent, counts = timed(lambda: ours(source, data))
        reading, frames = timed(lambda: load(source, data))
        checking, theirs = timed(lambda: peer(frames, data))
        through, _ = timed(lambda: through_pandera(source, data, types)) if number < 4 else (None, None)
        assert counts == theirs, {name: (counts[name], theirs.get(name)) for name in counts if counts[name] != theirs.get(name)}
        if number:  # the first round warms up
            whole = {key: reading[key] + checking[key] for key in reading}
            for name, line in zip(times, (spent, whole, checking, through)):
                times[name] += [line] if line else []
    medians = {name: {key: round(statistics.median(line[key] for line in lines), 4) for key in lines[0]} for name, lines in times.items()}
    ratios = {key: round(medians["ours"][key] / medians["pandera on pandas, with reading"][key], 3) for key in ("wall_s", "cpu_s")}
    return {"median": medians, "ours_over_pandera_on_pandas_with_reading": ratios, "broken": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds after one that warms up (default 9)")
    parser.add_argument("--copies", type=int, default=8, help="copies in the larger tables (default 8)")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    path = results_path("validate.json", given.write)
    data, source = compose(["data=flights"])["data"], artifact("ingest")
    types = read_json(source / "types.json")
    rules = {"of rows": sum(rule["rule"] not in TABLE_KINDS for rule in data["rules"]), "of tables": sum(rule["rule"] in TABLE_KINDS for rule in data["rules"])}
    record: dict[str, Any] = {"rounds": given.rounds, "rules": rules, "copies": {}}
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, given.copies):
            target = Path(folder) / str(copies)
            target.mkdir()
            blown_up(source, target, copies)
            found = record["copies"][str(copies)] = compared(target, data, types, given.rounds if copies == 1 else min(given.rounds, 3))
            print(f"{copies} cop{'y' if copies == 1 else 'ies'} of the raw tables")
            for name, line in found["median"].items():
                print(f"  {name}: {line['wall_s']:.3f} s, {line['cpu_s']:.3f} s of processor time")
            ratio = found["ours_over_pandera_on_pandas_with_reading"]
            print(f"  ours over pandera on pandas, both reading Parquet: {ratio['wall_s']:.2f} by wall clock, {ratio['cpu_s']:.2f} by processor time")
    write_json(path, record)


if __name__ == "__main__":
    main()
