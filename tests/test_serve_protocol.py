"""The Open Inference Protocol as its clients speak it: tritonclient over HTTP and gRPC, and those who send anything else."""

import asyncio
import gzip
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_serve_access import certificate

from prodml.bundle.bundle import MANIFEST, SIGNATURE, open_bundle
from prodml.bundle.sign import new_key, private_key, signature_of
from prodml.core.errors import InputError
from prodml.serve.access import new_api_key
from prodml.serve.audit import replay
from prodml.serve.grpc import DATA_TYPES, MESSAGES, GrpcSettings, message_classes
from prodml.serve.log import find
from prodml.serve.models import version_of
from prodml.serve.registry import Registry
from prodml.serve.server import all_settings, make_service, running

tritonhttp = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
import tritonclient.grpc as tritongrpc  # noqa: E402
import tritonclient.grpc.aio  # noqa: E402
import tritonclient.http.aio  # noqa: E402
from tritonclient.grpc import model_config_pb2, service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # noqa: E402

COLUMNS = {"delay": np.array([0.4, -1.0, 2.0], np.float32), "wind": np.array([np.nan, 2.5, 0.1], np.float32), "carrier": np.array(["UA", "AA", "ZZ"], object)}
TRITON = {"http": tritonhttp, "grpc": tritongrpc}


@contextmanager
def serving(*bundles: Path, **more):
    """Addresses of HTTP and gRPC, and the service."""
    chosen = all_settings({"server": {"port": 0}, "models": {"unsigned": True}, "grpc": {"port": 0}} | more)
    service = make_service(bundles, chosen)
    with running(service, chosen) as address:
        yield {"http": address.partition("://")[2], "grpc": f"127.0.0.1:{service.grpc.port}"}, service


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory) -> Path:
    """The network of another seed, under the same name."""
    return made_up_bundle(tmp_path_factory.mktemp("other") / "other", 1)


@pytest.fixture(scope="module")
def server(small_bundle, tmp_path_factory):
    with serving(small_bundle, log={"folder": str(tmp_path_factory.mktemp("log"))}) as found:
        yield found


@pytest.fixture(scope="module")
def expected(small_bundle):
    bundle = open_bundle(small_bundle, unsigned=True)
    return bundle.predict({name: [None if value != value else value for value in values.tolist()] for name, values in COLUMNS.items()}), bundle


