"""How long the floor of trust takes on the full test period, stage by stage.

Every stage that questions the finished model, and the bundle that holds the answers, is run anew as DVC runs it: its notebook
through papermill, worked examples included. The artifacts are those that lie there already, byte for byte.
The target is five minutes on two cores. Written to build/bench/trust.json.
"""

import argparse
import subprocess
import sys

from prodml.core.files import project_root, read_json, write_json
from prodml.core.records import host_facts, results_path

STAGES = ("evaluate", "uncertainty", "slices", "fairness", "behaviour", "explain", "robustness", "transparent", "autopsy", "bundle")
TARGET_SECONDS = 300


def main() -> int:
    """Run the stages, print a line for each, and say whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    root, lines = project_root(), {}
    path = results_path("trust.json", parser.parse_args().write, root)
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", "prodml.core.runner", stage], cwd=root, check=True, stdout=subprocess.DEVNULL)
        record = read_json(root / "build" / "records" / f"{stage}.json")
        lines[stage] = {key: record[key] for key in ("seconds", "cpu_seconds", "peak_memory_mb")}
        print(f"{stage:12} {record['seconds']:7.1f} s {record['cpu_seconds']:7.1f} s of a processor {record['peak_memory_mb']:7,.0f} MB", flush=True)
    seconds = round(sum(line["seconds"] for line in lines.values()), 1)
    met = seconds <= TARGET_SECONDS
    print(f"\n{'met    ' if met else 'NOT MET'} all of it: {seconds} s, wanted {TARGET_SECONDS}")
    write_json(path, {"device": host_facts(), "stages": lines, "seconds": seconds, "target_seconds": TARGET_SECONDS, "met": met})
    return 0


if __name__ == "__main__":
    sys.exit(main())
