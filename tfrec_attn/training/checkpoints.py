"""What a training keeps of a model: its weights, and states to go on from."""

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn import atomic
from tfrec_attn.model.recommender import Recommender

logger = logging.getLogger(__name__)


def weights(model: Recommender) -> tf.train.Checkpoint:
    """What a trained model is: what it learned, without optimizer and counters."""
    return tf.train.Checkpoint(**model.learned)


def generators(model: Recommender) -> list:
    """Where dropout draws from, which Keras leaves out of a model's checkpoint."""
    kind = tf_keras.__internal__.layers.BaseRandomLayer
    roots = [model, *([model.live.bert] if model.live else [])]
    layers = [x for root in roots for x in root.submodules if isinstance(x, kind)]
    with model.distribute_strategy.scope():
        for layer in layers:
            layer._random_generator._maybe_init()
    return [layer._random_generator for layer in layers]


class OfReplicas:
    """Variables of which each replica has a value of its own. TensorFlow keeps the first
    one's alone, or a sum.

    Letters: R replicas of all workers, V variables.

    Args:
      strategy: Of the replicas.
      variables: Of one shape and type.
    """

    def __init__(self, strategy: tf.distribute.Strategy, variables: list):
        self._strategy, self._variables = strategy, variables
        self._several = strategy.num_replicas_in_sync > 1 and bool(variables)
        self._gathered = tf.function(lambda: strategy.run(self._of_all), autograph=False)

    def _of_all(self):
        own = tf.stack([[tf.identity(variable) for variable in self._variables]])
        return tf.distribute.get_replica_context().all_gather(own, axis=0)

    def read(self) -> list:
        """`[R, V, ..]`, of one replica nothing; all workers wait for it."""
        if not self._several:
            return []
        found = self._strategy.experimental_local_results(self._gathered())
        return found[0].numpy().tolist()

    def put(self, values: list) -> None:
        """Gives each what was read; of another number of replicas nothing is changed."""
        if not self._several or len(values) != self._strategy.num_replicas_in_sync:
            return
        for at, variable in enumerate(self._variables):
            rows = np.array(values, variable.dtype.as_numpy_dtype)[:, at]
            own = lambda context, rows=rows: rows[context.replica_id_in_sync_group]
            each = self._strategy.experimental_distribute_values_from_function(own)
            self._strategy.run(lambda v, value: v.assign(value), args=(variable, each))


def of_replicas(model: Recommender, generators: list) -> dict[str, OfReplicas]:
    """Where dropout draws from, as a replica draws as many numbers as it has different
    items, and the losses so far."""
    found = {
        "dropout": [one._generator.state for one in generators if one._generator],
        "meters": [variable for meter in model.metrics for variable in meter.variables],
    }
    return {n: OfReplicas(model.distribute_strategy, own) for n, own in found.items()}


