"""Drift between the two halves of the flights table, all 19 columns: prodml against Evidently, NannyML and alibi-detect.

Each peer runs in a virtual environment of its own under build/peers (made on the first run, from PyPI), with its own
input (pandas, here Arrow) already in memory and its imports done; the best of some repeats counts. Each computes those
of our statistics that it has: PSI, Jensen–Shannon, Kolmogorov–Smirnov, Wasserstein-1, chi-square; we compute all of
them, with the bins of the peer's own definition, whose edges we find within our time. Where a peer computes the same
thing, the answers must agree to 1e-6, or the run fails; of answers above 1 to that part of them. Written to
build/bench/drift.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench" / "drift"
HALVES = ("reference", "current")
CATEGORIES = ("carrier", "tailnum", "origin", "dest")
PEERS = {
    "evidently": ["evidently==0.7.23", "pandas<3", "pyarrow"],
    "nannyml": ["nannyml==0.13.1", "pandas<3", "setuptools<80", "statsmodels", "pyarrow"],
    "alibi_detect": ["alibi-detect==0.13.0", "pandas<3", "pyarrow<22"],
}
# What a peer computes and we do otherwise: not held against each other.
DIFFERS = {
    "evidently": {
        "ks": "the score is a p, from SciPy's asymptotic form; ours corrects Kolmogorov's limit after Stephens",
        "chi_square": "goodness of fit to the reference, taken as exact; ours compares two samples",
    },
    "nannyml": {},
    "alibi_detect": {},
}


def prepare() -> None:
    """January to June and July to December of the raw table, as Parquet; times in seconds."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    FOLDER.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(ROOT / "data" / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as stream:
        table = pyarrow.csv.read_csv(stream, convert_options=pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True))
    place = table.schema.get_field_index("time_hour")
    table = table.set_column(place, "time_hour", pc.cast(pc.cast(table["time_hour"], pa.timestamp("s")), pa.int64()))
    first = pc.less_equal(table["month"], 6)
    for half, rows in zip(HALVES, (first, pc.invert(first))):
        pq.write_table(table.filter(rows), FOLDER / f"{half}.parquet")


def best_of(repeats: int, function) -> tuple[dict, object]:
    """The least seconds of some calls, by the clock and of processor time, and the last answer."""
    least = {"wall_s": float("inf"), "cpu_s": float("inf")}
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        answer = function()
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        least = {name: min(own, seconds) for (name, own), seconds in zip(least.items(), spent)}
    return least, answer


# Peers: each runs in its own environment, through `python bench/drift.py --peer NAME`.


def evidently(halves: list, repeats: int) -> tuple[dict, dict]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    numbers = [name for name in halves[0].columns if name not in CATEGORIES]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=list(CATEGORIES))
    methods = {"psi": "psi", "jensen_shannon": "jensenshannon", "ks": "ks", "wasserstein_std": "wasserstein", "chi_square": "chisquare"}
    pairs = [(name, measure) for name in numbers for measure in ("psi", "jensen_shannon", "ks", "wasserstein_std")]
    pairs += [(name, measure) for name in CATEGORIES for measure in ("psi", "jensen_shannon", "chi_square")]

    def run() -> list:
        old, new = (Dataset.from_pandas(half, data_definition=definition) for half in halves)
        report = Report([ValueDrift(column=name, method=methods[measure]) for name, measure in pairs])
        return [float(metric["value"]) for metric in report.run(new, old).dict()["metrics"]]

    seconds, values = best_of(repeats, run)
    answers: dict = {}
    for (name, measure), value in zip(pairs, values, strict=True):
        answers.setdefault(name, {})[measure] = value
    return seconds, answers


