"""Load, limits, TLS and metrics on open sockets; slow models wait for an event."""

import concurrent.futures
import contextlib
import dataclasses
import json
import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import trustme
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import model_server, saved_model, tls
from tfrec_attn.serve.server import sockets as server
from tfrec_attn.serve.server.metrics import PATH
from tfrec_attn.serve.server.options import Options

BODY = {"instances": [{"a": 2, "b": 5}]}
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Held:
    """A loader whose models count their calls and answer once they may."""

    def __init__(self):
        self.running, self.go = threading.Semaphore(0), threading.Event()
        self.calls = 0

    def __call__(self, path, version):
        loaded = saved_model.load(path, version)

        def product(arrays):
            self.calls += 1
            self.running.release()
            assert self.go.wait(10)
            return loaded.calls["serving_default"](arrays)

        return dataclasses.replace(loaded, calls={"serving_default": product})


@pytest.fixture
def held():
    made = Held()
    yield made
    made.go.set()


@contextlib.contextmanager
def serving(base, load=saved_model.load, **options):
    """A server on free ports: its gRPC address, its REST address, itself."""
    models = model_server.ModelServer([model_server.Model("toy", base, load)])
    models.poll()
    running = server.start(models, "127.0.0.1", 0, 0, Options(**options))
    try:
        yield (
            f"127.0.0.1:{running.grpc_port}",
            f"http://127.0.0.1:{running.rest_port}",
            running,
        )
    finally:
        running.stop(grace=5)


def request(a=2.0, b=5.0):
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "toy"
    for name, value in (("a", a), ("b", b)):
        tensors.write(np.array([value], np.float32), made.inputs[name], packed=False)
    return made


def predict(channel, made=None, timeout=10):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    answer = stub.Predict(made or request(), timeout=timeout)
    return list(answer.outputs["product"].float_val)


def code_of(call, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code(), caught.value.details()


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(16) as made:
        yield made


def test_grpc_calls_past_the_limit_are_refused_and_the_others_answered(toy, held, pool):
    with (
        serving(toy, held, grpc_max_threads=2, waiting=1) as (target, _, _),
        grpc.insecure_channel(target) as channel,
    ):
        jobs = [pool.submit(predict, channel) for _ in range(4)]
        done, rest = concurrent.futures.wait(
            jobs, 10, return_when=concurrent.futures.FIRST_COMPLETED
        )
        (refused,) = done
        assert refused.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.exception().details() == "Server Threadpool Exhausted"
        held.go.set()
        assert [job.result(10) for job in rest] == [[10.0]] * 3
    assert held.calls == 3


def test_rest_calls_past_the_limit_are_429_and_the_others_answered(toy, held, pool):
    with serving(toy, held, rest_threads=2, waiting=1) as (_, base, _):
        url = f"{base}/v1/models/toy:predict"
        jobs = [pool.submit(httpx.post, url, json=BODY, timeout=10) for _ in range(4)]
        done, rest = concurrent.futures.wait(
            jobs, 10, return_when=concurrent.futures.FIRST_COMPLETED
        )
        (refused,) = done
        assert refused.result().status_code == 429
        assert refused.result().json() == {"error": "Server Threadpool Exhausted"}
        held.go.set()
        assert [job.result(10).json() for job in rest] == [{"predictions": [10.0]}] * 3


def test_a_grpc_call_whose_deadline_passes_in_the_queue_never_runs(toy, held, pool):
    with (
        serving(toy, held, grpc_max_threads=1) as (target, _, _),
        grpc.insecure_channel(target) as channel,
    ):
        first = pool.submit(predict, channel)
        assert held.running.acquire(timeout=10)
        code, _ = code_of(predict, channel, timeout=0.1)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        held.go.set()
        assert first.result(10) == [10.0]
    assert held.calls == 1


def test_a_rest_call_past_its_time_is_504_and_one_that_waited_never_runs(toy, held, pool):
    with serving(toy, held, rest_threads=1, rest_timeout=0.2) as (_, base, _):
        url = f"{base}/v1/models/toy:predict"
        first = pool.submit(httpx.post, url, json=BODY, timeout=10)
        assert held.running.acquire(timeout=10)
        second = httpx.post(url, json=BODY, timeout=10)
        for answer in (first.result(10), second):
            assert answer.status_code == 504
            assert "Run() timeout exceeded" in answer.json()["error"]
        held.go.set()
    assert held.calls == 1


def test_slow_clients_do_not_hold_up_others(toy):
    """More of them than threads: half a header, half a body, a call without a message."""
    with (
        serving(toy, grpc_max_threads=1, rest_threads=1) as (target, base, running),
        contextlib.ExitStack() as stack,
        grpc.insecure_channel(target) as channel,
    ):
        half_body = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1"
        for sent in (b"POST /v1/models/toy", half_body) * 5:
            slow = socket.create_connection(("127.0.0.1", running.rest_port))
            stack.enter_context(slow).sendall(sent)
        forever, stuck = threading.Event(), []
        for _ in range(5):
            call = channel.stream_unary(PREDICT)

            def messages():
                forever.wait(10)
                yield from ()

            stuck.append(call.future(messages()))
        assert predict(channel) == [10.0]
        url = f"{base}/v1/models/toy:predict"
        assert httpx.post(url, json=BODY).json() == {"predictions": [10.0]}
        forever.set()
        for call in stuck:
            call.cancel()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/models/toy HTTP/1.1\r\nhost:", b""),
        (b"", b""),
        (b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1", b"HTTP/1.1 408"),
    ],
)
def test_a_request_that_does_not_arrive_in_time_is_given_up(toy, sent, status):
    with (
        serving(toy, rest_timeout=0.2) as (_, _, running),
        socket.create_connection(("127.0.0.1", running.rest_port), timeout=10) as slow,
    ):
        slow.sendall(sent)
        answer = b""
        # A closed connection reads as no bytes, or as reset.
        with contextlib.suppress(ConnectionResetError):
            while part := slow.recv(4096):
                answer += part
    assert answer[:12] == status


