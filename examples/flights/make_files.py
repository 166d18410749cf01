"""Write rows to score and a day of weather, beside this file, out of the raw tables in data/."""

import csv
import io
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "data"
DAY = ("2013", "12", "30")
NUMBERS = ("year", "month", "day", "flight", "distance", "hour", "minute", "sched_arr_time")
TEXTS = ("carrier", "tailnum", "origin", "dest")


def is_of_the_day(row: dict[str, str]) -> bool:
    """Whether a raw row is of the day that the files hold."""
    return (row["year"], row["month"], row["day"]) == DAY


def rows(count: int = 50) -> pa.Table:
    """Flights of the day as a request carries them: the schedule, and nothing that is measured later."""
    with zipfile.ZipFile(DATA / "flights.csv.zip") as archive:
        lines = csv.DictReader(io.TextIOWrapper(archive.open("flights.csv"), encoding="utf-8"))
        flights = [row for row in lines if is_of_the_day(row)]
    flights = flights[:: len(flights) // count][:count]
    columns = {name: pa.array([int(row[name]) for row in flights], pa.int64()) for name in NUMBERS}
    columns |= {name: pa.array([row[name] or None for row in flights], pa.string()) for name in TEXTS}
    times = [datetime.fromisoformat(row["time_hour"]) for row in flights]
    return pa.table(columns | {"time_hour": pa.array(times, pa.timestamp("us", "UTC"))})


def main() -> None:
    """Write rows.parquet and weather-2013-12-30.csv."""
    pq.write_table(rows(), HERE / "rows.parquet", compression="zstd")
    head, *lines = (DATA / "weather.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    day = [line for line in lines if tuple(line.split(",")[1:4]) == DAY]
    (HERE / f"weather-{'-'.join(DAY)}.csv").write_text("".join([head, *day]), encoding="utf-8")


if __name__ == "__main__":
    main()
