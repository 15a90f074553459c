"""Token matrices in fewer bytes, for an index.

Letters: I items, m item tokens, d width.
"""

from typing import NamedTuple

import tensorflow as tf

_LEVELS = 127.0


class Stored(NamedTuple):
    """Attributes:
    values: `[I, m, d]` in the dtype that is kept.
    step: `[I, m, 1]` bfloat16, what one unit of int8 `values` stands for; else `[I, 0]`.
    """

    values: tf.Tensor
    step: tf.Tensor


def pack(tokens, dtype: str) -> Stored:
    """Float32 tokens `[I, m, d]` as `float32`, `float16`, or `int8` with a step a token.

    A token's cosines see its direction: rounded to 127 levels of its largest component, it
    turns by about a third of a degree at d = 128.
    """
    if dtype != "int8":
        return Stored(
            tf.cast(tokens, dtype), tf.zeros([tf.shape(tokens)[0], 0], tf.bfloat16)
        )
    largest = tf.reduce_max(tf.abs(tokens), -1, keepdims=True)
    step = tf.cast(tf.maximum(largest, 1e-30) / _LEVELS, tf.bfloat16)
    # Over the step as it is kept: its own rounding then costs nothing.
    units = tf.round(tokens / tf.cast(step, tf.float32))
    return Stored(tf.cast(tf.clip_by_value(units, -_LEVELS, _LEVELS), tf.int8), step)


def rows(stored: Stored, at):
    """Float32 tokens `[.., m, d]` of the items at `at` `[..]`."""
    return unpack(Stored(*(tf.gather(part, at) for part in stored)))


def unpack(stored: Stored):
    """Float32 tokens."""
    values = tf.cast(stored.values, tf.float32)
    if stored.values.dtype != tf.int8:
        return values
    return values * tf.cast(stored.step, tf.float32)
