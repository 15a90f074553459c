"""What the towers are fed with, and what they give to losses and index.

Letters: N rows, I items, B users, n user tokens, m item tokens, d width, e width of the
ranking's tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfrec_attn.model import stored
from tfrec_attn.model.stored import Stored


class Features:
    """Features of all items or all users as tensors by row, outside the model's weights.

    Args:
      arrays: `[N, ..]` each; see `towers.FeatureTokens` for the names of text.
      anew: Whether they can be assigned: texts, by a BERT that is trained.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, anew: bool = False):
        keep = lambda array: (
            tf.Variable(array, trainable=False) if anew else tf.constant(array)
        )
        self.tensors = {name: keep(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        return self.tensors["id"].shape[0]

    def rows(self, rows, *, without: tuple[str, ...] = ()):
        """The features of some rows, by name."""
        return {
            name: tf.gather(tensor, rows)
            for name, tensor in self.tensors.items()
            if name not in without
        }


class ItemMatrices(NamedTuple):
    """What the item tower makes of every item.

    Attributes:
      vector: `[I, d]`, an item in a history.
      event: `[I, e]`, an item in the history that the ranking sees.
      pooled: `[I, d]` unit vectors, for the retrieval.
      tokens: `[I, m, e]` as they are stored, for the ranking.
      mask: `[I, m]`, which of them are real.
    """

    vector: tf.Tensor
    event: tf.Tensor
    pooled: tf.Tensor
    tokens: Stored
    mask: tf.Tensor

    def candidates(self, rows):
        """`pooled`, float32 `tokens` and `mask` of the items at `rows` `[B, C]`."""
        tokens = stored.rows(self.tokens, rows)
        return tf.gather(self.pooled, rows), tokens, tf.gather(self.mask, rows)


class UserState(NamedTuple):
    """What the user tower makes of users at one moment each.

    Attributes:
      query: `[B, d]` unit vectors, for the retrieval.
      tokens, mask: `[B, n, e]` and `[B, n]`, for the ranking.
    """

    query: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor
