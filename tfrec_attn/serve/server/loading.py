"""How a version is loaded so that its calls are joined and timed."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

from tfrec_attn.serve.server import config_files, incoming, saved_model
from tfrec_attn.serve.server.batching import Batcher, Run, Scheduler
from tfrec_attn.serve.server.batching_parameters import Parameters
from tfrec_attn.serve.server.metrics import Metrics
from tfrec_attn.serve.server.servable import Servable

PER_MODEL_FILE = "batching_params.pbtxt"
# What TF Serving calls a graph that it runs in a session.
_RUNTIME = "TF1"
Load = Callable[[pathlib.Path, int], Servable]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads versions for one server.

    Attributes:
      metrics: Where the time of the models is counted.
      scheduler: Runs batches; None calls the model for each request.
      parameters: Of the batches; needed where there is a scheduler.
      per_model: Whether `parameters` stand in the version's `batching_params.pbtxt`
        instead; a version without that file is not batched.
    """

    metrics: Metrics
    scheduler: Scheduler | None = None
    parameters: Parameters | None = None
    per_model: bool = False

    def of(self, model: str, load: Load = saved_model.load) -> Load:
        """The `load` of a `Model` of this name."""
        return lambda path, version: self._loaded(model, load(path, version), path)

    def _loaded(self, model: str, servable: Servable, path: pathlib.Path) -> Servable:
        parameters = self._parameters(path)
        batched = lambda run: run
        if self.scheduler is not None and parameters is not None:
            batched = Batcher(self.scheduler, parameters).batched
        ready = {
            name: self._timed(model, batched(run)) for name, run in servable.calls.items()
        }
        return dataclasses.replace(servable, calls=ready)

    def _parameters(self, path: pathlib.Path) -> Parameters | None:
        if not self.per_model:
            return self.parameters
        file = path / PER_MODEL_FILE
        if not file.exists():
            return None
        return config_files.batching_parameters(file, PER_MODEL_FILE)

    def _timed(self, model: str, run: Run) -> Run:
        def timed(arrays):
            started = time.perf_counter()
            outputs = run(arrays)
            spent = (time.perf_counter() - started) * 1e6
            self.metrics.runtime_latency.add(spent, model, incoming.current().api, _RUNTIME)
            return outputs

        return timed
