"""The two sockets: gRPC and REST in front of one `ModelServer`."""

import concurrent.futures
import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import starlette.concurrency
import starlette.requests
import starlette.responses
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrec_attn.serve import profiler, rest
from tfrec_attn.serve.model_server import ModelServer
from tfrec_attn.serve.servable import ServingError

NAME = "tfrec_attn.serve"
_log = logging.getLogger(__name__)
# Threads wait on the model, which runs outside the interpreter's lock.
_THREADS = max(8, 4 * (os.cpu_count() or 1))
_OPTIONS = [
    # Off: with it a second server on a busy port would start and take half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
      grpc_port: Where gRPC listens.
      rest_port: Where REST listens.
    """

    grpc_port: int
    rest_port: int
    _grpc: grpc.Server
    _health: health.HealthServicer
    _rest: uvicorn.Server
    _rest_thread: threading.Thread

    def set_ready(self, ready: bool) -> None:
        """What the health service says; before the first call it says NOT_SERVING."""
        states = health_pb2.HealthCheckResponse
        self._health.set("", states.SERVING if ready else states.NOT_SERVING)

    def stop(self, grace: float = 30.0) -> None:
        """Takes no new calls, lets the running ones finish, then closes.

        Args:
          grace: Seconds that a running call may still take.
        """
        self._health.enter_graceful_shutdown()
        self._rest.config.timeout_graceful_shutdown = int(grace)
        self._rest.should_exit = True
        self._grpc.stop(grace).wait()
        self._rest_thread.join(grace)


def start(
    models: ModelServer,
    host: str,
    port: int,
    rest_api_port: int,
    *,
    profiling: bool = False,
) -> Running:
    """Opens both ports; models may still be loading.

    Args:
      models: Who answers.
      host: Address to listen on.
      port: For gRPC; 0 takes a free one.
      rest_api_port: For REST; 0 takes a free one.
      profiling: Whether gRPC also serves the profiler.

    Raises:
      OSError: A port is busy or may not be opened.
    """
    rest_socket = _listen(host, rest_api_port)
    try:
        grpc_server, health_servicer, grpc_port = _start_grpc(models, host, port, profiling)
    except OSError:
        rest_socket.close()
        raise
    rest_server, thread = _start_rest(models, rest_socket)
    running = Running(
        grpc_port,
        rest_socket.getsockname()[1],
        grpc_server,
        health_servicer,
        rest_server,
        thread,
    )
    running.set_ready(False)
    return running


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(
            _refused("REST", f"{host}:{port}", error.strerror, "--rest_api_port")
        ) from error
    # Accepted sockets inherit it. asyncio sets it only where the protocol is spelt out;
    # without it every answer on a kept connection waits 40 ms for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _refused(protocol: str, address: str, why: str | None, flag: str) -> str:
    # Where the address is wrong too, Python repeats it behind the reason.
    why = (why or "no reason given").partition(" (")[0]
    return (
        f"cannot serve {protocol} on {address}: {why}. "
        f"Choose another port with {flag} (0 takes a free one), or stop what listens there."
    )


def _start_grpc(
    models: ModelServer, host: str, port: int, profiling: bool
) -> tuple[grpc.Server, health.HealthServicer, int]:
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
    server = grpc.server(pool, options=_OPTIONS)
    server.add_generic_rpc_handlers(_services(models))
    if profiling:
        method = _method(profiler.profile, profiler.ProfileRequest)
        server.add_registered_method_handlers(profiler.SERVICE, {"Profile": method})
    health_servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(
            _refused("gRPC", address, "Address already in use", "--port")
        ) from error
    server.start()
    return server, health_servicer, bound


def _services(models: ModelServer) -> list[grpc.GenericRpcHandler]:
    metadata, status = get_model_metadata_pb2, get_model_status_pb2
    classification, regression = classification_pb2, regression_pb2
    inference, reload = inference_pb2, model_management_pb2
    prediction = {
        "Predict": _method(models.predict, predict_pb2.PredictRequest),
        "Classify": _method(models.classify, classification.ClassificationRequest),
        "Regress": _method(models.regress, regression.RegressionRequest),
        "MultiInference": _method(models.multi_inference, inference.MultiInferenceRequest),
        "GetModelMetadata": _method(models.metadata, metadata.GetModelMetadataRequest),
    }
    management = {
        "GetModelStatus": _method(models.status, status.GetModelStatusRequest),
        "HandleReloadConfigRequest": _method(models.reload, reload.ReloadConfigRequest),
    }
    handlers = grpc.method_handlers_generic_handler
    return [
        handlers("tensorflow.serving.PredictionService", prediction),
        handlers("tensorflow.serving.ModelService", management),
    ]


def _method(call: Callable, request_class: Any) -> grpc.RpcMethodHandler:
    def answer(request, context: grpc.ServicerContext):
        try:
            return call(request)
        except ServingError as error:
            code, message = error.code, error.message
        # A fault of ours must still reach the caller as a status.
        except Exception as error:
            _log.exception("a gRPC call failed")
            code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        return context.abort(code, message)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_class.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _start_rest(
    models: ModelServer, listening: socket.socket
) -> tuple[uvicorn.Server, threading.Thread]:
    config = uvicorn.Config(
        _application(models),
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        headers=[("server", NAME)],
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="rest", daemon=True
    )
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise OSError("the REST interface did not start; its log says why.")
        time.sleep(0.005)
    return server, thread


def _application(models: ModelServer) -> Callable:
    """The ASGI application: `rest.respond` with a body to read and one to send."""

    async def application(scope, receive, send) -> None:
        request = starlette.requests.Request(scope, receive)
        try:
            body = await request.body()
        except starlette.requests.ClientDisconnect:
            return
        answer = await starlette.concurrency.run_in_threadpool(
            rest.respond, models, request.method, scope["raw_path"].decode("latin-1"), body
        )
        response = starlette.responses.Response(
            answer.body, answer.status, media_type="application/json"
        )
        await response(scope, receive, send)

    return application
