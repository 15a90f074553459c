"""Batches of a model that is a function here: what it is called with, and who gets what."""

import concurrent.futures
import contextlib
import threading
import time

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrec_attn.serve.server import incoming, saved_model
from tfrec_attn.serve.server.batching import Batcher, Scheduler, stacked
from tfrec_attn.serve.server.batching_parameters import Parameters
from tfrec_attn.serve.server.loading import Loader
from tfrec_attn.serve.server.metrics import Metrics
from tfrec_attn.serve.server.servable import ServingError

# A batch that is not full never runs: no test waits for this.
NEVER = 3_600_000_000


class Model:
    """Ten times its input, and the batches it saw; `hold` stops it, 13 makes it fail."""

    def __init__(self):
        self.seen, self.running = [], threading.Semaphore(0)
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, arrays):
        self.seen.append(arrays)
        self.running.release()
        self.hold.wait(10)
        if 13 in arrays["x"]:
            raise ValueError("unlucky")
        return {"y": arrays["x"] * 10}


@pytest.fixture
def model():
    return Model()


@contextlib.contextmanager
def batched(run, threads=1, metrics=None, **parameters):
    """The model behind a scheduler of its own."""
    scheduler = Scheduler(threads, "test", metrics or Metrics())
    try:
        yield Batcher(scheduler, Parameters(**parameters)).batched(run)
    finally:
        scheduler.close()


def rows(*values, width=1):
    return {"x": np.array([[value] * width for value in values], np.int64)}


def at_once(call, requests):
    """The answer or the error of each, all asked at the same time."""

    def answer(request):
        try:
            return call(request)["y"][:, 0].tolist()
        except (ServingError, ValueError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(answer, requests))


def test_requests_are_one_call_and_each_gets_its_rows(model):
    with batched(model, max_batch_size=6, batch_timeout_micros=NEVER) as call:
        answers = at_once(call, [rows(1), rows(2, 3), rows(4, 5, 6)])
    assert answers == [[10], [20, 30], [40, 50, 60]]
    (seen,) = model.seen
    assert sorted(seen["x"][:, 0]) == [1, 2, 3, 4, 5, 6]


def test_a_request_alone_runs_when_its_time_is_over(model):
    with batched(model, max_batch_size=6, batch_timeout_micros=1000) as call:
        assert call(rows(1))["y"].tolist() == [[10]]


def test_other_shapes_and_signatures_are_never_joined(model):
    other = Model()
    scheduler = Scheduler(1, "test", Metrics())
    batcher = Batcher(scheduler, Parameters(max_batch_size=2, batch_timeout_micros=NEVER))
    ones = [(model, rows(1)), (model, rows(2, width=3)), (other, rows(3))]
    call = lambda asked: batcher.batched(asked[0])(asked[1])
    assert at_once(call, ones * 2) == [[10], [20], [30]] * 2
    scheduler.close()
    assert sorted(len(a["x"]) for a in model.seen) == [2, 2]
    assert [a["x"].tolist() for a in other.seen] == [[[3], [3]]]


@pytest.mark.parametrize("history", [["a", "b", "c"], ["d"]])
def test_a_row_that_is_filled_up_answers_as_alone(history):
    """TF Serving fills up with the first element: the history would end in it."""

    def last_event(arrays):
        events = [[event for event in row if event] for row in arrays["history"]]
        return {"y": np.array([[row[-1]] for row in events], object)}

    texts = lambda *values: {"history": np.array([[v.encode() for v in values]], object)}
    both = [texts(*history), texts("x", "y")]
    with batched(
        last_event,
        max_batch_size=2,
        batch_timeout_micros=NEVER,
        pad_variable_length_inputs=True,
    ) as call:
        answers = at_once(call, both)
    assert answers == [last_event(request)["y"][:, 0].tolist() for request in both]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=4))
def test_stacked_fills_up_with_zeros(shapes):
    arrays = [np.full(shape, 7, np.float32) for shape in shapes]
    width = max(shape[1] for shape in shapes)
    want = [[7] * m + [0] * (width - m) for n, m in shapes for _ in range(n)]
    assert stacked(arrays).tolist() == want
    assert stacked(arrays).dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "must have at least one input tensor"),
        ({"x": np.array(1)}, "must have at least one dimension"),
        ({**rows(1, 2), "z": np.zeros(3)}, "must have equal 0th-dimension size"),
        (rows(1, 2, 3), "Task size 3 is larger than maximum input batch size 2"),
    ],
)
def test_what_has_no_rows_to_join(model, inputs, message):
    with batched(model, max_batch_size=2) as call, pytest.raises(ServingError) as caught:
        call(inputs)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.message
    assert not model.seen


def test_no_rows_are_answered_too(model):
    with batched(model) as call:
        assert call({"x": np.zeros((0, 4))})["y"].shape == (0, 4)


def test_a_large_request_may_be_run_in_parts(model):
    with batched(
        model,
        max_batch_size=9,
        max_execution_batch_size=2,
        enable_large_batch_splitting=True,
    ) as call:
        assert call(rows(1, 2, 3, 4, 5))["y"][:, 0].tolist() == [10, 20, 30, 40, 50]
    assert [len(seen["x"]) for seen in model.seen] == [2, 2, 1]


def test_parts_find_a_place_all_or_none(model):
    with batched(
        model,
        max_batch_size=9,
        max_execution_batch_size=2,
        enable_large_batch_splitting=True,
        max_enqueued_batches=3,
    ) as call:
        model.hold.clear()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(call, rows(0))
            assert model.running.acquire(timeout=10)
            with pytest.raises(ServingError, match=r"queue .* is full; currently 0 "):
                call(rows(1, 2, 3, 4, 5, 6, 7))
            model.hold.set()
            assert first.result(10)["y"].tolist() == [[0]]
    assert len(model.seen) == 1


