"""What `pip install 'prodml[serve]'` brings, and how soon a server answers from there.

The package is installed from this checkout, with its serving packages from the index, into an environment of its own. Noted are the
packages, their size on the disk, and for five starts the seconds from the start of the process to the first 200 of /health/ready.
Needs the bundle (or another one as argument). Written to build/bench/install.json.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from prodml.core.files import project_root, write_json
from prodml.core.records import results_path

HEAVY = {"torch", "pandas", "ibis-framework", "duckdb", "scipy", "scikit-learn", "ipython", "jupyter-core", "matplotlib"}


def installed(folder: Path, root: Path) -> tuple[Path, float]:
    """The programs of a new environment with the serving install, and the seconds that installing took."""
    venv.create(folder, with_pip=True)
    start = time.perf_counter()
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{root}[serve]"], check=True)
    return folder / "bin", time.perf_counter() - start


def seconds_to_ready(programs: Path, bundle: Path, environment: dict[str, str]) -> float:
    """From the start of `prodml serve` to its first answer that it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with subprocess.Popen([programs / "prodml", "serve", bundle, "--unsigned", "--rejected", "--port", str(port)], cwd=programs, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                try:
                    connection.request("GET", "/health/ready")
                    if connection.getresponse().status == 200:
                        return round(time.perf_counter() - start, 2)
                except OSError:
                    time.sleep(0.005)
                finally:
                    connection.close()
            raise RuntimeError(f"the server ended with {process.returncode}")
        finally:
            process.terminate()


def main() -> None:
    root = project_root()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=root / "bundle")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    given = parser.parse_args()
    bundle, path = given.bundle.absolute(), results_path("install.json", given.write, root)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory() as folder:
        programs, seconds = installed(Path(folder) / "env", root)
        listed = json.loads(subprocess.run([programs / "python", "-m", "pip", "list", "--disable-pip-version-check", "--format", "json"], check=True, capture_output=True, env=environment).stdout)
        packages = sorted(package["name"].lower() for package in listed)
        megabytes = sum(file.stat().st_size for file in (Path(folder) / "env").rglob("*") if file.is_file() and not file.is_symlink()) / 1e6
        found = {
            "packages": packages, "heavy": sorted(HEAVY & set(packages)), "megabytes": round(megabytes), "install_seconds": round(seconds, 1),
            "ready_seconds": [seconds_to_ready(programs, bundle, environment) for _ in range(5)], "python": sys.version.split()[0],
        }
    write_json(path, found)
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
