"""The commands of README.md, and what each must do when a newcomer types it."""

import re
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("make", "prodml", "dvc", "source", "export", "python", "papermill", "jupyter")


@dataclass(frozen=True)
class Step:
    """What a command must do: end with `code` after printing `shows`, or answer at `asks` until it is stopped."""

    shows: str = ""  # a regular expression, in what it prints
    code: int = 0
    asks: str = ""  # the address of a server that runs until it is stopped
    sample: str = ""  # what is typed after the command on the sample, where the full run takes long
    full: str = ""  # why the sample leaves it out
    never: str = ""  # why the walk leaves it out


SERVER = "http://127.0.0.1:8000"
EXPECTED = {
    "make run": Step(r"(?s)int8 .*The bundle is accepted.*Next:"),
    "source .venv/bin/activate": Step(),
    "make test": Step(never="the walk is one of the tests"),
    "make lab": Step("pre_save_hook|Jupyter Server", asks="http://127.0.0.1:8888/api"),
    "prodml results": Step(r"model +ROC AUC"),
    "make record": Step("recorded: metrics/latency.json", full="the times of a sample are not recorded"),
    "make smoke": Step(r"The bundle is (accepted|rejected): .*(?s:.)*int8 ", full="the sample is what the walk already runs on"),
    "prodml params": Step("params.yaml"),
    "dvc repro": Step("up to date"),
    "dvc exp run --queue -S model=mlp,tabm": Step("Queued experiment"),
    "dvc exp run --run-all": Step(full="two whole pipelines; test_experiments.py runs such a queue"),
    "dvc exp show": Step("Experiment"),
    "prodml run train epochs=2 --report build/two.ipynb": Step("build/two.ipynb; outputs in build/two; the main run is as it was"),
    "prodml data trace weather 1010": Step("impossible wind"),
    "prodml data receive weather examples/flights/weather-2013-12-30.csv": Step(r"accepted +57"),
    "prodml data verify": Step("weather: 1 partitions are as they were accepted"),
    "prodml data feeds": Step(r"weather +1 +57", code=1),
    "prodml compress": Step(
        "what was measured", sample=" 'compress.width_ratio=[0.125]' 'compress.schedule=[cubic]' 'compress.depth=[0]' "
        "'compress.precision=[none]' 'compress.runtime=[ONNX Runtime]' compress.rounds=3 compress.replicates=100 "
        # Whatever this machine's speed: that a search ends with a choice is walked here, and no time is judged.
        "budget.size_bytes=1000000 budget.max_calibration_drift=0.2 budget.p95_us=100000 budget.rows_per_s=1 budget.tolerance=0.99",
    ),
    "prodml profile": Step("build/profile.png"),
    "prodml export build/model.onnx": Step("build/model.onnx: int8 of flights, opset"),
    "prodml release --new-key ~/release.key": Step("release.key.pub"),
    "prodml release --key ~/release.key --version first": Step("releases/flights-first"),
    "export PRODML_TRUSTED_KEYS=~/release.key.pub": Step(),
    "prodml release --verify releases/flights-first": Step("flights, serves int8; whole, and signed by"),
    "prodml serve bundle --unsigned --log build/log": Step("answers on", asks=SERVER),
    "prodml audit show ID --log build/log": Step("worker-00/00000001.seg"),
    "prodml audit replay ID --log build/log --bundles bundle --unsigned": Step("identical"),
    "prodml materialise bundle --unsigned --online build/online.db --now 2013-12-31": Step(r"2013-12-31 .* rows"),
    "prodml score examples/flights/rows.parquet build/scores.parquet --unsigned": Step("50 of 50 rows scored"),
    "prodml rollout register releases/flights-first": Step("flights@v1.0.0"),
    "prodml rollout promote flights@v1.0.0": Step("champion v1.0.0"),
    "prodml serve --registry registry": Step("flights v1.0.0 .* answers on", asks=SERVER),
    "prodml release --key ~/release.key --version second": Step("releases/flights-second"),
    "prodml rollout register releases/flights-second": Step("flights@v1.0.1"),
    "prodml rollout start flights@v1.0.1": Step("challenger v1.0.1"),
    "prodml rollout status flights": Step("challenger v1.0.1"),
    "prodml keys new --name shop --roles predict": Step("prodml_"),
    "prodml observe": Step("dashboard and the alert rules in ops are up to date"),
    "make docs": Step("_docs/index.html"),
    "prodml data draft examples/breast_cancer/tumours.parquet --name tumours --write": Step("Written: conf/data/tumours.yaml"),
    "prodml trial build/tumours data=tumours": Step("int8 ", full="a whole pipeline; test_new_table.py runs drafted tables"),
}


def commands_of(text: str) -> list[str]:
    """The commands of a Markdown page in order: lines of shell blocks, and spans in backticks that begin with a program."""
    found = []
    for block, span in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
        lines = [re.sub(r"\s+# .*", "", line).strip() for line in block.splitlines()] if block else [span.strip()]
        found += [line for line in lines if line.split() and line.split()[0] in PROGRAMS and (block or " " in line)]
    return found


def readme_commands(readme: Path) -> list[str]:
    """What README.md asks a newcomer to type: its first block, and the second column of its table of commands."""
    text = readme.read_text(encoding="utf-8")
    table = text.partition("| you want to | do |\n")[2].partition("\n\n")[0]
    rows = [row.strip("|").partition("|")[2] for row in table.splitlines()[1:]]
    return commands_of(re.search(r"```bash\n.*?```", text, re.DOTALL)[0]) + [one for row in rows for one in commands_of(row)]
