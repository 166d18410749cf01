"""Compression of `mlp_wide`: what other tools make of the same network, and what the pipeline makes of it, in one run.

Each tool runs in an environment of its own under build/peers (made on the first run, from the package index; it sees
the project's environment and adds pinned packages to it), in a process of its own, on one thread. All processes are up
at once and take turns: every round, each candidate answers some single rows and three batches of 1,024, and then the
next one, so that a busy moment hits all alike. What is compared are medians of the ratios within rounds. A call of some
milliseconds loses its core to whatever else runs, and a call of some microseconds does not: on a busy machine that
flatters the fast one. So batches are timed by the clock and by processor time, and a clause asks for both.

Every candidate gets the same real rows, already as arrays. Its size is that of the file that would be shipped for it.
Quality is read on the test rows, with differences to the dense network and to LightGBM bootstrapped by day: it says
what was lost, and nothing is chosen by it. Written to build/bench/compression.json and compression.png.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import sysconfig
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench" / "compression"
ENVIRONMENTS: dict[str, list[str]] = {
    "project": [],
    "torchao": ["torchao==0.18.0"],
    "openvino": ["openvino==2026.4.1", "nncf==3.4.0"],
    "neural_compressor": ["neural-compressor-pt==3.10", "torchao==0.18.0"],
    "tl2cgen": ["tl2cgen==1.0.0", "treelite==4.8.1"],
}
BATCH = 1024
# The figures to reach, as ratios within one run.
WANTED = {
    "p50 below eager": 20.0, "rows/s above eager": 45.0, "rows a processor second above eager": 45.0, "bytes below eager": 60.0, "p50 over an empty call": 2.0,
    "p50 below LightGBM": 4.0, "rows/s above LightGBM": 50.0, "rows a processor second above LightGBM": 50.0,
}
AIM_BYTES = 100.0
MARGINS = {"roc_auc": 0.003, "pr_auc": 0.005}
MARGIN_TREES = 0.010
CALIBRATION = 4096


# Candidates. Each function makes one, in the environment that it is listed under; imports are its own, since no
# environment has them all. They return a Candidate of prodml.model.measure.


def artifacts(*parts: str) -> Path:
    return ROOT.joinpath("artifacts", *parts)


def calibration():
    """The same training rows for every tool that wants some, as numbers and codes in batches of 256."""
    import numpy as np

    from prodml.core.files import read_json
    from prodml.model.rows import load_rows

    rows = load_rows(artifacts("features", "train.parquet"), read_json(artifacts("features", "encoding.json")))
    drawn = rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:CALIBRATION]))
    return list(zip(drawn.numbers.split(256), drawn.codes.split(256)))


def module():
    """The dense network as a PyTorch module that gives probabilities."""
    from prodml.model.export import Probability
    from prodml.model.networks import load_network

    return Probability(load_network(artifacts("train"))).eval()


def of_module(function, size: int, runtime: str):
    """A candidate that a PyTorch function makes."""
    import torch

    from prodml.model.measure import Candidate

    def call(inputs):
        with torch.inference_mode():
            return function(*inputs)

    return Candidate(runtime, size, lambda rows: (rows.numbers, rows.codes), call)


def eager():
    from prodml.model.measure import eager as candidate

    return candidate(artifacts("train"))


def compiled():
    import torch

    return of_module(torch.compile(module()), artifacts("train", "model.safetensors").stat().st_size, "torch.compile")


def aot_inductor():
    from prodml.model.measure import compiled as candidate

    return candidate(artifacts("train"), ROOT / "build" / "aot_inductor")


def standard_graph() -> Path:
    """The dense network in ONNX's own operators: OpenVINO and ONNX Runtime's quantizer know none of `ai.onnx.ml`."""
    from prodml.core.files import written
    from prodml.model.export import to_onnx
    from prodml.model.networks import load_network

    with written(FOLDER / "dense.onnx") as aside:
        aside.write_bytes(to_onnx(load_network(artifacts("train")), table_operators=False).SerializeToString(deterministic=True))
    return FOLDER / "dense.onnx"


def onnx_float():
    from prodml.model.measure import in_onnx_runtime

    return in_onnx_runtime(artifacts("train", "model.onnx"))


def onnx_int8(kind: str):
    """ONNX Runtime's own quantizer as its documentation has it: prepared first, then dynamic or static QDQ, defaults.

    The defaults of the static one quantize the raw numbers too, a distance and a rate on one scale, and so lose the
    network; `products` tells it to quantize matrix products alone, which is how it does well.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from prodml.model.measure import in_onnx_runtime

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"numbers": numbers.numpy(), "codes": codes.numpy()} for numbers, codes in calibration()])

        def get_next(self):
            return next(self.batches, None)

    prepared, target = FOLDER / "prepared.onnx", FOLDER / f"onnx_int8_{kind}.onnx"
    quant_pre_process(str(standard_graph()), str(prepared))
    if kind == "dynamic":
        quantize_dynamic(str(prepared), str(target))
    else:
        quantize_static(str(prepared), str(target), Reader(), op_types_to_quantize=["Gemm", "MatMul"] if kind == "products" else None)
    return in_onnx_runtime(target)


