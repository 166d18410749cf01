"""A table that the project has never seen needs one file."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import run, stages_run

pytestmark = pytest.mark.slow


def test_a_strangers_csv_needs_one_file(checkout):
    rng = np.random.default_rng(0)
    rows = 600
    income = rng.normal(3000, 800, rows).round(2)
    table = pd.DataFrame({
        "customer": [f"C{number:05}" for number in range(rows)], "income": income, "city": rng.choice(["Köln", "Bonn, am Rhein", 'Ulm "Mitte"', None], rows),
        "joined": pd.date_range("2015-01-01", periods=rows).strftime("%Y-%m-%d"), "visits": rng.poisson(3, rows), "member": rng.choice(["true", "false"], rows),
        "left": np.where(income + rng.normal(0, 500, rows) > 3000, "yes", "no"),
    })
    table.loc[rng.random(rows) < 0.2, "income"] = None
    (checkout / "shop").mkdir()
    table.to_csv(checkout / "shop" / "customers.csv", index=False)
    (checkout / "conf" / "data" / "shop.yaml").write_text(
        "defaults: [defaults, _self_]\nname: shop\nfolder: shop\nmain: customers\ntables: {customers: {file: customers.csv}}\n"
        "target: {column: left, positive: 'yes'}\nsplit: {by: time, column: joined, validation_from: '2015-12-01', test_from: '2016-04-01'}\nfeatures: {max_categories: 100}\n"
    )
    assert run("python", "-m", "prodml.cli", "params", "data=shop", "run=smoke", "data.sample_fraction=1.0", cwd=checkout).returncode == 0
    assert "bundle" in stages_run(run("dvc", "repro", "dvc.yaml", cwd=checkout))
    kinds = json.loads((checkout / "artifacts" / "features" / "report.json").read_text())["kinds"]
    assert {name: kind for name, (kind, _) in kinds.items()} == {"customer": "drop", "income": "number", "city": "category", "joined_weekday": "category", "joined_month": "drop", "joined_hour": "drop", "visits": "number", "member": "category"}
    assert json.loads((checkout / "metrics" / "evaluate.json").read_text())["lightgbm"]["test"]["roc_auc"] > 0.6
