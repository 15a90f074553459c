"""Towers and scorer, and what they answer with in two stages.

Letters: I items, B users, W events of a window, L events that the ranking sees, C
candidates, n user tokens, m item tokens, d width, e width of the ranking's tokens.
"""

from typing import Any

import tensorflow as tf

from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.model import stored, tasks
from tfrec_attn.model.states import Features, ItemMatrices, UserState
from tfrec_attn.model.towers import ItemTower, UserTokens, UserTower, latest, request_gap

Model: Any = on_legacy_keras("tensorflow_recommenders").Model


class TwoStage(Model):
    """The layers of a recommender: two towers whose cosine makes a shortlist, a scorer that
    puts it in order, a head for the label that a user will give.

    Args:
      item_tower, user_tower, user_tokens: See `towers`.
      scorer: `[B, C]` logits from user and candidate tokens.
      retrieval: Holds the temperature of the cosine.
      items, users: Features by row.
    """

    def __init__(
        self,
        *,
        item_tower: ItemTower,
        user_tower: UserTower,
        user_tokens: UserTokens,
        scorer,
        retrieval: tasks.Retrieval,
        items: Features,
        users: Features,
    ):
        super().__init__()
        self.item_tower, self.user_tower = item_tower, user_tower
        self.user_tokens = user_tokens
        self.scorer, self.retrieval = scorer, retrieval
        self.feedback = tasks.Feedback()
        self.items, self.users = items, users
        # How much of the score counts; `weighing.weigh` chooses it on the validation fold.
        self.share = self.add_weight("share", (), initializer="ones", trainable=False)

    def encode_items(self, tokens: str = "float32", block: int = 4096) -> ItemMatrices:
        """All items through the item tower.

        Args:
          tokens: Dtype in which the ranking's tokens are kept; see `stored`.
          block: Rows at a time.
        """
        count = len(self.items)
        blocks = [
            self._encode_rows(tf.range(i, min(i + block, count)), tokens)
            for i in range(0, count, block)
        ]
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *blocks)

    @tf.function(reduce_retracing=True, autograph=False)
    def _encode_rows(self, rows, tokens="float32") -> ItemMatrices:
        features = self.items.rows(rows)
        vector = self.item_tower.vector(features)
        event = self.item_tower.event(vector, features["id"])
        made, mask = self.item_tower(features)
        packed = stored.pack(made, tokens)
        return ItemMatrices(vector, event, self.item_tower.pool(vector), packed, mask)

    def encode_users(self, profile, items, batch) -> UserState:
        """Users as of one moment each.

        Args:
          profile: Features of the profile's columns, `[B, ..]` each.
          items: `vector` and `event` by row; see `ItemMatrices`.
          batch: `history` `[B, W]` rows, -1 pads; `history_feedback`; `history_time`;
            `seen` `[B]` events before the moment; `time` `[B]` ms, 0 where unknown.
        """
        tokens, prefix = self.user_tower(
            {
                "profile": profile,
                "events": tf.gather(items.vector, tf.maximum(batch["history"], 0)),
                "mask": batch["history"] >= 0,
                "feedback": batch["history_feedback"],
                "time": batch["history_time"],
            }
        )
        seen = batch["seen"][:, None]
        gaps = request_gap(batch["history_time"], seen, batch["time"][:, None])
        there = batch["history"] >= 0
        query = self.user_tower.query(tokens, prefix, seen, gaps, there)[:, 0]
        columns = self.user_tower.profile(profile, tf.shape(query)[0])
        event = lambda rows: tf.gather(items.event, rows)
        return UserState(query, *self._ranked(columns, event, batch))

    def _ranked(self, profile, event, batch):
        """What the ranking sees of users: tokens `[B, n, e]` and mask `[B, n]`.

        Args:
          profile: Tokens and mask of the profile's columns; no gradient flows there.
          event: Gives `[B, L, e]` event vectors of `[B, L]` rows.
          batch: As of `encode_users`.
        """
        last = lambda name: latest(batch[name], batch["seen"], self.user_tokens.length)
        rows, there = last("history")
        return self.user_tokens(
            {
                "profile": tf.stop_gradient(profile[0]),
                "profile_mask": profile[1],
                "events": event(tf.maximum(rows, 0)),
                "mask": there & (rows >= 0),
                "feedback": last("history_feedback")[0],
                "time": last("history_time")[0],
                "now": batch["time"],
            }
        )

    def rank(self, user: UserState, pooled, tokens, mask):
        """What orders a shortlist: the retrieval's logit and a share of the scorer's.

        Args:
          user: B users.
          pooled: `[B, C, d]` candidates' unit vectors.
          tokens, mask: `[B, C, m, e]` and `[B, C, m]`.

        Returns:
          `[B, C]` logits.
        """
        retrieval, score = self.opinions(user, pooled, tokens, mask)
        return retrieval + self.share * score

    def opinions(self, user: UserState, pooled, tokens, mask):
        """The retrieval's logit and the scorer's, `[B, C]` each; see `rank`."""
        cosine = tf.einsum("bd,bcd->bc", user.query, pooled)
        score = self._score(user, tokens, mask)
        return tf.exp(self.retrieval.log_scale) * cosine, score

    def label(self, user: UserState, pooled, tokens, mask):
        """`[B, labels]` logits of the label that each user will give one item: `[B, d]`,
        `[B, m, e]` and `[B, m]`."""
        score = self._score(user, tokens[:, None], mask[:, None])[:, 0]
        return self.feedback(user.query, pooled, score)

    def _score(self, user, tokens, mask):
        """`[B, C]` logits of the scorer alone."""
        return self.scorer(
            {
                "user": user.tokens,
                "user_mask": user.mask,
                "item": tokens,
                "item_mask": mask,
            },
            training=False,
        )

    @tf.function(reduce_retracing=True, autograph=False)
    def users_at(self, profile, items, batch):
        """`encode_users` as a graph."""
        return self.encode_users(profile, items, batch)

    @tf.function(reduce_retracing=True, autograph=False)
    def rank_at(self, user, pooled, tokens, mask):
        """`rank` as a graph."""
        return self.rank(user, pooled, tokens, mask)

    @tf.function(reduce_retracing=True, autograph=False)
    def opinions_at(self, user, pooled, tokens, mask):
        """`opinions` as a graph."""
        return self.opinions(user, pooled, tokens, mask)

    def warm_up(self) -> None:
        """Makes all weights, by a call on one made-up user."""
        batch = {
            "history": tf.zeros((1, 1), tf.int32),
            "history_feedback": tf.zeros((1, 1), tf.int32),
            "history_time": tf.zeros((1, 1), tf.int64),
            "seen": tf.ones(1, tf.int32),
            "time": tf.zeros(1, tf.int64),
        }
        rows = tf.zeros(1, tf.int32)
        with self.distribute_strategy.scope():
            self.retrieval.build(None)
            items = self._encode_rows.python_function(rows)
            user = self.encode_users(self.users.rows(rows), items, batch)
            self.rank(user, *items.candidates(rows[None]))
            self.label(user, *items.candidates(rows))