def ours(stage: str):
    from prodml.model.measure import in_onnx_runtime

    return in_onnx_runtime(artifacts(stage, "model.onnx"))


def lightgbm():
    from prodml.model.measure import trees

    return trees(artifacts("reference", "lightgbm.txt"))


def logistic():
    from prodml.model.measure import exported

    return exported(artifacts("reference", "logistic"))


def floor():
    from prodml.model.measure import floor as candidate

    return candidate(artifacts("train"))


def size_of(state) -> int:
    """Bytes that PyTorch writes for tensors; written to measure them, and never read."""
    import torch

    stream = io.BytesIO()
    torch.save(state, stream)
    return len(stream.getvalue())


def tensors_of(graph) -> dict[str, Any]:
    """The tensors that a traced module uses; PT2E leaves the float weights in the module beside the int8 ones."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr" and node.users}
    return {name: tensor for name, tensor in (*graph.named_parameters(), *graph.named_buffers()) if name in used}


def torchao(kind: str):
    """torchao's one-liner for linear layers, compiled, as its documentation has it."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    model = module()
    quantize_(model, {"dynamic": Int8DynamicActivationInt8WeightConfig, "weights": Int8WeightOnlyConfig}[kind]())
    return of_module(torch.compile(model), size_of(model.state_dict()), "torchao, torch.compile")


def frozen(graph, runtime: str):
    """A converted PT2E graph compiled by Inductor with its constants folded; the size is that of the tensors it uses."""
    import torch

    from prodml.model.measure import Candidate

    size = size_of(tensors_of(graph))
    torch._inductor.config.freezing = True
    compiled = torch.compile(graph)

    def call(inputs):
        # Under inference_mode Inductor would leave the weights as they are.
        with torch.no_grad():
            return compiled(*inputs)

    return Candidate(runtime, size, lambda rows: (rows.numbers, rows.codes), call)


def pt2e():
    """Static int8 by PT2E with the quantizer for x86, compiled by Inductor with its constants folded."""
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model, batches = module(), calibration()
    shapes = {"numbers": {0: torch.export.Dim("rows")}, "codes": {0: torch.export.Dim("rows")}}
    graph = torch.export.export(model, batches[0], dynamic_shapes=shapes).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    return frozen(convert_pt2e(prepared), "PT2E, Inductor")


def openvino(int8: bool):
    """OpenVINO on one thread, tuned for latency, from the ONNX graph; int8 by NNCF's post-training quantization."""
    import openvino as ov

    from prodml.model.measure import Candidate

    core = ov.Core()
    model = core.read_model(standard_graph())
    if int8:
        import nncf

        batches = [{"numbers": numbers.numpy(), "codes": codes.numpy()} for numbers, codes in calibration()]
        model = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
    path = FOLDER / f"openvino_{'int8' if int8 else 'fp32'}.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return Candidate(
        "OpenVINO", size, lambda rows: {"numbers": rows.numbers.numpy(), "codes": rows.codes.numpy()},
        lambda feed: request.infer(feed)[0].copy(),
    )


def neural_compressor():
    """Intel Neural Compressor 3, static int8 through PT2E as its documentation has it, compiled by Inductor."""
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

    batches, rows = calibration(), torch.export.Dim("rows")
    graph = export(module(), example_inputs=batches[0], dynamic_shapes={"numbers": {0: rows}, "codes": {0: rows}})
    prepared = prepare(graph, INT8StaticQuantConfig())
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    return frozen(convert(prepared), "neural-compressor, Inductor")


