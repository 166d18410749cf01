"""Whole pipelines in one process: what a table does in every stage, without DVC and a new interpreter for each stage."""

from contextlib import chdir
from graphlib import TopologicalSorter
from pathlib import Path

import pandas as pd
import yaml
from conftest import ROOT

from prodml.core.config import write_params
from prodml.core.runner import run_stage
from prodml.core.trial import copy_project

# The least that every stage takes; what a stage finds out is not the question.
QUICK = ["run=smoke", "data.sample_fraction=1.0", "drift.multivariate.permutations=19", "explain.samples=64", "explain.orders=10", "measure.rounds=2", "measure.calls=5"]


def add_table(folder: Path, table: pd.DataFrame, settings: dict) -> None:
    """Give a project the table `rows` and the option data=mine, whose label is `paid` unless the settings say otherwise."""
    (folder / "mine").mkdir()
    table.to_csv(folder / "mine" / "rows.csv", index=False)
    own = {"defaults": ["defaults", "_self_"], "name": "mine", "folder": "mine", "main": "rows", "tables": {"rows": {"file": "rows.csv"}}}
    text = yaml.safe_dump({**own, "target": {"column": "paid", "positive": "yes"}, **settings}, sort_keys=False)
    (folder / "conf" / "data" / "mine.yaml").write_text(text)


def stage_order(folder: Path) -> list[str]:
    """The notebook stages of a project, each after those whose outputs it reads."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    listed = {stage: [item if isinstance(item, str) else next(iter(item)) for item in [*parts.get("outs", []), *parts.get("metrics", [])]] for stage, parts in stages.items()}
    made = {out: stage for stage, outs in listed.items() for out in outs}

    def needs(stage: str) -> set[str]:
        deps = [Path(dep) for dep in stages[stage]["deps"]]
        return {made[str(place)] for dep in deps for place in (dep, *dep.parents) if str(place) in made} - {stage}

    return [stage for stage in TopologicalSorter({stage: needs(stage) for stage in stages}).static_order() if stage != "export"]


def run_whole(folder: Path, table: pd.DataFrame, settings: dict, more: list[str] = [], without: tuple[str, ...] = ()) -> None:
    """Every stage on a table, in a copy of the project, with the shortest settings."""
    copy_project(ROOT, folder)
    add_table(folder, table, settings)
    write_params(["data=mine", *QUICK, *more], folder)
    with chdir(folder):
        for stage in stage_order(folder):
            if stage not in without:
                run_stage(stage)
