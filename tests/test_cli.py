"""The command line: sentences and not tracebacks, runs beside the main run, verdicts, and the Makefile's own habits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT

from prodml import cli
from prodml.core import runner
from prodml.core.config import compose, configured
from prodml.core.errors import InputError

OUTSIDE = [
    "data fetch", "data draft nosuch.csv", "data draft .", "data trace weather 1", "data receive weather x.csv", "data feeds", "data verify",
    "params", "params a=b", "params --check", "run train", "run train epochs=2", "trial t run=smoke", "compress", "profile", "profile nosuch",
    "release --key nosuch", "release --verify nosuch", "results", "results --next", "serve nosuch --unsigned", "serve",
    "score nosuch.parquet out.parquet --unsigned", "materialise bundle --unsigned --online o.db", "rollout status x", "rollout register nosuch",
    "audit show x", "audit replay x", "keys list",
]


@pytest.mark.parametrize("command", OUTSIDE)
def test_outside_a_project_a_command_ends_with_a_sentence(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith((".", ".`")) and len(said.splitlines()) == 1, said


@pytest.mark.parametrize(("override", "sentence"), [
    ("data=2024", "data has no option '2024'"), ("data=true", "has no option 'true'"), ("data=données", "has no option 'données'"),
    ("data=sales (1)", "has no option"), ("model=mlpp", "Is mlp meant"), ("model=nosuch", "The files in conf/model are"),
    ("train.epochs=abc", "train.epochs is 'abc', of type str; it must be of type int"), ("train.epochs=1.5", "of type float"), ("train.epoch=3", "Is train.epochs meant"),
    ("data.null_values=abc", "it must be of type list"), ("=3", "names no parameter"), ("=", "names no parameter"), ("+=3", "names no parameter"), ("nothing", "Write KEY=VALUE"), ("a=[(", "cannot be read"), ("o'x=3", "cannot be read"), ("model=mlp,tabm", "has no option"),
])
def test_a_wrong_override_is_named(override: str, sentence: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    before = (ROOT / "params.yaml").read_bytes()
    assert cli.main(["params", override]) == 1
    assert sentence in capsys.readouterr().err and (ROOT / "params.yaml").read_bytes() == before


def test_an_option_may_have_an_odd_name(tmp_path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("defaults: [{data: 'a'}, _self_]\n")
    for name in ("a", "2024", "true", "null_", "1e3", "o-x"):
        (tmp_path / "conf" / "data" / f"{name}.yaml").write_text(f"name: '{name}'\n")
        assert compose([f"data={name}"], root=tmp_path)["data"]["name"] == name


def test_what_is_misspelt_is_answered_with_what_is_close(capsys) -> None:
    cli.export_edits(ROOT) # or `prodml run` would begin anew in a process of its own, whose words are not captured
    for words, sentence in ((["trail"], "Is trial meant"), (["data", "drfat"], "Is draft meant"), (["run", "trian"], "Is train meant"), (["run", "train", "epochz=3"], "Is epochs meant")):
        with contextlib.suppress(SystemExit), contextlib.chdir(ROOT):
            assert cli.main(words) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "feeds", "--now", "abc"])
    assert "not a time; write it as 2013-12-31T10:00, not: 'abc'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("prodml ")


def test_an_override_may_follow_an_option() -> None:
    assert cli.parse(["run", "train", "--report", "x.ipynb", "epochs=3"]).overrides == ["epochs=3"]
    with pytest.raises(SystemExit):
        cli.parse(["run", "train", "--reprot", "x"])


def test_a_trial_may_have_no_override(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["trial"])
    assert capsys.readouterr().err.strip().endswith("required: folder")


def test_a_failed_move_names_its_target_and_not_the_temporary_file(tmp_path) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / ".aside").touch()
    with pytest.raises(OSError) as failed:
        os.replace(tmp_path / ".aside", tmp_path / "graph")
    assert cli.sentence(failed.value).startswith(f"{tmp_path / 'graph'}: is a directory.")


def test_ctrl_c_and_a_closed_pipe_are_quiet(monkeypatch, capsys) -> None:
    def interrupted(given: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "show_results", interrupted)
    assert cli.main(["results"]) == 130 and len(capsys.readouterr().err.strip().splitlines()) == 1
    process = subprocess.Popen([sys.executable, "-c", "from prodml import cli\ncli.show_results = lambda given: print('x\\n' * 10**6) or 0\nraise SystemExit(cli.main(['results']))"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""


def project(folder: Path, run: str) -> Path:
    """A project of two stages; `count` reads what `rows` made."""
    (folder / "nbs" / "1_data").mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell("times: int = None", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("from prodml.core.config import configured\nconfigured('count', globals())"), nbformat.v4.new_code_cell(run)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), folder / "nbs/1_data/00_count.ipynb")
    stages = {"rows": {"cmd": "x", "outs": ["artifacts/rows"]}, "count": {"cmd": "x", "params": ["times"], "outs": ["artifacts/count", "reports/count.ipynb"]}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "params.yaml").write_text("times: 2\n")
    (folder / "artifacts" / "rows").mkdir(parents=True)
    (folder / "artifacts" / "rows" / "n").write_text("21")
    return folder


COUNT = """
from prodml.core.files import artifact, written_folder
with written_folder(artifact("count")) as out:
    (out / "n").write_text(str(times * int((artifact("rows") / "n").read_text())))
    {more}
