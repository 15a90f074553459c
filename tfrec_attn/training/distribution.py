"""Several replicas and several workers: the strategy, and what only the chief does.

Every worker of a cluster runs the same command; `TF_CONFIG` says which of them it is. The
chief alone writes the run folder, and what it has measured is what all workers go by.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrec_attn.data import shares
from tfrec_attn.training.preemption import Preempted

logger = logging.getLogger(__name__)

EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


class Cluster(NamedTuple):
    """Attributes:
    addresses: Of all workers, the chief first.
    place: Which of them this process is.
    """

    addresses: list[str]
    place: int


def cluster() -> Cluster | None:
    """What `TF_CONFIG` says; None where it is not set.

    Raises:
      ValueError: When it is no cluster of workers with this process among them.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        found = json.loads(text)
        jobs, task = dict(found["cluster"]), dict(found["task"])
        kind, index = str(task["type"]), int(task["index"])
        listed = {job: [str(address) for address in jobs[job]] for job in jobs}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"TF_CONFIG is JSON with a cluster and a task, such as {EXAMPLE}. Received: "
            f"{text} ({type(error).__name__}: {error})."
        ) from error
    if strange := sorted(listed.keys() - {"chief", "worker"}):
        raise ValueError(
            f"TF_CONFIG: a cluster that trains has the jobs chief and worker alone. "
            f"Received: {', '.join(strange)}. Leave them out."
        )
    if not 0 <= index < len(listed.get(kind, [])):
        raise ValueError(
            f"TF_CONFIG: the task is one of the cluster's. Received: {kind} {index}, where "
            f"the cluster has {', '.join(f'{len(v)} {k}(s)' for k, v in listed.items())}; "
            "they are counted from 0."
        )
    chief, workers = listed.get("chief", []), listed.get("worker", [])
    return Cluster(chief + workers, index + (len(chief) if kind == "worker" else 0))


