"""What a table weighs at rest, by how its columns are typed and encoded.

Parquet chooses for each column and row group, from the data, whether its values are numbers into a dictionary and how many
bits a number takes. The question is whether narrow column types (int16 where int64 is declared) or dictionary-typed text
gain more on top, as they would cost care: arithmetic on narrow integers overflows in SQL. Every table that the pipeline
keeps is written in each way; the bytes of the files and a full scan by DuckDB are compared in one run.
Written to build/bench/storage.json.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prodml.core.files import artifact, write_json
from prodml.core.records import results_path

GROUP = 122_880  # rows in a group, as the pipeline writes them


def narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers in the narrowest type that holds them all; any other column as it is."""
    if not pa.types.is_integer(column.type):
        return column
    ends = pc.min_max(column).as_py()
    fits = (kind for kind in (pa.int8(), pa.int16(), pa.int32()) if ends["min"] is not None and -(2 ** (kind.bit_width - 1)) <= ends["min"] and ends["max"] < 2 ** (kind.bit_width - 1))
    return column.cast(next(fits, column.type))


def named(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as Arrow's dictionary type; any other column as it is."""
    return column.dictionary_encode() if pa.types.is_string(column.type) else column


WAYS = {
    "plain": (lambda column: column, {"use_dictionary": False, "compression": "none"}),
    "plain, zstd": (lambda column: column, {"use_dictionary": False, "compression": "zstd"}),
    "dictionary pages, zstd (ours)": (lambda column: column, {"compression": "zstd"}),
    "ours, narrow integers": (narrow, {"compression": "zstd"}),
    "ours, dictionary-typed text": (named, {"compression": "zstd"}),
}


def scan_seconds(path: Path, columns: list[str], rounds: int) -> float:
    """The median time of one aggregate over every column, one thread."""
    connection = duckdb.connect()
    connection.execute("set threads = 1")
    wanted = ", ".join(f'max("{name}")' for name in columns)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        connection.execute(f"select {wanted} from read_parquet('{path}')").fetchall()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="scans of each file, of which the median counts (default 5)")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    rounds, path = given.rounds, results_path("storage.json", given.write)
    record: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in (artifact("clean", "flights.parquet"), artifact("clean", "weather.parquet"), artifact("features", "train.parquet")):
            table, found = pq.read_table(source), {}
            for way, (typed, options) in WAYS.items():
                file = Path(folder) / "table.parquet"
                written = pa.table({name: typed(table[name]) for name in table.column_names})
                pq.write_table(written, file, row_group_size=GROUP, **options)
                found[way] = {"bytes": file.stat().st_size, "scan_s": round(scan_seconds(file, table.column_names, rounds), 4), "bytes_in_memory": written.nbytes}
            record[f"{source.parent.name}/{source.name}"] = found
            print(f"{source.parent.name}/{source.name}, {len(table):,} rows")
            for way, line in found.items():
                print(f"  {way:32} {line['bytes']:12,} bytes   scan {line['scan_s'] * 1000:7.1f} ms")
    write_json(path, record)


if __name__ == "__main__":
    main()
