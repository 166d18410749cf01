"""Bodies that JSON Schema cannot describe: rows of the small bundle as CSV and as an Arrow stream."""

import json

import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

ROWS = st.lists(st.fixed_dictionaries({"delay": st.floats(-10, 10), "wind": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32), "carrier": st.none() | st.sampled_from(["AA", "UA", "ZZ", 'a "quoted", one'])}), max_size=5)


def as_csv(rows: list[dict]) -> bytes:
    """A line of names and a line for each row."""
    cells = [["" if value is None else '"{}"'.format(value.replace('"', '""')) if isinstance(value, str) else repr(value) for value in (row[name] for name in ("delay", "wind", "carrier"))] for row in rows]
    return "".join(",".join(line) + "\n" for line in [["delay", "wind", "carrier"], *cells]).encode()


def as_arrow(rows: list[dict]) -> bytes:
    """An IPC stream."""
    table = pa.Table.from_pylist(rows, pa.schema({"delay": pa.float64(), "wind": pa.float64(), "carrier": pa.string()}))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


schemathesis.openapi.media_type("text/csv", ROWS.map(as_csv))
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", ROWS.map(as_arrow))


@schemathesis.hook
def filter_body(context, body) -> bool:
    """JSON Schema cannot say that columns are of one length."""
    lists = [value for value in body.values() if isinstance(value, list)] if isinstance(body, dict) else []
    return len({len(value) for value in lists}) <= 1


def as_inference(rows: list[dict]) -> bytes:
    """The rows as a request of the Open Inference Protocol."""
    kinds = {"delay": "FP64", "wind": "FP64", "carrier": "BYTES"}
    return json.dumps({"inputs": [{"name": name, "datatype": kind, "shape": [len(rows)], "data": [row[name] for row in rows]} for name, kind in kinds.items()]}).encode()


schemathesis.openapi.media_type("application/octet-stream", ROWS.map(as_inference))


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    """What is served stays so: no name that was learned from another answer is unloaded. And wrong rows are sent where they are refused."""
    if case.operation.path.endswith("/unload"):
        case.path_parameters = {name: f"no {value}" for name, value in case.path_parameters.items()}
    # With `partial` a wrong row is no wrong request: it is answered, without that row.
    if case.query and str(case.query.get("partial")).lower() == "true" and case.meta is not None and case.meta.generation.mode.is_negative:
        case.query = {**case.query, "partial": "false"}