def inputs_of(kind: str, columns=COLUMNS, wide: bool = False, **options):
    """The columns as the client has them."""
    made = []
    for name, values in columns.items():
        values = values.reshape(-1, 1) if wide else values
        made.append(TRITON[kind].InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        made[-1].set_data_from_numpy(values, **options)
    return made


def encoded_inputs(kind: str, bundle, columns=COLUMNS, **options):
    numbers, codes = bundle._encode({name: values.tolist() for name, values in columns.items()})
    return inputs_of(kind, {"numbers": numbers, "codes": codes}, **options)


@contextmanager
def client(kind: str, addresses: dict[str, str]):
    with closing(TRITON[kind].InferenceServerClient(addresses[kind])) as found:
        yield found


def as_dict(kind: str, method, *arguments):
    return method(*arguments, **({"as_json": True} if kind == "grpc" else {}))


# Every call of tritonclient, in its defaults


@pytest.mark.parametrize("kind", TRITON)
def test_the_client_learns_what_is_served(kind, server):
    addresses, service = server
    version = service.models.get().version
    with client(kind, addresses) as one:
        assert one.is_server_live() and one.is_server_ready() and one.is_model_ready("made_up") and one.is_model_ready("made_up", version)
        assert not one.is_model_ready("other") and not one.is_model_ready("made_up", "0")
        assert as_dict(kind, one.get_server_metadata)["name"] == "prodml"
        for about in (as_dict(kind, one.get_model_metadata, "made_up"), as_dict(kind, one.get_model_metadata, "made_up", version)):
            assert about["name"] == "made_up" and about["versions"] == [version] and {tensor["name"]: tensor["datatype"] for tensor in about["inputs"]} == {"delay": "FP64", "wind": "FP64", "carrier": "BYTES"}
            assert [tensor["name"] for tensor in about["outputs"]] == ["probability", "label", "prediction_id"]
        config = as_dict(kind, one.get_model_config, "made_up")
        config = config["config"] if kind == "grpc" else config
        assert config["backend"] == "onnxruntime" and {tensor["name"] for tensor in config["input"]} == {*COLUMNS, "numbers", "codes"} and all(tensor["optional"] for tensor in config["input"])
        assert {tensor["data_type"] for tensor in config["output"]} == {"TYPE_FP32", "TYPE_INT64", "TYPE_STRING"}
        index = as_dict(kind, one.get_model_repository_index)
        index = index["models"] if kind == "grpc" else index
        assert [(model["name"], model["version"], model["state"]) for model in index] == [("made_up", version, "READY")]
        for name in ("other", "made_up/versions"):
            with pytest.raises(InferenceServerException, match="not loaded|no such path"):
                one.get_model_metadata(name)


@pytest.mark.parametrize("kind", TRITON)
def test_statistics_count_what_was_asked(kind, server):
    addresses, service = server
    with client(kind, addresses) as one:
        def stats(*arguments):
            return as_dict(kind, one.get_inference_statistics, *arguments)["model_stats"][0]

        one.infer("made_up", inputs_of(kind))
        before = stats("made_up")
        one.infer("made_up", inputs_of(kind))
        with pytest.raises(InferenceServerException):
            one.infer("made_up", inputs_of(kind)[:1])
        after = stats("made_up", service.models.get().version)
        assert int(after["inference_count"]) - int(before["inference_count"]) == 3 and int(after["execution_count"]) - int(before["execution_count"]) == 1
        for name in ("success", "compute_infer", "fail"):
            assert int(after["inference_stats"][name]["count"]) == int(before["inference_stats"][name].get("count", 0)) + 1
        assert int(after["inference_stats"]["compute_infer"]["ns"]) > 0 and abs(int(after["last_inference"]) / 1000 - time.time()) < 60 and stats()["name"] == "made_up"


@pytest.mark.parametrize("kind", TRITON)
def test_named_columns_and_encoded_tensors_get_the_answer_of_the_bundle(kind, server, expected):
    addresses, service = server
    told, bundle = expected
    forms = [(inputs_of(kind), told), (inputs_of(kind, wide=True), told), (inputs_of(kind, COLUMNS | {"delay": COLUMNS["delay"].astype(np.float64)}), told), (encoded_inputs(kind, bundle), told)]
    if kind == "http": # tritonclient's JSON has no NaN
        full = COLUMNS | {"wind": np.array([-3, 2.5, 0.1])}
        right = bundle.predict({name: values.tolist() for name, values in full.items()})
        forms += [(inputs_of(kind, full, binary_data=False), right), (encoded_inputs(kind, bundle, full, binary_data=False), right)]
    with client(kind, addresses) as one:
        for inputs, right in forms:
            result = one.infer("made_up", inputs, request_id="42")
            answer = result.get_response(**({"as_json": True} if kind == "grpc" else {}))
            probability = result.as_numpy("probability")
            assert probability.dtype == np.float32 and probability.tobytes() == right.tobytes() and result.as_numpy("label").tolist() == (right >= bundle.threshold).astype(int).tolist()
            assert answer["id"] == "42" and answer["model_name"] == "made_up" and answer["model_version"] == service.models.get().version and len(set(result.as_numpy("prediction_id").tolist())) == 3


@pytest.mark.parametrize("kind", TRITON)
def test_only_the_outputs_that_are_asked_for_come(kind, server, expected):
    addresses, service = server
    with client(kind, addresses) as one:
        result = one.infer("made_up", inputs_of(kind), service.models.get().version, [TRITON[kind].InferRequestedOutput("probability")], priority=1, timeout=10**6, parameters={"who": "me", "often": 3})
        assert result.as_numpy("probability").tobytes() == expected[0].tobytes() and result.as_numpy("label") is None
        if kind == "http":
            mixed = one.infer("made_up", inputs_of(kind), outputs=[tritonhttp.InferRequestedOutput("probability", binary_data=False), tritonhttp.InferRequestedOutput("prediction_id"), tritonhttp.InferRequestedOutput("label", binary_data=False)])
            assert mixed.as_numpy("probability").tobytes() == expected[0].tobytes() and "data" in mixed.get_output("label") and "data" not in mixed.get_output("prediction_id") and len(mixed.as_numpy("prediction_id")) == 3
        for name, arguments in {"no output": {"outputs": [TRITON[kind].InferRequestedOutput("loss")]}, "not loaded": {"model_version": "0"}, "classification": {"outputs": [TRITON[kind].InferRequestedOutput("probability", class_count=2)]}}.items():
            with pytest.raises(InferenceServerException, match=name):
                one.infer("made_up", inputs_of(kind), **arguments)


@pytest.mark.parametrize("kind", TRITON)
def test_asynchronous_calls(kind, server, expected):
    with client(kind, server[0]) as one:
        if kind == "http":
            found = [one.async_infer("made_up", inputs_of(kind)).get_result()]
        else:
            told = queue.Queue()
            one.async_infer("made_up", inputs_of(kind), lambda result, error: told.put(error or result))
            found = [told.get(timeout=10)]
        assert [result.as_numpy("probability").tobytes() for result in found] == [expected[0].tobytes()]


def test_a_stream_goes_on_after_an_error(server, expected):
    told = queue.Queue()
    with client("grpc", server[0]) as one:
        one.start_stream(lambda result, error: told.put(error or result))
        for inputs in (inputs_of("grpc"), inputs_of("grpc")[:1], encoded_inputs("grpc", expected[1])):
            one.async_stream_infer("made_up", inputs, request_id="7")
        first, wrong, third = (told.get(timeout=10) for _ in range(3))
        one.stop_stream()
    assert first.as_numpy("probability").tobytes() == third.as_numpy("probability").tobytes() == expected[0].tobytes() and first.get_response().id == "7"
    assert isinstance(wrong, InferenceServerException) and "breaks the row contract" in str(wrong)


@pytest.mark.parametrize("kind", TRITON)
def test_the_clients_for_asyncio(kind, server, expected):
    module = {"http": tritonclient.http.aio, "grpc": tritonclient.grpc.aio}[kind]

    async def ask():
        async with module.InferenceServerClient(server[0][kind]) as one:
            assert await one.is_server_live() and await one.is_server_ready() and await one.is_model_ready("made_up")
            for method in (one.get_server_metadata, one.get_model_repository_index, one.get_inference_statistics):
                assert await method()
            assert await one.get_model_metadata("made_up") and await one.get_model_config("made_up")
            many = {name: np.resize(values, 2000) for name, values in COLUMNS.items()}
            results = await asyncio.gather(*(one.infer("made_up", inputs_of(kind, columns)) for columns in [COLUMNS] * 20 + [many]))
            with pytest.raises(InferenceServerException, match="row contract"):
                await one.infer("made_up", inputs_of(kind)[:1])
            return [result.as_numpy("probability") for result in results]

    *small, large = asyncio.run(ask())
    assert all(probability.tobytes() == expected[0].tobytes() for probability in small) and large.tobytes() == np.resize(expected[0], 2000).tobytes()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", TRITON)
def test_compressed_requests_and_answers(kind, algorithm, server, expected):
    many = {name: np.resize(values, 900) for name, values in COLUMNS.items()}
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm} if kind == "http" else {"compression_algorithm": algorithm}
    with client(kind, server[0]) as one:
        for columns in (COLUMNS, many):
            result = one.infer("made_up", inputs_of(kind, columns), **options)
            assert result.as_numpy("probability").tobytes() == np.resize(expected[0], len(columns["wind"])).tobytes()


