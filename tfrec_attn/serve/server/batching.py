"""Requests of several callers joined into one call of the model: no socket.

The rules are those of TF Serving's batching session (tensorflow/serving
`batching/batching_session.cc`, TensorFlow `batching_util/shared_batch_scheduler.h`), with
three differences, each for the sake of the request beside it: requests of other shapes
wait in queues of their own instead of failing the batch, shorter rows are filled up with
"" and 0 instead of their first element, and when a batch fails, each of its requests is
run again alone.

A task is one request or a part of it; its size is its number of rows, the first dimension
of its inputs.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import grpc
import numpy as np

from tfrec_attn.serve.server import incoming
from tfrec_attn.serve.server.batching_parameters import Parameters
from tfrec_attn.serve.server.metrics import Metrics
from tfrec_attn.serve.server.servable import ServingError, invalid

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]
_QUEUE = "batching queue"


@dataclasses.dataclass(eq=False)
class _Task:
    """What waits: its inputs, and where its outputs go."""

    inputs: Arrays
    size: int
    call: incoming.Call
    queued: float
    outputs: concurrent.futures.Future = dataclasses.field(
        default_factory=concurrent.futures.Future
    )


class Outputs(dict[str, np.ndarray]):
    """A request's outputs; one that could not be split says so when it is asked for."""

    def __missing__(self, name: str) -> np.ndarray:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"Batched output tensor's 0th dimension does not equal the sum of the 0th "
            f'dimension sizes of the input tensors: "{name}"',
        )


class Batcher:
    """Queues of one model version; `scheduler` runs what they hold.

    Args:
      scheduler: Whose threads run the batches, shared by all models.
      parameters: Sizes and times of the batches.
    """

    def __init__(self, scheduler: "Scheduler", parameters: Parameters):
        self._scheduler = scheduler
        self._parameters = parameters

    def batched(self, run: Run) -> Run:
        """`run`, with calls at the same time joined; arrays in, arrays out, as before.

        The call raises a ServingError: INVALID_ARGUMENT for inputs that have no common
        first dimension or too many rows, UNAVAILABLE where the queue is full,
        DEADLINE_EXCEEDED where the call's deadline passed first, else what `run` raises.
        """
        return lambda arrays: self._call(run, arrays)

    def _call(self, run: Run, arrays: Arrays) -> dict[str, np.ndarray]:
        size = size_of(arrays)
        limit = self._parameters.max_batch_size
        if size > limit:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size {limit}"
            )
        self._scheduler.metrics.input_batch_size.add(size)
        # Nothing to join, and no row to fill up with.
        if not size:
            return run(arrays)
        call, now = incoming.current(), time.monotonic()
        tasks = [
            _Task(part, size_of(part), call, now)
            for part in _parts(arrays, size, self._parameters.largest_part)
        ]
        self._scheduler.submit(run, self._parameters, tasks)
        return _joined([self._wait(task) for task in tasks])

    def _wait(self, task: _Task) -> dict[str, np.ndarray]:
        try:
            return task.outputs.result(task.call.remaining())
        except TimeoutError:
            task.outputs.cancel()
            raise incoming.late(_QUEUE) from None


