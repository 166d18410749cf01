"""A bundle is built twice with the same bytes, released, and refused after any change."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, git, run

from prodml.bundle.bundle import MANIFEST, SIGNATURE, open_bundle, write_manifest
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.cli import main
from prodml.core.config import read_params, stage_values
from prodml.core.errors import InputError
from prodml.core.files import read_json, write_json
from prodml.core.records import recorded
from prodml.model.export import export_onnx
from prodml.model.networks import build_network, save_network
from prodml.model.rows import made_up_rows
from prodml.trust.bundle import make_bundle, model_parameters, provenance_of
from prodml.trust.gates import read_gates
from prodml.trust.models import write_report
from prodml.trust.release import release

GATES = [{"name": "worst slice", "stage": "slices", "value": "worst_roc_auc", "at_least": 0.6, "why": "Below it the order helps nobody."}]
DATA = {
    "name": "made_up", "folder": "data", "main": "rows", "tables": {"rows": {"file": "rows.csv"}}, "target": {"column": "late", "positive": "yes"},
    "rules": [], "request": None, "null_values": ["", "NA"],
}
PARAMS = {
    "seed": 0, "data": DATA, "model": {}, "train": {}, "distill": {}, "reference": {"trees": {}, "rounds": 1}, "prune": {}, "quantize": {}, "device": {},
    "bundle": {"serve": "int8"}, "trust": {"gates": GATES}, "card": {},
}
DVC = {"stages": {
    "train": {"cmd": "x", "outs": ["artifacts/train", "reports/train.ipynb"]},
    "slices": {"cmd": "x", "outs": ["artifacts/slices"]},
    "bundle": {"cmd": "x", "params": ["seed", "data", "model", "train", "distill", "reference.trees", "reference.rounds", "prune", "quantize", "device", "bundle.serve", "trust.gates", "card"], "outs": ["bundle"]},
}}


def write_artifacts(folder: Path, worst: float | None) -> None:
    """What the stages leave, from made-up rows and a small network."""
    rows, encoding = made_up_rows(300)
    encoding["target"] = DATA["target"]
    write_json(folder / "features" / "encoding.json", encoding)
    words = [None, *encoding["categorical"][0]["vocabulary"]]
    table = pa.table({
        "key": rows.keys, "label": rows.labels.numpy().astype(np.int8), "month": ["2013-01"] * 300, "delay": rows.numbers[:, 0].numpy(), "wind": rows.numbers[:, 1].numpy(),
        "carrier": [words[code] for code in rows.codes[:, 0].tolist()],
    })
    pq.write_table(table, folder / "features" / "train.parquet")
    network = build_network({"name": "small", "kind": "mlp", "hidden": [8]}, encoding).eval()
    save_network(network, folder / "train")
    export_onnx(network, folder / "train" / "model.onnx")
    for stage in ("prune", "quantize"):
        shutil.copytree(folder / "train", folder / stage)
    (folder / "evaluate").mkdir()
    kept = {"key": rows.keys, "split": ["validation", "test"] * 150, "block": rows.blocks, "month": ["2013-02"] * 300, "label": table["label"]}
    pq.write_table(pa.table(kept | {name: np.full(300, 0.5, np.float32) for name in ("dense", "pruned", "int8")}), folder / "evaluate" / "predictions.parquet")
    write_json(folder / "evaluate" / "thresholds.json", {"dense": 0.5, "pruned": 0.5, "int8": 0.5})
    write_json(folder / "evaluate" / "intervals.json", {"models": {}, "differences": {}})
    write_json(folder / "ingest" / "types.json", {"rows": {"delay": "float", "wind": "float", "carrier": "text", "late": "text"}})
    write_json(folder / "drift" / "profile.json", {"columns": [], "rows": 300})
    write_json(folder / "uncertainty" / "conformal.json", {"alpha": 0.1, "method": "marginal", "quantiles": [0.7, 0.7], "rows": [150, 150]})
    slices = {"columns": ["slice", "roc_auc"], "rows": [["carrier = AA", worst]], "note": "The worst first."}
    write_report(folder / "slices" / "slices.json", {"worst_roc_auc": worst}, {"worst": slices})


def metrics() -> dict:
    return {name: {"test": {"roc_auc": 0.75, "log_loss": 0.48}} for name in ("dense", "pruned", "int8")}


def build(project: Path, folder: Path, gates=GATES) -> list[str]:
    values = stage_values("bundle", project)
    provenance = provenance_of(project, "data", model_parameters(values))
    return make_bundle(folder, project / "artifacts", metrics(), DATA, "int8", provenance, gates, values["card"])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with artifacts, a bundle, a record of one stage, and a commit."""
    folder = tmp_path_factory.mktemp("release") / "project"
    for name, text in (("prodml/a.py", "a = 1\n"), ("data/rows.csv", "delay\n1\n"), ("requirements.lock", "numpy\n"), (".gitignore", "artifacts/\nbundle/\nbuild/\nreleases/\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(DVC))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    write_artifacts(folder / "artifacts", 0.7)
    with recorded("train", folder):
        sum(range(100_000))
    assert build(folder, folder / "bundle") == []
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A private key; its public key lies beside it."""
    path = tmp_path_factory.mktemp("keys") / "mine"
    new_key(path)
    return path


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


@pytest.fixture(scope="module")
def released(project, key, tmp_path_factory):
    return release(project / "bundle", tmp_path_factory.mktemp("releases"), key, "1", root=project)


@pytest.fixture
def copy(released, tmp_path):
    return Path(shutil.copytree(released, tmp_path / "copy"))


def refused(part: str, folder: Path, *trusted: Path, **flags) -> InputError:
    with pytest.raises(InputError, match=part) as caught:
        open_bundle(folder, trusted=trusted, **flags)
    assert caught.value.file is not None and caught.value.remedy
    return caught.value


def test_two_builds_have_the_same_bytes(project, tmp_path):
    """The second in another process, with other hashes of strings and in another time zone."""
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; from pathlib import Path; from test_release import build; build(Path(sys.argv[1]), Path(sys.argv[2]))"
    done = run(sys.executable, "-c", script, str(project), str(tmp_path / "again"), cwd=tmp_path, PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) for folder in (project / "bundle", tmp_path / "again")]
    assert names[0] == names[1]
    assert {"gates.json", "conformal.json", "reports/slices.json", "model_card.md", "model_card.html", "model_card.pdf", "pruned.onnx", "int8.onnx"} <= set(names[0])
    different = [name for name in names[0] if (project / "bundle" / name).read_bytes() != (tmp_path / "again" / name).read_bytes()]
    assert different == []


def test_the_pipelines_bundle_is_unsigned(project, key):
    refused("nobody has signed", project / "bundle", public(key))
    assert open_bundle(project / "bundle", unsigned=True).signed_by is None


def test_a_release_opens_and_says_where_it_comes_from(project, released, key):
    bundle, pipeline = open_bundle(released, trusted=public(key)), open_bundle(project / "bundle", unsigned=True)
    row = {"delay": [1.0], "wind": [None], "carrier": ["UA"]}
    assert bundle.predict(row) == pipeline.predict(row)
    facts = read_json(released / "release.json")
    assert facts["revision"] == git(project, "rev-parse", "HEAD").strip() and facts["uncommitted"] == []
    assert facts["public_key"] == bundle.signed_by and facts["stages"]["train"]["seconds"] >= 0 and "slices" in facts["stages_without_record"]
    assert facts["energy"]["method"] and facts["energy"]["carbon_kg"] is None
    card = (released / "model_card.md").read_text()
    assert facts["revision"] in card and facts["revision"] not in (project / "bundle" / "model_card.md").read_text()
    assert (released / "model_card.pdf").read_bytes()[:5] == b"%PDF-"


def test_a_changed_byte_in_any_file_is_refused(released, key, tmp_path):
    folder = Path(shutil.copytree(released, tmp_path / "copy"))
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert {path.suffix for path in names} >= {".onnx", ".json", ".md", ".html", ".pdf"} and len(names) > 15
    for name in names:
        original = (folder / name).read_bytes()
        for place in (0, len(original) // 2, len(original) - 1):
            (folder / name).write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1:])
            with pytest.raises(InputError):
                open_bundle(folder, trusted=public(key))
        (folder / name).write_bytes(original)
    assert open_bundle(folder, trusted=public(key))


def test_a_changed_file_is_taken_only_by_its_flag(copy, key):
    with open(copy / "thresholds.json", "a") as stream:
        stream.write(" ")
    error = refused("has changed", copy, public(key))
    assert error.file == copy / "thresholds.json" and "never edit" in error.remedy
    refused("has changed", copy, unsigned=True)
    assert open_bundle(copy, trusted=public(key), changed=True)


def test_a_file_too_many_or_too_few(copy, key):
    (copy / "figures" / ".note").parent.mkdir(exist_ok=True)
    (copy / "figures" / ".note").touch()
    refused("does not name", copy, public(key))
    (copy / "figures" / ".note").unlink()
    (copy / "release.json").unlink()
    assert refused("lacks this file", copy, public(key)).file == copy / "release.json"


def test_a_manifest_made_anew_needs_the_key(copy, key):
    """Whoever changes a file can hash it again; he cannot sign it again."""
    thresholds = read_json(copy / "thresholds.json")
    write_json(copy / "thresholds.json", thresholds | {"int8": 0.01})
    write_manifest(copy, read_json(copy / MANIFEST)["provenance"])
    refused("not of these bytes", copy, public(key))
    assert open_bundle(copy, unsigned=True).threshold == 0.01, "a person may say so"


def test_the_release_facts_are_signed(copy, key):
    facts = read_json(copy / "release.json")
    write_json(copy / "release.json", facts | {"revision": "0" * 40})
    refused("has changed", copy, public(key))


def test_another_key_does_not_do(copy, key, tmp_path):
    other = tmp_path / "other"
    new_key(other)
    refused("none of the 1 that are trusted", copy, public(other))
    refused("none of the 0 that are trusted", copy)
    (copy / SIGNATURE).write_bytes(signature_of((copy / MANIFEST).read_bytes(), private_key(other)))
    refused("none of the 1 that are trusted", copy, public(key))
    stolen = read_json(copy / SIGNATURE) | {"key": read_json(copy / "release.json")["public_key"]}
    write_json(copy / SIGNATURE, stolen)
    refused("not of these bytes", copy, public(key))


def test_the_signature_of_another_release_does_not_do(project, released, copy, key, tmp_path):
    second = release(project / "bundle", tmp_path, key, "2", root=project)
    shutil.copy(second / SIGNATURE, copy / SIGNATURE)
    refused("not of these bytes", copy, public(key))
    shutil.copy(second / MANIFEST, copy / MANIFEST)
    refused("has changed", copy, public(key))


@pytest.mark.parametrize("text", ["", "{", "null", '{"format": 1, "format": 1}', "[" * 4000])
def test_a_signature_that_cannot_be_read(copy, key, text):
    (copy / SIGNATURE).write_text(text)
    refused("cannot be read|no signature", copy, public(key))


def test_a_truncated_or_stretched_signature(copy, key):
    data = (copy / SIGNATURE).read_bytes()
    for length in range(0, len(data) - 2, 7):
        (copy / SIGNATURE).write_bytes(data[:length])
        refused("cannot be read", copy, public(key))
    (copy / SIGNATURE).write_bytes(b" " * 5000 + data)
    refused("more than the", copy, public(key))
    for spaces in (b" " + data, data + b"\n", data.replace(b": ", b":")):
        (copy / SIGNATURE).write_bytes(spaces)
        refused("not of these bytes", copy, public(key))


def test_links_pipes_and_folders_are_no_files(copy, key, tmp_path):
    data = (copy / "profile.json").read_bytes()
    (tmp_path / "outside.json").write_bytes(data)
    (copy / "profile.json").unlink()
    (copy / "profile.json").symlink_to(tmp_path / "outside.json")
    refused("is a link", copy, public(key))
    (copy / "profile.json").unlink()
    os.mkfifo(copy / "profile.json")
    refused("no plain file", copy, public(key))
    (copy / "profile.json").unlink()
    (copy / "profile.json").mkdir()
    refused("no plain file", copy, public(key))


def test_a_rejected_bundle_is_made_but_not_opened_or_released(project, key, tmp_path):
    folder = tmp_path / "rejected"
    reasons = build(project, folder, [GATES[0] | {"at_least": 0.9}])
    assert reasons == ["worst slice: slices.worst_roc_auc is 0.7, at least 0.9 is asked"]
    refused("worst slice", folder, unsigned=True)
    assert open_bundle(folder, unsigned=True, rejected=True).rejected == reasons
    with pytest.raises(InputError, match="cannot be released: worst slice"):
        release(folder, tmp_path / "out", key, "1", root=project)
    assert not (tmp_path / "out").exists()
    place = release(folder, tmp_path / "out", key, "1", rejected=True, root=project)
    refused("worst slice", place, public(key))
    assert open_bundle(place, trusted=public(key), rejected=True)


def test_the_gates_of_conf_can_be_read():
    gates = read_gates(read_params(ROOT)["trust"]["gates"])
    assert len(gates) > 5 and all(gate.why for gate in gates)


def test_what_was_not_examined_breaks_a_gate_that_is_required(project, tmp_path):
    missing = GATES[0] | {"name": "coverage", "stage": "uncertainty", "value": "coverage_validation"}
    assert build(project, tmp_path / "a", [missing]) == ["coverage: uncertainty.coverage_validation was not examined"]
    assert build(project, tmp_path / "b", [missing | {"required": "protected"}]) == []
    with pytest.raises(InputError, match="no such number.*Is worst_roc_auc meant"):
        build(project, tmp_path / "c", [GATES[0] | {"value": "worst_roc"}])
    assert not (tmp_path / "c").exists()


def test_a_dirty_tree_a_taken_name_and_other_sources(project, released, key, tmp_path):
    def attempt(part: str, **settings) -> None:
        with pytest.raises(InputError, match=part):
            release(project / "bundle", settings.pop("target", tmp_path), key, settings.pop("version", "1"), root=project, **settings)
        assert not list(tmp_path.iterdir())

    attempt("is a release of this name", target=released.parent)
    attempt("no name of a release", version="../1")
    (project / "notes").touch()
    attempt("differs from its commit in 1 files, such as notes")
    assert read_json(release(project / "bundle", tmp_path / "dirty", key, "1", dirty=True, root=project) / "release.json")["uncommitted"] == ["notes"]
    shutil.rmtree(tmp_path / "dirty")
    (project / "notes").unlink()
    for name in ("prodml/a.py", "data/rows.csv", "requirements.lock"):
        before = (project / name).read_text()
        (project / name).write_text(before + "# more\n")
        attempt(f"other {'code' if name.endswith('.py') else 'data' if name.endswith('.csv') else 'environment'} than lie here", dirty=True)
        (project / name).write_text(before)


def test_a_killed_release_leaves_no_release(project, key, tmp_path):
    """Killed when all but the manifest is written."""
    script = (
        "import os, signal, sys; from pathlib import Path; import prodml.trust.release as module\n"
        "module.write_manifest = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "bundle, target, key, root = map(Path, sys.argv[1:])\nmodule.release(bundle, target, key, '1', root=root)"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, *map(str, (project / "bundle", out, key, project))], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    assert open_bundle(release(project / "bundle", out, key, "1", root=project), trusted=public(key))


def test_the_command(project, released, key, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert main(["release", "--verify", str(released), "--trusted", str(public(key))]) == 0
    assert "whole, and signed by" in capsys.readouterr().out
    assert main(["release", "--verify", str(released)]) == 1 and "none of the 0" in capsys.readouterr().err
    assert main(["release", "--verify", str(project / "bundle")]) == 1 and "--unsigned on the command line" in capsys.readouterr().err
    monkeypatch.setenv("PRODML_TRUSTED_KEYS", str(key.parent))
    assert main(["release", "--verify", str(released)]) == 0
    assert main(["release", "--new-key", "mine.key"]) == 1 and "must not lie in the project" in capsys.readouterr().err
    assert main(["release", "--key", str(key), "--version", "3"]) == 0
    out = capsys.readouterr().out
    assert str(project / "releases" / "made_up-3") in out and re.search(r"energy: .* kWh in \d+ of \d+ stages", out)
    assert json.loads((project / "releases" / "made_up-3" / "release.json").read_text())["version"] == "3"


def test_a_release_opens_without_torch(released, key):
    script = (
        "import sys, time; from prodml.bundle.bundle import open_bundle\n"
        "open_bundle(sys.argv[1], trusted=sys.argv[2])\n"
        "print(sorted({'torch', 'pandas', 'pyarrow', 'codecarbon', 'dvc'} & set(sys.modules)))"
    )
    done = run(sys.executable, "-c", script, str(released), str(public(key)))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
