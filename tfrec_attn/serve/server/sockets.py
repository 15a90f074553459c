"""The sockets: gRPC and REST in front of one `ModelServer`."""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrec_attn.serve.server import profiler
from tfrec_attn.serve.server.admission import Admission
from tfrec_attn.serve.server.answering import Answering, shortened
from tfrec_attn.serve.server.model_server import ModelServer
from tfrec_attn.serve.server.options import Options
from tfrec_attn.serve.server.rest_server import RestServer
from tfrec_attn.serve.server.servable import ServingError

_log = logging.getLogger(__name__)
_PREDICTION = "tensorflow.serving.PredictionService"
_MANAGEMENT = "tensorflow.serving.ModelService"
# A call whose message is still to come holds a thread of gRPC, but none of those that may
# run: so many slow clients hold up nobody else.
_SLOW_CALLS = 1024
# Seconds for the last answers to be sent.
_FLUSH = 1.0
_OPTIONS = {
    # Off: with it a second server on a busy port would start and take half the calls.
    "grpc.so_reuseport": 0,
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
}


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
    _admission: Admission
    _rest: RestServer

    def set_ready(self, ready: bool) -> None:
        """What the health service says; before the first call it says NOT_SERVING."""
        states = health_pb2.HealthCheckResponse
        for service in ("", _PREDICTION, _MANAGEMENT, "PredictionService", "ModelService"):
            self._health.set(service, states.SERVING if ready else states.NOT_SERVING)

    def stop(self, grace: float = 30.0) -> None:
        """Takes no new calls, lets the running ones finish, then closes.

        Args:
          grace: Seconds that a running call may still take.
        """
        end = time.monotonic() + grace
        self._health.enter_graceful_shutdown()
        self._rest.begin_stop(grace)
        closed = self._grpc.stop(grace)
        # Who watches the health would keep the server open until the grace is over.
        self._admission.wait_until_idle(grace)
        if not closed.wait(_FLUSH):
            self._grpc.stop(None)
        self._rest.join(max(0.0, end - time.monotonic()))


def start(
    models: ModelServer,
    host: str,
    port: int,
    rest_api_port: int,
    options: Options | None = None,
) -> Running:
    """Opens the sockets; models may still be loading.

    Args:
      models: Who answers.
      host: Address to listen on.
      port: For gRPC; 0 takes a free one.
      rest_api_port: For REST; 0 takes a free one.
      options: Limits, TLS, metrics, the profiler.

    Raises:
      OSError: A port is busy or may not be opened.
    """
    options = options or Options()
    rest_socket = _listen(host, rest_api_port)
    admission = Admission(options.grpc_max_threads, options.waiting)
    try:
        grpc_server, health_servicer, grpc_port = _start_grpc(
            models, host, port, options, admission
        )
    except OSError:
        rest_socket.close()
        raise
    running = Running(
        grpc_port,
        rest_socket.getsockname()[1],
        grpc_server,
        health_servicer,
        admission,
        RestServer(models, rest_socket, options),
    )
    running.set_ready(False)
    return running


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise _refused(
            "REST", f"{host}:{port}", error.strerror, "--rest_api_port"
        ) from error
    # Accepted sockets inherit it. asyncio sets it only where the protocol is spelt out;
    # without it every answer on a kept connection waits 40 ms for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _refused(protocol: str, address: str, why: str | None, flag: str) -> OSError:
    # Where the address is wrong too, Python repeats it behind the reason.
    why = (why or "no reason given").partition(" (")[0]
    free = " (0 takes a free one)" if flag.endswith("port") else ""
    return OSError(
        f"cannot serve {protocol} on {address}: {why}. "
        f"Choose another {flag.rpartition('_')[2].removeprefix('--')} with {flag}{free}, "
        "or stop what listens there."
    )


def _start_grpc(
    models: ModelServer, host: str, port: int, options: Options, admission: Admission
) -> tuple[grpc.Server, health.HealthServicer, int]:
    threads = options.grpc_max_threads + options.waiting + _SLOW_CALLS
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        handlers=_services(models),
        interceptors=[Answering(admission, options.metrics)],
        # Of two arguments of one name gRPC takes the first.
        options=list({**_OPTIONS, **dict(options.grpc_channel_arguments)}.items()),
        maximum_concurrent_rpcs=threads,
    )
    if options.profiling:
        method = _method(profiler.profile, profiler.ProfileRequest)
        server.add_registered_method_handlers(profiler.SERVICE, {"Profile": method})
    health_servicer = health.HealthServicer()
    names = [_PREDICTION, _MANAGEMENT, reflection.SERVICE_NAME]
    if options.grpc_health:
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        names.append(health.SERVICE_NAME)
    _load_descriptors()
    reflection.enable_server_reflection(names, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    bound = _bind(server, address, options.credentials, "--port")
    if options.grpc_socket_path:
        path = f"unix:{options.grpc_socket_path}"
        _bind(server, path, options.credentials, "--grpc_socket_path")
    server.start()
    return server, health_servicer, bound


def _load_descriptors() -> None:
    """Makes the services known to protobuf, from where reflection answers."""
    for module in ("prediction_service_pb2", "model_service_pb2"):
        # They do so, and then set an attribute that protobuf has made read-only.
        with contextlib.suppress(AttributeError):
            importlib.import_module(f"tensorflow_serving.apis.{module}")


def _bind(
    server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None, flag: str
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _refused("gRPC", address, "Address already in use", flag) from error


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
    return [handlers(_PREDICTION, prediction), handlers(_MANAGEMENT, management)]


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
        return context.abort(code, shortened(message))

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request_class.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
