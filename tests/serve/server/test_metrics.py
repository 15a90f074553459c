"""The page, as Prometheus's own parser reads it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tfrec_attn.serve.server.metrics import Histogram, Metrics


def samples(metrics):
    """By name and labels; the parser adds "_total" to what it knows to be a counter."""
    return {
        (sample.name.removesuffix("_total"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
    }


def test_a_counter_keeps_its_name():
    metrics = Metrics()
    for status in ("OK", "OK", "NOT_FOUND"):
        metrics.request_count.add("movielens", status)
    name, model = ":tensorflow:serving:request_count", ("model_name", "movielens")
    assert samples(metrics) == {
        (name, model, ("status", "OK")): 2,
        (name, model, ("status", "NOT_FOUND")): 1,
    }
    assert metrics.page().decode() == (
        f"# TYPE {name} counter\n"
        f'{name}{{model_name="movielens",status="OK"}} 2\n'
        f'{name}{{model_name="movielens",status="NOT_FOUND"}} 1\n'
    )


def test_buckets_are_cumulative_and_end_at_infinity():
    metrics = Metrics()
    for microseconds in (10, 11, 18, 1e30):
        metrics.request_latency.add(microseconds, "m", "Predict", "GRPC")
    found = samples(metrics)
    labels = [("API", "Predict"), ("entrypoint", "GRPC"), ("model_name", "m")]
    name = ":tensorflow:serving:request_latency"
    bucket = lambda limit: found[f"{name}_bucket", *sorted([*labels, ("le", limit)])]
    assert [bucket(limit) for limit in ("10", "18", "32.4", "+Inf")] == [1, 3, 3, 4]
    assert found[f"{name}_count", *labels] == 4
    assert found[f"{name}_sum", *labels] == pytest.approx(1e30)
    # 33 limits and infinity, sum and count.
    assert len(found) == 36


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "ü}{,="])
def test_a_label_may_hold_anything(text):
    metrics = Metrics()
    metrics.request_count.add(text, "OK")
    ((_, model, _),) = samples(metrics)
    assert model == ("model_name", text)


def test_names_that_callers_make_up_do_not_fill_the_memory():
    metrics = Metrics()
    for n in range(3000):
        metrics.request_count.add(f"model-{n}", "NOT_FOUND")
    found = samples(metrics)
    assert len(found) == 1001
    unnamed = [value for (_, model, *_), value in found.items() if model[1] == ""]
    assert unnamed == [2000]


def test_nothing_counted_is_nothing_said():
    assert Metrics().page() == b""
    assert list(Histogram("x", [1.0]).lines()) == []
