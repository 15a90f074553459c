"""Token matrices in fewer bytes, for an index.

Letters: I items, m item tokens, d width.
"""

from typing import NamedTuple

import tensorflow as tf

_LEVELS = 127.0
# Items that are rounded at a time: what is made on the way is of these alone.
_BLOCK = 65_536


class Stored(NamedTuple):
    """Attributes:
    values: `[I, m, d]` in the dtype that is kept.
    step: `[I, m, 1]` bfloat16, what one unit of int8 `values` stands for; else 1.
    """

    values: tf.Tensor
    step: tf.Tensor | float = 1.0


def pack(tokens, dtype: str) -> Stored:
    """Float32 tokens `[I, m, d]` as `float32`, `float16`, or `int8` with a step a token.

    A token's cosines see its direction: rounded to 127 levels of its largest component, it
    turns by about a third of a degree at d = 128.
    """
    if dtype != "int8":
        return Stored(tf.cast(tokens, dtype))
    blocks = [_rounded(tokens[i : i + _BLOCK]) for i in range(0, len(tokens), _BLOCK)]
    return Stored(*(tf.concat(part, 0) for part in zip(*blocks, strict=True)))


def _rounded(tokens) -> Stored:
    largest = tf.reduce_max(tf.abs(tokens), -1, keepdims=True)
    step = tf.cast(tf.maximum(largest, 1e-30) / _LEVELS, tf.bfloat16)
    # Over the step as it is kept: its own rounding then costs nothing.
    units = tf.round(tokens / tf.cast(step, tf.float32))
    return Stored(tf.cast(tf.clip_by_value(units, -_LEVELS, _LEVELS), tf.int8), step)


def rows(stored: Stored, at):
    """Float32 tokens `[.., m, d]` of the items at `at` `[..]`."""
    step = stored.step if isinstance(stored.step, float) else tf.gather(stored.step, at)
    return unpack(Stored(tf.gather(stored.values, at), step))


def unpack(stored: Stored):
    """Float32 tokens."""
    return tf.cast(stored.values, tf.float32) * tf.cast(stored.step, tf.float32)
