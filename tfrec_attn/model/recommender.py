"""Towers, scorer and losses in one `tfrs.Model`.

Letters: I items, B examples, W events of a window, T targets, R ranked targets of a
step, U items of a step, K negatives, C candidates, L events that the ranking sees, n user
tokens, m item tokens, d width, e width of the ranking's tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.model import sampling, scoring, tasks, tuning
from tfrec_attn.model.states import Features, ItemMatrices, UserState
from tfrec_attn.model.texts import Live
from tfrec_attn.model.towers import ItemTower, UserTokens, UserTower, latest, request_gap

Model: Any = on_legacy_keras("tensorflow_recommenders").Model


class Step(NamedTuple):
    """What the losses of a step share.

    Attributes:
      batch: See `data.batches.gather`.
      items: `[U]` rows of all items of the step, each once.
      at: Where `history` `[B, W]`, `target` `[B, T]` and `negatives` `[K]` are among them.
      event, pooled: Of these items, `[U, ..]`; see `ItemMatrices`.
      profile: Tokens and mask of the users' columns.
      query: `[B, T, d]` unit vectors.
      taken: `[B, U]` which items are training positives of the users.
      positive: `[B, T]` weight of the targets that are positive; 0 elsewhere.
      training: Whether dropout is on.
    """

    batch: Mapping[str, tf.Tensor]
    items: tf.Tensor
    at: Mapping[str, tf.Tensor]
    event: tf.Tensor
    pooled: tf.Tensor
    profile: tuple[tf.Tensor, tf.Tensor]
    query: tf.Tensor
    taken: tf.Tensor
    positive: tf.Tensor
    training: bool


class Recommender(Model):
    """Two towers, trained for retrieval and for ranking what the retrieval finds.

    Args:
      item_tower, user_tower, user_tokens: See `towers`.
      scorer: `[B, C]` logits from user and candidate tokens.
      retrieval: The loss over pooled vectors.
      items, users: Features by row.
      frequency: `[I]` share of each item among the training targets.
      positives_of: `[users, None]` item rows of each user's training positives.
      live: The BERT that is trained with the retrieval; None where it is frozen.
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
        user_tokens: UserTokens,
        scorer,
        retrieval: tasks.Retrieval,
        items: Features,
        users: Features,
        frequency: np.ndarray,
        positives_of: tf.RaggedTensor,
        settings,
        shortlist: int,
        positives: tuple[int, ...],
        live: Live | None = None,
        seed: int,
    ):
        super().__init__()
        self.item_tower, self.user_tower = item_tower, user_tower
        self.user_tokens = user_tokens
        self.scorer, self.retrieval = scorer, retrieval
        self.feedback = tasks.Feedback()
        self.items, self.users, self.live = items, users, live
        self.frequency = tf.constant(frequency, tf.float32)
        # An item that nobody could choose yet is no negative: it would be learned as bad.
        self.known_items = tf.constant(np.flatnonzero(frequency), tf.int32)
        self.positives_of = positives_of
        self.settings = settings
        self.order = getattr(tasks, settings.order)
        # What a step trains: `retrieval`, `ranking` (and the feedback head), or `both`.
        self.stage = "both"
        self.shortlist = max(shortlist, settings.hard_negatives)
        self.positives, self.seed = tf.constant(positives), seed
        # How much of the score counts; `fit.settle` chooses it on the validation fold.
        self.share = self.add_weight("share", (), initializer="ones", trainable=False)
        self.meters = {
            name: tf_keras.metrics.Mean(name)
            for name in ("loss", "retrieval", "ranking", "feedback", "distillation")
        }
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    @property
    def learned(self) -> dict[str, tf.Module | tf.Variable]:
        """All that training changes and a trained model needs, by name."""
        names = "item_tower user_tower user_tokens scorer retrieval feedback share"
        bert = {} if self.live is None else {"bert": tuning.kept(self.live.bert)}
        return {name: getattr(self, name) for name in names.split()} | bert

    @property
    def trains_bert(self) -> bool:
        """Whether a step does; the ranking's own stage leaves BERT as it is."""
        return self.live is not None and self.stage != "ranking"

    @property
    def trainable_weights(self):
        weights = super().trainable_weights
        return weights + (self.live.bert.trainable_weights if self.trains_bert else [])

    def refresh(self) -> None:
        """Encodes the items' texts anew, where BERT is trained: after its weights moved."""
        if self.live is not None:
            self.live.refresh(self.items.tensors)

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
        return (
            vector,
            self.item_tower.event(vector, features["id"]),
            self.item_tower.pool(vector),
            *self.item_tower(features),
        )

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
        query = self.user_tower.query(tokens, prefix, seen, gaps)[:, 0]
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
        cosine = tf.einsum("bd,bcd->bc", user.query, pooled)
        score = self._score(user, tokens, mask)
        return tf.exp(self.retrieval.log_scale) * cosine + self.share * score

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
            }
        )

    @tf.function(reduce_retracing=True)
    def users_at(self, profile, items, batch):
        """`encode_users` as a graph."""
        return self.encode_users(profile, items, batch)

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
            self.retrieval.build(None)
            made = self._encode_rows.python_function(rows)
            items = ItemMatrices(*made)
            user = self.encode_users(self.users.rows(rows), items, batch)
            pooled, tokens, mask = (value[None] for value in items[2:])
            self.rank(user, pooled, tokens, mask)
            self.label(user, *items[2:])

    # What is trained.

    def compute_loss(self, inputs, training=False):
        """The weighted sum of losses of one replica's examples; over replicas they add up
        to the mean over the targets of the whole batch."""
        settings, step = self.settings, self._step(inputs, training)
        total = 0.0
        if self.stage != "ranking":
            total += settings.retrieval * self._retrieval(step)
        if settings.ranking and self.stage != "retrieval":
            total += self._ranking(step)
        if settings.feedback and self.stage != "retrieval":
            total += settings.feedback * self._feedback(step)
        return total

    def _retrieval(self, step):
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
        return self._mean("retrieval", losses, weight)

    def train_step(self, inputs):
        """One step of the optimizer; reports means over the epoch so far."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            bert = self.live.bert.losses if self.trains_bert else ()
            penalties = [*self.losses, *bert]
            total = loss + sum(penalties) / replicas
        variables = self.trainable_variables
        pairs = zip(tape.gradient(total, variables), variables, strict=True)
        self.optimizer.apply_gradients((g, v) for g, v in pairs if g is not None)
        # A mean over replicas of each one's share is one replica's part of the sum.
        self.meters["loss"].update_state(total * tf.cast(replicas, tf.float32))
        self.steps.assign_add(1)
        return {name: meter.result() for name, meter in self._shown()}

    def _shown(self):
        """The meters of the losses that are trained."""
        for name, meter in self.meters.items():
            stage = "retrieval" if name == "retrieval" else "ranking"
            if name == "loss" or (
                getattr(self.settings, name) and self.stage in (stage, "both")
            ):
                yield name, meter

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
        if training and self.trains_bert:
            features["text_mean"] = self.live.means(
                features["text_mean"], items, at["target"], self._seed(4)
            )
        # The ranking on its own takes the towers as they are served.
        learned = training and self.stage != "ranking"
        still = tf.identity if self.stage != "ranking" else tf.stop_gradient
        vectors = self.item_tower.vector(features, training=learned)
        user = {
            "profile": self.users.rows(batch["user"]),
            "events": tf.gather(vectors, at["history"]),
            "mask": batch["history"] >= 0,
            "feedback": batch["history_feedback"],
            "time": batch["history_time"],
        }
        tokens, prefix = self.user_tower(user, training=learned)
        seen, time = batch["target_seen"], batch["target_time"]
        gaps = request_gap(batch["history_time"], seen, time)
        label = batch["target_feedback"]
        positive = tf.reduce_any(label[..., None] == self.positives, -1)
        return Step(
            batch=batch,
            items=items,
            at=at,
            event=self.item_tower.event(vectors, features["id"], training=training),
            profile=self.user_tower.profile(user["profile"], tf.shape(seen)[0], learned),
            pooled=still(self.item_tower.pool(vectors)),
            query=still(self.user_tower.query(tokens, prefix, seen, gaps)),
            taken=sampling.taken(
                self.positives_of, batch["user"], items, self.frequency.shape[0]
            ),
            positive=batch["weight"] * tf.cast(positive, tf.float32),
            training=training,
        )

    def _ranking(self, step):
        """The scorer alone has to find the target: it learns nothing that the retrieval
        knows already where the retrieval's logit is part of the score, as on the targets
        that trained it the retrieval is surer than it ever is again."""
        settings = self.settings
        pick = sampling.targets(step.positive, settings.ranked_targets, self._seed(1))
        own = lambda value: tf.gather(value, pick[:, 0])
        target = tf.gather_nd(step.at["target"], pick)
        query, taken = tf.gather_nd(step.query, pick), own(step.taken)
        hard, real = sampling.shortlist(
            query,
            step.pooled,
            target,
            taken,
            size=self.shortlist,
            count=settings.hard_negatives,
            seed=self._seed(2),
        )
        if settings.rejected:
            past = own(step.batch["history"]), own(step.at["history"])
            more, there = sampling.rejected(*past, taken, settings.rejected)
            hard, real = tf.concat([hard, more], 1), tf.concat([real, there], 1)
        shared = step.at["negatives"][: settings.easy_negatives]
        real = tf.concat([real, ~tf.gather(taken, shared, axis=1)], 1)
        scores = self._scores(step, self._users_of(step, pick, query), hard, shared)
        weight = tf.gather_nd(step.positive, pick)
        losses = self.order(scores, real, settings.label_smoothing)
        total = settings.ranking * self._mean("ranking", losses, weight)
        if settings.distillation:
            pooled = tf.gather(step.pooled, hard), tf.gather(step.pooled, shared)
            cosine = tf.concat(
                [
                    tf.einsum("rd,rcd->rc", query, pooled[0]),
                    tf.matmul(query, pooled[1], transpose_b=True),
                ],
                1,
            )
            logits = tf.exp(self.retrieval.log_scale) * cosine
            losses = tasks.distilled(logits, logits + scores, real)
            total += settings.distillation * self._mean("distillation", losses, weight)
        return total

    def _feedback(self, step):
        """Targets of all labels, also of those that nothing is retrieved for."""
        weight, count = step.batch["weight"], self.settings.labelled_targets
        pick = sampling.targets(weight, count, self._seed(3))
        target, label, weight = (
            tf.gather_nd(value, pick)
            for value in (
                step.at["target"],
                step.batch["target_feedback"],
                step.batch["weight"],
            )
        )
        user = self._users_of(step, pick, tf.gather_nd(step.query, pick))
        score = self._scores(step, user, target[:, None])[:, 0]
        logits = self.feedback(user.query, tf.gather(step.pooled, target), score)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        return self._mean("feedback", losses, weight)

    def _seed(self, stream: int):
        """Of one of a step's draws."""
        return tf.stack([tf.cast(self.seed, tf.int64) + stream, self.steps])

    def _users_of(self, step, pick, query) -> UserState:
        """The users as of some targets, `[R, 2]`."""
        batch, own = step.batch, lambda value: tf.gather(value, pick[:, 0])
        names = ("history_feedback", "history_time")
        # Places among the step's items instead of rows: each is encoded once.
        place = tf.where(batch["history"] >= 0, step.at["history"], -1)
        moment = {
            "history": own(place),
            "seen": tf.gather_nd(batch["target_seen"], pick),
            "time": tf.gather_nd(batch["target_time"], pick),
            **{name: own(batch[name]) for name in names},
        }
        profile = tuple(own(value) for value in step.profile)
        event = lambda places: tf.gather(step.event, places)
        return UserState(query, *self._ranked(profile, event, moment))

    def _scores(self, step, user, pairs, shared=None):
        """The scorer's logits of places among the step's items: of each user's own `[R, C]`
        and of what all users share `[S]`, `[R, C + S]`."""
        parts = [tf.reshape(pairs, [-1])] + ([] if shared is None else [shared])
        unique, index = tf.unique(tf.concat(parts, 0))
        rows = self.items.rows(tf.gather(step.items, unique))
        # Projected once, however many targets an item is a candidate of.
        side = self.scorer.item_side(*self.item_tower(rows, training=step.training))
        user = self.scorer.user_side(user.tokens, user.mask)
        score = lambda at: self.scorer.compare(user, scoring.some(side, at), step.training)
        count = tf.size(pairs)
        scores = [score(tf.reshape(index[:count], tf.shape(pairs)))]
        if shared is not None:
            scores.append(score(index[None, count:]))
        return tf.concat(scores, 1)

    def _mean(self, name, losses, weight):
        """This replica's share of the weighted mean over all replicas' targets."""
        context = tf.distribute.get_replica_context()
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(weight))
        losses = tf.where(weight > 0, losses, tf.zeros_like(losses))
        self.meters[name].update_state(losses, weight)
        return tf.math.divide_no_nan(tf.reduce_sum(losses * weight), total)
