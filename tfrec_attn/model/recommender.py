"""How the model learns: the losses of a step.

Letters: I items, B examples of a replica, W events of a window, T targets, R ranked targets
of a step, U items of a step, K negatives, C candidates, L events that the ranking sees, n
user tokens, m item tokens, d width, e width of the ranking's tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.model import (
    augmentation,
    gradients,
    replicas,
    sampling,
    scoring,
    tasks,
    tuning,
)
from tfrec_attn.model.states import UserState
from tfrec_attn.model.texts import Live
from tfrec_attn.model.towers import request_gap
from tfrec_attn.model.two_stage import TwoStage


class Step(NamedTuple):
    """What the losses of a step share.

    Attributes:
      batch: The replica's own examples; see `data.batches.gather`.
      items: `[U]` rows of all items of the step, over all replicas, each once.
      at: Where `history` `[B, W]`, `target` `[B, T]` and `negatives` `[K]` are among them.
      vectors: Of the replica's share of these items, `[U, d]` on one replica, as
        `regularization.adversarial` has moved them.
      event, pooled: Made of them, `[U, ..]`; see `ItemMatrices`.
      profile: Tokens and mask of the users' columns.
      query: `[B, T, d]` unit vectors.
      taken: `[B, U]` which items are training positives of the users.
      positive: `[B, T]` weight of the targets that are positive; 0 elsewhere.
      whole: Of the examples of all replicas, `[all B, T]` each: where `target` is among the
        items, `positive` and `weight`.
      training: Whether dropout is on.
    """

    batch: Mapping[str, tf.Tensor]
    items: tf.Tensor
    at: Mapping[str, tf.Tensor]
    vectors: tf.Tensor
    event: tf.Tensor
    pooled: tf.Tensor
    profile: tuple[tf.Tensor, tf.Tensor]
    query: tf.Tensor
    taken: tf.Tensor
    positive: tf.Tensor
    whole: Mapping[str, tf.Tensor]
    training: bool


class Recommender(TwoStage):
    """Two towers, trained for retrieval and for ranking what the retrieval finds.

    Args:
      frequency: `[I]` share of each item among the training targets.
      positives_of: `[users, None]` item rows of each user's training positives.
      live: The BERT that is trained with the retrieval; None where it is frozen.
      settings: Weights and sampling; see `sections.Loss`.
      regularization: See `sections.Regularization`.
      parts: Of a batch, whose gradients are added.
      pull: Factor of the squared distance to the weights that training went on from.
      shortlist: Items that the retrieval hands to the scorer; hard negatives are drawn
        from as many.
      positives: Labels of the targets of retrieval and ranking; the feedback has all.
      seed: Of all draws.
      served: What answers; see `TwoStage`. The retrieval is the loss over pooled vectors.
    """

    def __init__(
        self,
        *,
        frequency: np.ndarray,
        positives_of: tf.RaggedTensor,
        settings,
        regularization,
        parts: int = 1,
        pull: float = 0.0,
        shortlist: int,
        positives: tuple[int, ...],
        live: Live | None = None,
        seed: int,
        **served,
    ):
        super().__init__(**served)
        self.live = live
        self.frequency = tf.constant(frequency, tf.float32)
        # An item that nobody could choose yet is no negative: it would be learned as bad.
        self.known_items = tf.constant(np.flatnonzero(frequency), tf.int32)
        self.positives_of = positives_of
        self.settings, self.regularization, self.parts = settings, regularization, parts
        self.order = getattr(tasks, settings.order)
        # What a step trains: `retrieval`, `ranking` (and the feedback head), or `both`.
        self.stage = "both"
        self.shortlist = max(shortlist, settings.hard_negatives)
        self.positives, self.seed = tf.constant(positives), seed
        self.meters = {
            name: tf_keras.metrics.Mean(name)
            for name in (
                "loss",
                "retrieval",
                "ranking",
                "feedback",
                "distillation",
                "consistency",
            )
        }
        # What a meter shows is of all replicas already; Keras would add it up once more.
        self.distribute_reduction_method = "first"
        # The weights that training went on from, where it did; see `incremental.Origin`.
        self.pull, self.origin = pull, None
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")

    @property
    def learned(self) -> dict[str, tf.Module | tf.Variable]:
        """All that training changes and a trained model needs, by name."""
        names = "item_tower user_tower user_tokens scorer retrieval feedback share"
        bert = {} if self.live is None else {"bert": tuning.kept(self.live.bert)}
        return {name: getattr(self, name) for name in names.split()} | bert

    @property
    def trained_bert(self) -> Live | None:
        """What a step trains; the ranking's own stage leaves BERT as it is."""
        return None if self.stage == "ranking" else self.live

    @property
    def trainable_weights(self):
        live = self.trained_bert
        return super().trainable_weights + (live.bert.trainable_weights if live else [])

    def refresh(self) -> None:
        """Encodes the items' texts anew, where BERT is trained: after its weights moved."""
        if self.live is not None:
            self.live.refresh(self.items.tensors)

    def compute_loss(self, inputs, training=False):
        """The weighted sum of losses of one replica's examples; over replicas they add up
        to the mean over the targets of the whole batch."""
        return self._weighted(self._step(inputs, training))

    def objective(self, inputs, shift=None):
        """What is trained: the losses and penalties of one replica's examples.

        Args:
          inputs: See `data.batches.gather`.
          shift: By which the vectors of the replica's share of the step's items are
            moved.

        Returns:
          The loss, and these vectors.

        References:
          - R-Drop: Liang et al., 2021, arXiv:2106.14448, equations 2 to 4, halved.
        """
        twice = self.regularization.consistency if self.stage != "ranking" else 0.0
        steps = [self._step(inputs, True, turn, shift) for turn in range(2 if twice else 1)]
        total = sum(self._weighted(step) for step in steps) / len(steps)
        if twice:
            total += twice / 2 * self._consistency(*steps)
        live = self.trained_bert
        penalties = [*self.losses, *(live.bert.losses if live else ())]
        return total + sum(penalties) / replicas.count(), steps[0].vectors

    def _weighted(self, step):
        settings, total = self.settings, 0.0
        if self.stage != "ranking":
            total += settings.retrieval * self._retrieval(step)
        if settings.ranking and self.stage != "retrieval":
            total += self._ranking(step)
        if settings.feedback and self.stage != "retrieval":
            total += settings.feedback * self._feedback(step)
        return total

    def _retrieval(self, step):
        flat = lambda value: tf.reshape(value, (-1, *value.shape[2:]))
        weight, query, whole = flat(step.positive), flat(step.query), step.whole
        losses = self.retrieval(
            query,
            items=step.items,
            pooled=step.pooled,
            target=flat(whole["target"]),
            negatives=step.at["negatives"],
            taken=step.taken,
            real=flat(whole["positive"]) > 0,
            frequency=self.frequency,
            first=replicas.place() * query.shape[0],
        )
        return self._mean("retrieval", losses, weight, whole["positive"])

    def _consistency(self, one, other):
        """How far the choices among the step's negatives are from each other that two
        passes over the same targets make: the mean of both divergences."""
        logits, real = zip(*(self._choice(step) for step in (one, other)), strict=True)
        there, back = (tasks.divergence(*pair, real[0]) for pair in (logits, logits[::-1]))
        weight = tf.reshape(one.positive, [-1])
        return self._mean("consistency", (there + back) / 2, weight, one.whole["positive"])

    def _choice(self, step):
        """The retrieval's logits of each target and of the step's negatives, `[n, 1 + K]`,
        and which of them are real."""
        shared = step.at["negatives"]
        own = tf.gather(step.pooled, step.at["target"])
        cosine = tf.concat(
            [
                tf.reduce_sum(step.query * own, -1, keepdims=True),
                tf.einsum("btd,kd->btk", step.query, tf.gather(step.pooled, shared)),
            ],
            -1,
        )
        real = ~tf.gather(step.taken, shared, axis=1)[:, None]
        real = tf.broadcast_to(real, tf.shape(cosine[..., 1:]))
        real = tf.pad(real, [[0, 0], [0, 0], [1, 0]], constant_values=True)
        flat = lambda value: tf.reshape(value, [-1, tf.shape(value)[-1]])
        return flat(tf.exp(self.retrieval.log_scale) * cosine), flat(real)

    def train_step(self, inputs):
        """One step of the optimizer; reports means over the epoch so far."""
        variables = self.trainable_variables
        total, found = gradients.of(self, inputs, variables)
        if hasattr(self.optimizer, "loss_scale"):
            found = self.optimizer.get_unscaled_gradients(found)
        if self.pull and self.origin:
            found = self.origin.pulled(variables, found, self.pull / replicas.count())
        pairs = zip(replicas.to_add_up(found), variables, strict=True)
        self.optimizer.apply_gradients((g, v) for g, v in pairs if g is not None)
        # A mean over replicas of each one's share is one replica's part of the sum.
        self.meters["loss"].update_state(total * float(replicas.count()))
        self.steps.assign_add(1)
        return {name: meter.result() for name, meter in self._shown()}

    def _shown(self):
        """The meters of the losses that are trained."""
        weights = dict(self.settings) | dict(self.regularization)
        for name, meter in self.meters.items():
            of_retrieval = name in ("retrieval", "consistency")
            stage = "retrieval" if of_retrieval else "ranking"
            if name == "loss" or (weights[name] and self.stage in (stage, "both")):
                yield name, meter

    @property
    def metrics(self):
        return list(self.meters.values())

    def positive(self, batch):
        """`[B, T]` weight of the targets that are positive; 0 elsewhere."""
        label = batch["target_feedback"]
        positive = tf.reduce_any(label[..., None] == self.positives, -1)
        return batch["weight"] * tf.cast(positive, tf.float32)

    def _step(self, batch, training, turn=0, shift=None) -> Step:
        # The same on every replica: negatives are shared.
        drawn = sampling.negatives(self.known_items, self.settings.negatives, self._seed(0))
        liked = self._positives(batch)
        whole = replicas.examples_of_all(
            {n: v for n, v in batch.items() if n != "positives"}
        )
        items, at = sampling.each_once(
            {
                "history": tf.maximum(whole["history"], 0),
                "target": whole["target"],
                "negatives": drawn,
            }
        )
        goals = {
            "target": at["target"],
            "positive": self.positive(whole),
            "weight": whole["weight"],
        }
        if training:
            whole = self._thinned(whole)
        batch = {name: replicas.own(value) for name, value in whole.items()}
        at |= {name: replicas.own(at[name]) for name in ("history", "target")}
        features = self._some(self._described, items, training, 16, replicas.share)
        if training and (live := self.trained_bert):
            features["text_mean"] = live.means(
                features["text_mean"], items, goals["target"], self._seed(4), turn
            )
        # The ranking on its own takes users and events as they are served; the tokens of
        # its candidates have dropout.
        learned = training and self.stage != "ranking"
        still = tf.identity if self.stage != "ranking" else tf.stop_gradient
        vectors = self.item_tower.vector(features, training=learned)
        if shift is not None:
            vectors += shift
        event = self.item_tower.event(vectors, features["id"], training=training)
        made = replicas.together(vectors, tf.size(items))
        there = batch["history"] >= 0
        user = {
            "profile": self._some(
                self.users.rows, whole["user"], training, 32, replicas.own
            ),
            "events": tf.where(there[..., None], tf.gather(made, at["history"]), 0.0),
            "mask": there,
            "feedback": batch["history_feedback"],
            "time": batch["history_time"],
        }
        tokens, prefix = self.user_tower(user, training=learned)
        seen, time = batch["target_seen"], batch["target_time"]
        gaps = request_gap(batch["history_time"], seen, time)
        ranks = self.stage != "retrieval"
        return Step(
            batch=batch,
            items=items,
            at=at,
            vectors=vectors,
            event=replicas.together(event, tf.size(items)) if ranks else event,
            profile=self.user_tower.profile(user["profile"], tf.shape(seen)[0], learned),
            pooled=still(self.item_tower.pool(made)),
            query=still(self.user_tower.query(tokens, prefix, seen, gaps, there)),
            taken=tf.ensure_shape(sampling.taken(liked, items), [seen.shape[0], None]),
            positive=replicas.own(goals["positive"]),
            whole=goals,
            training=training,
        )

    def _described(self, rows):
        """Features of items for the retrieval, which has no words."""
        features = self.items.rows(rows, without=("text",))
        if "text_mask" in features:
            # The vector has a text as a whole or not at all.
            whole = tf.reduce_any(features["text_mask"], -1, keepdims=True)
            features["text_mask"] = whole
        return features

    def _positives(self, batch) -> tf.RaggedTensor:
        """`[B, None]` item rows of the users' training positives: those that come with a
        batch that is read from shards, else those that the model knows."""
        if "positives" in batch:
            return tf.RaggedTensor.from_tensor(batch["positives"], padding=-1)
        return tf.gather(self.positives_of, batch["user"])

    def _ranking(self, step):
        """The scorer alone has to find the target: it learns nothing that the retrieval
        knows already where the retrieval's logit is part of the score, as on the targets
        that trained it the retrieval is surer than it ever is again."""
        settings = self.settings
        count = self._in_part(settings.ranked_targets)
        chosen = sampling.targets(step.whole["positive"], count, self._seed(1))
        pick, mine = replicas.own_picks(chosen, step.positive.shape[0])
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
            drawn=None if mine is None else (tf.shape(chosen)[0], mine),
        )
        if settings.rejected:
            past = own(step.batch["history"]), own(step.at["history"])
            more, there = sampling.rejected(*past, taken, settings.rejected)
            hard, real = tf.concat([hard, more], 1), tf.concat([real, there], 1)
        shared = step.at["negatives"][: settings.easy_negatives]
        real = tf.concat([real, ~tf.gather(taken, shared, axis=1)], 1)
        scores = self._scores(step, self._users_of(step, pick, query), hard, shared)
        weight = tf.gather_nd(step.positive, pick)
        all_weight = tf.gather_nd(step.whole["positive"], chosen)
        losses = self.order(scores, real, settings.label_smoothing)
        total = settings.ranking * self._mean("ranking", losses, weight, all_weight)
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
            apart = self._mean("distillation", losses, weight, all_weight)
            total += settings.distillation * apart
        return total

    def _feedback(self, step):
        """Targets of all labels, also of those that nothing is retrieved for."""
        count = self._in_part(self.settings.labelled_targets)
        chosen = sampling.targets(step.whole["weight"], count, self._seed(3))
        pick, _ = replicas.own_picks(chosen, step.positive.shape[0])
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
        all_weight = tf.gather_nd(step.whole["weight"], chosen)
        return self._mean("feedback", losses, weight, all_weight)

    def _in_part(self, count: int) -> int:
        """Of what a step has so many of."""
        return -(-count // self.parts)

    def _thinned(self, batch):
        """The batch with less of its histories."""
        settings, history = self.regularization, batch["history"]
        if settings.event_crop:
            history = augmentation.cropped(history, settings.event_crop, self._seed(5))
        if settings.event_dropout:
            share = settings.event_dropout
            history = augmentation.without_events(history, share, self._seed(6))
        return {**batch, "history": history}

    def _some(self, read, rows, training, stream: int, own=tf.identity):
        """Features of rows, with fewer tokens where it is learned to do with fewer.

        Args:
          read: Gives the features of rows.
          rows: `[n]`, on all replicas the same.
          stream: Of the draws.
          own: Takes a replica's part of n rows; what they lose is drawn for all.
        """
        share = self.regularization.token_dropout if training else 0.0
        if not share:
            return read(own(rows))
        found = augmentation.without_tokens(read(rows), share, self._seed(stream))
        return {name: own(value) for name, value in found.items()}

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
        rows = tf.gather(step.items, unique)
        rows = self._some(self.items.rows, rows, step.training, 48)
        # Projected once, however many targets an item is a candidate of.
        side = self.scorer.item_side(*self.item_tower(rows, training=step.training))
        user = self.scorer.user_side(user.tokens, user.mask)
        score = lambda at: self.scorer.compare(user, scoring.some(side, at), step.training)
        count = tf.size(pairs)
        scores = [score(tf.reshape(index[:count], tf.shape(pairs)))]
        if shared is not None:
            scores.append(score(index[None, count:]))
        return tf.concat(scores, 1)

    def _mean(self, name, losses, weight, whole):
        """This replica's share of the weighted mean over all replicas' targets.

        Args:
          losses, weight: `[n]` of its own targets.
          whole: Weights of all, of any shape.
        """
        losses = tf.where(weight > 0, losses, tf.zeros_like(losses))
        self.meters[name].update_state(losses, weight)
        return tf.math.divide_no_nan(tf.reduce_sum(losses * weight), tf.reduce_sum(whole))