@pytest.mark.parametrize("kind", TRITON)
def test_a_model_is_let_go_and_loaded_again(kind, made_up, tmp_path):
    folder = shutil.copytree(made_up(0), tmp_path / "bundle")
    with serving(folder) as (addresses, service), client(kind, addresses) as one:
        first = service.models.get()
        one.load_model("made_up")
        assert service.models.get() is not first and service.models.versions() == [first.version]
        one.unload_model("made_up", unload_dependents=True)
        assert not one.is_model_ready("made_up") and not one.is_server_ready() and one.is_server_live()
        index = as_dict(kind, one.get_model_repository_index)
        assert [(model["state"], model["reason"]) for model in (index["models"] if kind == "grpc" else index)] == [("UNAVAILABLE", "unloaded")]
        for call in (lambda: one.unload_model("made_up"), lambda: one.infer("made_up", inputs_of(kind)), lambda: one.load_model("other")):
            with pytest.raises(InferenceServerException, match="not loaded|no model"):
                call()
        shutil.copytree(made_up(1), folder, dirs_exist_ok=True)
        one.load_model("made_up")
        assert one.is_server_ready() and service.models.versions() == [version_of(folder)] != [first.version] and one.infer("made_up", inputs_of(kind)).as_numpy("probability").shape == (3,)
        for options in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"other"}}):
            with pytest.raises(InferenceServerException, match="is not taken"):
                one.load_model("made_up", **options)
        (folder / "dense.onnx").write_bytes(b"broken")
        with pytest.raises(InferenceServerException, match="cannot be loaded"):
            one.load_model("made_up")
        assert one.infer("made_up", inputs_of(kind)).as_numpy("probability").shape == (3,), "the one that is loaded stays"


