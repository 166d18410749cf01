"""Export the package from the notebooks, and each notebook's Run section for DVC to watch.

The pipeline's first stage. It imports nothing of the package that it writes. A stage depends on its Run section
in build/stages/ and on the modules it imports, so a change of prose or of an example re-runs this and no more.
"""

import ast
import json
import shutil
from pathlib import Path

import yaml
from nbdev.doclinks import nbdev_export

RUNS = Path("build/stages")


def run_section(notebook: Path) -> str:
    """The cells that only the pipeline runs, those that start with `#| stage`, one after the other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(source for source in sources if source.startswith("#| stage"))


def feature_module() -> str:
    """The code of the module that makes the features (data.features.module) and of its neighbours in prodml/data.

    A stage that imports the module by its name in conf/data depends on this file, since dvc.yaml cannot name it.
    """
    params = Path("params.yaml")
    name = yaml.safe_load(params.read_text(encoding="utf-8"))["data"]["features"]["module"] if params.exists() else None
    todo, done = [name] if name else [], {}
    while todo:
        path = Path("prodml/data") / f"{todo.pop()}.py"
        if path.stem in done or not path.exists():
            continue
        done[path.stem] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(done[path.stem])):
            if isinstance(node, ast.ImportFrom):
                own = [item.name for item in node.names] if node.module in ("prodml.data", None) else []
                prefixed = (node.module or "").removeprefix("prodml.data.")
                todo += [*own, prefixed] if (node.module or "").startswith("prodml.data") or node.level == 1 else []
    return "".join(f"# {stem}\n{code}" for stem, code in sorted(done.items()))


def main() -> None:
    nbdev_export()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    (RUNS / "feature_module.py").write_text(feature_module(), encoding="utf-8")
    for notebook in sorted(Path("nbs").glob("*/[0-9][0-9]_*.ipynb")):
        section = run_section(notebook)
        if section:
            (RUNS / f"{notebook.stem[3:]}.py").write_text(section + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
