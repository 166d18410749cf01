"""No feature of a row moves when everything that became known after its prediction time is changed in the raw files."""

import functools
import inspect
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from ibis.config import Config

from prodml.data import flights as module
from prodml.data import known
from prodml.data.clean import clean
from prodml.data.features import feature_slices
from prodml.data.flights import features, with_clocks
from prodml.data.ingest import ingest
from prodml.data.validate import read_tables, validate

Tables = Mapping[str, pa.Table]

# Two days each: the first and last of the year, both changes of clock, and days with the rarer events. They lie further apart than a
# feature looks back, so each has a present of its own.
WINDOWS = [pd.Timestamp(f"2013-{day}") for day in ("01-01", "02-03", "03-09", "04-17", "05-18", "06-26", "07-28", "09-01", "10-02", "11-02", "12-30")]
KINDS = ("departure", "early departure", "arrival", "last leg", "weather", "aircraft")
DEPARTED, LANDED = ["dep_time", "dep_delay"], ["arr_time", "arr_delay", "air_time"]
MEASURED = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
# What each raw column is: known days ahead, or known from a moment that `times` gives.
SCHEDULE = ["year", "month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "origin", "dest", "distance", "hour", "minute", "time_hour"]
HOURS = ["origin", "year", "month", "day", "hour", "time_hour"]
LONGEST = 1400 # minutes of delay that no rule of conf/data refuses


def minutes(column: pd.Series) -> pd.Series:
    """Minutes since 1970 UTC of a raw column of times."""
    return (pd.to_datetime(column.str.removesuffix("Z")) - pd.Timestamp(0)) // pd.Timedelta(minutes=1)


def numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column.replace("NA", None), errors="coerce")


@dataclass(frozen=True)
class World:
    """The raw tables of some days, the options of conf/data and, for each row, its window and when its columns became known."""

    flights: pd.DataFrame
    weather: pd.DataFrame
    data: dict[str, Any]
    times: pd.DataFrame
    observed: pd.DataFrame


@pytest.fixture(scope="module")
def world(root) -> World:
    """The windows of the raw tables; the moments come from the raw columns, but for that of landing, whose clock is local."""
    data = yaml.safe_load((root / "conf" / "data" / "flights.yaml").read_text())
    options = data["features"]["options"]
    read = {name: pd.read_csv(root / "data" / data["tables"][name]["file"], dtype=str, keep_default_na=False) for name in ("flights", "weather", "airports")}
    flights, weather = read["flights"], read["weather"]
    assert set(flights) == {*SCHEDULE, *DEPARTED, *LANDED, "tailnum"} and set(weather) == {*HOURS, *MEASURED}, "every raw column is accounted for"
    day = pd.to_datetime(flights[["year", "month", "day"]].astype(int))
    flights, window = chosen(flights, day, 0)
    weather, hours = chosen(weather, pd.to_datetime(weather["time_hour"].str[:10]), 1)
    sched = minutes(flights["time_hour"]) + flights["minute"].astype(int)
    times = flights[["carrier", "origin", "dest", "tailnum"]].assign(window=window, sched=sched, asof=sched - options["lead_minutes"], dep_delay=numbers(flights["dep_delay"]))
    times["departed"] = np.maximum(sched + times["dep_delay"], sched)
    clocks = with_clocks(typed(flights), airports_of(read["airports"]), options["utc_offsets"], options["lead_minutes"])
    clocks = clocks.select("source_row", "sched_minutes", "arr_at").to_pandas().set_index("source_row").sort_index()
    times["length"], times["landed"] = clocks["sched_minutes"].to_numpy(float), clocks["arr_at"].to_numpy(float)
    flown = times["landed"] - times["sched"] - times["dep_delay"] - numbers(flights["air_time"])
    assert (flown.dropna() >= 0).all(), "no flight lands before it has left and flown"
    return World(flights, weather, data, times, pd.DataFrame({"window": hours, "known": minutes(weather["time_hour"]) + options["weather_delay_minutes"]}))


