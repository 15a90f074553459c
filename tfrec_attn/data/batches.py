"""Examples to batches of tensors: integers only, the model gathers the features.

Letters: B examples of a batch, W events of a window, T targets of an example.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfrec_attn.data import shares
from tfrec_attn.data.examples import Examples
from tfrec_attn.data.shards import Shards

Batch = dict[str, tf.Tensor]


def gather(examples: Examples, index: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of some examples.

    Args:
      examples: E examples.
      index: `[B]` which of them; -1 is an example without history or targets.

    Returns:
      `user` [B] row; `history` [B, W] item rows, oldest first, -1 pads;
      `history_feedback` [B, W]; `history_time` [B, W] ms, 0 pads; `target` [B, T] item
      rows; `target_seen` [B, T] how many events of the window a target sees;
      `target_feedback` [B, T]; `target_time` [B, T] ms; `weight` [B, T], 0 pads.
    """
    real = index >= 0
    first, last, begin, end = (
        np.where(real, getattr(examples, name)[index], 0)
        for name in ("first", "last", "begin", "end")
    )
    past, targets = examples.history, examples.targets
    event, seen = _span(first, last, examples.width)
    goal, asked = _span(begin, end, examples.count)
    pick = lambda column, where, mask, pad: np.where(
        mask, column[where] if len(column) else pad, pad
    ).astype(column.dtype)
    return {
        "user": np.where(real, examples.user[index], 0).astype(np.int32),
        "history": pick(past.item, event, seen, -1),
        "history_feedback": pick(past.feedback, event, seen, 0).astype(np.int32),
        "history_time": pick(past.time, event, seen, 0),
        "target": pick(targets.item, goal, asked, 0),
        "target_seen": np.where(asked, examples.stop[goal] - first[:, None], 0).astype(
            np.int32
        ),
        "target_feedback": pick(targets.feedback, goal, asked, 0).astype(np.int32),
        "target_time": pick(targets.time, goal, asked, 0),
        "weight": pick(targets.weight, goal, asked, 0),
    }


def _span(begin: np.ndarray, end: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """`[B, width]` positions from `begin`, and which of them are before `end`."""
    position = begin[:, None] + np.arange(width)
    real = position < end[:, None]
    return np.where(real, position, 0), real


def steps(examples: Examples | Shards, batch_size: int) -> int:
    """Batches of an epoch; the last one may be padded."""
    return -(-len(examples) // batch_size)


def orders(count: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """For each epoch from `epoch` on the rows of its batches, `[steps, B]`; -1 fills up."""
    for turn in range(epoch, np.iinfo(np.int32).max):
        order = np.random.default_rng((seed, turn)).permutation(count)
        yield np.append(order, np.full(-count % batch_size, -1)).reshape(-1, batch_size)


def naming(examples: Examples | Shards) -> contextlib.AbstractContextManager:
    """Names the shard that cannot be read, where there are shards."""
    return examples.naming() if isinstance(examples, Shards) else contextlib.nullcontext()


def training(
    examples: Examples | Shards,
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    step: int = 0,
    at: np.ndarray | None = None,
) -> tf.data.Dataset:
    """An endless stream of shuffled batches of one static shape.

    Each epoch holds every example once; its order is a function of `(seed, epoch)` only,
    so that a run which was stopped goes on with the batches it would have seen. The last
    batch of an epoch is filled up with empty examples.

    Args:
      examples: E examples.
      batch_size: B, over all replicas.
      seed: Of the order.
      epoch: The first one to give.
      step: How many of its batches to leave out; they are not made.
      at: `[R, b]` places of a batch, -1 for an empty example: each batch then comes as R
        elements of b examples, for R replicas. By default as one, of all places.
    """
    if isinstance(examples, Shards):
        return examples.batches(batch_size, seed=seed, epoch=epoch, step=step, at=at)
    at = shares.places(batch_size) if at is None else at

    def index() -> Iterator[np.ndarray]:
        epochs = orders(len(examples), batch_size, seed=seed, epoch=epoch)
        for number, order in enumerate(epochs):
            for rows in order[0 if number else step :]:
                yield from shares.taken(rows, at)

    spec = {
        name: tf.TensorSpec((at.shape[1], *value.shape[1:]), value.dtype)
        for name, value in gather(examples, np.full(1, -1)).items()
    }
    stream = lambda: (gather(examples, rows) for rows in index())
    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread sleeps for longer and longer: up to a
    # minute, which an iterator's end would wait for.
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_generator(stream, output_signature=spec)
    return dataset.prefetch(2 * len(at)).with_options(options)
