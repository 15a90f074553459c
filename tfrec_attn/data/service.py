"""Batches of training by a tf.data service: its workers make them, elsewhere.

A service is sent the pipeline as a graph and the arrays in it, so nothing here is Python
but the order of an epoch, which the trainer draws. Letters: R replicas, b examples of each.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfrec_attn.data import batches, shares, windows
from tfrec_attn.data.examples import Examples

# What a graph can be sent as, 2 GB, with room for the rest of it.
MOST_BYTES = 1_900_000_000


def training(
    examples: Examples,
    batch_size: int,
    *,
    address: str,
    seed: int,
    epoch: int = 0,
    step: int = 0,
    at: np.ndarray | None = None,
) -> tf.data.Dataset:
    """What `batches.training` gives, made by a service.

    One worker gives the same batches in the same order. Several give the same examples an
    epoch, each once, in batches of whichever is ready first.

    Args:
      examples, batch_size, seed, epoch, step, at: See `batches.training`.
      address: Of the dispatcher, `host:port`.

    Raises:
      ValueError: When the arrays are too large to be sent.
    """
    at = shares.places(batch_size) if at is None else at
    _require_small(examples)
    make = graph(examples)
    spec = tf.TensorSpec((None, *at.shape), tf.int64)
    order_of = {"seed": seed, "epoch": epoch}

    def orders() -> Iterator[np.ndarray]:
        epochs = batches.orders(len(examples), batch_size, **order_of)
        for number, order in enumerate(epochs):
            yield np.stack(
                [shares.taken(rows, at) for rows in order[0 if number else step :]]
            )

    def one_epoch(rows):
        # Each batch goes to one of the workers.
        sharding = tf.data.experimental.service.ShardingPolicy.DYNAMIC
        served = tf.data.experimental.service.distribute(sharding, f"grpc://{address}")
        return tf.data.Dataset.from_tensor_slices(rows).map(make).apply(served)

    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_generator(orders, output_signature=spec)
    with warnings.catch_warnings():
        # That options are not known before it runs, which is true and no harm: we set none.
        warnings.filterwarnings("ignore", message="To make it possible to preserve tf.data")
        dataset = dataset.flat_map(one_epoch).unbatch()
    return dataset.prefetch(2 * len(at)).with_options(options)


def _require_small(examples: Examples) -> None:
    found = sum(array.nbytes for array in _arrays(examples))
    if found > MOST_BYTES:
        raise ValueError(
            f"--data-service sends the events with the pipeline, at most {MOST_BYTES:,} "
            f"bytes. Received: {found:,}. Leave --data-service out."
        )


def _arrays(examples: Examples) -> list[np.ndarray]:
    tables = examples.history, examples.targets
    names = "user", "first", "last", "begin", "end", "stop"
    events = [getattr(t, n) for t in tables for n in ("item", "feedback", "time", "weight")]
    return [*events, *(getattr(examples, name) for name in names)]


def graph(examples: Examples):
    """`batches.gather` as a function of tensors: `[R, b]` rows to `[R, b, ..]` each."""
    constants = lambda of, *names: {n: tf.constant(getattr(of, n)) for n in names}
    past = constants(examples.history, "item", "feedback", "time")
    goals = constants(examples.targets, "item", "feedback", "time", "weight")
    goals |= constants(examples, "stop")
    columns = constants(examples, "user", *windows.Spans._fields)

    def make(index):
        shape = tf.shape(index)
        rows = tf.reshape(index, [-1])
        take = lambda x: tf.where(rows >= 0, tf.gather(x, tf.maximum(rows, 0)), 0)
        at = windows.Spans(*(take(columns[name]) for name in windows.Spans._fields))
        found = {
            "user": tf.cast(take(columns["user"]), tf.int32),
            **windows.cut(at, past, goals, examples.width, examples.count),
        }
        split = lambda x: tf.ensure_shape(
            tf.reshape(x, tf.concat([shape, tf.shape(x)[1:]], 0)),
            [*index.shape, *x.shape[1:]],
        )
        return {name: split(value) for name, value in found.items()}

    return make
