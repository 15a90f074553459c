"""The scorer, the encoders of feature tokens and pooling: Keras layers for any TensorFlow
code, without TFRS and transformers.

All are tf_keras layers; `tfrec_attn.keras3_layers` has the scorer for Keras 3, with the
same weights.
"""

import math
from typing import ClassVar

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.model import scoring
from tfrec_attn.model.encoders import (
    CategoryTokens,
    EmbeddingTokens,
    NumberTokens,
    TextTokens,
)
from tfrec_attn.model.towers import masked_mean

__all__ = [
    "AttentionWeightedCosine",
    "CategoryTokens",
    "EmbeddingTokens",
    "MeanPooling",
    "NumberTokens",
    "TextTokens",
]


class Scorer:
    """What the layer is in both Kerases; mixed into either's `Layer`.

    A subclass says by `keras` which one, and by `float32` how to keep its weights in
    float32 under mixed precision.
    """

    keras: object
    float32: ClassVar[dict[str, bool]]

    def __init__(
        self,
        mode="softmax",
        normalizer="l2",
        heads=1,
        dim=None,
        bidirectional=False,
        dropout=0.0,
        l2=0.0,
        focus=10.0,
        scale=10.0,
        chunk=None,
        xla=True,
        **kwargs,
    ):
        # Tokens arrive as they are and are cast once, inside the mathematics.
        super().__init__(**{"autocast": False, **kwargs})
        self.mode, self.normalizer, self.heads, self.dim = mode, normalizer, heads, dim
        self.bidirectional, self.dropout, self.l2 = bidirectional, dropout, l2
        self.focus, self.scale, self.chunk = focus, scale, chunk
        self.xla = self.supports_jit = xla  # Keras 3 asks the latter
        self._check()
        self._drop = self.keras.layers.Dropout(dropout, dtype="float32", autocast=False)

    def _check(self):
        choices = {"mode": ("softmax", "article"), "normalizer": ("l2", "softmax")}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}. Received: {value!r}."
                )
        if self.mode == "softmax" and self.normalizer != "l2":
            raise ValueError(
                "normalizer='softmax' belongs to mode='article'; all cosines of "
                "mode='softmax' are true ones. Leave one of the two out."
            )
        for name in ("heads", "dim", "focus", "scale", "chunk"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive. Received: {value}.")

    def build(self, input_shape):
        width = _width(input_shape)
        dim = self.dim or width
        if dim % self.heads:
            raise ValueError(
                f"heads must divide dim, by default the tokens' width. Received: "
                f"heads={self.heads}, dim={dim}."
            )
        if self.mode == "softmax":
            start = _aligned(width, dim)
            for name in ("user_query", "item_key", "user_value", "item_value"):
                self._weight(name, start, self._toward(start) if self.l2 else None)
            self._weight("log_focus", np.float32(math.log(self.focus)))
            self._weight("log_scale", np.float32(math.log(self.scale)))
            importances = ("user_importance", "item_importance")
            if self.bidirectional:
                importances += ("user_importance_back", "item_importance_back")
            for name in importances:
                self._weight(name, np.zeros((width, self.heads), np.float32))
        super().build(input_shape)

    def _weight(self, name, start, penalty=None):
        weight = self.add_weight(
            name=name,
            shape=start.shape,
            initializer=lambda shape, dtype=None, **_: tf.constant(start),
            regularizer=penalty,
            dtype="float32",
            **self.float32,
        )
        setattr(self, name, weight)

    def _toward(self, start):
        """A cosine does not see the size of a projection, so pulling it to 0 would do
        nothing: it is pulled to where it started."""
        l2 = self.l2
        return lambda weight: l2 * tf.reduce_sum(tf.square(weight - start))

    def call(self, inputs, training=None, return_attention=False):
        _check_inputs(inputs)
        user, item, user_mask, item_mask = (
            inputs[name] for name in ("user", "item", "user_mask", "item_mask")
        )
        side = self.user_side(user, user_mask)
        score = lambda part: self.compare(
            side, self.item_side(*part), training, return_attention
        )
        if self.chunk is None or return_attention:
            return score((item, item_mask))
        return scoring.by_chunks(score, (item, item_mask), item.shape.rank - 3, self.chunk)

    def user_side(self, user, mask):
        """What a comparison needs of users `[B, n, d]`: a `scoring.Side`, or in the
        article's mode, which has no projections, tokens and mask."""
        if self.mode == "article":
            return user, mask
        weights = self.user_query, self.user_value, self.user_importance
        weigh = self.user_importance_back if self.bidirectional else None
        return self._side(user, mask, *weights, weigh)

    def item_side(self, item, mask):
        """The same of items `[B, C, m, d]` or `[C, m, d]`: it depends on no user, so an
        index can keep it, and `scoring.some` hand it out."""
        if item.shape.rank == 3:
            item, mask = tf.expand_dims(item, 0), tf.expand_dims(mask, 0)
        if self.mode == "article":
            return item, mask
        attend = self.item_importance_back if self.bidirectional else None
        weights = self.item_key, self.item_value, attend, self.item_importance
        return self._side(item, mask, *weights)

    def _side(self, tokens, mask, key, value, attend, weigh):
        return scoring.side(
            tokens, mask, key=key, value=value, attend=attend, weigh=weigh, heads=self.heads
        )

    def compare(self, user, item, training=None, return_attention=False):
        """`[B, C]` scores of two sides."""
        if self.mode == "article":
            (user, user_mask), (item, item_mask) = user, item
            return scoring.article_score(
                user, item, user_mask, item_mask,
                normalizer=self.normalizer, return_attention=return_attention,
            )  # fmt: skip
        return scoring.softmax_score(
            user,
            item,
            focus=tf.exp(tf.convert_to_tensor(self.log_focus)),
            scale=tf.exp(tf.convert_to_tensor(self.log_scale)),
            bidirectional=self.bidirectional,
            drop=lambda weights: self._drop(weights, training=training),
            return_attention=return_attention,
            xla=self.xla or training is not False,
        )

    def get_config(self):
        names = (
            "mode", "normalizer", "heads", "dim", "bidirectional", "dropout", "l2", "focus",
            "scale", "chunk", "xla",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class AttentionWeightedCosine(Scorer, tf_keras.layers.Layer):
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
      heads: Of `softmax`: subspaces the comparison is made in. Divides `dim`.
      dim: Of `softmax`: width that tokens are projected to, all heads together; by default
        their own.
      bidirectional: Of `softmax`: also let user tokens attend over item tokens, and
        average both.
      dropout: Of `softmax`: on the attention weights.
      l2: Of `softmax`: penalty on how far the projections move from their start.
      focus: Initial temperature of the attention; it is trained. Positive.
      scale: Initial factor from cosines to logits; it is trained. Positive.
      chunk: Candidates scored at a time, by default all: bounds the memory of scoring (a
        gradient remembers all of them).
      xla: Whether XLA has to be able to compile it. False with `training=False` takes norms
        by a kernel that XLA lacks, and scores some 8 % faster on a CPU.

    Projections start as the identity, or as one orthogonal matrix where `dim` is another
    width: the score is then a cosine of the towers' own tokens before any training.

    References:
      - Late interaction: Khattab and Zaharia, 2020, arXiv:2004.12832.
      - A learned scale on cosines: Radford et al., 2021, arXiv:2103.00020.
    """

    keras = tf_keras
    float32: ClassVar = {"experimental_autocast": False}


@tf_keras.utils.register_keras_serializable("tfrec_attn")
class MeanPooling(tf_keras.layers.Layer):
    """The mean of the real tokens of each set: one vector, as a retrieval compares them.

    Inputs: a pair of tokens `[.., t, d]` and their bool mask `[.., t]`, as encoders give.
    Output: `[.., d]` float32, also under mixed precision (float64 of float64 tokens); 0 for
      a set without any real token.

    Args:
      unit: Whether vectors are brought to length 1, so that a dot product is a cosine.
    """

    def __init__(self, unit: bool = False, **kwargs):
        # A sum over many tokens is taken in float32, whatever their type.
        super().__init__(**{"autocast": False, **kwargs})
        self.unit = unit

    def call(self, inputs):
        tokens, mask = inputs
        if tokens.dtype != tf.float64:
            tokens = tf.cast(tokens, tf.float32)
        mean = masked_mean(tokens, mask)
        return tf.math.l2_normalize(mean, -1) if self.unit else mean

    def get_config(self):
        return {**super().get_config(), "unit": self.unit}


def _width(input_shape):
    user, item = (tuple(input_shape[name])[-1] for name in ("user", "item"))
    if user is None or user != item:
        raise ValueError(
            "The last dimension of user and item must be the same, and known. Received: "
            f"user {user}, item {item}."
        )
    return user


def _check_inputs(inputs):
    ranks = {name: inputs[name].shape.rank for name in inputs}
    item = ranks["item"]
    wanted = {"user": 3, "item": item, "user_mask": 2, "item_mask": item - 1}
    if item not in (3, 4) or ranks != wanted:
        raise ValueError(
            "inputs must be user [B, n, d], item [B, C, m, d] or [C, m, d], user_mask "
            f"[B, n] and item_mask [.., m]. Received ranks: {ranks}."
        )
    for name in ("user_mask", "item_mask"):
        if inputs[name].dtype != tf.bool:
            raise ValueError(
                f"{name} must be bool, True for real tokens. Received: "
                f"{inputs[name].dtype.name}. Cast it."
            )


def _aligned(width, dim):
    """The identity, or orthonormal rows or columns: the same for all projections, so that
    cosines across them mean something from the first step."""
    if width == dim:
        return np.eye(width, dtype=np.float32)
    square = np.random.default_rng(0).normal(size=(max(width, dim),) * 2)
    return np.linalg.qr(square)[0][:width, :dim].astype(np.float32)