# What stands beside it: log, access, TLS, metrics, versions


@pytest.mark.parametrize("kind", TRITON)
def test_answers_are_logged_and_can_be_replayed(kind, small_bundle, expected, tmp_path):
    folder = tmp_path / "log"
    with serving(small_bundle, log={"folder": str(folder)}) as (addresses, service), client(kind, addresses) as one:
        ids = [one.infer("made_up", inputs).as_numpy("prediction_id")[0].decode() for inputs in (inputs_of(kind), encoded_inputs(kind, expected[1]))]
        assert service.app.log.feedbacks([(one_id, 1, 0) for one_id in ids]) == [True, True]
        service.app.log.flush()
        figures = service.app.metrics.render().decode()
    named, encoded = (find(folder, one_id)[0].content for one_id in ids)
    assert named.inputs["carrier"] == "UA" and named.inputs["wind"] is None and encoded.inputs is None and encoded.features and named.output == encoded.output == float(expected[0][0])
    assert [replay(folder, one_id, [small_bundle], unsigned=True).verdict for one_id in ids] == ["identical", "identical"]
    route = "/v2/models/{name}/infer" if kind == "http" else "/inference.GRPCInferenceService/ModelInfer"
    assert f'prodml_requests_total{{route="{route}",status="200"}} 2' in figures


