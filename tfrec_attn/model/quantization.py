"""A BERT whose large weights are int8: post-training quantization, weights only.

A weight is `units × scale`, units in [-127, 127], with one scale for each output channel
of a map and for each word. Letters: T token ids, d width of what goes in, e of what comes
out.

References:
  - Symmetric, per channel: Jacob et al., 2018, arXiv:1712.05877, and Krishnamoorthi, 2018,
    arXiv:1806.08342, section 2.2.
"""

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.model import blocks

LEVELS = 127


def rounded(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Int8 units of `weights`, and the float32 scale of each slice along the other axis.

    Args:
      weights: Of two axes.
      axis: Over which the largest weight is `LEVELS` units.
    """
    scale = np.abs(weights).max(axis, keepdims=True) / LEVELS
    units = np.round(weights / np.where(scale > 0, scale, 1))
    return units.astype(np.int8), scale.astype(np.float32)


class Rounded(tf_keras.layers.Layer):
    """`x (units × scale) + b` of a map `x W + b`, a scale for each of its e outputs.

    The units become float as they are used: what is served holds a quarter of the bytes.
    """

    def __init__(self, dense):
        super().__init__(name=dense.name, trainable=False)
        units, scale = rounded(dense.kernel.numpy(), 0)
        self.units = _fixed(units, dense.kernel.name)
        self.scale = _fixed(scale[0], dense.kernel.name, "scale")
        self.bias = _fixed(dense.bias, dense.bias.name)

    def call(self, inputs):
        units = tf.cast(self.units, inputs.dtype)
        return tf.matmul(inputs, units) * self.scale + self.bias


class RoundedRows(tf_keras.layers.Layer):
    """`[T]` ids to `[T, d]`, the rows `units × scale` of a table, a scale for each row."""

    def __init__(self, table):
        super().__init__(name="words", trainable=False)
        units, scale = rounded(table.numpy(), 1)
        self.units = _fixed(units, table.name)
        self.scale = _fixed(scale, table.name, "scale")

    def call(self, ids):
        units = tf.cast(tf.gather(self.units, ids), self.scale.dtype)
        return units * tf.gather(self.scale, ids)

    def __tf_tensor__(self, dtype=None, name=None):
        """The whole table, for transformers' own call, which Keras traces when it saves."""
        return tf.cast(self.units, self.scale.dtype) * self.scale


def _fixed(value, name: str, last: str = "") -> tf.Variable:
    """By the name of the weight it takes the place of; or beside it, by its own."""
    name = name.removesuffix(":0")
    if last:
        name = f"{name.rpartition('/')[0]}/{last}"
    return tf.Variable(value, trainable=False, name=name)


def rows(table, ids):
    """Rows `[T, d]` of the words' embeddings, rounded or not."""
    return table(ids) if isinstance(table, RoundedRows) else tf.gather(table, ids)


def quantize(model) -> None:
    """Makes the maps of a `TFBertModel`'s blocks and its words int8."""
    embeddings = model.bert.embeddings
    embeddings.weight = RoundedRows(embeddings.weight)
    for block in model.bert.encoder.layer:
        for name in blocks.MAPS:
            owner, attribute = blocks.owner(block, name)
            setattr(owner, attribute, Rounded(getattr(owner, attribute)))


def is_quantized(model) -> bool:
    """Whether a `TFBertModel` was given to `quantize`."""
    return isinstance(model.bert.embeddings.weight, RoundedRows)


def is_rounded(linear) -> bool:
    return isinstance(linear, Rounded)


def require_float(bert, what: str, way_out: str) -> None:
    """Raises a ValueError where a BERT is quantized, as nothing can change its weights."""
    if is_quantized(bert.model):
        raise ValueError(
            f"{what} changes weights, and those of a quantized BERT are int8: {way_out}, "
            "or take the BERT that was quantized."
        )
