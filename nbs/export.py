"""Export the package from the notebooks, and each notebook's Run section for DVC to watch.

The pipeline's first stage. It imports nothing of the package that it writes. A stage depends on its Run section
in build/stages/ and on the modules it imports, so a change of prose or of an example re-runs this and no more.
"""

import json
import shutil
from pathlib import Path

from nbdev.doclinks import nbdev_export

RUNS = Path("build/stages")


def run_section(notebook: Path) -> str:
    """The cells that only the pipeline runs, those that start with `#| stage`, one after the other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(source for source in sources if source.startswith("#| stage"))


def main() -> None:
    nbdev_export()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    for notebook in sorted(Path("nbs").glob("*/[0-9][0-9]_*.ipynb")):
        section = run_section(notebook)
        if section:
            (RUNS / f"{notebook.stem[3:]}.py").write_text(section + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