@pytest.mark.parametrize("kind", TRITON)
def test_keys_and_roles_hold(kind, small_bundle, tmp_path):
    keys = tmp_path / "keys.json"
    key, operator = new_api_key(keys, "batch", ["predict"]).reveal(), new_api_key(keys, "operator", ["operate"]).reveal()
    bearer, operates = {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {operator}"}
    with serving(small_bundle, access={"keys": str(keys)}) as (addresses, _), client(kind, addresses) as one:
        assert one.is_server_live() and one.is_server_ready() and one.is_model_ready("made_up")
        assert one.infer("made_up", inputs_of(kind), headers=bearer).as_numpy("probability").shape == (3,) and one.get_model_config("made_up", headers=bearer)
        for call, words in {
            (lambda: one.infer("made_up", inputs_of(kind))): "Unauthorized", (lambda: one.get_model_metadata("made_up")): "Unauthorized", (lambda: one.get_model_config("made_up", headers={"authorization": "Bearer no"})): "Unauthorized",
            (lambda: one.load_model("made_up", headers=bearer)): "does not have the role operate", (lambda: one.unload_model("made_up", headers=bearer)): "does not have the role operate", (lambda: one.infer("made_up", inputs_of(kind), headers=operates)): "role predict",
        }.items():
            with pytest.raises(InferenceServerException, match=words):
                call()
        one.load_model("made_up", headers=operates)
        if kind == "grpc":
            told = queue.Queue()
            one.start_stream(lambda result, error: told.put(error or result))
            assert "UNAUTHENTICATED" in str(told.get(timeout=10))


def test_a_rollout_says_who_answers(made_up, tmp_path):
    key, registry_folder = new_key(tmp_path / "key"), tmp_path / "registry"
    folders, registry = [shutil.copytree(made_up(seed), tmp_path / f"bundle{seed}") for seed in (0, 1)], Registry(registry_folder, trusted=[key])
    for folder in folders:
        (folder / SIGNATURE).write_bytes(signature_of((folder / MANIFEST).read_bytes(), private_key(tmp_path / "key")))
        registry.register(folder, "Ada", "A week's model.")
    registry.assign("made_up", "champion", "v1.0.0", "Ada", "The first one.")
    registry.store.close()
    more = {"server": {"port": 0, "registry": str(registry_folder)}, "models": {"trusted": [str(key)]}, "rollout": {"steps": [{"weight": 0.5}]}}
    with serving(folders[0], **more) as (addresses, service):
        service.app.rollout.start("v1.0.1", "Ada", "A week later.")
        end = time.monotonic() + 10
        while "v1.0.1" not in service.models.versions() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.1)
        answered = {}
        for kind in TRITON:
            with client(kind, addresses) as one:
                for number in range(20):
                    result = one.infer("made_up", inputs_of(kind), headers={"x-routing-key": f"caller {number}"}).get_response()
                    answered.setdefault(number, set()).add(result["model_version"] if kind == "http" else result.model_version)
                assert one.infer("made_up", inputs_of(kind), "v1.0.1").as_numpy("probability").shape == (3,)
                for call in (one.load_model, one.unload_model):
                    with pytest.raises(InferenceServerException, match="rollout says"):
                        call("made_up")
        assert all(len(versions) == 1 for versions in answered.values()) and set.union(*answered.values()) == {"v1.0.0", "v1.0.1"}


def test_versions_and_models_side_by_side(made_up):
    first, second = made_up(0), made_up(1)
    with serving(first, second) as (addresses, service):
        for kind in TRITON:
            with client(kind, addresses) as one:
                assert as_dict(kind, one.get_model_metadata, "made_up")["versions"] == [version_of(first), version_of(second)]
                told = [one.infer("made_up", inputs_of(kind), version) for version in ("", version_of(first), version_of(second))]
                assert told[0].as_numpy("probability").tobytes() == told[1].as_numpy("probability").tobytes() != told[2].as_numpy("probability").tobytes()


def test_grpc_over_tls_asks_for_certificates(small_bundle, tmp_path):
    authority = certificate(tmp_path, "authority")
    certificate(tmp_path, "localhost", authority)
    certificate(tmp_path, "scorer", authority)
    tls = {"certificate": str(tmp_path / "localhost.pem"), "key": str(tmp_path / "localhost.key"), "client_ca": str(tmp_path / "authority.pem")}
    subject = "O=Example,CN=scorer"
    with serving(small_bundle, tls=tls, access={"certificates": {subject: ["predict"]}}) as (addresses, _):
        host = "localhost" + addresses["grpc"].removeprefix("127.0.0.1")
        files = {"root_certificates": tls["client_ca"], "private_key": str(tmp_path / "scorer.key"), "certificate_chain": str(tmp_path / "scorer.pem")}
        with closing(tritongrpc.InferenceServerClient(host, ssl=True, **files)) as one:
            assert one.infer("made_up", inputs_of("grpc")).as_numpy("probability").shape == (3,)
            with pytest.raises(InferenceServerException, match="role operate"):
                one.unload_model("made_up")
        with closing(tritongrpc.InferenceServerClient(host, ssl=True, root_certificates=tls["client_ca"])) as one, pytest.raises(InferenceServerException):
            one.is_server_live()


