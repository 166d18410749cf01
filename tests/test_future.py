"""No feature of a row moves when everything that became known after its prediction time is changed."""

import ibis
import numpy as np
import pandas as pd
import pytest
from ibis.config import Config

from prodml.data.flights import features, with_clocks
from prodml.data.ingest import ingest
from prodml.data.validate import read_tables


@pytest.fixture(scope="module")
def frames(root, tmp_path_factory):
    """Two weeks of the raw tables around the spring change of clock, as frames, and the options of the flights."""
    from prodml.core.config import compose

    data = compose(["data=flights"])["data"]
    folder = tmp_path_factory.mktemp("raw") / "ingest"
    ingest(root / "data", data["tables"], folder, data["null_values"], "flights", 1.0)
    tables = {name: table.to_pandas() for name, table in read_tables(folder).items()}
    flights = tables["flights"]
    tables["flights"] = flights[(flights.month == 3) & flights.day.between(3, 16)].reset_index(drop=True)
    tables["weather"] = tables["weather"][tables["weather"].month == 3].reset_index(drop=True)
    return tables, data["features"]["options"]


def computed(tables: dict[str, pd.DataFrame], options: dict) -> pd.DataFrame:
    """The features by key."""
    loaded = {name: ibis.memtable(frame) for name, frame in tables.items()}
    return features(loaded, options).to_pandas().set_index("key").sort_index()


def clocks(tables: dict[str, pd.DataFrame], options: dict) -> pd.DataFrame:
    timed = with_clocks(ibis.memtable(tables["flights"]), ibis.memtable(tables["airports"]), options["utc_offsets"], options["lead_minutes"])
    return timed.select("key", "asof", "sched_dep", "dep_at", "sched_arr", "arr_at").to_pandas().set_index("key").sort_index()


def with_another_future(tables: dict[str, pd.DataFrame], options: dict, now: int) -> dict[str, pd.DataFrame]:
    """The tables with all that became known after the minute `now` changed: later delays, cancellations, weather."""
    rng = np.random.default_rng(now)
    flights = tables["flights"].set_index("source_row").sort_index()
    times = clocks(tables, options)
    left_later = ~(np.maximum(times.dep_at, times.sched_dep) <= now)
    landed_later = ~(times.arr_at <= now)
    # Whatever happens instead must become known after `now` too.
    earliest = np.maximum(now + 1 - times.sched_dep, -30)
    delays = (earliest + rng.integers(0, 400, len(flights))).astype(float)
    cancelled = rng.random(len(flights)) < 0.3
    flights.loc[left_later, "dep_delay"] = np.where(cancelled, np.nan, delays)[left_later]
    arrival = now + 1 + rng.integers(0, 500, len(flights)) - times.sched_arr
    flights.loc[landed_later, "arr_delay"] = np.where(cancelled & left_later, np.nan, arrival)[landed_later]
    flights.loc[landed_later, "dep_time"] = 1234
    weather = tables["weather"].copy()
    known = (weather.time_hour - pd.Timestamp(0)) // pd.Timedelta(minutes=1) + options["weather_delay_minutes"]
    measured = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    weather.loc[known > now, measured] = rng.integers(0, 99, (int((known > now).sum()), len(measured)))
    return {**tables, "flights": flights.reset_index(), "weather": weather}


def test_changing_the_future_moves_no_feature(frames):
    tables, options = frames
    before, asof = computed(tables, options), clocks(tables, options)["asof"]
    for now in np.quantile(asof, [0.4, 0.8]).astype(int):
        after = computed(with_another_future(tables, options, int(now)), options)
        past = asof.index[asof <= now]
        pd.testing.assert_frame_equal(before.loc[past], after.loc[past])
        future = asof.index[asof > now + 180]
        assert not before.loc[future].equals(after.loc[future]), "the change must be one that features can see"


def test_a_leak_would_be_seen(frames):
    """The same check fails for features that are told of departures an hour early."""
    tables, options = frames
    early = {**options, "weather_delay_minutes": options["weather_delay_minutes"] - 120}
    before, asof = computed(tables, early), clocks(tables, early)["asof"]
    now = int(np.quantile(asof, 0.6))
    after = computed(with_another_future(tables, options, now), early)
    past = asof.index[asof <= now]
    assert not before.loc[past].equals(after.loc[past])


def test_a_cancelled_flight_is_never_known(frames):
    """Dropping the cancellation of a flight changes nothing but what the schedule says."""
    tables, options = frames
    flights = tables["flights"]
    assert flights.dep_delay.isna().sum() > 100
    changed = flights.copy()
    changed.loc[changed.dep_delay.isna(), ["dep_time", "arr_time", "air_time"]] = 1.0
    pd.testing.assert_frame_equal(computed(tables, options), computed({**tables, "flights": changed}, options))


class SparkOptions(Config):
    treat_nan_as_null: bool = False


def test_features_compile_for_spark(frames, monkeypatch):
    """One expression, another engine: the SQL for Spark is made from the same features."""
    # Ibis registers this option when PySpark is installed, which it need not be to write SQL.
    monkeypatch.setattr(ibis.options, "pyspark", SparkOptions())
    tables, options = frames
    unbound = {name: ibis.table(ibis.memtable(frame.head(5)).schema(), name=name) for name, frame in tables.items()}
    sql = ibis.to_sql(features(unbound, options), dialect="pyspark")
    assert "PRECEDING" in sql.upper() and "`flights`" in sql