def test_a_body_past_the_limit_is_413(toy):
    with serving(toy, rest_bytes=100) as (_, base, _):
        url = f"{base}/v1/models/toy:predict"
        assert httpx.post(url, json=BODY).status_code == 200
        chunks = lambda: iter([b"x" * 60] * 2)
        for content in (b"x" * 101, chunks()):
            answer = httpx.post(url, content=content)
            assert answer.status_code == 413
            assert answer.json() == {"error": "The body has more than 100 bytes."}


def test_a_grpc_message_past_its_channel_argument_is_refused(toy):
    arguments = (("grpc.max_receive_message_length", 1000),)
    with (
        serving(toy, grpc_channel_arguments=arguments) as (target, _, _),
        grpc.insecure_channel(target) as channel,
    ):
        assert predict(channel) == [10.0]
        large = request()
        large.model_spec.version_label = "x" * 1000
        code, details = code_of(predict, channel, large)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (1" in details


@pytest.mark.parametrize("message", [b"\xff\xff", b"\x0a\x05abc"])
def test_a_message_that_is_none_is_the_callers_mistake(toy_live, message):
    with grpc.insecure_channel(f"127.0.0.1:{toy_live.grpc_port}") as channel:
        code, details = code_of(channel.unary_unary(PREDICT), message, timeout=10)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "The message cannot be read" in details


def test_an_error_that_quotes_a_long_text_still_arrives(toy_live):
    long = request()
    long.model_spec.name = "ü" * 9999
    with grpc.insecure_channel(f"127.0.0.1:{toy_live.grpc_port}") as channel:
        code, details = code_of(predict, channel, long)
    assert code == grpc.StatusCode.NOT_FOUND
    assert details.startswith("Servable not found for request: Latest(üü")
    assert details.endswith("ü...TRUNCATED")
    assert len(details.encode()) <= 1024 + len("...TRUNCATED")


def test_a_unix_socket(toy, tmp_path):
    path = str(tmp_path / "s")
    with (
        serving(toy, grpc_socket_path=path),
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        assert predict(channel) == [10.0]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ssl_config(authority, tmp_path):
    """The file, for a server that is called localhost."""
    made = authority.issue_cert("localhost")
    text = {
        "server_key": made.private_key_pem.bytes(),
        "server_cert": b"".join(blob.bytes() for blob in made.cert_chain_pems),
        "custom_ca": authority.cert_pem.bytes(),
    }

    def write(verify, **changed):
        fields = {name: pem.decode() for name, pem in text.items()} | changed
        lines = [f"{name}: {json.dumps(pem)}" for name, pem in fields.items()]
        lines.append(f"client_verify: {json.dumps(verify)}")
        (tmp_path / "ssl.txt").write_text("\n".join(lines))
        return tmp_path / "ssl.txt"

    return write


def test_tls_takes_clients_that_trust_the_authority(toy, authority, ssl_config):
    credentials = tls.credentials(ssl_config(verify=False), "--ssl_config_file")
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with serving(toy, credentials=credentials) as (_, _, running):
        target = f"localhost:{running.grpc_port}"
        with grpc.secure_channel(target, trusting) as channel:
            assert predict(channel) == [10.0]
        with grpc.insecure_channel(target) as channel:
            assert code_of(predict, channel)[0] == grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_takes_only_clients_the_authority_signed(toy, authority, ssl_config):
    credentials = tls.credentials(ssl_config(verify=True), "--ssl_config_file")
    root = authority.cert_pem.bytes()

    def client(signer):
        made = signer.issue_cert("client")
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return grpc.ssl_channel_credentials(root, made.private_key_pem.bytes(), chain)

    refused = [grpc.ssl_channel_credentials(root), client(trustme.CA())]
    with serving(toy, credentials=credentials) as (_, _, running):
        target = f"localhost:{running.grpc_port}"
        with grpc.secure_channel(target, client(authority)) as channel:
            assert predict(channel) == [10.0]
        for stranger in refused:
            with grpc.secure_channel(target, stranger) as channel:
                assert code_of(predict, channel)[0] == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"server_key": ""}, "server_key is missing: it must hold the PEM text"),
        ({"server_cert": "/etc/cert.pem"}, "server_cert must hold the PEM text itself"),
        ({"custom_ca": ""}, "client_verify needs custom_ca"),
        ({"custom_ca": "-----BEGIN CERTIFICATE-----\nx"}, "custom_ca is no certificate"),
        (
            {"server_key": trustme.CA().issue_cert("x").private_key_pem.bytes().decode()},
            "server_key and server_cert are no pair .*: .*KEY_VALUES_MISMATCH",
        ),
    ],
)
def test_a_mistake_in_the_tls_file_is_named(ssl_config, changed, message):
    path = ssl_config(verify=True, **changed)
    with pytest.raises(ValueError, match=f"--ssl_config_file: {path}: {message}"):
        tls.credentials(path, "--ssl_config_file")


