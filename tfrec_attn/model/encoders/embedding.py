"""Ready-made vectors (of images, audio, another model): one token, a linear map."""

import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class EmbeddingTokens(tf_keras.layers.Layer):
    """One token of a ready-made vector, whose length does not matter, only its direction.

    Input: `[.., width]` float; a vector of zeros is missing.
    Output: tokens `[.., 1, dim]` and mask `[.., 1]`.

    Args:
      dim: Width of a token.
      dropout: On the components of the vector.
    """

    def __init__(self, dim: int, dropout: float = 0.0, **kwargs):
        # A vector of any size is brought to one length before it is cast.
        super().__init__(**{"autocast": False, **kwargs})
        self.dim, self.dropout = dim, dropout
        self._project = tf_keras.layers.Dense(dim, dtype=self.dtype_policy)
        self._dropout = tf_keras.layers.Dropout(dropout, dtype="float32")

    def call(self, vector, training=None):
        mask = tf.reduce_any(vector != 0, axis=-1)
        # Times √width: components of order 1, as the other encoders' inputs have.
        unit = (
            tf.math.l2_normalize(tf.cast(vector, tf.float32), -1) * vector.shape[-1] ** 0.5
        )
        token = self._project(self._dropout(unit, training=training))
        return token[..., None, :], mask[..., None]

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "dropout": self.dropout}
