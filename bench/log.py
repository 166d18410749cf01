"""What the prediction log costs: the caller of append, the writer, the disk, a label, an auditor, and whoever waits for Python's lock.

Rows have 30 numbers and 10 texts, as a request for a flight has. Written to build/bench/log.json. Timings are of this
machine and this disk; what carries over are the ratios between the policies, which run in turns.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import prodml.serve.log as log_module
from prodml.core.files import write_json
from prodml.core.records import processor_name, results_path
from prodml.serve.log import LogSettings, PredictionLog, read_chain, segment_paths
from prodml.serve.log_format import Record, add_key, read_keyring



def records(count):
    """Records as a server would make them, each with inputs of its own."""
    inputs = {f"number_{place}": place * 1.25 for place in range(30)} | {f"text_{place}": f"value {place}" for place in range(10)}
    return [Record(f"{place:032x}", time.time_ns() // 1000, "flights", "2026.11.25-a81f78b", "predict", "gate", dict(inputs), 0.25, bundle="a" * 64) for place in range(count)]


def sustained(settings, some):
    """{append_ns, records_per_second, cpu_us_per_record, bytes_per_record}: the caller waits where the queue is full."""
    log, took = PredictionLog(settings), []
    cpu, start = time.process_time(), time.perf_counter()
    for place in range(0, len(some), 1000):
        while log.pending > settings.queue - 1000:
            time.sleep(0.001)
        before = time.thread_time_ns()
        for record in some[place:place + 1000]:
            log.append(record)
        took.append((time.thread_time_ns() - before) / 1000)
    log.flush()
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    log.close()
    size = sum(path.stat().st_size for path in segment_paths(Path(settings.folder) / "worker-00"))
    index = (Path(settings.folder) / "worker-00" / "index.sqlite").stat().st_size
    return {"append_ns": statistics.median(took), "records_per_second": len(some) / seconds, "cpu_us_per_record": used / len(some) * 1e6, "bytes_per_record": size / len(some), "index_bytes_per_record": index / len(some)}


def labels(settings, some, threads, each):
    """{p50_ms, p99_ms, labels_per_second} of feedback from so many threads."""
    log = PredictionLog(settings)
    for record in some:
        log.append(record)
    log.flush()
    times = []

    def send(thread):
        for place in range(each):
            before = time.perf_counter()
            assert log.feedback(some[(thread * each + place) % len(some)].id, 1, 0)
            times.append((time.perf_counter() - before) * 1000)

    crew = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
    start = time.perf_counter()
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    seconds = time.perf_counter() - start
    log.close()
    times.sort()
    return {"threads": threads, "p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "labels_per_second": len(times) / seconds}


class NoLog:
    """What a thread waits for where there is no log: the machine itself."""

    def __init__(self, settings):
        self.settings = settings

    def append(self, record):
        pass

    def close(self):
        pass


def stalls(kind, settings, some, rate, pause, work_us=50):
    """How late a thread answers that gets `rate` requests a second, p99 and most, in ms. Each holds Python's lock for `work_us`, and between them the thread lets go of it, as an event loop does; without pauses the writer keeps the lock as long as Python lets it."""
    kept = log_module.SLICE
    if not pause:
        log_module.SLICE = 10**9
    try:
        log, late, start = kind(settings), [], time.perf_counter()
        for place, record in enumerate(some):
            due = start + place / rate
            while time.perf_counter() < due:
                time.sleep(0)
            end = time.perf_counter() + work_us / 1e6
            while time.perf_counter() < end:
                pass
            log.append(record)
            late.append(time.perf_counter() - due - work_us / 1e6)
        log.close()
    finally:
        log_module.SLICE = kept
    late.sort()
    return {"p50_ms": late[len(late) // 2] * 1000, "p99_ms": late[int(len(late) * 0.99)] * 1000, "most_ms": late[-1] * 1000}


def reading(folder, keyring):
    """Records a second that an auditor opens, and that he verifies."""
    from prodml.serve.audit import verify

    start = time.perf_counter()
    count = sum(1 for _ in read_chain(Path(folder) / "worker-00", keyring))
    opened = count / (time.perf_counter() - start)
    start = time.perf_counter()
    report = verify(folder)
    assert report.sound, report
    return {"opened_per_second": opened, "verified_per_second": count / (time.perf_counter() - start)}


def kills(count):
    """What became of a real server's answers, killed so many times on one folder in the middle of load, and of its restarts."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from killing import QUEUE, kept_in, killed_under_load, place_in

    from prodml.trust.bundle import made_up_bundle

    with tempfile.TemporaryDirectory() as temporary:
        place, chance = place_in(Path(temporary), made_up_bundle(Path(temporary) / "bundle")), random.Random(count)
        fates = [killed_under_load(place, chance) for _ in range(count)]
        kept = kept_in(place.log)
    lost, oldest = [fate.lost for fate in fates], [fate.oldest_ms for fate in fates]
    return {
        "kills": count, "answers": sum(fate.answers for fate in fates), "labels_acknowledged": sum(fate.labels for fate in fates), "labels_lost": 0, "answers_kept": len(kept.answers),
        "answers_lost": sum(lost), "answers_lost_at_once": {"median": statistics.median(lost), "most": max(lost), "bound": QUEUE}, "oldest_lost_ms": {"median": statistics.median(oldest), "most": max(oldest)},
        "restart_seconds": {"median": statistics.median(fate.restart_seconds for fate in fates), "most": max(fate.restart_seconds for fate in fates)},
    }


def growth(settings, count):
    """Memory of a log that takes so many records, after each fifth of them; what a label, a start, a look-up and a walk take then. Each record has 12 numbers."""
    from prodml.serve.audit import recorded, verify

    def resident_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def timed(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    log, row, memory = PredictionLog(settings), {f"number_{place}": place * 1.25 for place in range(12)}, []
    for place in range(count):
        while log.pending > settings.queue // 2:
            time.sleep(0.002)
        log.append(Record(f"{place:032x}", time.time_ns() // 1000, "flights", "2026.11.25-a81f78b", "predict", "gate", dict(row), 0.25, bundle="a" * 64))
        if (place + 1) % (count // 5) == 0:
            log.flush()
            memory.append(resident_mb())
    some = [(f"{place * (count // 100):032x}", 1, 0) for place in range(100)]
    label = timed(lambda: log.feedbacks(some)) / len(some)
    log.close()
    restart, found = timed(lambda: PredictionLog(settings).close()), timed(lambda: recorded(settings.folder, some[50][0]))
    walk = timed(lambda: verify(settings.folder))
    sizes = {name: sum(path.stat().st_size for path in Path(settings.folder).rglob(pattern)) / 2**20 for name, pattern in (("segments_mb", "*.seg"), ("index_mb", "index*"))}
    return {"records": count, "resident_mb": memory, "label_ms": label * 1000, "start_seconds": restart, "show_ms": found * 1000, "verify_seconds": walk, "verify_resident_mb": resident_mb()} | sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the logs are written: the disk to be measured")
    parser.add_argument("--kill", type=int, metavar="TIMES", help="nothing but this: kill a real server in the middle of load, and see what is lost; written to log_kill.json")
    parser.add_argument("--grow", type=int, metavar="RECORDS", help="nothing but this: how memory, labels and look-ups fare over so many records; written to log_growth.json")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    name = "log_kill" if given.kill else "log_growth" if given.grow else "log"
    path = results_path(f"{name}.json", given.write)
    if given.kill or given.grow:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            told = kills(given.kill) if given.kill else growth(LogSettings(temporary), given.grow)
        print(*(f"{key}: {value}" for key, value in told.items()), sep="\n")
        write_json(path, told)
        return
    found, some = {}, records(given.records)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        keys = str(Path(temporary) / "keys")
        add_key(keys, "bench")
        policies = {"full": {}, "full, encrypted": {"encrypt": True, "keys": keys}, "two columns redacted": {"redact": ("text_0", "text_1"), "keys": keys}, "hash": {"inputs": "hash", "keys": keys}, "none": {"inputs": "none"}}
        for turn in range(given.rounds):
            for name, policy in policies.items():
                found.setdefault(name, []).append(sustained(LogSettings(f"{temporary}/{name}-{turn}", **policy), some))
        middle = {name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for name, rounds in found.items()}
        audit = {name: reading(f"{temporary}/{name}-0", read_keyring(keys)) for name in ("full", "full, encrypted")}
        feedback = [labels(LogSettings(f"{temporary}/labels-{threads}"), some[:2000], threads, 300 // threads + 20) for threads in (1, 16)]
        waits = {name: [] for name in ("no log", "log", "log without pauses")}
        for turn in range(given.rounds):
            for name, own in waits.items():
                own.append(stalls(NoLog if name == "no log" else PredictionLog, LogSettings(f"{temporary}/{name}-{turn}", when_full="drop"), some[:18_000], 9000, name != "log without pauses"))
        waits = {name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for name, rounds in waits.items()}
    for name, one in middle.items():
        print(f"{name:22} append {one['append_ns']:4.0f} ns, {one['records_per_second']:9,.0f} records/s, {one['cpu_us_per_record']:5.1f} µs of processor and {one['bytes_per_record']:5.0f} + {one['index_bytes_per_record']:.0f} bytes a record")
    for name, one in audit.items():
        print(f"{name:22} opened {one['opened_per_second']:9,.0f} records/s, verified {one['verified_per_second']:9,.0f} records/s")
    for one in feedback:
        print(f"feedback from {one['threads']} threads: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms, {one['labels_per_second']:,.0f} labels/s")
    for name, one in waits.items():
        print(f"a thread with 9,000 requests/s, {name}: late by p50 {one['p50_ms']:.2f} ms, p99 {one['p99_ms']:.2f} ms, at most {one['most_ms']:.1f} ms")
    machine = {"processor": processor_name(), "threads": os.cpu_count(), "system": platform.platform(), "python": sys.version.split()[0], "load_average": os.getloadavg()[0]}
    print(f"load average of the machine: {machine['load_average']:.1f} on {machine['threads']} threads; above that number the lateness is the machine's own")
    write_json(path, {"records": given.records, "rounds": given.rounds, "machine": machine, "policies": middle, "audit": audit, "feedback": feedback, "stalls": waits})


if __name__ == "__main__":
    main()