def trees_compiled():
    """LightGBM's trees as C, compiled by tl2cgen."""
    import tl2cgen
    import treelite

    from prodml.model.measure import Candidate
    from prodml.model.reference import tree_matrix

    library = FOLDER / "trees.so"
    model = treelite.frontend.load_lightgbm_model(artifacts("reference", "lightgbm.txt"))
    tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={"parallel_comp": 4}, nthread=2)
    predictor = tl2cgen.Predictor(library, nthread=1)
    return Candidate("tl2cgen", library.stat().st_size, lambda rows: tl2cgen.DMatrix(tree_matrix(rows), dtype="float32"), lambda matrix: predictor.predict(matrix).ravel())


def on_cuda() -> dict[str, tuple[str, str, Any]]:
    """The dense and the pruned network in every form that a CUDA device here can run; none without one. Never run on a GPU here."""
    import torch

    from prodml.model.accelerators import NEEDS, accelerated, reason_against

    if not torch.cuda.is_available():
        return {}
    place = torch.device("cuda")
    forms = [form for form in NEEDS if not reason_against(form, place)]
    stages = {"dense": "train", "pruned": "prune"}
    return {f"{name} on the GPU, {form}": ("device", "project", lambda name=name, stage=stage, form=form: accelerated(artifacts(stage), place, name)[0][f"{name}_cuda_{form}"]) for name, stage in stages.items() for form in forms}


def candidates() -> dict[str, tuple[str, str, Any]]:
    """Per candidate what it is (dense, peer, ours, device, reference or floor), its environment, and what makes it."""
    found = {
        "eager fp32": ("dense", "project", eager),
        "torch.compile": ("peer", "project", compiled),
        "AOTInductor": ("peer", "project", aot_inductor),
        "ONNX Runtime fp32": ("peer", "project", onnx_float),
        "ONNX Runtime dynamic int8": ("peer", "project", lambda: onnx_int8("dynamic")),
        "ONNX Runtime static int8": ("peer", "project", lambda: onnx_int8("static")),
        "ONNX Runtime static int8, products": ("peer", "project", lambda: onnx_int8("products")),
        "torchao int8": ("peer", "torchao", lambda: torchao("dynamic")),
        "torchao int8 weights": ("peer", "torchao", lambda: torchao("weights")),
        "PT2E int8": ("peer", "torchao", pt2e),
        "OpenVINO fp32": ("peer", "openvino", lambda: openvino(int8=False)),
        "NNCF int8": ("peer", "openvino", lambda: openvino(int8=True)),
        "neural-compressor int8": ("peer", "neural_compressor", neural_compressor),
    }
    names = {"prune": "pruned", "quantize": "int8"}
    for path in sorted(artifacts().glob("*/model.onnx")):
        if path.parent.name != "train":
            found[f"prodml {names.get(path.parent.name, path.parent.name)}"] = ("ours", "project", lambda stage=path.parent.name: ours(stage))
    found |= {
        "LightGBM": ("reference", "project", lightgbm),
        "LightGBM compiled": ("reference", "tl2cgen", trees_compiled),
        "logistic": ("reference", "project", logistic),
        "empty call": ("floor", "project", floor),
    }
    return found | on_cuda()


# The workers: one process an environment; a line of JSON in, a line of JSON out.


def environment(name: str) -> Path:
    """The Python of an environment, made if it is not there; it sees the project's packages and adds its own."""
    if not ENVIRONMENTS[name]:
        return Path(sys.executable)
    folder = ROOT / "build" / "peers" / f"compression_{name}"
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = "\n".join(ENVIRONMENTS[name])
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        place = subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], check=True, capture_output=True, text=True).stdout.strip()
        Path(place, "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-input", *ENVIRONMENTS[name]], check=True)
        ready.write_text(wanted)
    return python


