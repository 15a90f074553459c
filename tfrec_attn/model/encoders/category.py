"""Ids, categories and lists of categories: one learned token a value."""

import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class CategoryTokens(tf_keras.layers.Layer):
    """A learned token for each of a vocabulary's values.

    Input: `[.., t]` int32, 1 to `size`; 0 is missing or unknown, so a masked token.
    Output: tokens `[.., t, dim]` and mask `[.., t]`.

    Args:
      size: Values of the vocabulary.
      dim: Width of a token.
      drop: Share of values that are masked in training, as if they were unknown, so that
        the other tokens learn to do without. Drawn per entry of the input.
    """

    def __init__(self, size: int, dim: int, drop: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.size, self.dim, self.drop = size, dim, drop
        self._dropout = tf_keras.layers.Dropout(drop)

    def build(self, input_shape):
        self.table = self.add_weight(
            "table",
            (self.size + 1, self.dim),
            initializer=tf_keras.initializers.TruncatedNormal(stddev=self.dim**-0.5),
        )
        super().build(input_shape)

    def call(self, index, training=None):
        mask = index > 0
        if self.drop:
            kept = self._dropout(tf.ones_like(index, tf.float32), training=training)
            mask &= kept > 0
        return tf.gather(self.table, index), mask

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "dim": self.dim,
            "drop": self.drop,
        }