def chosen(table: pd.DataFrame, day: pd.Series, around: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of the windows, with so many days before and after, and the number of the window of each."""
    number = pd.Series(-1, table.index)
    for place, first in enumerate(WINDOWS):
        number[day.between(first - pd.Timedelta(days=around), first + pd.Timedelta(days=1 + around))] = place
    return table[number >= 0].reset_index(drop=True), number[number >= 0].to_numpy()


def typed(flights: pd.DataFrame) -> ibis.Table:
    """The columns that clocks need, with their types; `source_row` counts from 0."""
    whole = ["hour", "minute", "sched_arr_time", "distance", "dep_delay", "arr_delay"]
    frame = flights[["dest"]].assign(source_row=range(len(flights)), time_hour=pd.to_datetime(flights["time_hour"].str.removesuffix("Z")), **{name: numbers(flights[name]) for name in whole})
    return ibis.memtable(frame).mutate(**{name: ibis._[name].cast("int64") for name in whole})


def airports_of(raw: pd.DataFrame) -> ibis.Table:
    return ibis.memtable(raw[["faa", "dst"]].assign(lat=numbers(raw["lat"]), lon=numbers(raw["lon"]), tz=numbers(raw["tz"]).astype(int)))


def moments(world: World, kind: str) -> dict[int, int]:
    """For each window that has one, a moment at which a question is asked one minute before an event of the kind that concerns its flight."""
    times, start = world.times, pd.Series([(day - pd.Timestamp(0)) // pd.Timedelta(minutes=1) for day in WINDOWS])
    asked = times[(times["asof"] - times["window"].map(start)).between(29 * 60, 49 * 60)].reset_index()
    if kind == "weather":
        events, by = world.observed.assign(origin=world.weather["origin"]), ["window", "origin"]
    elif kind in ("aircraft", "last leg"):
        events, by = times[times["tailnum"] != "NA"].rename(columns={"departed" if kind == "aircraft" else "landed": "known"}), ["window", "tailnum"]
    else:
        column = "landed" if kind == "arrival" else "departed"
        early = times["dep_delay"] < 0
        events = times[early if kind == "early departure" else ~early].rename(columns={column: "known"})
        by = ["window", "dest"] if kind == "arrival" else ["window", "origin"]
    events = events[[*by, "known"]].assign(event=events.index)
    pairs = asked[["index", "asof", *by]].merge(events[(events["known"] - 1).isin(asked["asof"])], on=by)
    pairs = pairs[pairs["known"] == pairs["asof"] + 1]
    if kind == "last leg":
        pairs = pairs[[is_last_leg(times, pair) for pair in pairs.itertuples()]]
    return {window: int(found["asof"].iloc[len(found) // 2]) for window, found in pairs.sort_values(["asof", "index"]).groupby("window")}


def is_last_leg(times: pd.DataFrame, pair: Any) -> bool:
    """Whether the event is the last departure of the aircraft that the question can know of."""
    own = times[(times["window"] == pair.window) & (times["tailnum"] == pair.tailnum) & (times["departed"] <= pair.asof)]
    return pair.event in own.index and own["departed"].idxmax() == pair.event


@pytest.fixture(scope="module")
def presents(world) -> list[dict[int, tuple[str, int]]]:
    """Twice: a kind of event and a moment for each window, so that each kind has its turn in several seasons."""
    found = {kind: moments(world, kind) for kind in KINDS}
    slots = [(turn, window) for turn in range(2) for window in range(len(WINDOWS))]
    turns: list[dict[int, tuple[str, int]]] = [{}, {}]
    # The kinds take turns to choose, the rarest first, each as far as it can from where it was before.
    while slots:
        for kind in sorted(found, key=lambda kind: len(found[kind])):
            fit = [slot for slot in slots if slot[1] in found[kind]]
            if fit:
                own = [window for turn in turns for window, (held, _) in turn.items() if held == kind]
                turn, window = max(fit, key=lambda slot: min((abs(slot[1] - other) for other in own), default=0))
                slots.remove((turn, window))
                turns[turn][window] = (kind, found[kind][window])
    held = [kind for turn in turns for kind, _ in turn.values()]
    assert all(held.count(kind) >= 3 for kind in KINDS), held
    return turns


def shuffled(table: pd.DataFrame, columns: list[str], rows: np.ndarray, draw: np.random.Generator) -> None:
    """Shuffle the cells of some columns together among some rows, in place."""
    table.loc[rows, columns] = table.loc[rows, columns].to_numpy()[draw.permutation(int(rows.sum()))]


def not_before(delays: pd.Series, due: pd.Series, now: pd.Series, draw: np.random.Generator) -> np.ndarray:
    """Delays, as text, of what happens after now: what would have happened by then is moved past it, and never happens if that is too far."""
    least = now + 1 - due
    moved = np.where(delays < least, least + draw.integers(0, 60, len(delays)), delays)
    return np.where(np.isnan(moved) | (moved > LONGEST), "NA", np.nan_to_num(moved).astype(int).astype(str))


def with_another_future(world: World, nows: Mapping[int, int], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The raw flights and weather with every column shuffled where it became known after the present of its window."""
    draw, times, flights = np.random.default_rng(seed), world.times, world.flights.copy()
    now = times["window"].map(nows)
    leaves, lands = ~(times["departed"] <= now).to_numpy(), ~(times["landed"] <= now).to_numpy()
    shuffled(flights, DEPARTED, leaves, draw)
    shuffled(flights, LANDED, lands, draw)
    shuffled(flights, ["tailnum"], (times["asof"] > now).to_numpy(), draw)
    late = numbers(flights["dep_delay"]) + 400 * (draw.random(len(flights)) < 0.05)
    flights.loc[leaves, "dep_delay"] = not_before(late, times["sched"], now, draw)[leaves]
    due = times["sched"] + times["length"].fillna(0)
    flights.loc[lands, "arr_delay"] = not_before(numbers(flights["arr_delay"]), due, now, draw)[lands]
    gone = leaves & (flights["dep_delay"] == "NA")
    flights.loc[gone, ["dep_time", *LANDED]] = "NA"
    weather = world.weather.copy()
    later = (world.observed["known"] > world.observed["window"].map(nows)).to_numpy()
    shuffled(weather, MEASURED, later, draw)
    # Dry days stay dry when they are shuffled: in half of the later hours it rains as it did somewhere.
    rain, rows = weather["precip"][numbers(weather["precip"]) > 0], later & (draw.random(len(weather)) < 0.5)
    weather.loc[rows, "precip"] = draw.choice(rain.to_numpy(), int(rows.sum()))
    return flights, weather


def staged(world: World, root: Path, folder: Path, flights: pd.DataFrame, weather: pd.DataFrame) -> Tables:
    """The tables after ingest, validate and clean."""
    (folder / "raw").mkdir(parents=True)
    tables = {name: {key: value for key, value in table.items() if key != "sha256"} for name, table in world.data["tables"].items()}
    tables["flights"]["file"] = "flights.csv"
    for name in ("planes", "airports", "airlines"):
        shutil.copy(root / "data" / tables[name]["file"], folder / "raw")
    flights.to_csv(folder / "raw" / "flights.csv", index=False)
    weather.to_csv(folder / "raw" / "weather.csv", index=False)
    ingest(folder / "raw", tables, folder / "ingest", world.data["null_values"], "flights", 1.0)
    rules = [rule for rule in world.data["rules"] if rule["severity"] == "error"] # the others change no table
    validate(folder / "ingest", folder / "validate", folder / "rejected", rules, "flights", world.data["target"])
    clean(folder / "validate", folder / "clean", world.data["repairs"])
    return {name: table.to_pyarrow() for name, table in read_tables(folder / "clean").items()}


@pytest.fixture(scope="module")
def cleaned(world, presents, root, tmp_path_factory) -> Callable[[int | None], Tables]:
    """Gives the cleaned tables with another future after the presents of a turn; without a turn, as they are."""

    @functools.cache
    def made(turn: int | None = None) -> Tables:
        raw = world.flights, world.weather
        if turn is not None:
            raw = with_another_future(world, {window: now for window, (_, now) in presents[turn].items()}, turn)
        return staged(world, root, tmp_path_factory.mktemp("turn") / "files", *raw)

    return made


@pytest.fixture(scope="module")
def unbound(cleaned) -> dict[str, ibis.Table]:
    """The names and types of the cleaned tables, without rows."""
    return {name: ibis.table(ibis.memtable(table).schema(), name=name) for name, table in cleaned().items()}


@pytest.fixture(scope="module")
def expression(world, unbound) -> ibis.Table:
    """The features of any such tables."""
    return features(unbound, world.data["features"]["options"])


def computed(expression: ibis.Table, *versions: Tables) -> list[pd.DataFrame]:
    """The features by key, of each version of the tables; the query is written once."""
    connection, found = ibis.duckdb.connect(), []
    for tables in versions:
        for name, table in tables.items():
            connection.con.register(name, table)
        if not found:
            connection.create_view("features", expression)
        # Arrow first: Ibis takes three times as long to make the frame.
        found.append(connection.table("features").to_pyarrow().to_pandas().set_index("key").sort_index())
    return found


def in_slices(world: World, tables: Tables) -> pd.DataFrame:
    """The features by key, as the stage makes them, in slices of time."""
    settings = {**world.data["features"], "slice_rows": len(world.flights) // 2 + 1000}
    given = {name: ibis.memtable(table) for name, table in tables.items()}
    pieces = [piece.to_pyarrow() for piece in feature_slices(given, "flights", world.data["target"], settings, world.data["split"])]
    assert len(pieces) > 1
    return pa.concat_tables(pieces).to_pandas().drop(columns="label").set_index("key").sort_index()


def questions(world: World, turn: Mapping[int, tuple[str, int]]) -> tuple[pd.Index, pd.Index]:
    """The keys (from 1) of the flights that are asked about by the present of their window, and of those after it."""
    now = world.times["window"].map({window: now for window, (_, now) in turn.items()})
    keys = pd.Index(world.times.index + 1)
    return keys[world.times["asof"] <= now], keys[world.times["asof"] > now]


def changed(before: pd.DataFrame, after: pd.DataFrame, keys: pd.Index) -> list[str]:
    """The features that differ in a row of these keys that both have."""
    keys = keys.intersection(before.index).intersection(after.index)
    assert len(keys) > 100
    left, right = before.loc[keys], after.loc[keys]
    # A column without a hole comes as whole numbers, with one as floats: kinds are no difference, values are.
    return [name for name in before.columns if not (left[name].eq(right[name]) | (left[name].isna() & right[name].isna())).all()]


def check(world: World, turn: Mapping[int, tuple[str, int]], before: pd.DataFrame, after: pd.DataFrame) -> None:
    """The past is the same, and the future is one that features can see."""
    past, future = questions(world, turn)
    assert not changed(before, after, past)
    seen = {"aircraft_last_arr_delay", "origin_flights_1h", "origin_waiting", "temp", "plane_year", "dest_landed_flights_4h"}
    assert seen <= set(changed(before, after, future))


def test_another_future_moves_no_feature(world, presents, cleaned, expression):
    """From the raw files to the features, at moments through the year, each a minute before an event."""
    check(world, presents[0], *computed(expression, cleaned(), cleaned(0)))


@pytest.mark.slow
def test_another_future_moves_no_feature_in_slices(world, presents, cleaned):
    """At other moments, in the slices of time that the stage works through."""
    check(world, presents[1], *(in_slices(world, cleaned(turn)) for turn in (None, 1)))


@dataclass(frozen=True)
class Mutant:
    """Code that looks ahead: texts of it and what stands there instead, or other options; and where it shows."""

    kind: str # the event before which
    part: str # the function that makes the features; "" for the columns of the flight itself
    edits: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


DEPARTURE, ARRIVAL = "known_at=ibis.greatest(left.dep_at, left.sched_dep)", "known_at=landed.arr_at"
LANDED_LEG = 'last.last_arr_at <= last["asof"]'
FIELDS = '"last_arr_at", "last_dep_at", "last_minutes"]'
LAST = "        aircraft_last_dep_delay=last.last_dep_delay,\n"
DUE_AIRCRAFT, GONE_AIRCRAFT = "due = known_sums(known, scheduled(known),", "gone = known_sums(known, departures(known),"
DUE, GONE = "due = known_sums(flights, scheduled(flights),", "gone = known_sums(flights, left."
OWN = '"key", "carrier", "origin", "dest", "distance", "sched_minutes",'
EARLY, FLOWN = "mutate(known_at=ibis._.known_at - 1)", "filter(ibis._.dep_delay.notnull())"
SIX, THREE = 'six = ibis.window(group_by="origin", order_by="minute", range=(-300, 0', 'order_by="minute", range=(-120, 0'


def day(edits: Mapping[str, str], kind: str) -> Mutant:
    return Mutant(kind, "state_of_the_day", edits)


def aircraft(edits: Mapping[str, str], kind: str = "aircraft") -> Mutant:
    return Mutant(kind, "aircraft", edits)


def weather(edits: Mapping[str, str]) -> Mutant:
    return Mutant("weather", "weather_known", edits)


MUTANTS = {
    **{
        f"weather {early} minutes early": Mutant("weather", "weather_known", options={"weather_delay_minutes": 60 - early})
        for early in (1, 10, 30, 60)
    },
    **{
        f"asked {late} minutes late": Mutant("departure", "state_of_the_day", options={"lead_minutes": 120 - late})
        for late in (1, 30)
    },
    "departure a minute early": day({DEPARTURE: DEPARTURE.replace("dep_at,", "dep_at - 1,")}, "departure"),
    "departure by schedule": day({DEPARTURE: "known_at=left.sched_dep"}, "departure"),
    "early departure before its time": day({DEPARTURE: "known_at=left.dep_at"}, "early departure"),
    "arrival a minute early": day({ARRIVAL: f"{ARRIVAL} - 1"}, "arrival"),
    "arrival by schedule": day({ARRIVAL: "known_at=landed.sched_arr"}, "arrival"),
    "arrival at departure": day({ARRIVAL: "known_at=landed.dep_at"}, "arrival"),
    "arrivals of past weeks a minute early": Mutant("arrival", "history", {"    landed = arrivals(flights)": f"    landed = arrivals(flights).{EARLY}"}),
    "last leg lands a minute early": aircraft({LANDED_LEG: LANDED_LEG.replace(" <=", " - 1 <=")}, "last leg"),
    "last leg lands by schedule": aircraft({LANDED_LEG: LANDED_LEG.replace(" <=", " - last.last_arr_delay <=")}, "last leg"),
    "last leg has landed": aircraft({"landed.ifelse(last.last_arr_delay, ibis.null())": "last.last_arr_delay"}, "last leg"),
    **{
        f"last leg brings {name}": aircraft(
            {FIELDS: FIELDS.replace("]", f', "{name}"]'), LAST: f"{LAST}        aircraft_leg_{name}=last.{name},\n"}, "last leg"
        )
        for name in LANDED
    },
    "aircraft leaves a minute early": aircraft({"left = departures(known).": f"left = departures(known).{EARLY}."}),
    "aircraft gone a minute early": aircraft({GONE_AIRCRAFT: GONE_AIRCRAFT.replace("(known),", f"(known).{EARLY},")}),
    "cancelled flights of the aircraft do not wait": aircraft({DUE_AIRCRAFT: DUE_AIRCRAFT.replace("(known),", f"(known).{FLOWN},")}),
    "flights of the aircraft in two days": aircraft({DUE_AIRCRAFT: DUE_AIRCRAFT.replace("sums(known,", "sums(known.mutate(asof=known.asof + 2880),")}),
    "waiting flights leave a minute early": Mutant("departure", "backlog", {GONE: f"{GONE}{EARLY}."}),
    "cancelled flights do not wait": Mutant("departure", "backlog", {DUE: DUE.replace("d(flights)", f"d(flights).{FLOWN}")}),
    "flights that will leave late do not wait": Mutant(
        "departure", "backlog", {DUE: DUE.replace("d(flights)", "d(flights.filter((flights.dep_delay <= 360).fill_null(True)))")}
    ),
    "cancelled flights are not scheduled": Mutant("departure", "congestion", {"plan = scheduled(flights)": f"plan = scheduled(flights).{FLOWN}"}),
    "rain of the next hour": weather({SIX: SIX[:-1] + "60"}),
    "wind of the next hour": weather({THREE: THREE[:-1] + "60"}),
    "pressure of the next hour": weather({"pressure.lag(3)": "pressure.lead(1)"}),
    **{f"its own {name}": Mutant("departure", "", {OWN: f'{OWN} "{name}",'}) for name in (*DEPARTED, *LANDED)},
    "sums look a minute ahead": day({'edges = [queries.asof.cast("int64"),': 'edges = [queries.asof.cast("int64") + 1,'}, "departure"),
    "the latest looks a minute ahead": weather({"range=(-within, 0)": "range=(-within, 1)"}),
}
# The functions from which `features` is put together, and whether each gives a list of tables.
PARTS = {
    "calendar": False, "plane_facts": False, "state_of_the_day": True, "backlog": False, "history": True, "aircraft": True,
    "congestion": True, "weather_known": False,
}


def mutated(mutant: Mutant) -> Callable:
    """`features` of the mutant, with the features of its part alone."""
    imported = "from .known import known_latest, known_sums\n"
    source = inspect.getsource(known) + inspect.getsource(module).replace(imported, "")
    for old, new in mutant.edits.items():
        assert source.count(old) == 1, f"the text is there, once: {old}"
        source = source.replace(old, new)
    code: dict[str, Any] = {}
    exec(source, code)
    for name, many in PARTS.items():
        if name != mutant.part:
            code[name] = (lambda *_: []) if many else (lambda flights, *_, **__: flights.select("key"))
    return code["features"]


@pytest.fixture(scope="module")
def parts(world, presents, cleaned) -> Callable[[str], tuple[Tables, Tables, pd.Index]]:
    """Gives, for a kind of event, the windows of one turn in which a question stands before it: cleaned tables before and after, and the keys asked by then."""

    @functools.cache
    def of(kind: str) -> tuple[Tables, Tables, pd.Index]:
        number, turn = max(enumerate(presents), key=lambda item: sum(held == kind for held, _ in item[1].values()))
        windows = [window for window, (held, _) in turn.items() if held == kind][:2]
        keys = pd.Index(world.times.index[world.times["window"].isin(windows)] + 1)
        chosen = [{**tables, "flights": of_keys(tables["flights"], keys)} for tables in (cleaned(), cleaned(number))]
        return (*chosen, questions(world, turn)[0].intersection(keys))

    return of


def of_keys(flights: pa.Table, keys: Collection[int]) -> pa.Table:
    return flights.filter(pc.is_in(flights["source_row"], value_set=pa.array(keys)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), sorted({(mutant.kind, mutant.part) for mutant in MUTANTS.values()}))
def test_what_mutants_are_held_against(kind, part, world, unbound, parts):
    """In the windows and the part of each mutant the code as it is does not look ahead."""
    assert not moved_by(Mutant(kind, part), world, unbound, parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_look_ahead_is_seen(name, world, unbound, parts):
    """Each thing that is known at a moment, made known too early, moves a feature of the past."""
    assert moved_by(MUTANTS[name], world, unbound, parts)


def moved_by(mutant: Mutant, world: World, unbound: Mapping[str, ibis.Table], parts: Callable) -> list[str]:
    """The features of the past that another future moves."""
    *versions, past = parts(mutant.kind)
    options = {**world.data["features"]["options"], **mutant.options}
    return changed(*computed(mutated(mutant)(unbound, options), *versions), past)


class SparkOptions(Config):
    treat_nan_as_null: bool = False


def test_features_compile_for_spark(expression, monkeypatch):
    """One expression, another engine: the SQL for Spark is made from the same features."""
    # Ibis registers this option when PySpark is installed, which it need not be to write SQL.
    monkeypatch.setattr(ibis.options, "pyspark", SparkOptions())
    sql = ibis.to_sql(expression, dialect="pyspark")
    assert "PRECEDING" in sql.upper() and "`flights`" in sql