class Worker:
    """A process that makes and times the candidates of one environment."""

    def __init__(self, name: str, calls: int):
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENVINO_TELEMETRY": "0", "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "inductor")}
        self.log = (FOLDER / f"{name}.log").open("w")
        command = [str(environment(name)), __file__, "--worker", "--calls", str(calls)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=variables, cwd=ROOT)

    def ask(self, what: str, name: str) -> dict[str, Any]:
        """The answer to one request; an error where the process has ended."""
        try:
            print(json.dumps([what, name]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"the process ended: see {self.log.name}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def work(calls: int) -> None:
    """What runs in a worker: make a candidate and write its answers for the test rows, or time it once."""
    # Libraries print what they like; the answers go where the parent reads, everything else into the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    import gc

    import numpy as np
    import torch

    from prodml.core.files import read_json
    from prodml.model.measure import nanoseconds
    from prodml.model.rows import load_rows

    torch.set_num_threads(1)
    encoding = read_json(artifacts("features", "encoding.json"))
    rows = load_rows(artifacts("features", "validation.parquet"), encoding)
    order = np.random.default_rng(0).permutation(len(rows))
    makers, made = candidates(), {}

    def make(name: str) -> dict[str, Any]:
        start = time.perf_counter()
        candidate = makers[name][2]()
        single = [candidate.inputs(rows.take(order[place][None])) for place in range(calls)]
        large = [candidate.inputs(rows.take(order[:BATCH]))] * 3
        candidate.call(single[0]), candidate.call(large[0])
        if makers[name][0] != "floor":
            test = load_rows(artifacts("features", "test.parquet"), encoding)
            # Whole batches: a compiler would make another function for a last one of another size.
            places = np.arange(0, len(test), BATCH).clip(max=len(test) - BATCH)
            told = np.empty(len(test))
            for place in places:
                told[place : place + BATCH] = np.asarray(candidate.call(candidate.inputs(test.take(slice(place, place + BATCH)))))
            np.save(FOLDER / f"{name}.npy", told)
        made[name] = (candidate, single, large)
        gc.collect()
        return {"size_bytes": candidate.size_bytes, "runtime": candidate.runtime, "made_in_s": round(time.perf_counter() - start, 1)}

    def once(name: str) -> dict[str, Any]:
        candidate, single, large = made[name]
        gc.disable()
        try:
            one, many, spent = nanoseconds(candidate.call, single), [], []
            candidate.call(large[0])
            for batch in large:
                start = time.perf_counter_ns(), time.process_time_ns()
                candidate.call(batch)
                many.append(time.perf_counter_ns() - start[0])
                spent.append(time.process_time_ns() - start[1])
            return {"one": one, "many": many, "many_cpu": spent}
        finally:
            gc.enable()

    for line in sys.stdin:
        what, name = json.loads(line)
        try:
            answer = {"make": make, "time": once}[what](name)
        except Exception as error:  # a tool that fails is a result, and no reason to stop
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


# The run.


def measured(rounds: int, calls: int, wanted: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Per candidate its kind, runtime, size and times by round; and what failed, with the reason."""
    from prodml.core.progress import progress

    makers = {name: maker for name, maker in candidates().items() if not wanted or name in wanted}
    workers, lines, failed = {}, {}, {}
    for name, (kind, place, _) in makers.items():
        if place not in workers:
            try:
                workers[place] = Worker(place, calls)
            except subprocess.CalledProcessError as error:
                workers[place] = None
                print(f"{place} cannot be installed: {error}")
        answer = workers[place].ask("make", name) if workers[place] else {"error": f"{', '.join(ENVIRONMENTS[place])} cannot be installed"}
        if "error" in answer:
            failed[name] = answer["error"]
        else:
            lines[name] = {"kind": kind, "environment": place, **answer, "one": [], "many": [], "many_cpu": []}
        print(f"{name}: {answer.get('error') or str(answer['made_in_s']) + ' s'}", flush=True)
    for _ in progress(range(rounds), desc="rounds"):
        for name in list(lines):
            answer = workers[lines[name]["environment"]].ask("time", name)
            if "error" in answer:
                failed[name] = answer["error"]
                del lines[name]
                continue
            for key in ("one", "many", "many_cpu"):
                lines[name][key].append(answer[key])
    for worker in workers.values():
        if worker:
            worker.close()
    return lines, failed


def ratio(above: list[list[int]], below: list[list[int]]) -> dict[str, float]:
    """Median over rounds of the ratio of two medians of one round, and the ends of the middle half."""
    import numpy as np

    ratios = [np.median(a) / np.median(b) for a, b in zip(above, below)]
    low, middle, high = (round(float(value), 3) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return {"ratio": middle, "from": low, "to": high}


def figures(lines: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per candidate p50 and p95 of one row, rows a second, size; and ratios to eager, to LightGBM and to an empty call."""
    import numpy as np

    made = {}
    for name, line in lines.items():
        one, many = np.concatenate(line["one"]), np.concatenate(line["many"])
        p50, p95 = (round(float(value) / 1e3, 1) for value in np.percentile(one, (50, 95)))
        own = {key: line[key] for key in ("kind", "environment", "runtime", "size_bytes")}
        own |= {"p50_us": p50, "p95_us": p95, "rows_per_s": round(BATCH / float(np.median(many)) * 1e9), "rows_per_cpu_s": round(BATCH / float(np.median(np.concatenate(line["many_cpu"]))) * 1e9), "ratios": {}}
        for other, title in (("eager fp32", "eager"), ("LightGBM", "LightGBM")):
            if other in lines:
                own["ratios"] |= {f"p50 below {title}": ratio(lines[other]["one"], line["one"]), f"rows/s above {title}": ratio(lines[other]["many"], line["many"]), f"rows a processor second above {title}": ratio(lines[other]["many_cpu"], line["many_cpu"])}
        if "eager fp32" in lines:
            own["ratios"]["bytes below eager"] = {"ratio": round(lines["eager fp32"]["size_bytes"] / line["size_bytes"], 3)}
        if "empty call" in lines:
            own["ratios"]["p50 over an empty call"] = ratio(line["one"], lines["empty call"]["one"])
        made[name] = own
    return made


def quality(names: list[str], replicates: int) -> dict[str, dict[str, Any]]:
    """Per candidate ROC AUC, PR AUC and log loss on the test rows, and what they differ from the dense network and LightGBM by."""
    import numpy as np

    from prodml.core.files import read_json
    from prodml.core.progress import progress
    from prodml.model.rows import load_rows
    from prodml.stats.bootstrap import percentile_interval, resampled
    from prodml.stats.scores import log_loss

    test = load_rows(artifacts("features", "test.parquet"), read_json(artifacts("features", "encoding.json")))
    labels, drawn, made = test.labels.numpy(), {}, {}
    for name in progress(names, desc="quality"):
        told = np.load(FOLDER / f"{name}.npy")
        drawn[name] = {metric: resampled(labels, told, test.blocks, metric, replicates) for metric in MARGINS}
        made[name] = {metric: round(float(estimate), 5) for metric, (estimate, _) in drawn[name].items()} | {"log_loss": round(float(log_loss(labels, told)), 5)}
    for name in names:
        for other, title in (("eager fp32", "less_dense"), ("LightGBM", "less_lightgbm")):
            if other in drawn and other != name:
                pairs = {metric: (drawn[name][metric], drawn[other][metric]) for metric in MARGINS}
                made[name][title] = {metric: {end: round(value, 5) for end, value in percentile_interval(a[0] - b[0], a[1] - b[1]).items()} for metric, (a, b) in pairs.items()}
    return made


COST = (("p50_us", 1), ("size_bytes", 1), ("roc_auc", -1))


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one candidate is at least as good in time, size and ROC AUC, and better in one of them."""
    differences = [sign * (one[key] - other[key]) for key, sign in COST]
    return max(differences) <= 0 and min(differences) < 0


def verdicts(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Per artefact of ours every clause: what was measured, what is wanted, and whether it is met."""
    peers = {name: line for name, line in table.items() if line["kind"] in ("peer", "dense")}
    made = {}
    for name, line in table.items():
        if line["kind"] != "ours":
            continue
        clauses = {}
        for clause, bound in WANTED.items():
            if clause in line["ratios"]:
                value = line["ratios"][clause]["ratio"]
                clauses[clause] = {"measured": value, "wanted": bound, "met": value <= bound if clause == "p50 over an empty call" else value >= bound}
        if "bytes below eager" in clauses:
            clauses["bytes below eager"]["aim_met"] = clauses["bytes below eager"]["measured"] >= AIM_BYTES
        for metric, margin in MARGINS.items():
            if "less_dense" in line:
                own = line["less_dense"][metric]
                clauses[f"{metric} less dense, lower bound"] = {"measured": own["low"], "estimate": own["estimate"], "wanted": -margin, "met": own["low"] >= -margin}
        if "less_lightgbm" in line:
            own = line["less_lightgbm"]["roc_auc"]
            clauses["roc_auc less LightGBM, lower bound"] = {"measured": own["low"], "estimate": own["estimate"], "wanted": -MARGIN_TREES, "met": own["low"] >= -MARGIN_TREES}
        better = [peer for peer, other in peers.items() if dominates(other, line)]
        worse = [peer for peer, other in peers.items() if dominates(line, other)]
        clauses["beaten by peers in time, size and ROC AUC"] = {"measured": len(better), "wanted": 0, "met": not better, "beaten_by": better, "beats": worse}
        made[name] = clauses
    return made


def front(table: dict[str, dict[str, Any]], kinds: tuple[str, ...]) -> list[str]:
    """The candidates of some kinds that no other of them beats in both time and size, by size."""
    own = {name: line for name, line in table.items() if line["kind"] in kinds}
    kept = [name for name, a in own.items() if not any(b["p50_us"] <= a["p50_us"] and b["size_bytes"] <= a["size_bytes"] and b is not a for b in own.values())]
    return sorted(kept, key=lambda name: own[name]["size_bytes"])


def draw(table: dict[str, dict[str, Any]], path: Path) -> None:
    """Time of one row against size, a point a candidate, its colour what it loses in ROC AUC; the fronts of peers and of ours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from prodml.core.files import written

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axis = figure.subplots()
    shown = {name: line for name, line in table.items() if line["kind"] != "floor"}
    dense = shown["eager fp32"]["roc_auc"]
    marks = {"dense": ("s", 60), "peer": ("o", 45), "ours": ("*", 190), "device": ("v", 45), "reference": ("D", 38)}
    labels = {"dense": "the network itself", "peer": "other tools on it", "ours": "prodml", "device": "on the GPU", "reference": "simpler models"}
    for kind, (mark, size) in marks.items():
        own = [line for line in shown.values() if line["kind"] == kind]
        if not own:
            continue
        points = axis.scatter(
            [line["size_bytes"] / 1e3 for line in own], [line["p50_us"] for line in own], c=[1e3 * (dense - line["roc_auc"]) for line in own],
            marker=mark, s=size, cmap="coolwarm", vmin=-10, vmax=10, edgecolors="black", linewidths=0.7, label=labels[kind], zorder=3,
        )
    axis.set(xscale="log", yscale="log", xlabel="file to ship, kB", ylabel="one row, median in µs")
    axis.margins(0.12)
    (_, right), (_, top) = axis.get_xlim(), axis.get_ylim()
    for kinds, colour, label in ((("dense", "peer"), "grey", "front of the other tools"), (("ours",), "tab:blue", "front of prodml")):
        own = [table[name] for name in front(table, kinds)]
        across, up = [line["size_bytes"] / 1e3 for line in own], [line["p50_us"] for line in own]
        axis.step([across[0], *across, right], [top, *up, up[-1]], where="post", color=colour, linestyle="--", linewidth=1, zorder=1, label=label)
    axis.set(xlim=(None, right), ylim=(0.7 * min(line["p50_us"] for line in table.values()), top))
    if "empty call" in table:
        axis.axhline(table["empty call"]["p50_us"], color="tab:orange", linewidth=1)
        axis.annotate("a call that computes nothing", (0.01, table["empty call"]["p50_us"]), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", fontsize=8, color="tab:orange")
    for own in (axis.xaxis, axis.yaxis):
        own.set_major_formatter(ScalarFormatter())
        own.set_minor_formatter(NullFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    figure.colorbar(points, label="lost in ROC AUC, thousandths", extend="both", shrink=0.8)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    _name_points(figure, axis, shown)
    with written(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _name_points(figure, axis, shown: dict[str, dict[str, Any]]) -> None:
    """A label for every point, at the first of some places where it covers no other label and no point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    spots = [axis.transData.transform((line["size_bytes"] / 1e3, line["p50_us"])) for line in shown.values()]
    taken = [axis.get_legend().get_window_extent(renderer)]
    places = [(9, -3, "left"), (-9, -3, "right"), (9, 6, "left"), (9, -12, "left"), (-9, 6, "right"), (-9, -12, "right"), (0, 10, "center"), (0, -16, "center")]
    places += [(side * 9, height, align) for height in range(14, 75, 8) for sign in (1, -1) for side, align in ((1, "left"), (-1, "right")) for height in (sign * height,)]
    for name, line in shown.items():
        lost = shown["eager fp32"]["roc_auc"] - line["roc_auc"]
        label = f"{name} (loses {lost:.2f})" if lost > 0.05 else name
        for x, y, align in places:
            text = axis.annotate(label, (line["size_bytes"] / 1e3, line["p50_us"]), xytext=(x, y), textcoords="offset points", ha=align, fontsize=8, fontweight="bold" if line["kind"] == "ours" else None, bbox={"pad": 0.3, "color": "white", "alpha": 0.8}, zorder=2, arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"} if abs(y) > 16 else None)
            box = text.get_window_extent(renderer)
            clear = not any(box.overlaps(other) for other in taken) and not any(box.x0 - 7 < spot[0] < box.x1 + 7 and box.y0 - 5 < spot[1] < box.y1 + 5 for spot in spots)
            if clear or (x, y, align) == places[-1]:
                taken.append(box)
                break
            text.remove()


def show(record: dict[str, Any]) -> None:
    """Print the table, and each clause with its verdict."""
    table, device = record["candidates"], record["device"]
    print(f"\n{device['cpu']}, {device['instructions']}, {device['cores']} cores, one used, load {device['load_1_min']}; GPU: {device['gpu'] or 'none'}; {record['rounds']} rounds")
    print(f"{'':36}{'p50 µs':>9}{'p95 µs':>9}{'rows/s':>13}{'rows/cpu s':>13}{'bytes':>12}{'ROC AUC':>9}{'PR AUC':>9}{'less dense, by day':>32}")
    for name, line in sorted(table.items(), key=lambda item: item[1]["p50_us"]):
        gap = "  {estimate:+.4f} [{low:+.4f}, {high:+.4f}]".format(**line["less_dense"]["roc_auc"]) if "less_dense" in line else ""
        score = f"{line['roc_auc']:>9.4f}{line['pr_auc']:>9.4f}" if "roc_auc" in line else " " * 18
        print(f"{name:36}{line['p50_us']:>9,.1f}{line['p95_us']:>9,.1f}{line['rows_per_s']:>13,}{line['rows_per_cpu_s']:>13,}{line['size_bytes']:>12,}{score}{gap:>32}")
    for name, reason in record["failed"].items():
        print(f"{name:36} failed: {reason}")
    for name, clauses in record["clauses"].items():
        print(f"\n{name}")
        for clause, own in clauses.items():
            more = f" (aim {AIM_BYTES:g}: {'met' if own['aim_met'] else 'not met'})" if "aim_met" in own else f", estimate {own['estimate']:+.4f}" if "estimate" in own else f", beats {len(own['beats'])} of them" if "beats" in own else ""
            print(f"  {'met    ' if own['met'] else 'NOT MET'} {clause}: {own['measured']:g}, wanted {own['wanted']:g}{more}")
    print(f"\nmeets every clause: {', '.join(record['meets_all']) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="times that every candidate gets its turn")
    parser.add_argument("--calls", type=int, default=50, help="single rows per turn")
    parser.add_argument("--replicates", type=int, default=1000, help="bootstrap resamples of the test days")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw and print the last record")
    parser.add_argument("--only", nargs="*", default=[], help="names of some candidates; nothing is written then")
    parser.add_argument("--write", action="store_true", help="write to bench/results/, to be committed, instead of build/bench/")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if given.worker:
        return work(given.calls)

    from prodml.core.files import read_json, write_json
    from prodml.core.records import results_path
    from prodml.model.measure import device_facts

    path = results_path("compression.json", given.write, ROOT)
    if given.redraw:
        record = read_json(path)
        draw(record["candidates"], path.with_suffix(".png"))
        return show(record)

    device = device_facts(threads=1)
    lines, failed = measured(given.rounds, given.calls, given.only)
    table, scores = figures(lines), quality([name for name, line in lines.items() if line["kind"] != "floor"], given.replicates)
    table = {name: {**line, **scores.get(name, {})} for name, line in table.items()}
    clauses = verdicts(table)
    record = {
        "device": device, "rounds": given.rounds, "calls": given.calls, "batch": BATCH, "packages": ENVIRONMENTS, "candidates": table, "failed": failed,
        "clauses": clauses, "meets_all": [name for name, own in clauses.items() if all(clause["met"] for clause in own.values())],
    }
    if not given.only:
        write_json(path, record)
        draw(table, path.with_suffix(".png"))
    show(record)


if __name__ == "__main__":
    main()
