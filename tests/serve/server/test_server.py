import concurrent.futures
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import grpc
import httpx
import numpy as np
import pytest
import toys
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfrec_attn.serve import __main__ as command
from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import model_server, saved_model
from tfrec_attn.serve.server import sockets as server


def request(signature="", a=2.0, b=5.0):
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "toy"
    made.model_spec.signature_name = signature
    tensors.write(np.array([a], np.float32), made.inputs["a"], packed=False)
    tensors.write(np.array([b], np.float32), made.inputs["b"], packed=False)
    return made


@pytest.fixture
def channel(toy_live):
    with grpc.insecure_channel(f"127.0.0.1:{toy_live.grpc_port}") as opened:
        yield opened


def test_the_official_stubs_are_answered(channel):
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    answer = predictions.Predict(request(), timeout=5)
    assert list(answer.outputs["product"].float_val) == [10.0]
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "toy"
    assert "signature_def" in predictions.GetModelMetadata(asked, timeout=5).metadata
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "toy"
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    (version,) = models.GetModelStatus(status, timeout=5).model_version_status
    assert version.version == 1


def test_mistakes_arrive_as_statuses(channel):
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError, match='key "x" not found') as caught:
        predictions.Predict(request("x"), timeout=5)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError, match="Missing ModelSpec") as caught:
        predictions.Regress(regression_pb2.RegressionRequest(), timeout=5)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="Only ModelConfigList") as caught:
        models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_past_the_usual_limit_of_4_mb(channel):
    many = np.ones(2_000_003, np.float32)
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "toy"
    made.model_spec.signature_name = "total"
    tensors.write(many, made.inputs["a"], packed=True)
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    answer = predictions.Predict(made, timeout=5)
    assert list(answer.outputs["total"].float_val) == [2_000_003.0]


def test_rest_over_http(toy_live):
    base = f"http://127.0.0.1:{toy_live.rest_port}/v1/models"
    good = httpx.post(f"{base}/toy:predict", json={"instances": [{"a": 2, "b": 5}]})
    assert (good.status_code, good.json()) == (200, {"predictions": [10.0]})
    assert good.headers["content-type"] == "application/json"
    assert good.headers["server"] == "tfrec_attn.serve"
    wrong = httpx.post(f"{base}/toy:predict", content=b"{")
    assert (wrong.status_code, list(wrong.json())) == (400, ["error"])
    assert wrong.headers["content-type"] == "application/json"
    assert httpx.get(f"{base}/toy?x=1").status_code == 200
    assert httpx.put(f"{base}/toy").status_code == 400
    assert httpx.get(base.removesuffix("/v1/models")).status_code == 404


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(toy_live):
    url = f"http://127.0.0.1:{toy_live.rest_port}/v1/models/toy:predict"
    with httpx.Client() as client:
        times = [
            client.post(url, json={"instances": [{"a": 2, "b": 5}]}).elapsed.total_seconds()
            for _ in range(20)
        ]
    # Such a wait takes 40 ms, each time; an answer a few.
    assert min(times[5:]) < 0.03