"""


def test_other_parameters_run_beside_the_main_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(project(tmp_path, COUNT.format(more="")))
    main_run = tmp_path / "artifacts" / "count" / "n"
    assert runner.main(["count"]) == 0 and main_run.read_text() == "42"
    assert "count: stage 2 of 2" in capsys.readouterr().out
    report = (tmp_path / "reports" / "count.ipynb").read_bytes()
    assert cli.main(["run", "count", "times=3"]) == 0 and cli.main(["run", "count", "times=4", "--report", "build/four.ipynb"]) == 0
    assert cli.main(["run", "count", "times=5", "--report", "build/five.ipynb"]) == 0
    assert main_run.read_text() == "42" and (tmp_path / "reports" / "count.ipynb").read_bytes() == report
    assert [(tmp_path / "build" / name / "artifacts/count/n").read_text() for name in ("four", "five")] == ["84", "105"]
    assert [path.read_text() for path in tmp_path.glob("build/runs/count-*/artifacts/count/n")] == ["63"]
    assert cli.main(["run", "count", "times=3", "--in-place"]) == 0 and main_run.read_text() == "63"
    (tmp_path / "build" / "mine").mkdir()
    (tmp_path / "build" / "mine" / "notes").write_text("keep")
    assert cli.main(["run", "count", "times=3", "--report", "build/mine.ipynb"]) == 1 and (tmp_path / "build/mine/notes").exists()


def test_a_stage_without_its_inputs_names_what_is_to_be_run(tmp_path, monkeypatch, capsys) -> None:
    root = project(tmp_path, COUNT.format(more=""))
    monkeypatch.chdir(root)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())
    stages["stages"]["count"]["deps"] = ["artifacts/rows/n"]
    (root / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    (root / "artifacts" / "rows" / "n").unlink()
    for more in ([], ["times=3"], ["times=3", "--report", "build/mine.ipynb"]):
        assert cli.main(["run", "count", *more]) == 1
        said = capsys.readouterr().err
        assert "artifacts/rows/n, which is not there yet. Run the stages before it first: `dvc repro count`." in said and "Traceback" not in said


def test_an_interrupted_stage_leaves_nothing_half_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(project(tmp_path, COUNT.format(more="raise KeyboardInterrupt")))
    assert cli.main(["run", "count"]) == 130
    assert "was interrupted" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["rows"]


def test_a_notebook_run_by_plain_papermill_checks_names_and_keeps_the_main_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(project(tmp_path, ""))
    namespace = {"__annotations__": {"times": int}, "times": None, "timez": 3, "In": ["", "times: int = None", "# Parameters\ntimez = 3\n"]}
    with pytest.raises(InputError, match="timez is unknown. Is times meant"):
        configured("count", namespace)
    namespace = {"__annotations__": {"times": int}, "times": 3, "In": ["", "# Parameters\ntimes = 3\n"]}
    configured("count", namespace)
    assert Path.cwd().parent == tmp_path / "build" / "runs" and (Path.cwd() / "artifacts/rows/n").read_text() == "21"
    monkeypatch.chdir(tmp_path)
    configured("count", {"__annotations__": {"times": int}, "times": 2})
    assert Path.cwd() == tmp_path


def test_papermill_knows_a_parameter_of_two_types() -> None:
    found = runner.TypedParameters.inspect({"source": "#| stage\ngroups: list | None = None  # columns\nseed: int = None"})
    assert [parameter.name for parameter in found] == ["groups", "seed"]


@pytest.mark.parametrize(("gates", "ends"), [("accepted", 0), ("rejected", 3)])
def test_a_trial_ends_with_its_verdict(gates: str, ends: int, tmp_path, monkeypatch, capsys) -> None:
    rejected = ["enough: evaluate.roc_auc is 0.6, at least 0.7 is asked"] if ends else []
    listed = [{"name": "enough", "met": not ends, "required": True}, {"name": "fair to groups", "met": None, "required": False}]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "bundle" / "gates.json").write_text(json.dumps({"gates": listed, "rejected": rejected}))
    scores = dict.fromkeys(("roc_auc", "pr_auc", "log_loss", "brier", "ece", "f1"), 0.5)
    (tmp_path / "metrics" / "evaluate.json").write_text(json.dumps({"dense": {"test": scores}}))
    (tmp_path / "build" / "measure").mkdir(parents=True)
    clauses = [{"name": "p95_us", "verdict": "kept"}, {"name": "max_auc_drop", "verdict": "not resolved"}]
    for name, found in {"latency": {}, "budget": {"serve": "int8", "keeps": False, "clauses": {"int8": clauses}}}.items():
        (tmp_path / "build" / "measure" / f"{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr("prodml.core.trial.run_trial", lambda *given: subprocess.CompletedProcess([], 0))
    assert cli.main(["trial", str(tmp_path), "run=smoke"]) == ends
    said = capsys.readouterr().out
    assert said.strip().startswith(f"The bundle is {gates}: {int(not ends)} of 2 gates are met")
    assert "int8 does not keep to the budget: max_auc_drop (not resolved)\n" in said
    assert "nothing to judge for: fair to groups" in said and "Next:" in said and ("roc_auc is 0.6" in said) == bool(ends)


def test_make_reinstalls_nothing_when_only_times_changed(tmp_path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/false")
    stamp = subprocess.run("cat requirements.lock pyproject.toml | cksum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv" / ".locked").write_text(stamp)
    os.utime(tmp_path / ".venv" / ".locked", (0, 0))
    quiet = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(["make", "env"], cwd=tmp_path, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0 and "Installing" not in done.stdout, done.stdout + done.stderr
    (tmp_path / "pyproject.toml").write_text((tmp_path / "pyproject.toml").read_text() + "# another\n")
    os.utime(tmp_path / ".venv" / ".locked", (0, 0))
    done = subprocess.run(["make", "env"], cwd=tmp_path, env=quiet, capture_output=True, text=True)
    assert "Installing" in done.stdout and done.returncode


def test_the_makefile_needs_no_gnu_tools() -> None:
    recipes = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    gnu_only = r"sed -[a-zA-Z]*[ri]|sed --|grep -[a-zA-Z]*P|readlink -f|realpath|date -d|stat -c|xargs -r|sort -V|cp --|mktemp --|sha256sum|\bnproc\b|\$\{\w+(\^|,,)|mapfile|&>>|find .* -printf"
    assert [line for line in recipes if re.search(gnu_only, line)] == []
    assert ".ONESHELL" not in (ROOT / "Makefile").read_text()


def test_the_readmes_outputs_are_ignored_by_git() -> None:
    made = ["keys.json", "release.key", "release.key.pub", "registry/x", "scores.parquet", "prediction_log/x", "build/online.db", "releases/x", "_docs/x", "feeds/x"]
    done = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == made
