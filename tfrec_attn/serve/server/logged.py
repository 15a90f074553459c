"""A `ModelServer` whose predictions are offered to a request log."""

import time
from collections.abc import Iterable
from typing import Any, cast

from tensorflow_serving.apis import model_pb2

from tfrec_attn.serve.server.model_server import ModelServer
from tfrec_attn.serve.server.request_log import KEPT_OUTPUTS, Entry, RequestLog
from tfrec_attn.serve.server.servable import DEFAULT_SIGNATURE, Arrays, Servable


class LoggedServable:
    """A servable whose answers are offered to a log."""

    def __init__(self, servable: Servable, model: str, log: RequestLog):
        self._servable, self._model, self._requests = servable, model, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servable, name)

    def run(self, signature: str, inputs: Arrays, only: Iterable[str] = ()) -> dict:
        """See `Servable.run`; what raises is not logged."""
        now, started = time.time(), time.perf_counter()
        outputs = self._servable.run(signature, inputs, only)
        seconds = time.perf_counter() - started
        name = signature or DEFAULT_SIGNATURE
        version = self._servable.version
        kept = {name: outputs[name] for name in KEPT_OUTPUTS if name in outputs}
        self._requests.offer(Entry(now, self._model, version, name, inputs, kept, seconds))
        return outputs


class LoggedModelServer(ModelServer):
    """A `ModelServer` whose predictions are logged, over gRPC and REST alike."""

    def __init__(self, *args, log: RequestLog, **kwargs):
        super().__init__(*args, **kwargs)
        self._requests = log

    def find(self, spec: model_pb2.ModelSpec) -> Servable:
        """See `ModelServer.find`."""
        found = LoggedServable(super().find(spec), spec.name, self._requests)
        return cast(Servable, found)
