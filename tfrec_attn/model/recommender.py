"""Towers, scorer and losses in one `tfrs.Model`, and `build`, which reads the config.

Letters: I items, B examples, W events of a window, T targets, R ranked targets of a
step, U items of a step, K negatives, C candidates, n user tokens, m item tokens, d width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.config import Config
from tfrec_attn.keras_binding import require_legacy_keras
from tfrec_attn.labels import LABELS
from tfrec_attn.layers import AttentionWeightedCosine
from tfrec_attn.model import encoders, sampling, tasks
from tfrec_attn.model.towers import ItemTower, UserTower, gap

require_legacy_keras()

import tensorflow_recommenders as tfrs  # noqa: E402


class Features:
    """Features of all items or all users as tensors by row, outside the model's weights.

    Args:
      arrays: `[N, ..]` each; see `towers.FeatureTokens` for the names of text.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.tensors = {name: tf.constant(array) for name, array in arrays.items()}

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
      pooled: `[I, d]` unit vectors, for the retrieval.
      tokens, mask: `[I, m, d]` and `[I, m]`, for the ranking.
    """

    vector: tf.Tensor
    pooled: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor


class UserState(NamedTuple):
    """What the user tower makes of users at one moment each.

    Attributes:
      query: `[B, d]` unit vectors, for the retrieval.
      tokens, mask: `[B, n, d]` and `[B, n]`, for the ranking.
    """

    query: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor


class Step(NamedTuple):
    """What the losses of a step share.

    Attributes:
      batch: See `data.batches.gather`.
      items: `[U]` rows of all items of the step, each once.
      at: Where `history` `[B, W]`, `target` `[B, T]` and `negatives` `[K]` are among them.
      pooled: `[U, d]` unit vectors.
      tokens, mask, prefix: See `towers.UserTower.call`; no gradient flows through.
      query: `[B, T, d]` unit vectors.
      taken: `[B, U]` which items are training positives of the users.
      positive: `[B, T]` weight of the targets that are positive; 0 elsewhere.
      training: Whether dropout is on.
    """

    batch: Mapping[str, tf.Tensor]
    items: tf.Tensor
    at: Mapping[str, tf.Tensor]
    pooled: tf.Tensor
    tokens: tf.Tensor
    mask: tf.Tensor
    prefix: tf.Tensor
    query: tf.Tensor
    taken: tf.Tensor
    positive: tf.Tensor
    training: bool


class Recommender(tfrs.Model):
    """Two towers, trained for retrieval and for ranking what the retrieval finds.

    Args:
      item_tower, user_tower: See `towers`.
      scorer: `[B, C]` logits from user and candidate tokens.
      retrieval: The loss over pooled vectors.
      items, users: Features by row.
      frequency: `[I]` share of each item among the training targets.
      positives_of: `[users, None]` item rows of each user's training positives.
      settings: Weights and sampling; see `config.Loss`.
      shortlist: Items that the retrieval hands to the scorer; hard negatives are drawn
        from as many.
      positives: Labels of the targets of retrieval and ranking; the feedback has all.
      seed: Of all draws.
    """

    def __init__(
        self,
        *,
        item_tower: ItemTower,
        user_tower: UserTower,
        scorer,
        retrieval: tasks.Retrieval,
        items: Features,
        users: Features,
        frequency: np.ndarray,
        positives_of: tf.RaggedTensor,
        settings,
        shortlist: int,
        positives: tuple[int, ...],
        seed: int,
    ):
        super().__init__()
        self.item_tower, self.user_tower = item_tower, user_tower
        self.scorer, self.retrieval = scorer, retrieval
        self.feedback = tasks.Feedback()
        self.items, self.users = items, users
        self.frequency = tf.constant(frequency, tf.float32)
        # An item that nobody could choose yet is no negative: it would be learned as bad.
        self.known_items = tf.constant(np.flatnonzero(frequency), tf.int32)
        self.positives_of = positives_of
        self.settings = settings
        self.shortlist = max(shortlist, settings.hard_negatives)
        self.positives, self.seed = tf.constant(positives), seed
        self.prior = self.add_weight(
            "prior", (), initializer=tf_keras.initializers.Constant(1.0)
        )
        # How much of the score counts; `fit.settle` chooses it on the validation fold.
        self.share = self.add_weight("share", (), initializer="ones", trainable=False)
        self.meters = {
            name: tf_keras.metrics.Mean(name)
            for name in ("loss", "retrieval", "ranking", "feedback")
        }
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    # What is served.

    def encode_items(self, block: int = 4096) -> ItemMatrices:
        """All items through the item tower, in blocks of rows."""
        count = len(self.frequency)
        parts = [
            self._encode_rows(tf.range(i, min(i + block, count)))
            for i in range(0, count, block)
        ]
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
        tokens, mask, prefix = self.user_tower(
            {
                "profile": profile,
                "events": tf.gather(vectors, tf.maximum(batch["history"], 0)),
                "mask": batch["history"] >= 0,
                "feedback": batch["history_feedback"],
                "time": batch["history_time"],
            }
        )
        seen = batch["seen"][:, None]
        gaps = request_gap(batch["history_time"], seen, batch["time"][:, None])
        query = self.user_tower.query(tokens, prefix, seen, gaps)
        tokens, mask = self.user_tower.known(tokens, mask, prefix, seen, query)
        return UserState(query[:, 0], tokens[:, 0], mask[:, 0])

    def rank(self, user: UserState, pooled, tokens, mask, training=None):
        """Ranking logits of candidates: a share of the scorer's, and one of the cosine.

        Args:
          user: B users.
          pooled: `[B, C, d]` candidates' unit vectors.
          tokens, mask: `[B, C, m, d]` and `[B, C, m]`.

        Returns:
          `[B, C]` logits.
        """
        score = self.scorer(
            {
                "user": user.tokens,
                "item": tokens,
                "user_mask": user.mask,
                "item_mask": mask,
            },
            training=training,
        )
        cosine = tf.einsum("bd,bcd->bc", user.query, pooled)
        # The ranking learns how far to trust the retrieval.
        scale = tf.stop_gradient(tf.exp(self.retrieval.log_scale))
        return self.share * score + self.prior * scale * tf.stop_gradient(cosine)

    @tf.function(reduce_retracing=True)
    def users_at(self, profile, vectors, batch):
        """`encode_users` as a graph."""
        return self.encode_users(profile, vectors, batch)

    @tf.function(reduce_retracing=True)
    def rank_at(self, user, pooled, tokens, mask):
        """`rank` as a graph."""
        return self.rank(user, pooled, tokens, mask)

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
            features = self.items.rows(rows)
            vector, (tokens, mask) = (
                self.item_tower.vector(features),
                self.item_tower(features),
            )
            pooled = self.item_tower.pool(vector)
            self.retrieval.build(None)
            user = self.encode_users(self.users.rows(rows), vector, batch)
            score = self.rank(user, pooled[None], tokens[None], mask[None])
            self.feedback(user.query, pooled, score[:, 0])

    # What is trained.

    def compute_loss(self, inputs, training=False):
        """The weighted sum of losses of one replica's examples; over replicas they add up
        to the mean over the targets of the whole batch."""
        settings, step = self.settings, self._step(inputs, training)
        flat = lambda value: tf.reshape(value, (-1, *value.shape[2:]))
        weight = flat(step.positive)
        losses = self.retrieval(
            flat(step.query),
            items=step.items,
            pooled=step.pooled,
            target=flat(step.at["target"]),
            negatives=step.at["negatives"],
            taken=step.taken,
            real=weight > 0,
            frequency=self.frequency,
        )
        total = settings.retrieval * self._mean("retrieval", losses, weight)
        if settings.ranking:
            total += settings.ranking * self._ranking(step)
        if settings.feedback:
            total += settings.feedback * self._feedback(step)
        return total

    def train_step(self, inputs):
        """One step of the optimizer; reports means over the epoch so far."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            total = loss + sum(self.losses) / replicas
        variables = self.trainable_variables
        pairs = zip(tape.gradient(total, variables), variables, strict=True)
        self.optimizer.apply_gradients((g, v) for g, v in pairs if g is not None)
        # A mean over replicas of each one's share is one replica's part of the sum.
        self.meters["loss"].update_state(total * tf.cast(replicas, tf.float32))
        self.steps.assign_add(1)
        return {name: meter.result() for name, meter in self.meters.items()}

    @property
    def metrics(self):
        return list(self.meters.values())

    def _step(self, batch, training) -> Step:
        # The same on every replica: negatives are shared.
        drawn = sampling.negatives(self.known_items, self.settings.negatives, self._seed(0))
        items, at = sampling.each_once(
            {
                "history": tf.maximum(batch["history"], 0),
                "target": batch["target"],
                "negatives": drawn,
            }
        )
        features = self.items.rows(items, without=("text",))
        vectors = self.item_tower.vector(features, training=training)
        user = {
            "profile": self.users.rows(batch["user"]),
            "events": tf.gather(vectors, at["history"]),
            "mask": batch["history"] >= 0,
            "feedback": batch["history_feedback"],
            "time": batch["history_time"],
        }
        tokens, mask, prefix = self.user_tower(user, training=training)
        seen, time = batch["target_seen"], batch["target_time"]
        gaps = request_gap(batch["history_time"], seen, time)
        label = batch["target_feedback"]
        positive = tf.reduce_any(label[..., None] == self.positives, -1)
        return Step(
            batch=batch,
            items=items,
            at=at,
            pooled=self.item_tower.pool(vectors),
            # The ranking reads the towers' tokens and does not bend them: with a gradient
            # the retrieval came out worse, and the ranking no better.
            tokens=tf.stop_gradient(tokens),
            mask=mask,
            prefix=prefix,
            query=self.user_tower.query(tokens, prefix, seen, gaps),
            taken=sampling.taken(
                self.positives_of, batch["user"], items, self.frequency.shape[0]
            ),
            positive=batch["weight"] * tf.cast(positive, tf.float32),
            training=training,
        )

    def _ranking(self, step):
        settings = self.settings
        pick = sampling.targets(step.positive, settings.ranked_targets, self._seed(1))
        user, own = self._users_of(step, pick), lambda value: tf.gather(value, pick[:, 0])
        list_, real, reached = sampling.shortlist(
            user.query,
            step.pooled,
            tf.gather_nd(step.at["target"], pick),
            own(step.taken),
            size=self.shortlist,
            count=settings.hard_negatives,
            seed=self._seed(2),
        )
        if settings.rejected:
            past = own(step.batch["history"]), own(step.at["history"])
            more, there = sampling.rejected(*past, own(step.taken), settings.rejected)
            list_, real = tf.concat([list_, more], 1), tf.concat([real, there], 1)
        losses = tasks.listwise(self._score(step, user, list_), real)
        # A target that the retrieval does not bring to the scorer is nothing to rank; with
        # it, the scorer would learn that the best cosines are the wrong ones.
        handed = tf.gather_nd(step.positive, pick) * tf.cast(reached, tf.float32)
        return self._mean("ranking", losses, handed)

    def _feedback(self, step):
        """Targets of all labels, also of those that nothing is retrieved for."""
        weight, count = step.batch["weight"], self.settings.ranked_targets
        pick = sampling.targets(weight, count, self._seed(3))
        target, label, weight = (
            tf.gather_nd(value, pick)
            for value in (
                step.at["target"],
                step.batch["target_feedback"],
                step.batch["weight"],
            )
        )
        user = self._users_of(step, pick)
        score = self._score(step, user, target[:, None])[:, 0]
        logits = self.feedback(user.query, tf.gather(step.pooled, target), score)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        return self._mean("feedback", losses, weight)

    def _seed(self, stream: int):
        """Of one of a step's draws."""
        return tf.stack([tf.cast(self.seed, tf.int64) + stream, self.steps])

    def _users_of(self, step, pick) -> UserState:
        """The users as of some targets, `[R, 2]`."""
        own = lambda value: tf.gather(value, pick[:, 0])
        seen = tf.gather_nd(step.batch["target_seen"], pick)[:, None]
        query = tf.gather_nd(step.query, pick)
        tokens, mask = self.user_tower.known(
            own(step.tokens),
            own(step.mask),
            step.prefix,
            seen,
            tf.stop_gradient(query)[:, None],
        )
        return UserState(query, tokens[:, 0], mask[:, 0])

    def _score(self, step, user, list_):
        """Ranking logits of places among the step's items, `[R, C]`."""
        unique, index = tf.unique(tf.reshape(list_, [-1]))
        tokens, mask = self.item_tower(
            self.items.rows(tf.gather(step.items, unique)), training=step.training
        )
        index = tf.reshape(index, tf.shape(list_))
        return self.rank(
            user,
            tf.gather(step.pooled, list_),
            tf.gather(tokens, index),
            tf.gather(mask, index),
            training=step.training,
        )

    def _mean(self, name, losses, weight):
        """This replica's share of the weighted mean over all replicas' targets."""
        context = tf.distribute.get_replica_context()
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(weight))
        losses = tf.where(weight > 0, losses, tf.zeros_like(losses))
        self.meters[name].update_state(losses, weight)
        return tf.math.divide_no_nan(tf.reduce_sum(losses * weight), total)


