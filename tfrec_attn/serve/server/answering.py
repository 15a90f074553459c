"""What every gRPC call goes through on its way to the models, as an interceptor."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tfrec_attn.serve.server import incoming
from tfrec_attn.serve.server.admission import Admission
from tfrec_attn.serve.server.metrics import Metrics
from tfrec_attn.serve.server.servable import ServingError, invalid

_OURS = "/tensorflow.serving."
# Those that TF Serving counts.
_COUNTED = ("Predict", "Classify", "Regress")
# Bytes, as in TF Serving; gRPC refuses an answer whose status is much longer.
_DETAILS = 1024


class Answering(grpc.ServerInterceptor):
    """Reads the message, lets the call in, sets what it is, and counts it.

    Args:
      admission: Who may run. Calls of other services (health, reflection) always may.
      metrics: Where it is counted.
    """

    def __init__(self, admission: Admission, metrics: Metrics):
        self._admission = admission
        self._metrics = metrics

    def intercept_service(self, continuation, handler_call_details):
        """Wraps the handlers of the serving protocol."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        api = method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            functools.partial(self._answer, api, handler),
            response_serializer=handler.response_serializer,
        )

    def _answer(self, api: str, handler: Any, message: bytes, context: Any) -> Any:
        started, model = time.perf_counter(), ""
        left = context.time_remaining()
        call = incoming.Call(api, math.inf if left is None else time.monotonic() + left)
        try:
            with self._admission.admit(call), incoming.answering(call):
                request = _read(handler.request_deserializer, message)
                model = request.model_spec.name if api in _COUNTED else ""
                response = handler.unary_unary(request, context)
            if api in _COUNTED:
                spent = (time.perf_counter() - started) * 1e6
                self._metrics.request_latency.add(spent, model, api, "GRPC")
            return response
        except ServingError as error:
            context.abort(error.code, shortened(error.message))
        finally:
            if api in _COUNTED:
                code = context.code() or grpc.StatusCode.OK
                self._metrics.request_count.add(model, code.name)


def shortened(message: str) -> str:
    """A message that fits into a status, though it quotes what the caller sent."""
    start = message.encode("utf-8", "replace")[: _DETAILS + 1]
    if len(start) <= _DETAILS:
        return message
    return start[:_DETAILS].decode("utf-8", "ignore") + "...TRUNCATED"


def _read(deserializer: Callable[[bytes], Any], message: bytes) -> Any:
    # gRPC itself would call it an INTERNAL error.
    try:
        return deserializer(message)
    except DecodeError as error:
        raise invalid(f"The message cannot be read: {error}") from error
