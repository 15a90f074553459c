"""Numbers and times: one token, a piecewise linear function of the value."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class NumberTokens(tf_keras.layers.Layer):
    """One token of a number: a learned direction for each interval between knots.

    Piecewise linear encoding: component i is how far the value has come through the
    interval from knot i to knot i + 1, between 0 and 1. Values outside the knots count
    as the nearest knot.

    Input: `[..]` float, NaN where missing.
    Output: tokens `[.., 1, dim]` and mask `[.., 1]`.

    Args:
      knots: Increasing values, two or more; quantiles of the training table.
      dim: Width of a token.

    Raises:
      ValueError: When `knots` do not increase or are fewer than two.

    References:
      - Gorishniy et al., 2022, arXiv:2203.05556, equation 1.
    """

    def __init__(self, knots: Sequence[float], dim: int, **kwargs):
        # A time or a year does not fit float16: cast after it is encoded.
        super().__init__(**{"autocast": False, **kwargs})
        self.knots, self.dim = [float(k) for k in knots], dim
        gaps = [b - a for a, b in zip(self.knots, self.knots[1:], strict=False)]
        if not gaps or min(gaps) <= 0:
            raise ValueError(f"knots must increase, two at least. Received: {self.knots}.")

    def build(self, input_shape):
        self.kernel = self.add_weight(
            "kernel", (len(self.knots) - 1, self.dim), initializer="glorot_uniform"
        )
        self.bias = self.add_weight(
            "bias",
            (self.dim,),
            initializer=tf_keras.initializers.TruncatedNormal(stddev=self.dim**-0.5),
        )
        super().build(input_shape)

    def call(self, value):
        value = tf.cast(value, tf.float32)
        mask = ~tf.math.is_nan(value)
        value = tf.where(mask, value, self.knots[0])[..., None]
        low, high = tf.constant(self.knots[:-1]), tf.constant(self.knots[1:])
        through = tf.clip_by_value((value - low) / (high - low), 0.0, 1.0)
        through = tf.cast(through, self.compute_dtype)
        return (through @ self.kernel + self.bias)[..., None, :], mask[..., None]

    def get_config(self):
        return {**super().get_config(), "knots": self.knots, "dim": self.dim}