# The messages


def test_the_messages_are_those_of_the_protocol():
    """Numbers, types and names against what tritonclient was compiled with; where they lie inside each other is not on the wire."""
    names = {"InferTensor": ["ModelInferRequest.InferInputTensor", "ModelInferResponse.InferOutputTensor"], "InferRequestedOutputTensor": ["ModelInferRequest.InferRequestedOutputTensor"], "TensorMetadata": ["ModelMetadataResponse.TensorMetadata"], "ModelIndex": ["RepositoryIndexResponse.ModelIndex"]}

    def known(path):
        head, *rest = path.split(".")
        found = service_pb2.DESCRIPTOR.message_types_by_name.get(head) or model_config_pb2.DESCRIPTOR.message_types_by_name[head]
        for name in rest:
            found = found.nested_types_by_name[name]
        return found

    for name, kind in message_classes().items():
        for path in names.get(name, [name]):
            official = {field.number: field for field in known(path).fields}
            for field in kind.DESCRIPTOR.fields:
                other = official[field.number]
                assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated), (path, field.name)
                # A model is scheduled in one way of several; here there is one way.
                assert bool(field.containing_oneof) == bool(other.containing_oneof) or field.name == "dynamic_batching"
                if field.message_type is not None and field.message_type.GetOptions().map_entry:
                    assert other.message_type.GetOptions().map_entry and [entry.type for entry in field.message_type.fields] == [entry.type for entry in other.message_type.fields]
    assert DATA_TYPES.items() <= dict(model_config_pb2.DataType.items()).items() and len(MESSAGES) > 30


# Whatever is sent


def post(address: str, path: str, body: bytes, **headers: str):
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()


INFER = "/v2/models/made_up/infer"
NAMED = [{"name": "delay", "datatype": "FP64", "shape": [1], "data": [0.4]}, {"name": "wind", "datatype": "FP64", "shape": [1], "data": [None]}, {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]}]


def test_refusals_name_row_column_and_remedy(server):
    status, body = post(server[0]["http"], INFER, json.dumps({"inputs": [NAMED[0] | {"data": [50]}, *NAMED[1:]]}).encode())
    told = json.loads(body)
    assert status == 422 and set(told) == {"error"} and "Row 1, delay: delay is possible, not 50" in told["error"] and "up to 10" in told["error"]
    with client("grpc", server[0]) as one, pytest.raises(InferenceServerException, match="Row 1, delay: delay is possible") as caught:
        one.infer("made_up", inputs_of("grpc", COLUMNS | {"delay": np.array([50, 1, 1], np.float32)}))
    assert "INVALID_ARGUMENT" in caught.value.status()


