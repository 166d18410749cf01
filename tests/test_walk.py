"""A newcomer with a fresh clone types what README.md says, line by line. `make walk` takes the full run, the tests a sample."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from conftest import ROOT, git
from walking import EXPECTED, Step, commands_of, readme_commands

from prodml.cli import make_parser

FULL = "WALK_FULL" in os.environ
ROW = {
    "time_hour": "2013-12-30T17:00:00Z", "year": 2013, "month": 12, "day": 30, "hour": 12, "minute": 30, "carrier": "UA",
    "flight": 1545, "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "distance": 1400, "sched_arr_time": 1530,
}
# A sample reaches few of the bounds that were set for the full run, and what breaks one is not released.
SAMPLE_GATES = "trust: {gates: [{name: edge cases, stage: behaviour, value: edge_cases_failed, at_most: 0, why: a sample}]}\n"


def test_every_command_of_the_readme_is_walked():
    given = readme_commands(ROOT / "README.md")
    assert len(given) > 30
    assert given == list(EXPECTED), "tests/walking.py says what each command of README.md does, in the same order"


def pages() -> list[Path]:
    """What a reader may copy a command from."""
    kinds = {"nbs": "**/*.ipynb", "docs": "**/*.md", "conf": "**/*.yaml", "ops": "*.toml"}
    return [ROOT / "README.md", *(path for top, kind in kinds.items() for path in sorted((ROOT / top).glob(kind)))]


def prose(path: Path) -> str:
    """The text of a page; of a notebook its Markdown, of settings the comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return text


def wrong_with(command: str) -> str:
    """What the program does not know of a command: its name, a sub-command or a flag; empty if it knows all."""
    words = re.sub(r"[<>].*|\.\.\.", "", command).replace("'", "").replace('"', "").split()
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "".join(f"no target {word}" for word in words[1:] if re.fullmatch(r"[a-z-]+", word) and word not in targets)
    if words[0] != "prodml" or len(words) == 1:
        return ""
    parser = make_parser(words[1])
    for word in words[1:]:
        branches = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
        if branches and not word.startswith("-"):
            if word not in branches.choices:
                return f"no command {word}"
            parser = branches.choices[word]
        elif word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            return f"no flag {word}"
    return ""


@pytest.mark.parametrize("command, wrong", [
    ("prodml score rows.parquet scores.parquet --unsigned", ""), ("prodml data trace weather 1010", ""), ("make smoke", ""),
    ("prodml scores rows.parquet", "no command scores"), ("prodml data tracing", "no command tracing"),
    ("prodml score rows.parquet --fast", "no flag --fast"), ("make everything", "no target everything"),
])
def test_the_rule_for_commands(command, wrong):
    assert wrong_with(command) == wrong


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_prose_exist(path):
    wrong = {command: fault for command in commands_of(prose(path)) if (fault := wrong_with(command))}
    assert not wrong, wrong


class Newcomer:
    """A shell in a fresh clone, with a home of its own. `make` takes the environment that is there for its own."""

    def __init__(self, clone: Path, home: Path):
        home.mkdir()
        self.clone, self.id = clone, ""
        os.symlink(ROOT / ".venv", clone / ".venv")
        with open(clone / ".git" / "info" / "exclude", "a") as stream:
            stream.write("/.venv\n")
        (home / ".gitconfig").write_text("[user]\n\tname = newcomer\n\temail = newcomer@example.org\n")
        (home / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": {"open_browser": False}, "IdentityProvider": {"token": "secret"}}))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PRODML_", "PYTEST_", "MAKE"))},
            "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home), "PYTHONPATH": str(clone),
        }
        self.before = "make() { command make --old-file .venv/.locked \"$@\"; }\n"

    def types(self, command: str, step: Step) -> str:
        """Run a command; what is wrong, empty if it did what it must."""
        if command.startswith(("export ", "source ")):
            self.before += command + "\n"
        typed = command.replace("ID", self.id) + ("" if FULL else step.sample)
        if step.asks:
            return self.serves(typed, step)
        done = subprocess.run(["bash", "-c", self.before + typed], cwd=self.clone, env=self.environment, capture_output=True, text=True)
        printed = done.stdout + done.stderr
        fits = done.returncode == step.code and re.search(step.shows, printed)
        return "" if fits else f"$ {typed}\n{printed[-2500:]}\nended with {done.returncode}; {step.code} and {step.shows!r} were expected"

    def serves(self, typed: str, step: Step) -> str:
        """Start a server, ask it, stop it."""
        log = self.clone.parent / "server.log"
        with open(log, "w") as stream:
            process = subprocess.Popen(
                ["bash", "-c", self.before + "exec 2>&1\n" + typed], cwd=self.clone, env=self.environment, stdout=stream, start_new_session=True,
            )
        try:
            self.asks(step.asks, lambda: process.poll() is None)
            answered = ""
        except (AssertionError, OSError) as error:
            answered = f"{error!r}"
        os.killpg(process.pid, signal.SIGINT if "make" in typed else signal.SIGTERM)
        if "make" in typed:  # JupyterLab asks once more
            time.sleep(1)
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        printed = log.read_text()
        return "" if not answered and re.search(step.shows, printed) else f"$ {typed}\n{printed[-2500:]}\n{answered}"

    def asks(self, address: str, alive: Callable[[], bool]) -> None:
        """Wait for a server, and ask the one that predicts for a prediction."""
        until = time.monotonic() + 120
        while True:
            assert alive() and time.monotonic() < until, "it does not answer"
            try:
                urlopen(Request(address, headers={"Authorization": "token secret"})).close()
                break
            except URLError:
                time.sleep(0.3)
        if not address.endswith("/api"):
            request = Request(f"{address}/v1/predict", json.dumps(ROW).encode(), {"Content-Type": "application/json"})
            with urlopen(request) as answer:
                self.id = self.id or json.loads(answer.read())["id"]


@pytest.mark.slow
def test_a_newcomer_types_what_the_readme_says(checkout, tmp_path):
    shutil.copytree(ROOT / "metrics", checkout / "metrics")
    if not FULL:
        smoke = (checkout / "conf/run/smoke.yaml").read_text()
        (checkout / "conf/run/sample.yaml").write_text(smoke + SAMPLE_GATES)
        config = checkout / "conf/config.yaml"
        config.write_text(re.sub("- run: full .*", "- run: sample", config.read_text()))
        subprocess.run(["prodml", "params"], cwd=checkout, check=True, capture_output=True)
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "as cloned")
    shutil.copytree(ROOT / "data", checkout / "data", dirs_exist_ok=True)
    newcomer = Newcomer(checkout, tmp_path / "home")
    failed = []
    for command, step in EXPECTED.items():
        if step.never or (step.full and not FULL):
            continue
        began = time.monotonic()
        wrong = newcomer.types(command, step)
        print(f"{time.monotonic() - began:6.1f} s  {shlex.quote(command)}  {'FAILED' if wrong else ''}")
        failed += [wrong] if wrong else []
        assert command != "make run" or not failed, wrong
        if command == "make run" and not FULL:  # the scores of the sample are not those that git holds
            git(checkout, "commit", "-qam", "scores of the sample")
        if command == "make record" and not wrong:
            git(checkout, "commit", "-qam", "times of this machine")
    assert not failed, "\n\n".join(failed)
    for name in ("bundle/model_card.html", "ops/serve.toml", "_docs/index.html", "keys.json"):
        assert (checkout / name).exists(), name