def nannyml(halves: list, repeats: int) -> tuple[dict, dict]:
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
    from nannyml import UnivariateDriftCalculator

    numbers = [name for name in halves[0].columns if name not in CATEGORIES]
    named = {"kolmogorov_smirnov": "ks", "jensen_shannon": "jensen_shannon", "wasserstein": "wasserstein", "chi2": "chi_square"}
    halves = [half.reset_index(drop=True) for half in halves]

    def run():
        # It looks for the measure's name here, and then for the setting beside it and not below.
        exact = {"kolmogorov_smirnov": {}, "wasserstein": {}, "calculation_method": "exact"}
        calculator = UnivariateDriftCalculator(
            column_names=[*numbers, *CATEGORIES], treat_as_categorical=list(CATEGORIES), chunk_number=1,
            continuous_methods=["kolmogorov_smirnov", "jensen_shannon", "wasserstein"], categorical_methods=["chi2", "jensen_shannon"],
            computation_params=exact,
        )
        return calculator.fit(halves[0]).calculate(halves[1])

    seconds, result = best_of(repeats, run)
    frame = result.filter(period="analysis").to_df()
    methods = {name: ["chi2", "jensen_shannon"] if name in CATEGORIES else ["kolmogorov_smirnov", "jensen_shannon", "wasserstein"] for name in [*numbers, *CATEGORIES]}
    return seconds, {name: {named[method]: float(frame[(name, method, "value")].iloc[0]) for method in own} for name, own in methods.items()}


def alibi_detect(halves: list, repeats: int) -> tuple[dict, dict]:
    import pandas as pd
    from alibi_detect.cd import ChiSquareDrift, KSDrift

    arrays = {}  # it takes no missing values and no text: prepared before the clock starts
    for name in halves[0].columns:
        columns = [half[name].dropna() for half in halves]
        if name in CATEGORIES:
            codes = pd.factorize(pd.concat(columns))[0]
            columns = [codes[: len(columns[0])], codes[len(columns[0]) :]]
        arrays[name] = [column.reshape(-1, 1) if name in CATEGORIES else column.to_numpy(float).reshape(-1, 1) for column in columns]

    def run() -> dict:
        answers = {}
        for name, (old, new) in arrays.items():
            detector, measure = (ChiSquareDrift, "chi_square") if name in CATEGORIES else (KSDrift, "ks")
            answers[name] = {measure: float(detector(old, p_val=0.05).predict(new)["data"]["distance"][0])}
        return answers

    return best_of(repeats, run)


def ours(tables: list, edges_of, repeats: int) -> tuple[dict, dict]:
    """All our statistics of all columns, exact, rare categories kept apart; `edges_of` gives a peer's bins of a column, None our deciles."""
    from prodml.data.drift import compare_tables

    def run() -> dict:
        numbers = [name for name in tables[0].schema.names if name not in CATEGORIES]
        edges = {name: edges_of(*(table[name].drop_null().to_numpy() for table in tables)) for name in numbers} if edges_of else None
        return compare_tables(*tables, edges, least_expected=0)

    return best_of(repeats, run)


def sketched(tables: list, repeats: int) -> dict:
    """Time for the pipeline's way: profile of the reference, tally of the newer half, lines and alarms."""
    import ibis
    import pyarrow as pa

    from prodml.data.drift import drift_within

    both = pa.concat_tables([table.append_column("half", pa.array([half] * len(table))) for half, table in zip(HALVES, tables)])
    roles = {name: "calendar" for name in ("year", "month", "day", "time_hour")} | {name: "identifier" for name in ("flight", "tailnum")}
    return best_of(repeats, lambda: drift_within(ibis.memtable(both), "half", "reference", roles))[0]


def evidently_edges(old, new):
    """Distinct values where the reference has at most 20, else Sturges' rule on both halves together."""
    import numpy as np

    both = np.concatenate([old, new])
    if len(np.unique(old)) > 20:
        return np.histogram_bin_edges(both, "sturges")
    values = np.unique(both).astype(float)
    return np.append(values, values[-1] + 1)


def nannyml_edges(old, new):
    """Doane's rule on the reference, and all that lies outside."""
    import numpy as np

    edges = np.histogram_bin_edges(old.astype(float), "doane")
    return np.concatenate([[-np.inf], edges[:-1], [np.nextafter(edges[-1], np.inf), np.inf]])


def evidently_answers(tables: list, answers: dict) -> dict:
    """Our answers in Evidently's definition: logarithms to base e, Wasserstein in standard deviations, its share for empty bins."""
    import numpy as np

    from prodml.stats.drift import aligned, binned, counted, psi, shares

    def small(share: np.ndarray) -> float:
        least = share[share > 0].min()
        return least / 1e6 if least <= 1e-4 else 1e-4

    made = {}
    for name, own in answers.items():
        made[name] = {"jensen_shannon": own["jensen_shannon"] * np.sqrt(np.log(2))}
        old, new = (table[name].drop_null() for table in tables)
        if name in CATEGORIES:
            counts = [dict(zip(*(part.to_pylist() for part in half.value_counts().flatten()))) for half in (old, new)]
            cells = np.array([[count.get(value, 0) for value in {**counts[0], **counts[1]}] for count in counts])
        else:
            made[name]["wasserstein_std"] = own["wasserstein"] / max(old.to_numpy().astype(float).std(), 0.001)
            values, x, y = aligned(counted(old.to_numpy()), counted(new.to_numpy()))
            cells = binned(values, np.stack([x, y]), evidently_edges(old.to_numpy(), new.to_numpy()))
        made[name]["psi"] = float(psi(*cells, least_share=tuple(small(share) for share in shares(cells))))
    return made


