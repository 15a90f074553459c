"""Counts and latencies under the names of TF Serving, as Prometheus reads them.

The text is written here because `prometheus_client` calls a counter `…_total`, and TF
Serving does not. Sources: tensorflow/serving `servables/tensorflow/util.cc`,
`batching/batching_util.h` and `util/prometheus_exporter.cc`.
"""

import abc
import bisect
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence

PATH = "/monitoring/prometheus/metrics"
_PREFIX = ":tensorflow:serving:"
# A caller may name any model, served or not: past this many, the name is left empty.
_MAX_SERIES = 1000


class _Metric(abc.ABC):
    """One metric: a value for each combination of labels."""

    kind = ""

    def __init__(self, name: str, labels: Sequence[str] = ()):
        self.name = _PREFIX + name
        self._labels = tuple(labels)
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], list] = {}

    def _values(self, labels: tuple[str, ...], size: int) -> list:
        if labels not in self._series and len(self._series) >= _MAX_SERIES:
            labels = ("",) * len(labels)
        return self._series.setdefault(labels, [0] * size)

    def lines(self) -> Iterator[str]:
        """Its lines of the page; none while nothing was counted."""
        with self._lock:
            copied = {labels: list(values) for labels, values in self._series.items()}
        if copied:
            yield f"# TYPE {self.name} {self.kind}"
        for labels, values in copied.items():
            pairs = zip(self._labels, labels, strict=True)
            named = [f'{name}="{_escaped(value)}"' for name, value in pairs]
            yield from self._samples(named, values)

    @abc.abstractmethod
    def _samples(self, labels: list[str], values: list) -> Iterator[str]:
        """The lines of one combination of labels."""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Counter(_Metric):
    """Counts events."""

    kind = "counter"

    def add(self, *labels: str) -> None:
        """Counts one."""
        with self._lock:
            self._values(labels, 1)[0] += 1

    def _samples(self, labels, values):
        yield f"{self.name}{{{','.join(labels)}}} {values[0]}"


class Histogram(_Metric):
    """Counts values by size, in buckets up to each of `limits` and above."""

    kind = "histogram"

    def __init__(self, name: str, limits: Iterable[float], labels: Sequence[str] = ()):
        super().__init__(name, labels)
        self._limits = tuple(limits)

    def add(self, value: float, *labels: str) -> None:
        """Counts one value."""
        with self._lock:
            values = self._values(labels, len(self._limits) + 2)
            values[bisect.bisect_left(self._limits, value)] += 1
            values[-1] += value

    def _samples(self, labels, values):
        *counts, total = values
        limits = [*(f"{limit:g}" for limit in self._limits), "+Inf"]
        for limit, count in zip(limits, itertools.accumulate(counts), strict=True):
            within = ",".join([*labels, f'le="{limit}"'])
            yield f"{self.name}_bucket{{{within}}} {count}"
        every = f"{{{','.join(labels)}}}"
        yield f"{self.name}_sum{every} {total}"
        yield f"{self.name}_count{every} {sum(counts)}"


def _growing(first: float, factor: float, count: int) -> list[float]:
    return [first * factor**n for n in range(count)]


class Metrics:
    """All metrics of one server; latencies are in microseconds.

    Attributes:
      request_count: Requests by model and status.
      request_latency: Of requests that succeeded, from message to message.
      runtime_latency: Of the model alone, with its waiting in a batch.
      queuing_latency: Of waiting in a batch.
      wrapped_run_count: Batches that ran.
      input_batch_size: Rows of a request.
      processed_batch_size: Rows of a batch, with those added.
      padding_size: Rows added to reach an allowed size.
    """

    def __init__(self):
        latencies, sizes = _growing(10, 1.8, 33), _growing(1, 2, 14)
        self.request_count = Counter("request_count", ["model_name", "status"])
        self.request_latency = Histogram(
            "request_latency", latencies, ["model_name", "API", "entrypoint"]
        )
        self.runtime_latency = Histogram(
            "runtime_latency", latencies, ["model_name", "API", "runtime"]
        )
        self.queuing_latency = Histogram(
            "batching_session:queuing_latency", _growing(100, 1.2, 52), ["thread_pool_name"]
        )
        self.wrapped_run_count = Counter("batching_session:wrapped_run_count")
        self.input_batch_size = Histogram("batching_session:input_batch_size", sizes)
        self.processed_batch_size = Histogram(
            "batching_session:processed_batch_size", sizes
        )
        self.padding_size = Histogram(
            "batching_session:padding_size", sizes, ["execution_batch_size"]
        )

    def page(self) -> bytes:
        """What Prometheus scrapes."""
        metrics = [value for value in vars(self).values() if isinstance(value, _Metric)]
        lines = itertools.chain.from_iterable(metric.lines() for metric in metrics)
        return "".join(f"{line}\n" for line in lines).encode()
