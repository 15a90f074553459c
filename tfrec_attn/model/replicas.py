"""One step over several replicas: what each knows of the others, and its part of the work.

All replicas hold the same step: the examples of all in one order, and the same draws. Each
computes its own part. With one replica every function gives back what it was given.
Letters: R replicas, b examples of a replica, B = R b of all.
"""

from collections.abc import Mapping

import tensorflow as tf

# Entries of a gradient that are sent as they are, 16 MB.
SMALL = 2**22


def count() -> int:
    """R."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def place() -> int:
    """Which replica this is, of 0 … R - 1."""
    if count() == 1:
        return 0
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    # Known when a step is traced, so that slices have static shapes.
    return int(tf.get_static_value(number))


def gathered(value):
    """The rows of all replicas, `[b, ..]` to `[B, ..]`; the gradient that a row gets on
    each of them flows back to where it came from. Needs as many rows of each."""
    if count() == 1:
        return value
    found = tf.distribute.get_replica_context().all_gather(value, axis=0)
    rows = value.shape[0]
    found.set_shape([rows and rows * count(), *value.shape[1:]])
    return found


def examples_of_all(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The examples of all replicas, `[b, ..]` to `[B, ..]` each, of integers and float32:
    one message, as many small ones would take longer."""
    if count() == 1:
        return dict(batch)
    flat = [
        tf.reshape(_as_integers(value), [value.shape[0], -1]) for value in batch.values()
    ]
    widths = [value.shape[1] for value in flat]
    parts = tf.split(gathered(tf.concat(flat, 1)), widths, axis=1)
    found = {}
    for (name, value), part in zip(batch.items(), parts, strict=True):
        part = tf.reshape(part, [-1, *value.shape[1:]])
        is_float = value.dtype.is_floating
        part = tf.cast(part, tf.int32 if is_float else value.dtype)
        found[name] = tf.bitcast(part, value.dtype) if is_float else part
    return found


def _as_integers(value):
    value = tf.bitcast(value, tf.int32) if value.dtype.is_floating else value
    return tf.cast(value, tf.int64)


def own(value):
    """A replica's own of the rows of all, `[B, ..]` to `[b, ..]`; B is static."""
    if count() == 1:
        return value
    size = value.shape[0] // count()
    return value[place() * size :][:size]


def own_picks(pick, size: int):
    """Of picks among the examples of all, those among a replica's own.

    Args:
      pick: `[n, 2]` int32, an example of the B and a place in it.
      size: b.

    Returns:
      The same, with the example as one of the b; and their places among all, None for all.
    """
    if count() == 1:
        return pick, None
    first = place() * size
    here = (pick[:, 0] >= first) & (pick[:, 0] < first + size)
    at = tf.squeeze(tf.where(here), 1)
    return tf.gather(pick, at) - [[first, 0]], at


def to_add_up(gradients):
    """Gradients in the form in which replicas add them up fastest: a table's as a whole,
    where that is small, as the rows of all replicas would be looked through on each."""
    small = lambda g: g.dense_shape is not None and g.shape.num_elements() <= SMALL
    rows = lambda g: isinstance(g, tf.IndexedSlices) and count() > 1 and small(g)
    return [tf.convert_to_tensor(g) if rows(g) else g for g in gradients]


def share(value):
    """A replica's share of what all of them have to do, `[N, ..]` to `[⌈N / R⌉, ..]`, N at
    least 1; the last row stands once more where there is nothing left."""
    if count() == 1:
        return value
    rows = value.shape[0] or tf.shape(value)[0]
    size = -(-rows // count())
    return tf.gather(value, tf.minimum(tf.range(size) + place() * size, rows - 1))


def together(value, rows):
    """What the replicas have made of their shares of N rows, `[⌈N / R⌉, ..]`: `[N, ..]`."""
    return value if count() == 1 else gathered(value)[:rows]


def place_in_share(at, rows):
    """Where places `[n]` among N rows are in a replica's share: those that are, and which
    of the n they are, None for all."""
    if count() == 1:
        return at, None
    size = -(-rows // count())
    here = tf.squeeze(tf.where(at // size == place()), 1)
    return tf.gather(at, here) - place() * size, here