def compare(peer: str, theirs: dict, mine: dict) -> dict:
    """How many answers agree to 1e-6, and the largest relative difference of each measure; fails past that."""
    worst: dict = {}
    for name, measures in theirs.items():
        for measure, value in measures.items():
            if measure not in DIFFERS[peer]:
                off = float(abs(value - mine[name][measure]) / max(abs(value), abs(mine[name][measure]), 1.0))
                count, largest, _ = worst.get(measure, (0, 0.0, ""))
                worst[measure] = (count + 1, *max((largest, worst.get(measure, (0, 0, ""))[2]), (off, name)))
                assert off <= 1e-6, f"{peer} {name} {measure}: {value} and ours {mine[name][measure]}"
    return {measure: {"columns": count, "largest_difference": off} for measure, (count, off, _) in worst.items()}


def environment(peer: str) -> Path:
    """The Python of a peer's environment, made if it is not there."""
    folder = ROOT / "build" / "peers" / peer
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-input", *PEERS[peer]], check=True)
        (folder / "ready").touch()
    return python


def peer_main(peer: str, repeats: int) -> None:
    """What runs in a peer's environment: seconds and answers as JSON on the last line."""
    import pandas as pd

    warnings.filterwarnings("ignore")
    halves = [pd.read_parquet(FOLDER / f"{half}.parquet") for half in HALVES]
    seconds, answers = {"evidently": evidently, "nannyml": nannyml, "alibi_detect": alibi_detect}[peer](halves, repeats)
    print(json.dumps({"seconds": seconds, "answers": answers}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        return peer_main(given.peer, given.repeats)

    import pyarrow.parquet as pq

    from prodml.core.files import write_json
    from prodml.core.records import results_path

    path = results_path("drift.json", given.write, ROOT)
    prepare()
    tables = [pq.read_table(FOLDER / f"{half}.parquet") for half in HALVES]
    peers = {}
    for peer in PEERS:
        python = environment(peer)
        # Held against our run with the peer's bins, right before it, so that both meet the same machine; alibi-detect has no bins.
        own, mine = ours(tables, {"evidently": evidently_edges, "nannyml": nannyml_edges, "alibi_detect": None}[peer], given.repeats)
        if peer == "evidently":
            mine = evidently_answers(tables, mine)
        done = subprocess.run([str(python), __file__, "--peer", peer, "--repeats", str(given.repeats)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "", "NML_DISABLE_USAGE_LOGGING": "1"})
        if done.returncode:
            raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        agreement = compare(peer, answer["answers"], mine)
        times = {clock: answer["seconds"][clock] / own[clock] for clock in own}
        peers[peer] = {"packages": PEERS[peer], **answer["seconds"], "ours": own, "times_ours": times, "agreement": agreement, "not_comparable": DIFFERS[peer]}
        print(f"{peer}: {answer['seconds']['wall_s']:.2f} s against {own['wall_s']:.2f} s, {times['wall_s']:.1f} times ours by the clock and {times['cpu_s']:.1f} by processor time; largest differences", {measure: f"{item['largest_difference']:.0e}" for measure, item in agreement.items()})
    least = {clock: min(peer["times_ours"][clock] for peer in peers.values()) for clock in ("wall_s", "cpu_s")}
    streamed = sketched(tables, given.repeats)
    record = {"rows": [len(table) for table in tables], "columns": len(tables[0].schema), "repeats": given.repeats, "peers": peers, "least_times_ours": least, "profile_tally_and_verdict": streamed}
    write_json(path, record)
    print(f"the least of these: {least['wall_s']:.1f} by the clock, {least['cpu_s']:.1f} by processor time; profile, tally and verdict of the pipeline: {streamed['wall_s']:.2f} s")


if __name__ == "__main__":
    main()
