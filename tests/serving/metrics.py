"""The figures that dashboards and alerts may ask for, and what a PromQL text asks for.

TF Serving's names are read from its sources at tag 2.20.0. `PrometheusExporter` writes a
metric's name with every character outside [a-zA-Z0-9_] as a colon.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import promql_parser

# Labels by metric, and below them where the metric is declared.
_COUNTERS = {
    # servables/tensorflow/util.cc
    "/tensorflow/serving/request_count": {"model_name", "status"},
    # TensorFlow's cc/saved_model/loader.cc; status is "success" or "fail".
    "/tensorflow/cc/saved_model/load_attempt_count": {"model_path", "status"},
}
_HISTOGRAMS = {
    # servables/tensorflow/util.cc, in microseconds; entrypoint is GRPC or REST.
    "/tensorflow/serving/request_latency": {"model_name", "API", "entrypoint"},
    "/tensorflow/serving/runtime_latency": {"model_name", "API", "runtime"},
    # batching/batching_session.cc, in microseconds.
    "/tensorflow/serving/batching_session/queuing_latency": {"thread_pool_name"},
    # batching/batching_util.h
    "/tensorflow/serving/batching_session/processed_batch_size": set(),
    "/tensorflow/serving/batching_session/input_batch_size": set(),
    # servables/tensorflow/saved_model_warmup_util.cc
    "/tensorflow/serving/model_warmup_latency": {"model_path", "status"},
}


def exported() -> dict[str, set[str]]:
    """Labels by name, as Prometheus sees them."""
    mangled = lambda name: name.replace("/", ":")
    found = {mangled(name): labels for name, labels in _COUNTERS.items()}
    for name, labels in _HISTOGRAMS.items():
        found |= {f"{mangled(name)}_{part}": labels for part in ("sum", "count")}
        found[f"{mangled(name)}_bucket"] = labels | {"le"}
    return found


@dataclasses.dataclass(frozen=True)
class Asked:
    """One metric of an expression, and the labels it is chosen or grouped by."""

    name: str
    labels: frozenset[str]


def asked(text: str) -> Iterator[Asked]:
    """What an expression asks for; Grafana's variables are filled in first."""
    filled = text.replace("$__rate_interval", "5m").replace("$model", "movielens")
    yield from _walk(promql_parser.parse(filled), frozenset())


def _walk(node: Any, grouped: frozenset[str]) -> Iterator[Asked]:
    if isinstance(node, promql_parser.VectorSelector):
        matched = {matcher.name for matcher in node.matchers.matchers}
        yield Asked(node.name, grouped | matched)
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
        grouped |= set(node.modifier.labels)
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        below = getattr(node, name, None) or []
        for one in below if isinstance(below, list) else [below]:
            yield from _walk(one, grouped)
