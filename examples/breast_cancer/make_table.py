"""Write scikit-learn's breast cancer table to tumours.parquet, beside this file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer


def tumours() -> pa.Table:
    """The 30 measurements and the diagnosis, malignant or benign."""
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    columns = {name: data.data[:, place] for place, name in enumerate(names)}
    return pa.table(columns | {"diagnosis": [str(data.target_names[number]) for number in data.target]})


if __name__ == "__main__":
    pq.write_table(tumours(), Path(__file__).with_name("tumours.parquet"), compression="zstd")