def size_of(arrays: Arrays) -> int:
    """The number of rows of a request.

    Raises:
      ServingError: There is no input, or no first dimension that all share.
    """
    if not arrays:
        raise invalid("Batching Run() must have at least one input tensor")
    if not all(array.ndim for array in arrays.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in arrays.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _parts(arrays: Arrays, size: int, largest: int) -> Iterator[Arrays]:
    if size <= largest:
        yield arrays
        return
    for start in range(0, size, largest):
        yield {name: array[start : start + largest] for name, array in arrays.items()}


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    names = set.intersection(*(set(part) for part in parts))
    return Outputs({name: stacked([part[name] for part in parts]) for name in names})


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one rank below each other, filled up with "" and 0 to one width."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0, initial=0)
    if all(array.shape[1:] == tuple(shape) for array in arrays):
        return np.concatenate(arrays)
    rows = sum(len(array) for array in arrays)
    empty = b"" if arrays[0].dtype == object else 0
    full = np.full((rows, *shape), empty, arrays[0].dtype)
    ends = itertools.accumulate(len(array) for array in arrays)
    for array, end in zip(arrays, ends, strict=True):
        inner = tuple(slice(width) for width in array.shape[1:])
        full[(slice(end - len(array), end), *inner)] = array
    return full


class _Queue:
    """Batches of tasks that may be joined; the last one is still open."""

    def __init__(self, run: Run, parameters: Parameters):
        self.run = run
        self.parameters = parameters
        self._batches: collections.deque[list[_Task]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(self, tasks: Sequence[_Task]) -> bool:
        """Whether the tasks of one request found a place, all of them."""
        limit, most = self.parameters.largest_part, self.parameters.max_enqueued_batches
        if self._batches and _rows([*self._batches[-1], *tasks]) <= limit:
            self._batches[-1].extend(tasks)
            return True
        if len(self._batches) + len(tasks) > most:
            return False
        self._batches.extend([task] for task in tasks)
        return True

    def due(self) -> float:
        """When its first batch may run: at once if it is full or closed."""
        first = self._batches[0]
        if len(self._batches) > 1 or _rows(first) >= self.parameters.largest_part:
            return -math.inf
        return first[0].queued + self.parameters.batch_timeout_micros / 1e6

    def take(self) -> list[_Task]:
        """Removes the first batch."""
        return self._batches.popleft()

    def full(self) -> ServingError:
        """What a task that finds no place is answered."""
        return ServingError(
            grpc.StatusCode.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full; "
            f"currently {len(self._batches)} batches enqueued and max_enqueued_batches is "
            f"{self.parameters.max_enqueued_batches}",
        )


def _rows(batch: Sequence[_Task]) -> int:
    return sum(task.size for task in batch)


class Scheduler:
    """The threads that run batches, in turn over all queues that hold one.

    Args:
      threads: How many batches run at once.
      name: Of the threads, also a label of the metrics.
      metrics: Where queueing and sizes are counted.
    """

    def __init__(self, threads: int, name: str, metrics: Metrics):
        self.metrics = metrics
        self._name = name
        self._changed = threading.Condition()
        # By what may be joined; a queue is here only while it holds a batch.
        self._queues: collections.OrderedDict[tuple, _Queue] = collections.OrderedDict()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Run, parameters: Parameters, tasks: Sequence[_Task]) -> None:
        """Queues the tasks of one request, all or none.

        Raises:
          ServingError: UNAVAILABLE; the queue is full.
        """
        key = (run, *_kind(tasks[0].inputs, parameters.pad_variable_length_inputs))
        with self._changed:
            queue = self._queues.get(key) or _Queue(run, parameters)
            if not queue.add(tasks):
                raise queue.full()
            self._queues[key] = queue
            self._changed.notify()

    def close(self) -> None:
        """Ends the threads once the queues are empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while taken := self._take():
            queue, tasks = taken
            try:
                self._process(queue, tasks)
            # Whatever happens, nobody may wait for ever.
            except BaseException as error:
                _fail(tasks, error)

    def _take(self) -> tuple[_Queue, list[_Task]] | None:
        with self._changed:
            while True:
                now, first = time.monotonic(), math.inf
                for key, queue in self._queues.items():
                    due = queue.due()
                    if due <= now or self._closed:
                        return queue, self._taken(key)
                    first = min(first, due)
                if self._closed:
                    return None
                self._changed.wait(None if math.isinf(first) else first - now)

    def _taken(self, key: tuple) -> list[_Task]:
        queue = self._queues.pop(key)
        batch = queue.take()
        if queue:
            self._queues[key] = queue
        # This thread kept watch over what is left: another one must.
        if self._queues:
            self._changed.notify()
        return batch

    def _process(self, queue: _Queue, tasks: list[_Task]) -> None:
        now = time.monotonic()
        wanted = []
        for task in tasks:
            self.metrics.queuing_latency.add((now - task.queued) * 1e6, self._name)
            # One that was cancelled has been answered.
            if not task.outputs.set_running_or_notify_cancel():
                continue
            if task.call.deadline <= now:
                task.outputs.set_exception(incoming.late(_QUEUE))
            else:
                wanted.append(task)
        if wanted:
            self._run(queue, wanted)

    def _run(self, queue: _Queue, tasks: list[_Task]) -> None:
        rows = _rows(tasks)
        size = queue.parameters.allowed(rows)
        self.metrics.padding_size.add(size - rows, str(size))
        self.metrics.processed_batch_size.add(size)
        self.metrics.wrapped_run_count.add()
        try:
            outputs = queue.run(_merged(tasks, size - rows))
        except Exception as error:
            if len(tasks) == 1:
                _fail(tasks, error)
                return
            for task in tasks:
                self._run(queue, [task])
            return
        for task, part in zip(tasks, _split(outputs, tasks, size), strict=True):
            task.outputs.set_result(part)


def _fail(tasks: Sequence[_Task], error: BaseException) -> None:
    for task in tasks:
        if not task.outputs.done():
            task.outputs.set_exception(error)


def _kind(inputs: Arrays, padded: bool) -> tuple:
    """What requests have in common that may be joined."""
    return tuple(
        (name, array.dtype, array.ndim if padded else array.shape[1:])
        for name, array in sorted(inputs.items())
    )


def _merged(tasks: Sequence[_Task], extra: int) -> Arrays:
    """The inputs of all tasks, and the last one's first row `extra` times."""
    last = tasks[-1].inputs
    if len(tasks) == 1 and not extra:
        return last
    return {
        name: stacked([*(t.inputs[name] for t in tasks), *[last[name][:1]] * extra])
        for name in last
    }


def _split(
    outputs: Arrays, tasks: Sequence[_Task], size: int
) -> Iterator[dict[str, np.ndarray]]:
    fit = {name: a for name, a in outputs.items() if a.ndim and len(a) == size}
    end = 0
    for task in tasks:
        start, end = end, end + task.size
        yield Outputs({name: array[start:end] for name, array in fit.items()})
