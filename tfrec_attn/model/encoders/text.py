"""Text: BERT's hidden states, centred over the catalogue and projected to tokens."""

import numpy as np
import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class TextTokens(tf_keras.layers.Layer):
    """Tokens of a text: one for each of the hidden states that are given, as of words.

    Sentences of one catalogue lie in a narrow cone of BERT's space: the mean over the
    catalogue is taken off and the rest scaled to unit variance before the projection.

    Input: `[.., m, width]` hidden states (any float dtype) and `[.., m]` bool.
    Output: tokens `[.., m, dim]` and the mask.

    Args:
      dim: Width of a token.
      dropout: On the components of the tokens, or of the hidden state in `project`.
    """

    def __init__(self, dim: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.dropout = dim, dropout
        self._project = tf_keras.layers.Dense(dim, use_bias=False, dtype=self.dtype_policy)
        self._dropout = tf_keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape):
        hidden = (
            input_shape[0]
            if isinstance(input_shape[0], (tuple, tf.TensorShape))
            else input_shape
        )
        self.centre = self.add_weight(
            "centre", (hidden[-1],), initializer="zeros", trainable=False
        )
        self.scale = self.add_weight("scale", (), initializer="ones", trainable=False)
        super().build(input_shape)

    def adapt(self, means: np.ndarray) -> None:
        """Learns centre and scale from the catalogue's mean hidden states `[N, width]`."""
        if not self.built:
            self.build(tf.TensorShape((None, means.shape[-1])))
        self.centre.assign(means.mean(0))
        self.scale.assign(1 / max(float(np.std(means - means.mean(0))), 1e-6))

    def project(self, hidden, training=None):
        """`[.., width]` to `[.., dim]`; but for dropout linear, so that the mean of tokens
        is the token of the mean."""
        hidden = (tf.cast(hidden, tf.float32) - self.centre) * self.scale
        return self._project(self._dropout(hidden, training=training))

    def call(self, inputs, training=None):
        hidden, mask = inputs
        # The same as `project`, with all that is as wide as BERT done by one product.
        centre = self._project(self.centre[None])
        tokens = (self._project(tf.cast(hidden, tf.float32)) - centre) * self.scale
        return self._dropout(tokens, training=training), mask

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "dropout": self.dropout}
