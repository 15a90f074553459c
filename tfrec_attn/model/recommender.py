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
from tfrec_attn.model import encoders, tasks
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
        items, at = self._items_of_step(batch)
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
            taken=self._taken(batch["user"], items),
            positive=batch["weight"] * tf.cast(positive, tf.float32),
            training=training,
        )

    def _items_of_step(self, batch):
        """All items of a step, each once, and where each is among them."""
        known = self.known_items
        wanted = min(self.settings.negatives, known.shape[0])
        seed = tf.stack([tf.cast(self.seed, tf.int64), self.steps])
        # The same on every replica: negatives are shared.
        order = tf.argsort(tf.random.stateless_uniform(known.shape, seed))
        drawn = tf.gather(known, order[:wanted])
        parts = {
            "history": tf.maximum(batch["history"], 0),
            "target": batch["target"],
            "negatives": drawn,
        }
        items, index = tf.unique(
            tf.concat([tf.reshape(p, [-1]) for p in parts.values()], 0)
        )
        sizes = [tf.size(part) for part in parts.values()]
        pieces = tf.split(index, sizes, num=len(sizes))
        return items, {
            name: tf.reshape(piece, tf.shape(part))
            for (name, part), piece in zip(parts.items(), pieces, strict=True)
        }

    def _taken(self, users, items):
        """`[B, U]`: which of the step's items are training positives of the users."""
        place = tf.scatter_nd(
            items[:, None], tf.range(1, tf.size(items) + 1), tf.shape(self.frequency)
        )
        theirs = tf.gather(self.positives_of, users)
        column = tf.gather(place, theirs.values)
        row = tf.cast(theirs.value_rowids(), tf.int32)
        pairs = tf.boolean_mask(tf.stack([row, column - 1], 1), column > 0)
        ones = tf.ones([tf.shape(pairs)[0]], tf.int32)
        shape = tf.stack([tf.size(users), tf.size(items)])
        return tf.scatter_nd(pairs, ones, shape) > 0

    def _ranking(self, step):
        pick = self._drawn(step.positive, 1)
        user, own = self._users_of(step, pick), lambda value: tf.gather(value, pick[:, 0])
        target = tf.gather_nd(step.at["target"], pick)
        taken = own(step.taken)
        list_, real, reached = self._shortlist(user.query, step.pooled, target, taken)
        list_, real = self._with_rejected(
            list_, real, own(step.batch["history"]), own(step.at["history"]), taken
        )
        losses = tasks.listwise(self._score(step, user, list_), real)
        # A target that the retrieval does not bring to the scorer is nothing to rank; with
        # it, the scorer would learn that the best cosines are the wrong ones.
        handed = tf.gather_nd(step.positive, pick) * tf.cast(reached, tf.float32)
        return self._mean("ranking", losses, handed)

    def _feedback(self, step):
        """Targets of all labels, also of those that nothing is retrieved for."""
        pick = self._drawn(step.batch["weight"], 3)
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

    def _drawn(self, weight, stream: int):
        """`[R, 2]`: example and place in it of some targets of a weight above 0."""
        count = min(self.settings.ranked_targets, weight.shape.num_elements())
        seed = tf.stack([tf.cast(self.seed, tf.int64) + stream, self.steps])
        chance = tf.random.stateless_uniform(tf.shape(weight), seed)
        chance = tf.reshape(tf.where(weight > 0, chance, -1.0), [-1])
        place = tf.math.top_k(chance, count).indices
        return tf.stack([place // weight.shape[1], place % weight.shape[1]], 1)

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

    def _shortlist(self, query, pooled, target, taken):
        """What the scorer would be handed: the target, and some of the items that the
        retrieval ranks highest.

        Returns:
          `[n, C]` places among the step's items, `[n, C]` bool, False where there was none,
          and `[n]` bool, whether the target itself is ranked among the highest.
        """
        scores = tf.stop_gradient(tf.matmul(query, pooled, transpose_b=True))
        own = tf.gather(scores, target, batch_dims=1)
        scores = tf.where(taken, -2.0, scores)
        size = tf.minimum(self.shortlist, tf.shape(scores)[1])
        best, at = tf.math.top_k(scores, size)
        seed = tf.stack([tf.cast(self.seed, tf.int64) + 2, self.steps])
        chance = tf.random.stateless_uniform(tf.shape(best), seed)
        take = tf.minimum(self.settings.hard_negatives, size)
        _, drawn = tf.math.top_k(tf.where(best > -1.5, chance, -1.0), take)
        real = tf.gather(best, drawn, batch_dims=1) > -1.5
        list_ = tf.concat([target[:, None], tf.gather(at, drawn, batch_dims=1)], 1)
        reached = own >= best[:, -1]
        return list_, tf.concat([tf.ones_like(real[:, :1]), real], 1), reached

    def _with_rejected(self, list_, real, history, at, taken):
        """Adds the last items of the window, `[R, W]`, that the user turned down: those
        that never were a positive, be it the target."""
        count = min(self.settings.rejected, history.shape[1])
        if not count:
            return list_, real
        liked = tf.gather(taken, at, batch_dims=1)
        place = tf.range(1, tf.shape(history)[1] + 1)
        rank = tf.where(~liked & (history >= 0), place, 0)
        last, where = tf.math.top_k(rank, count)
        more = tf.gather(at, where, batch_dims=1)
        return tf.concat([list_, more], 1), tf.concat([real, last > 0], 1)

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