def test_lengths_that_lie(server):
    header = json.dumps({"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}, {"name": "codes", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}}]}).encode()
    data, address = bytes(16), server[0]["http"]
    assert post(address, INFER, header + data, Inference_Header_Content_Length=str(len(header)))[0] == 200
    for length in ("-1", "0", "1e3", "", " ", str(len(header) - 1), str(len(header) + 1), str(len(header) + 16), str(2**63), "9" * 400, "0x10", "٣"):
        assert post(address, INFER, header + data, Inference_Header_Content_Length=length.encode().decode("latin-1"))[0] == 400, length
    for old, new in ((b"8}", b"-8}"), (b"8}", b"9}"), (b"8}", b"1e30}"), (b"8}", b"true}"), (b"8}", b"18446744073709551616}"), (b"[1, 2]", b"[2, 2]"), (b"[1, 2]", b"[1, 4611686018427387904]"), (b"[1, 2]", b"[4294967296, 4294967296]"), (b"[1, 2]", b"[-1, -2]"), (b"[1, 2]", b"[0, 2]"), (b"[1, 2]", b"[1, 1, 2]"), (b"FP32", b"FP64")):
        wrong = header.replace(old, new, 1)
        assert post(address, INFER, wrong + data, Inference_Header_Content_Length=str(len(wrong)))[0] in (400, 413), new


def test_bombs_and_bad_compression(server):
    address = server[0]["http"]
    for body, encoding, status in [(gzip.compress(bytes(5 * 10**7), 1), "gzip", 413), (zlib.compress(bytes(3 * 10**7), 1), "deflate", 413), (b"abc", "gzip", 400), (gzip.compress(b"{}")[:-4], "gzip", 400), (b"{}", "br", 415), (gzip.compress(gzip.compress(b"{}")), "gzip, gzip", 415)]:
        assert post(address, INFER, body, Content_Encoding=encoding)[0] == status
        assert post(address, "/v2/repository/models/made_up/load", body, Content_Encoding=encoding)[0] == status
    with grpc.insecure_channel(server[0]["grpc"], compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(bytes(5 * 10**7), timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with client("grpc", server[0]) as one:
        assert one.is_server_live()


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"inputs": null}', b'{"inputs": [[]]}', b"[" * 200_000, b'{"inputs": ' + b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"inputs": [{"name": 1}]}', json.dumps({"inputs": NAMED, "id": 1}).encode(), json.dumps({"inputs": NAMED * 2}).encode(), json.dumps({"inputs": NAMED}).replace("0.4", "NaN").encode(), json.dumps({"inputs": NAMED}).replace("0.4", "1e999").encode(), json.dumps({"inputs": NAMED}).replace("UA", "\\ud800").encode()])
def test_what_is_no_request_is_refused(server, body):
    status, told = post(server[0]["http"], INFER, body)
    assert status in (400, 422) and set(json.loads(told)) == {"error"}


def test_answers_are_always_numbers(server):
    """A float can be so large that the network overflows."""
    address = server[0]["http"]
    for value in (3e38, -3e38, 1e30, 1e-45):
        header = json.dumps({"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}, {"name": "codes", "datatype": "INT64", "shape": [1, 1], "data": [0]}]}).encode()
        status, body = post(address, INFER, header)
        assert status == 422 or 0 <= json.loads(body)["outputs"][0]["data"][0] <= 1, (value, body)
        named = [NAMED[0], NAMED[1] | {"data": [value]}, NAMED[2]]
        status, body = post(address, INFER, json.dumps({"inputs": named}).encode())
        assert status == 422 or 0 <= json.loads(body)["outputs"][0]["data"][0] <= 1, (value, body)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
TENSORS = st.fixed_dictionaries({
    "name": st.sampled_from([*COLUMNS, "numbers", "codes", "other"]), "datatype": st.sampled_from(["FP32", "FP64", "FP16", "INT64", "INT8", "UINT64", "BOOL", "BYTES", "BF16"]),
    "shape": st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63, 2**70]), max_size=3),
}, optional={"data": st.lists(VALUES, max_size=4), "parameters": st.none() | st.dictionaries(st.sampled_from(["binary_data_size", "classification", "shared_memory_region"]), st.integers(-2, 40) | VALUES, max_size=2)})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.lists(TENSORS, max_size=4), rest=st.binary(max_size=40), sized=st.booleans(), shift=st.integers(-3, 3), outputs=st.none() | st.lists(st.fixed_dictionaries({"name": st.sampled_from(["probability", "label", "no"])}, optional={"parameters": st.none() | st.dictionaries(st.sampled_from(["binary_data"]), VALUES)}), max_size=3))
def test_nothing_that_is_sent_is_the_servers_fault(server, tensors, rest, sized, shift, outputs):
    header = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    status, body = post(server[0]["http"], INFER, header + rest * sized, **({"Inference_Header_Content_Length": str(max(0, len(header) + (shift if abs(shift) > 2 else 0)))} if sized else {}))
    assert status in (200, 400, 413, 422) and (status == 200 or set(json.loads(body)) == {"error"}), (status, body)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.lists(TENSORS, max_size=4), raw=st.lists(st.binary(max_size=20), max_size=4), junk=st.binary(max_size=30), which=st.sampled_from(["message", "junk", "both"]))