def request_gap(history_time, seen, time):
    """Bucket of the time between the last event seen and the request, `[B, T]`.

    Args:
      history_time: `[B, W]` ms.
      seen: `[B, T]` events before the request.
      time: `[B, T]` ms, 0 where unknown.
    """
    last = tf.gather(history_time, tf.maximum(seen - 1, 0), batch_dims=1)
    return gap(tf.where(seen > 0, last, tf.zeros_like(last)), time)


def build(
    config: Config,
    *,
    items: Mapping[str, np.ndarray],
    users: Mapping[str, np.ndarray],
    item_columns,
    user_columns,
    frequency: np.ndarray,
    positives_of: tf.RaggedTensor,
) -> Recommender:
    """The model of a run: the one place where config meets layers.

    Args:
      config: All settings.
      items, users: Features by row; see `towers.FeatureTokens`. Items have `id`.
      item_columns, user_columns: `catalog.Column` of each feature column, by name.
      frequency: `[I]` share of each item among the training targets.
      positives_of: `[U, None]` item rows of each user's training positives.
    """
    settings = config.model
    dim, drop = settings.dim, settings.dropout
    item_encoders = {
        "id": encoders.CategoryTokens(len(frequency), dim, settings.id_dropout)
    }
    item_encoders |= _encoders(item_columns, items, dim, drop)
    user_encoders = _encoders(user_columns, users, dim, drop)
    if settings.user_id:
        user_encoders["id"] = encoders.CategoryTokens(positives_of.shape[0], dim, 0.5)
    tower = UserTower(
        user_encoders,
        dim=dim,
        heads=settings.heads,
        blocks=settings.blocks,
        length=config.examples.history,
        dropout=drop,
        time=settings.time,
    )
    loss = config.loss
    return Recommender(
        item_tower=ItemTower(item_encoders),
        user_tower=tower,
        scorer=AttentionWeightedCosine(**config.scorer.model_dump(), scale=1.0),
        retrieval=tasks.Retrieval(
            group=loss.group, logq=loss.logq, temperature=loss.temperature
        ),
        items=Features(items),
        users=Features(users),
        frequency=frequency,
        positives_of=positives_of,
        settings=loss,
        shortlist=config.index.shortlist,
        positives=tuple(LABELS.index(label) for label in config.examples.positives),
        seed=config.train.seed,
    )


def _encoders(columns, features, dim: int, dropout: float):
    make = {
        "category": lambda c: encoders.CategoryTokens(len(c.vocabulary), dim),
        "categories": lambda c: encoders.CategoryTokens(len(c.vocabulary), dim),
        "number": lambda c: encoders.NumberTokens(c.knots, dim),
        "time": lambda c: encoders.NumberTokens(c.knots, dim),
        "embedding": lambda c: encoders.EmbeddingTokens(dim, dropout),
    }
    made = {name: make[column.kind](column) for name, column in columns.items()}
    if "text" in features:
        text = encoders.TextTokens(dim, dropout)
        text.adapt(features["text_mean"][features["text_mask"].any(-1)])
        made["text"] = text
    return made