def write(checkpoint: tf.train.Checkpoint, prefix: Path) -> None:
    """Writes a checkpoint beside its place, and moves it there.

    Raises:
      OSError: When it cannot be written; what was there before is there still.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    partial = prefix.with_name(atomic.PARTIAL + prefix.name)
    with named(prefix):
        checkpoint.write(str(partial))
        _move(partial, prefix)


def read(checkpoint: tf.train.Checkpoint, prefix: Path):
    """Reads a checkpoint; what is returned tells whether all of it was used.

    Raises:
      ValueError: When it is missing or damaged.
    """
    try:
        return checkpoint.read(str(prefix))
    # TensorFlow lets its own errors through and what C++ is translated to.
    except (tf.errors.OpError, LookupError, RuntimeError, OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{prefix} cannot be read: {why}. Put it back from a copy, or train anew."
        ) from error


def copy(source: Path, prefix: Path) -> None:
    """Gives a checkpoint a second name. See `write` for what is raised."""
    partial = prefix.with_name(atomic.PARTIAL + prefix.name)
    with named(prefix):
        for file in _files(source):
            shutil.copyfile(file, partial.with_name(partial.name + file.suffix))
        _move(partial, prefix)


def remove(prefix: Path) -> None:
    """Removes a checkpoint, where there is one."""
    for file in reversed(_files(prefix)):
        file.unlink(missing_ok=True)


def _files(prefix: Path) -> list[Path]:
    """Of a checkpoint, the index last: without one it is none."""
    data = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
    return [*data, prefix.with_name(f"{prefix.name}.index")]


def _move(partial: Path, prefix: Path) -> None:
    """Never an index beside the data of another checkpoint."""
    _files(prefix)[-1].unlink(missing_ok=True)
    for file in _files(partial):
        file.replace(prefix.with_name(prefix.name + file.suffix))


@contextlib.contextmanager
def named(prefix: Path) -> Iterator[None]:
    """Says what could not be written and why, and takes away the half of it.

    Raises:
      OSError: Instead of what TensorFlow and Python raise.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        atomic.sweep(prefix.parent)
        why, way = str(error).splitlines()[0], "Look at its disk"
        if (full := os.strerror(errno.ENOSPC)) in why:
            why, way = full, "Free space there"
        raise OSError(
            f"{prefix} could not be written: {why}. {way}, and go on by --resume after the "
            "last state that was kept."
        ) from error


class Position(tf.train.experimental.PythonState):
    """Where a training is, as part of its state.

    Attributes:
      history: A line for each epoch, over all stages.
      step: Steps of the epoch after them that are done.
      own: What each of several replicas has of its own, by name; see `OfReplicas`.
      divided: Among how many workers the shards are divided; 1 where each has all.
    """

    def __init__(self, history: list[dict[str, Any]]):
        self.history, self.step, self.divided = history, 0, 1
        self.own: dict[str, list] = {}

    def serialize(self) -> str:
        names = "history", "step", "own", "divided"
        return json.dumps({name: getattr(self, name) for name in names})

    def deserialize(self, text: bytes) -> None:
        found = json.loads(text)
        self.history[:], self.step = found["history"], found["step"]
        self.own, self.divided = found.get("own", {}), found.get("divided", 1)


class States:
    """The last two states of a stage: should one be damaged, there is one before it.

    Args:
      checkpoint: Of all that a state is.
      folder: Of the stage.
    """

    kept = 2

    def __init__(self, checkpoint: tf.train.Checkpoint, folder: Path):
        self.checkpoint, self.folder = checkpoint, folder

    @property
    def numbers(self) -> list[int]:
        """Of the states that there are, the oldest first."""
        found = self.folder.glob("last-*.index")
        return sorted(int(file.stem.removeprefix("last-")) for file in found)

    def save(self, number: int) -> None:
        """Keeps the state, by a number that grows. See `write` for what is raised."""
        write(self.checkpoint, self.folder / f"last-{number}")
        for old in self.numbers[: -self.kept]:
            remove(self.folder / f"last-{old}")

    def restart(self, number: int) -> None:
        """Keeps the state alone, by a number that may be below those before."""
        write(self.checkpoint, self.folder / f"last-{number}")
        for old in set(self.numbers) - {number}:
            remove(self.folder / f"last-{old}")

    def restore(self) -> bool:
        """Takes the newest state that can be read; False where there is none at all.

        Raises:
          ValueError: When there are states, and none can be read.
        """
        for number in reversed(self.numbers):
            path = self.folder / f"last-{number}"
            try:
                read(self.checkpoint, path).assert_consumed()
            except (AssertionError, ValueError) as error:
                logger.warning("%s Going on from the state before it.", error)
            else:
                return True
        if self.numbers:
            raise ValueError(
                f"None of the states in {self.folder} can be read (the log says why): put "
                "them back from a copy, or remove that folder, and --resume trains the "
                "stage anew."
            )
        return False