def test_nothing_that_is_sent_over_grpc_is_either(server, channel, tensors, raw, junk, which):
    message = service_pb2.ModelInferRequest(model_name="made_up", raw_input_contents=raw)
    for tensor in tensors:
        made = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=[size for size in tensor["shape"] if size < 2**63])
        made.contents.int_contents.extend([value for value in tensor.get("data", []) if type(value) is int and abs(value) < 2**31])
    data = {"message": message.SerializeToString(), "junk": junk, "both": message.SerializeToString() + junk}[which]
    try:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data, timeout=20)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server[0]["grpc"]) as found:
        yield found


def test_limits_hold_for_both(small_bundle):
    with serving(small_bundle, limits={"rows": 2, "body_bytes": 4096}) as (addresses, _):
        for kind in TRITON:
            with client(kind, addresses) as one:
                with pytest.raises(InferenceServerException, match="3 rows, and 2"):
                    one.infer("made_up", inputs_of(kind))
                with pytest.raises(InferenceServerException, match="larger than|max"):
                    one.infer("made_up", inputs_of(kind, {name: np.resize(values, 2000) for name, values in COLUMNS.items()}))
                assert one.is_server_live()


def test_who_sends_nothing_holds_no_place(small_bundle):
    with serving(small_bundle, limits={"seconds": 1.0, "in_flight": 3}) as (addresses, _), grpc.insecure_channel(addresses["grpc"]) as idle, client("grpc", addresses) as one:
        waiting = queue.Queue()
        calls = [idle.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(iter(waiting.get, None), timeout=20) for _ in range(3)]
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            for _ in range(100):
                one.is_server_live()
                time.sleep(0.01)
        for call in calls:
            assert call.exception(timeout=10).code() == grpc.StatusCode.DEADLINE_EXCEEDED and "did not come" in call.exception().details()
        assert one.is_server_live()
        for _ in calls:
            waiting.put(None)


def test_an_idle_stream_does_not_keep_the_server(small_bundle):
    told = queue.Queue()
    with serving(small_bundle, server={"port": 0, "drain_seconds": 15.0}) as (addresses, _):
        one = tritongrpc.InferenceServerClient(addresses["grpc"])
        one.start_stream(lambda result, error: told.put(error or result))
        one.async_stream_infer("made_up", inputs_of("grpc"))
        assert told.get(timeout=10).as_numpy("probability").shape == (3,)
        began = time.monotonic()
    assert time.monotonic() - began < 10 and "UNAVAILABLE" in str(told.get(timeout=10))
    one.close()


# The process


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_settings_of_grpc_are_checked(small_bundle):
    for tables in ({"grpc": {"port": -1}}, {"grpc": {"port": 70_000}}, {"grpc": {"prt": 1}}):
        with pytest.raises(InputError):
            all_settings(tables)
    assert all_settings({}).grpc is None and all_settings({"grpc": {}}).grpc == GrpcSettings()


def test_grpc_is_imported_only_where_it_is_spoken():
    code = "import sys, prodml.serve.server, prodml.serve.grpc; print(sorted({'grpc', 'google.protobuf', 'torch', 'pandas', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_process_speaks_both_and_stops_when_told(small_bundle, workers):
    web, remote = free_port(), free_port()
    started = subprocess.Popen([sys.executable, "-m", "prodml.serve.server", str(small_bundle), "--unsigned", "--port", str(web), "--grpc-port", str(remote), "--workers", str(workers)], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        with client("grpc", {"grpc": f"127.0.0.1:{remote}"}) as one:
            for _ in range(200):
                try:
                    if one.is_server_ready():
                        break
                except InferenceServerException:
                    time.sleep(0.1)
            assert one.infer("made_up", inputs_of("grpc")).as_numpy("probability").shape == (3,)
            if workers > 1:
                with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
                    one.load_model("made_up")
        started.send_signal(signal.SIGTERM)
        _, errors = started.communicate(timeout=20)
        assert started.returncode == 0 and "Traceback" not in errors, errors
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
