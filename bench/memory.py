"""Peak memory and time of every step, on the flights table and on the same table many times over.

Each copy is shifted by a year, so the table grows in time as a real one does, and no key comes twice. Both tables go
through the pipeline's own stages, ingest to one training epoch, each stage in a process of its own; its peak resident
memory is what the kernel reports for that process. The cuts of the split move with the table (eight months of every
twelve are for training). Written to build/bench/memory.json; the tables lie in build/memory (about 30 MB a copy
while it runs, twenty times that for its artifacts).
"""

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from prodml.core.config import compose
from prodml.core.files import project_root, write_json
from prodml.core.records import results_path
from prodml.core.progress import progress

STAGES = ("ingest", "validate", "clean", "features", "train")
LIMIT_MB, LIMIT_RATIO = 2048, 60 / 50


def shifted(lines: list[list[str]], copies: int) -> Iterator[list[str]]:
    """The header and the rows of a table, then the rows again a year later, and so on."""
    header, rows = lines[0], lines[1:]
    year, moment = header.index("year"), header.index("time_hour")
    yield header
    for copy in range(copies):
        for row in rows:
            row = list(row)
            row[year] = str(int(row[year]) + copy)
            row[moment] = f"{int(row[moment][:4]) + copy}{row[moment][4:]}"
            yield row


def write_tables(source: Path, target: Path, copies: int) -> None:
    """The raw tables with flights and weather many times over; the others as they are."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name == "flights.csv.zip":
            with zipfile.ZipFile(path) as archive:
                lines = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]), "utf-8")))
            with zipfile.ZipFile(target / path.name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("flights.csv", "w", force_zip64=True) as stream:
                csv.writer(io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)).writerows(progress(shifted(lines, copies), total=copies * (len(lines) - 1) + 1, desc="flights"))
        elif path.name == "weather.csv":
            with open(path, newline="") as stream, open(target / path.name, "w", newline="") as out:
                csv.writer(out).writerows(shifted(list(csv.reader(stream)), copies))
        else:
            shutil.copy(path, target)


def project(copies: int, overrides: list[str]) -> Path:
    """A project of its own under build/memory: this one's notebooks and stages, the settings for a longer table."""
    root = project_root()
    folder = root / "build" / "memory" / str(copies)
    shutil.rmtree(folder, ignore_errors=True)
    write_tables(root / "data", folder / "data", copies)
    (folder / "nbs").symlink_to(root / "nbs")
    shutil.copy(root / "dvc.yaml", folder)
    settings = compose(["train.epochs=1", *overrides])
    for table in settings["data"]["tables"].values():
        table.pop("sha256", None)  # the longer table is another file
    months = {name: 2013 * 12 + share * copies for name, share in (("validation_from", 8), ("test_from", 10))}
    settings["data"]["split"] |= {name: f"{count // 12}-{count % 12 + 1:02d}-01" for name, count in months.items()}
    settings["data"]["features"]["options"]["holidays"]["years"] = list(range(2012, 2014 + copies))
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


def measured(folder: Path, stage: str) -> dict[str, float]:
    """Run one stage in its own process: seconds, CPU seconds, and the most resident memory that it had."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "prodml.core.runner", stage], cwd=folder, env={**os.environ, "PYTHONPATH": str(project_root())}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the stage {stage} ended with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_rss_mb": usage.ru_maxrss // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=50, help="how many times the table (default 50: 16.8 million rows)")
    parser.add_argument("--set", nargs="*", default=[], metavar="OVERRIDE", help="overrides of conf/ for both tables, such as model=mlp")
    parser.add_argument("--keep", action="store_true", help="leave the tables and artifacts in build/memory")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    path = results_path("memory.json", given.write)
    record = {"copies": given.copies, "overrides": given.set, "stages": {}}
    folders = {copies: project(copies, given.set) for copies in (1, given.copies)}
    for stage in STAGES:
        small, large = (measured(folders[copies], stage) for copies in (1, given.copies))
        record["stages"][stage] = {"1": small, str(given.copies): large}
        print(f"{stage:9} 1x {small['seconds']:7.1f} s {small['peak_rss_mb']:5} MB   {given.copies}x {large['seconds']:8.1f} s {large['peak_rss_mb']:5} MB   {large['seconds'] / small['seconds']:5.1f} times", flush=True)
    totals = {key: sum(stage[key]["seconds"] for stage in record["stages"].values()) for key in ("1", str(given.copies))}
    work = {key: sum(stage[key]["cpu_seconds"] for stage in record["stages"].values()) for key in totals}
    peak = max(stage[str(given.copies)]["peak_rss_mb"] for stage in record["stages"].values())
    record |= {"seconds": totals, "ratio": round(totals[str(given.copies)] / totals["1"], 2), "cpu_ratio": round(work[str(given.copies)] / work["1"], 2), "peak_rss_mb": peak}
    write_json(path, record)
    print(f"in all {totals['1']:.0f} s and {totals[str(given.copies)]:.0f} s, {record['ratio']} times ({record['cpu_ratio']} times the CPU time, which a busy machine does not change); the most memory {peak} MB")
    if not given.keep:
        shutil.rmtree(project_root() / "build" / "memory")
    if peak >= LIMIT_MB or record["ratio"] > LIMIT_RATIO * given.copies:
        raise SystemExit(f"more than {LIMIT_MB} MB, or more than {LIMIT_RATIO * given.copies:.0f} times the time")


if __name__ == "__main__":
    main()
