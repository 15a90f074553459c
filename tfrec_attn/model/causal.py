"""Self-attention that reaches back in time, over a bounded number of events."""

import tensorflow as tf
import tf_keras


class CausalBlock(tf_keras.layers.Layer):
    """A pre-norm transformer block over a profile followed by events in time order.

    An event sees the profile and itself and the `length - 1` events before it; a profile
    token sees the profile up to itself. A learned bias for each distance stands in for
    positions, so that where in a window an event stands does not matter. A stack of b
    blocks reaches back over `b (length - 1)` events beside the last: a window that holds
    fewer gives a like result, not the same.

    Inputs: tokens `[B, n, d]`, mask `[B, n]`, and P, the number of profile tokens.
    Output: `[B, n, d]`.

    Args:
      dim: d.
      heads: Divides `dim`.
      length: Events that one event sees, itself included.
      dropout: On attention weights and both residual branches.

    References:
      - Self-attention over a history: Kang and McAuley, 2018, arXiv:1808.09781.
      - Bias by distance: Raffel et al., 2020, arXiv:1910.10683, section 2.1.
    """

    def __init__(self, dim: int, heads: int, length: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        dense = tf_keras.layers.Dense
        self.heads, self.length, self.width = heads, length, dim // heads
        self.attend_norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.forward_norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.qkv, self.out = dense(3 * dim, use_bias=False), dense(dim, use_bias=False)
        self.up, self.down = dense(2 * dim, activation="gelu"), dense(dim)
        self.dropout = tf_keras.layers.Dropout(dropout)

    def build(self, input_shape):
        # One bias for each distance, one more for all of the profile.
        self.bias = self.add_weight(
            "bias", (self.heads, self.length + 1), initializer="zeros"
        )
        super().build(input_shape)

    def call(self, inputs, training=None):
        tokens, mask, prefix = inputs
        weights_to = self._attention(self.attend_norm(tokens), mask, prefix, training)
        tokens += self.dropout(self.out(weights_to), training=training)
        hidden = self.down(self.up(self.forward_norm(tokens)))
        return tokens + self.dropout(hidden, training=training)

    def _attention(self, tokens, mask, prefix, training):
        batch, n = tf.shape(tokens)[0], tf.shape(tokens)[1]
        parts = tf.reshape(self.qkv(tokens), (batch, n, 3, self.heads, self.width))
        query, key, value = tf.unstack(parts, axis=2)
        scores = tf.einsum("bihw,bjhw->bhij", query, key) * self.width**-0.5
        distance = tf.range(n)[:, None] - tf.range(n)[None, :]
        profile = (tf.range(n) < prefix)[None, :]
        place = tf.where(
            profile, self.length, tf.clip_by_value(distance, 0, self.length - 1)
        )
        scores += tf.gather(self.bias, place, axis=1)
        allowed = (distance >= 0) & ((distance < self.length) | profile)
        allowed = (allowed & mask[:, None, :])[:, None]
        # -1e9 in float32: softmax gives 0 exactly, and a row without any key stays finite.
        weights = tf.nn.softmax(tf.where(allowed, scores, -1e9))
        weights = self.dropout(weights, training=training)
        return tf.reshape(
            tf.einsum("bhij,bjhw->bihw", weights, value),
            (batch, n, self.heads * self.width),
        )
