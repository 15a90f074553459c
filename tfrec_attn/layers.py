"""The scorer as a Keras layer for any TensorFlow code, without TFRS and transformers."""

import math

import tensorflow as tf
import tf_keras

from tfrec_attn.model import scoring

__all__ = ["AttentionWeightedCosine"]


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class AttentionWeightedCosine(tf_keras.layers.Layer):
    """Scores candidates by how well the user, seen through them, matches them.

    Inputs: a dict of `user` `[B, n, d]`, `item` `[B, C, m, d]` (a user's own candidates)
      or `[C, m, d]` (the same for all), `user_mask` `[B, n]` and `item_mask` `[.., m]`,
      True for real tokens.
    Output: `[B, C]` float32, also under mixed precision; with `return_attention=True` a
      pair of it and a dict of what it was made from, see `scoring`. A user or candidate
      without any real token scores 0.

    Args:
      mode: `softmax`: learned projections, temperatures and token importances. `article`:
        the article's formulas as they are, no weights.
      normalizer: Of `article`: `l2` or `softmax`.
      heads: Of `softmax`: subspaces the comparison is made in. Divides d.
      bidirectional: Of `softmax`: also let user tokens attend over item tokens, and
        average both.
      dropout: Of `softmax`: on the attention weights.
      l2: Of `softmax`: L2 penalty on the projections.
      focus: Initial temperature of the attention; it is trained.
      scale: Initial factor from cosines to logits; it is trained.

    Raises:
      ValueError: On an unknown mode or normalizer, or when `heads` does not divide d.

    References:
      - Late interaction: Khattab and Zaharia, 2020, arXiv:2004.12832.
    """

    def __init__(
        self,
        mode="softmax",
        normalizer="l2",
        heads=1,
        bidirectional=False,
        dropout=0.0,
        l2=0.0,
        focus=10.0,
        scale=10.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, known in (
            ("mode", mode, ("softmax", "article")),
            ("normalizer", normalizer, ("l2", "softmax")),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}. Received: {value!r}."
                )
        self.mode, self.normalizer, self.heads = mode, normalizer, heads
        self.bidirectional, self.dropout, self.l2 = bidirectional, dropout, l2
        self.focus, self.scale = focus, scale
        self._dropout = tf_keras.layers.Dropout(dropout, dtype="float32")

    def build(self, input_shape):
        width = input_shape["user"][-1]
        if width is None or width % self.heads:
            raise ValueError(
                f"heads must divide the tokens' width. Received: "
                f"heads={self.heads}, width={width}."
            )
        if self.mode == "softmax":
            constant = tf_keras.initializers.Constant
            penalty = tf_keras.regularizers.L2(self.l2) if self.l2 else None
            for name in ("user_query", "item_key", "user_value", "item_value"):
                # Starts as the identity: the score is a cosine of the towers' own tokens.
                setattr(
                    self,
                    name,
                    self.add_weight(
                        name,
                        (width, width),
                        initializer="identity",
                        regularizer=penalty,
                        dtype=tf.float32,
                    ),
                )
            for name, start in (("log_focus", self.focus), ("log_scale", self.scale)):
                setattr(
                    self,
                    name,
                    self.add_weight(
                        name, (), initializer=constant(math.log(start)), dtype=tf.float32
                    ),
                )
            for name in ("user_importance", "item_importance"):
                setattr(
                    self,
                    name,
                    self.add_weight(
                        name, (width, self.heads), initializer="zeros", dtype=tf.float32
                    ),
                )
        super().build(input_shape)

    def call(self, inputs, training=None, return_attention=False):
        user, item = (tf.cast(inputs[name], tf.float32) for name in ("user", "item"))
        masks = inputs["user_mask"], inputs["item_mask"]
        if self.mode == "article":
            score, parts = scoring.article_score(
                user, item, *masks, normalizer=self.normalizer
            )
        else:
            score, parts = self._softmax(user, item, *masks, training)
        return (score, parts) if return_attention else score

    def _softmax(self, user, item, user_mask, item_mask, training):
        split = lambda tokens, kernel: tf.reshape(
            tf.tensordot(tokens, kernel, 1),
            tf.concat(
                [tf.shape(tokens)[:-1], [self.heads, tokens.shape[-1] // self.heads]], 0
            ),
        )
        cosine, parts = scoring.softmax_score(
            split(user, self.user_query),
            split(item, self.item_key),
            split(user, self.user_value),
            split(item, self.item_value),
            user_mask,
            item_mask,
            focus=tf.exp(self.log_focus),
            user_weight=tf.tensordot(user, self.user_importance, 1),
            item_weight=tf.tensordot(item, self.item_importance, 1),
            bidirectional=self.bidirectional,
            drop=lambda weights: self._dropout(weights, training=training),
        )
        scale = tf.exp(self.log_scale)
        parts = {
            name: scale * part if name.endswith("contributions") else part
            for name, part in parts.items()
        }
        return scale * cosine, parts

    def get_config(self):
        names = (
            "mode",
            "normalizer",
            "heads",
            "bidirectional",
            "dropout",
            "l2",
            "focus",
            "scale",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
