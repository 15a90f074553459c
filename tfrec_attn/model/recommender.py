"""The model: towers, scorer and losses in one `tfrs.Model`, and `build`, which reads config.

Letters: I items, B examples, W events of a window, T targets, R ranked targets of an
example, C candidates, n user tokens, m item tokens, d width.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from tfrec_attn.config import Config
from tfrec_attn.layers import AttentionWeightedCosine
from tfrec_attn.model import encoders, tasks
from tfrec_attn.model.towers import ItemTower, UserTower, gap


class Features:
    """Features of all items or all users as tensors by row, outside the model's weights.

    Args:
      arrays: `[N, ..]` each; see `towers.FeatureTokens` for the names of text.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.tensors = {name: tf.constant(array) for name, array in arrays.items()}

    def rows(self, rows, *, without: tuple[str, ...] = ()):
        """The features of some rows, by name."""
        return {name: tf.gather(tensor, rows) for name, tensor in self.tensors.items()
                if name not in without}


@dataclasses.dataclass(frozen=True)
class ItemMatrices:
    """What the item tower makes of every item.

    Attributes:
      vector: `[I, d]`, an item in a history.
      pooled: `[I, d]` unit vectors, for the retrieval.
      tokens, mask: `[I, m, d]` and `[I, m]`, for the ranking.
    """

    vector: tf.Tensor
    pooled: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor


@dataclasses.dataclass(frozen=True)
class UserState:
    """What the user tower makes of users at one moment each.

    Attributes:
      query: `[B, d]` unit vectors, for the retrieval.
      tokens, mask: `[B, n, d]` and `[B, n]`, for the ranking.
    """

    query: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor


class Recommender(tfrs.Model):
    """Two towers, trained for retrieval and for ranking what the retrieval finds.

    Args:
      item_tower, user_tower: See `towers`.
      scorer: `[B, C]` logits from user and candidate tokens.
      items, users: Features by row.
      frequency: `[I]` share of each item among the training targets.
      loss: Weights and sampling; see `config.Loss`.
      shortlist: Items that the retrieval hands to the scorer; hard negatives are drawn
        from as many.
    """

    def __init__(self, *, item_tower: ItemTower, user_tower: UserTower, scorer, retrieval,
                 items: Features, users: Features, frequency: np.ndarray, loss,
                 shortlist: int, positives: tuple[int, ...], seed: int = 0):
        super().__init__()
        self.item_tower, self.user_tower = item_tower, user_tower
        self.scorer, self.retrieval = scorer, retrieval
        self.feedback = tasks.Feedback()
        self.items, self.users = items, users
        self.frequency = tf.constant(frequency, tf.float32)
        self.weights_of, self.shortlist = loss, max(shortlist, loss.hard_negatives + 1)
        self.positives = tf.constant(positives)
        self.seed = seed
        self.prior = self.add_weight(
            "prior", (), initializer=tf_keras.initializers.Constant(1.0))
        self.meters = {name: tf_keras.metrics.Mean(name) for name in
                       ("loss", "retrieval", "ranking", "feedback")}
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    # What is served.

    def encode_items(self, block: int = 4096) -> ItemMatrices:
        """All items through the item tower, in blocks of rows."""
        count = len(self.frequency)
        parts = [self._encode_rows(tf.range(i, min(i + block, count)))
                 for i in range(0, count, block)]
        return ItemMatrices(*(tf.concat(part, 0) for part in zip(*parts, strict=True)))

    @tf.function(reduce_retracing=True)
    def _encode_rows(self, rows):
        features = self.items.rows(rows)
        vector = self.item_tower.vector(features)
        return vector, self.item_tower.pool(vector), *self.item_tower(features)

    def encode_users(self, profile, vectors, batch) -> UserState:
        """Users as of one moment each.

        Args:
          profile: Features of the profile's columns, `[B, ..]` each.
          vectors: `[I, d]`, from `encode_items`.
          batch: `history` `[B, W]` rows, -1 pads; `history_feedback`; `history_time`;
            `seen` `[B]` events before the moment; `time` `[B]` ms, 0 where unknown.
        """
        events = tf.gather(vectors, tf.maximum(batch["history"], 0))
        tokens, mask, prefix = self._user_tokens(profile, events, batch)
        seen = batch["seen"][:, None]
        gaps = self._request_gap(batch, seen, batch["time"][:, None])
        query = self.user_tower.query(tokens, prefix, seen, gaps)[:, 0]
        tokens, mask = self.user_tower.known(tokens, mask, prefix, seen)
        return UserState(query, tokens[:, 0], mask[:, 0])

    def rank(self, user: UserState, pooled, tokens, mask, training=None):
        """Ranking logits of candidates: the scorer's, and a trained share of the cosine.

        Args:
          user: B users.
          pooled: `[B, C, d]` candidates' unit vectors.
          tokens, mask: `[B, C, m, d]` and `[B, C, m]`.

        Returns:
          `[B, C]` logits.
        """
        score = self.scorer(
            {"user": user.tokens, "item": tokens, "user_mask": user.mask, "item_mask": mask},
            training=training)
        cosine = tf.einsum("bd,bcd->bc", user.query, pooled)
        # The ranking learns how far to trust the retrieval, it does not bend it.
        scale = tf.stop_gradient(tf.exp(self.retrieval.log_scale))
        return score + self.prior * scale * tf.stop_gradient(cosine)

    # What is trained.

    def compute_loss(self, inputs, training=False):
        """The weighted sum of losses, per replica; replicas' sums add up to the mean."""
        batch = inputs
        negatives = self._draw_negatives()
        items, at = self._unique(batch["history"], batch["target"], negatives)
        features = self.items.rows(items, without=("text", "text_mask"))
        features["text_mask"] = tf.ones_like(items, tf.bool)[:, None]
        raise NotImplementedError