def test_a_full_queue_refuses_and_goes_on(model):
    """One runs, two wait, so of four more two are refused, whichever come last."""
    with batched(model, max_batch_size=1, max_enqueued_batches=2) as call:
        model.hold.clear()
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            first = pool.submit(call, rows(0))
            assert model.running.acquire(timeout=10)
            rest = [pool.submit(call, rows(n)) for n in range(1, 5)]
            done, _ = concurrent.futures.wait(
                rest, 10, return_when=concurrent.futures.FIRST_COMPLETED
            )
            error = done.pop().exception()
            assert error.code == grpc.StatusCode.UNAVAILABLE
            assert (
                "The batch scheduling queue to which this task was submitted is full"
                in (error.message)
            )
            model.hold.set()
            concurrent.futures.wait([first, *rest], 10)
            assert sum(job.exception() is None for job in rest) >= 2
        assert call(rows(9))["y"].tolist() == [[90]]


def test_a_request_that_fails_does_not_fail_its_neighbours(model):
    with batched(model, max_batch_size=3, batch_timeout_micros=NEVER) as call:
        one, unlucky, two = at_once(call, [rows(1), rows(13), rows(2)])
    assert (one, two) == ([10], [20])
    assert str(unlucky) == "unlucky"
    assert sorted(len(seen["x"]) for seen in model.seen) == [1, 1, 1, 3]


@pytest.mark.parametrize("seconds", [-1.0, 0.05])
def test_a_request_whose_deadline_passes_first_never_runs(model, seconds):
    with batched(model, max_batch_size=1) as call:
        model.hold.clear()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(call, rows(0))
            assert model.running.acquire(timeout=10)
            until = incoming.Call(deadline=time.monotonic() + seconds)
            with incoming.answering(until), pytest.raises(ServingError) as caught:
                call(rows(1))
            model.hold.set()
            first.result(10)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(model.seen) == 1


def test_a_batch_is_filled_up_to_an_allowed_size(model):
    metrics = Metrics()
    with batched(
        model, metrics=metrics, max_batch_size=7, allowed_batch_sizes=(2, 5, 7)
    ) as call:
        assert call(rows(1, 2, 3))["y"][:, 0].tolist() == [10, 20, 30]
    assert model.seen[0]["x"][:, 0].tolist() == [1, 2, 3, 1, 1]
    page = metrics.page().decode()
    name = ":tensorflow:serving:batching_session:"
    assert f'{name}padding_size_sum{{execution_batch_size="5"}} 2\n' in page
    assert f"{name}processed_batch_size_sum{{}} 5\n" in page
    assert f"{name}input_batch_size_sum{{}} 3\n" in page
    assert f"{name}wrapped_run_count{{}} 1\n" in page
    assert f'{name}queuing_latency_count{{thread_pool_name="test"}} 1\n' in page


@pytest.mark.parametrize("parts", [1, 3])
def test_an_output_without_rows_is_refused_only_if_it_is_asked_for(model, parts):
    """Whether one came alone or in parts, as in the batch of others."""
    outputs = lambda arrays: {**model(arrays), "sum": np.sum(arrays["x"])}
    with batched(
        outputs,
        max_batch_size=4,
        max_execution_batch_size=4 // parts,
        enable_large_batch_splitting=True,
    ) as call:
        answer = call(rows(1, 2, 3))
    assert answer["y"][:, 0].tolist() == [10, 20, 30]
    with pytest.raises(ServingError, match="0th dimension does not equal") as caught:
        answer["sum"]
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION


def test_a_loaded_model_answers_in_batches_as_without(toy):
    """Also those of its signatures that have no rows, and where the model refuses."""
    metrics = Metrics()
    scheduler = Scheduler(2, "test", metrics)
    plain = saved_model.load(toy / "1", 1)
    joined = Loader(metrics, scheduler, Parameters(batch_timeout_micros=5000)).of("toy")(
        toy / "1", 1
    )
    inputs = [{name: np.array([n], np.float32) for name in "za"} for n in range(8)]
    call = lambda arrays: joined.run("several", arrays, ["z_less_a", "a"])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, inputs))
    for arrays, answer in zip(inputs, answers, strict=True):
        want = plain.run("several", arrays, ["z_less_a", "a"])
        assert {k: v.tolist() for k, v in answer.items()} == {
            k: v.tolist() for k, v in want.items()
        }
    with pytest.raises(ServingError) as caught:
        joined.run("several", inputs[0])
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(ServingError) as caught:
        joined.run("thirds", {"a": np.zeros(4, np.float32)})
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    scheduler.close()
    assert 'runtime_latency_count{model_name="toy",API="Predict",runtime="TF1"} 9' in (
        metrics.page().decode()
    )


def test_parameters_of_a_version(toy, tmp_path):
    """`batching_params.pbtxt` in the version's folder; without it there is no batching."""
    scheduler = Scheduler(1, "test", Metrics())
    load = Loader(scheduler.metrics, scheduler, per_model=True).of("toy", lambda *_: loaded)
    loaded = saved_model.load(toy / "1", 1)
    three = {name: np.ones(3, np.float32) for name in "ab"}
    assert load(tmp_path, 1).run("", three)["product"].tolist() == [1, 1, 1]
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    with pytest.raises(ServingError, match="Task size 3 is larger"):
        load(tmp_path, 1).run("", three)
    scheduler.close()
