"""Export the package from the notebooks, and each notebook's Run section for DVC to watch.

The pipeline's first stage. It imports nothing of the package that it writes. A stage depends on its Run section
in build/stages/ and on the modules it imports, so a change of prose or of an example re-runs this and no more.
"""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path

import yaml

RUNS = Path("build/stages")
STATE = Path("build/exported")  # no output of the stage: DVC hashes what it needs by itself


def run_section(notebook: Path) -> str:
    """The cells that only the pipeline runs, those that start with `#| stage`, one after the other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(source for source in sources if source.startswith("#| stage"))


def imports(
    code: str, # of a module
    package: str, # the dotted name of its package
) -> set[str]:
    """What a module imports, wherever it does: dotted names of modules, and of what may be a module."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            found |= {name, *(f"{name}.{item.name}" for item in node.names)}
    return found


def feature_module() -> str:
    """The code of the module that makes the features (data.features.module) and of all of the package that it imports.

    A stage that imports the module by its name in conf/data depends on this file, since dvc.yaml cannot name it.
    """
    params = Path("params.yaml")
    name = yaml.safe_load(params.read_text(encoding="utf-8"))["data"]["features"]["module"] if params.exists() else None
    todo, done = {f"prodml.data.{name}"} if name else set(), {}
    while todo:
        name = todo.pop()
        path = Path(name.replace(".", "/") + ".py")
        if name.startswith("prodml.") and path.exists():
            done[name] = path.read_text(encoding="utf-8")
            todo |= imports(done[name], name.rpartition(".")[0]) - done.keys()
    return "".join(f"# {name.removeprefix('prodml.data.')}\n{code}" for name, code in sorted(done.items()))


def exported_state() -> str:
    """A hash of the notebooks and of the package that they make, which tells whether either was edited since the export."""
    notebooks = (path for path in Path("nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    digest = hashlib.sha256()
    for path in sorted([*notebooks, *Path("prodml").rglob("*.py"), Path("settings.ini")]):
        digest.update(f"{path.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def export() -> None:
    """Write the package, build/stages, and the state that they leave."""
    from nbdev.doclinks import nbdev_export  # a second, which a look at the state need not wait for

    nbdev_export()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    (RUNS / "feature_module.py").write_text(feature_module(), encoding="utf-8")
    for notebook in sorted(Path("nbs").glob("*/[0-9][0-9]_*.ipynb")):
        section = run_section(notebook)
        if section:
            (RUNS / f"{notebook.stem[3:]}.py").write_text(section + "\n", encoding="utf-8")
    STATE.write_text(exported_state(), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Export; with --if-edited only if the notebooks or the package are not as the last export left them."""
    if arguments == ["--if-edited"] and STATE.exists() and STATE.read_text(encoding="utf-8") == exported_state():
        return
    export()
    print("exported")


if __name__ == "__main__":
    main(sys.argv[1:])