def test_health_follows_the_models(tmp_path):
    with (
        toys.live(tmp_path, "toy") as (running, models),
        grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        check = lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status
        assert check() == health_pb2.HealthCheckResponse.NOT_SERVING
        toys.save_toy(tmp_path / "1")
        models.poll()
        running.set_ready(models.ready)
        assert check() == health_pb2.HealthCheckResponse.SERVING


def test_versions_are_swapped_under_load_without_a_failed_or_mixed_answer(tmp_path):
    """Version v multiplies by v: an answer must fit the version that it names."""
    toys.save_toy(tmp_path / "1", factor=1)
    for version in (2, 3):
        toys.save_toy(tmp_path / f"later-{version}", factor=version)
    with toys.live(tmp_path, "toy") as (running, models):
        wrong, seen, stop = [], set(), threading.Event()

        def over_grpc():
            with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                while not stop.is_set():
                    answer = stub.Predict(request(), timeout=5)
                    version = answer.model_spec.version.value
                    seen.add(version)
                    if list(answer.outputs["product"].float_val) != [10.0 * version]:
                        wrong.append(answer)

        def over_rest():
            url = f"http://127.0.0.1:{running.rest_port}/v1/models/toy:predict"
            body = {"instances": [{"a": 2, "b": 5}]}
            with httpx.Client() as client:
                while not stop.is_set():
                    answer = client.post(url, json=body)
                    if answer.json()["predictions"][0] not in (10.0, 20.0, 30.0):
                        wrong.append(answer)

        def guarded(work):
            try:
                work()
            except Exception as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=guarded, args=(work,))
            for work in (over_grpc, over_rest) * 2
        ]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            (tmp_path / f"later-{version}").rename(tmp_path / f"{version}")
            models.poll()
            stop.wait(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert 3 in seen


def test_stopping_lets_running_calls_finish(toy):
    """Both protocols hold a call that ends only after the stop was asked for."""
    held, release = threading.Semaphore(0), threading.Event()

    def slow(path, version):
        loaded = saved_model.load(path, version)

        def product(arrays):
            held.release()
            release.wait(10)
            return loaded.calls["serving_default"](arrays)

        return dataclasses.replace(loaded, calls={"serving_default": product})

    models = model_server.ModelServer([model_server.Model("toy", toy, slow)])
    models.poll()
    running = server.start(models, "127.0.0.1", 0, 0)
    with (
        grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        url = f"http://127.0.0.1:{running.rest_port}/v1/models/toy:predict"
        body = {"instances": [{"a": 2, "b": 5}]}
        over_grpc = pool.submit(stub.Predict, request(), timeout=10)
        over_rest = pool.submit(httpx.post, url, json=body, timeout=10)
        assert held.acquire(timeout=10)
        assert held.acquire(timeout=10)
        stopping = pool.submit(running.stop, 10)
        with pytest.raises(concurrent.futures.TimeoutError):
            stopping.result(0.3)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        release.set()
        assert list(over_grpc.result(10).outputs["product"].float_val) == [10.0]
        assert over_rest.result(10).json() == {"predictions": [10.0]}
        stopping.result(10)


def test_a_look_that_fails_is_not_the_last(caplog):
    """The watch goes on, or the server would serve an old version for ever, unseen."""
    stop, looks, told = threading.Event(), [], []

    class Models:
        ready = False

        def poll(self):
            looks.append(1)
            if len(looks) == 1:
                raise FileNotFoundError("gone while it was read")
            self.ready = True
            stop.set()

    class Running:
        def set_ready(self, ready):
            told.append(ready)

    command.watch(Models(), Running(), 0.001, stop)
    assert told == [False, True]
    assert "could not look for new versions: gone while it was read" in caplog.text


@pytest.mark.parametrize("which", ["gRPC", "REST"])
def test_a_busy_port_is_one_line_and_status_2(which, toy, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"gRPC": [port, "0"], "REST": ["0", port]}[which]
        flags = [
            "--model_base_path",
            str(toy),
            "--port",
            ports[0],
            "--rest_api_port",
            ports[1],
        ]
        assert command.main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"tfrec_attn.serve: cannot serve {which} on 127.0.0.1:{port}: ")


def test_a_port_that_would_be_shared_is_busy_too():
    """Or a second server would start, and the system deal each of them half the calls."""
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken,
        pytest.raises(
            OSError, match=r"Address already in use\. Choose another port with --"
        ),
    ):
        server.start(model_server.ModelServer([]), "127.0.0.1", taken.getsockname()[1], 0)


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_that_is_none(flag, port, toy, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--model_base_path", str(toy), f"{flag}={port}"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: a port is 0 to 65535: received '{port}'" in last


def test_a_wrong_path_is_one_line_and_status_2(tmp_path, toy, capsys):
    assert command.main(["--model_base_path", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "none is none. Export a model first" in error
    assert error.count("\n") == 1
    assert command.main(["--model_base_path", str(toy / "1")]) == 2
    assert f"Give its parent: --model_base_path {toy}." in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--https_config_file=x", "--rest_api"])
def test_a_flag_that_is_not_served_is_refused(flag, toy, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--model_base_path", str(toy), flag])
    assert caught.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_the_command_from_start_to_sigterm(toy):
    """Free ports are printed, version and name found; SIGTERM ends it with status 0."""
    flags = [f"--model_base_path={toy}", "--port=0", "--rest_api_port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfrec_attn.serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"tfrec_attn.serve: gRPC on (.+), REST on (http://.+)\n", line)
        body = {"inputs": {"a": [2], "b": [5]}}
        url = f"{found[2]}/v1/models/toy:predict"
        transport = httpx.HTTPTransport(retries=0)
        with httpx.Client(transport=transport) as client:
            for _ in range(100):
                answer = client.post(url, content=json.dumps(body))
                if answer.status_code != 503:
                    break
                threading.Event().wait(0.1)
        assert answer.json() == {"outputs": [10.0]}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "model toy version 1 ready" in log
    assert "Traceback" not in log
    assert "TF Serving" not in log