def strategy(name: str) -> tf.distribute.Strategy:
    """`one` takes the first visible device, `mirrored` all of them, `multiworker` those of
    all workers of `TF_CONFIG`; `auto` is `multiworker` where there are several workers, and
    else `mirrored`.

    A multiworker one has to be the first that a process does with TensorFlow.

    Raises:
      ValueError: See `cluster`; when there is no `TF_CONFIG` for `multiworker`.
    """
    found = cluster() if name in ("auto", "multiworker") else None
    if name == "multiworker" and found is None:
        raise ValueError(
            "train.strategy=multiworker needs the variable TF_CONFIG in the environment of "
            f"each worker, such as {EXAMPLE}. For one machine take mirrored."
        )
    if found and (name == "multiworker" or len(found.addresses) > 1):
        return _multiworker(os.environ["TF_CONFIG"])
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "one":
        return tf.distribute.OneDeviceStrategy(devices[0].name)
    return _mirrored(tuple(device.name for device in devices))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One a process: a second one would give its collectives the keys of the first."""
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multiworker(text: str) -> tf.distribute.Strategy:
    """One a process, of a `TF_CONFIG`."""
    logger.info("waiting for all workers of %s", text)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _is_multiworker(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def alone(strategy: tf.distribute.Strategy) -> bool:
    """Whether no other process trains with this one."""
    return not _is_multiworker(strategy)


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which of the workers this process is, the chief being 0, and how many there are."""
    found = cluster() if _is_multiworker(strategy) else None
    return (found.place, len(found.addresses)) if found else (0, 1)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder."""
    return worker(strategy)[0] == 0


def from_chief(strategy: tf.distribute.Strategy, say: Callable[[], Any]) -> Any:
    """What the chief says, on every worker; all of them wait for it.

    Args:
      strategy: Of all of them.
      say: Called by the chief alone; gives what JSON can hold.
    """
    if not _is_multiworker(strategy):
        return say()
    text = json.dumps(say()).encode() if is_chief(strategy) else b""
    size = int(summed(strategy, np.array([len(text)]))[0])
    # A graph is traced for each length: there are few.
    letters = np.zeros(1 << size.bit_length(), np.int32)
    letters[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(summed(strategy, letters)[:size].astype(np.uint8).tobytes())


def summed(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """`[n]` integers of each worker, added up; all of them wait for it."""
    return _adder(strategy)(values)


@functools.cache
def _adder(strategy) -> Callable[[np.ndarray], np.ndarray]:
    """One a strategy, so that a question that is asked again is traced once."""

    def add(values):
        # The copy is on the replica's device, which is where it can be sent from.
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", tf.identity(values))

    @tf.function(autograph=False)
    def total(values):
        return strategy.experimental_local_results(strategy.run(add, args=(values,)))[0]

    # Every replica of a worker has added its numbers.
    each = strategy.num_replicas_in_sync // worker(strategy)[1]
    return lambda values: total(tf.constant(values, tf.int32)).numpy() // each


def by_chief(
    strategy: tf.distribute.Strategy, validate: Callable[[], dict[str, Any]]
) -> Callable[[], dict[str, Any]]:
    """The same figures on every worker, so that all decide alike: those of the chief."""
    if not _is_multiworker(strategy):
        return validate

    def say():
        return {name: np.asarray(values).tolist() for name, values in validate().items()}

    return lambda: {n: np.array(v) for n, v in from_chief(strategy, say).items()}


@contextlib.contextmanager
def advice_of_loss(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says what to do where another worker is gone.

    Raises:
      ConnectionError: Instead of TensorFlow's errors.
    """
    gone = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError
    try:
        yield
    except (*gone, tf.errors.DeadlineExceededError, tf.errors.InternalError) as error:
        if not _is_multiworker(strategy):
            raise
        raise ConnectionError(
            "Another worker of TF_CONFIG has ended or cannot be reached: look at what it "
            "says, and start all of them again with --resume. TensorFlow: "
            f"{error.message.splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def own_folder(strategy: tf.distribute.Strategy, out: Path) -> Iterator[Path]:
    """The folder that a worker writes: the run's for the chief, and for the others a
    temporary one, which begins with what the run's holds.

    Args:
      strategy: Of all workers.
      out: The run's folder, which all of them see.

    Raises:
      Preempted: What all workers raise after one step within.
    """
    try:
        with _folder(strategy, out) as place:
            yield place
    except Preempted:
        _wait(strategy)
        raise
    # As long as one is at work none may leave: it would be taken for a crash.
    _wait(strategy)


@contextlib.contextmanager
def _folder(strategy, out: Path) -> Iterator[Path]:
    if is_chief(strategy):
        _wait(strategy)
        yield out
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / out.name
        ignored = shutil.ignore_patterns("tensorboard", "*.partial", "partial-*")
        shutil.copytree(out, place, ignore=ignored)
        # Before the chief writes the first file.
        _wait(strategy)
        yield place


def _wait(strategy) -> None:
    """Until all workers are here."""
    from_chief(strategy, lambda: None)


def distributed(
    strategy: tf.distribute.Strategy,
    make: Callable[..., tf.data.Dataset],
    size: int,
    parts: int,
    *,
    own: bool = False,
):
    """A stream of training, of which each replica has its share of every batch.

    Args:
      strategy: Of the replicas.
      make: Gives a dataset of batches; of several replicas called with `at`, `[local, b]`:
        then of each batch as many elements, of these places of it; see `shares.places`.
      size: Examples of a batch.
      parts: Of a batch.
      own: Whether a worker's batches are of its replicas alone, and not of all.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        options = tf.data.Options()
        off = tf.data.experimental.AutoShardPolicy.OFF
        options.experimental_distribute.auto_shard_policy = off
        return make().with_options(options)
    # Of a stream that might end, batches would have no static shape.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)

    def of_worker(context):
        local = replicas // context.num_input_pipelines
        first = 0 if own else context.input_pipeline_id * local
        sharing = local if own else replicas
        at = shares.places(size, replicas=sharing, parts=parts)
        return make(at=at[first : first + local]).apply(endless)

    return strategy.distribute_datasets_from_function(of_worker)