def test_metrics_count_what_was_asked(toy):
    with (
        serving(toy, metrics_path=PATH) as (target, base, _),
        grpc.insecure_channel(target) as channel,
    ):
        predict(channel)
        code_of(predict, channel, predict_pb2.PredictRequest(model_spec={}))
        httpx.post(f"{base}/v1/models/toy:predict", json=BODY)
        httpx.post(f"{base}/v1/models/toy:predict", content=b"{")
        httpx.get(f"{base}/v1/models/nobody")
        page = httpx.get(base + PATH)
    assert page.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if "le" not in sample.labels
    }
    counted = {key[1:]: n for key, n in found.items() if "request_count" in key[0]}
    assert counted == {
        ("OK", "toy"): 2,
        ("", "INVALID_ARGUMENT"): 1,
        ("INVALID_ARGUMENT", "toy"): 1,
        ("NOT_FOUND", "nobody"): 1,
    }
    latency = ":tensorflow:serving:request_latency_count"
    assert found[latency, "GRPC", "Predict", "toy"] == 1
    assert found[latency, "REST", "predict", "toy"] == 1


def test_metrics_are_nowhere_unless_they_are_enabled(toy_live):
    answer = httpx.get(f"http://127.0.0.1:{toy_live.rest_port}{PATH}")
    assert answer.status_code == 404


def test_cors(toy):
    preflight = {"origin": "https://shop.example"}
    with serving(toy, cors=True) as (_, base, _):
        url = f"{base}/v1/models/toy:predict"
        for answer in (
            httpx.options(url, headers=preflight),
            httpx.post(url, json=BODY),
            httpx.post(url, content=b"{"),
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["access-control-allow-methods"] == "POST, GET"
            assert answer.headers["access-control-allow-headers"] == "Content-Type"
        assert httpx.options(url).status_code == 400
    with serving(toy) as (_, base, _):
        answer = httpx.options(f"{base}/v1/models/toy:predict", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers


def test_reflection_names_services_and_their_messages(toy_live):
    with grpc.insecure_channel(f"127.0.0.1:{toy_live.grpc_port}") as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
        assert {
            "tensorflow.serving.PredictionService",
            "tensorflow.serving.ModelService",
            "grpc.health.v1.Health",
        } <= set(known.get_services())
        file = known.FindFileContainingSymbol("tensorflow.serving.PredictionService")
        assert isinstance(file, descriptor_pb2.FileDescriptorProto)
        assert "Predict" in {method.name for method in file.service[0].method}


def test_health_may_be_left_out(toy):
    with (
        serving(toy, grpc_health=False) as (target, _, _),
        grpc.insecure_channel(target) as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        code, _ = code_of(check, health_pb2.HealthCheckRequest(), timeout=10)
    assert code == grpc.StatusCode.UNIMPLEMENTED


def test_a_drain_says_so_first_and_does_not_wait_for_who_watches(toy, held, pool):
    """A watcher hears NOT_SERVING while a call still runs; the server ends after that."""
    states = health_pb2.HealthCheckResponse
    with (
        serving(toy, held) as (target, _, running),
        grpc.insecure_channel(target) as channel,
    ):
        running.set_ready(True)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == states.SERVING
        call = pool.submit(predict, channel)
        assert held.running.acquire(timeout=10)
        started = time.monotonic()
        stopping = pool.submit(running.stop, 60)
        assert next(watch).status == states.NOT_SERVING
        assert not call.done()
        held.go.set()
        assert call.result(10) == [10.0]
        stopping.result(30)
        assert time.monotonic() - started < 30
