"""The losses: retrieval over all candidates of a step, ranking over shortlists, feedback.

Each gives one loss per target, so that whoever sums them decides on the divisor. Letters:
n targets, U different items of a step, K negatives, C candidates, d width.
"""

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.labels import LABELS

tfrs = on_legacy_keras("tensorflow_recommenders")


class Retrieval(tf_keras.layers.Layer):
    """In-batch softmax over pooled cosines with extra negatives: `tfrs.tasks.Retrieval`.

    The targets come in groups; a group's candidates are its own targets and the
    negatives that all groups share. So the cost is linear in the targets of a step. Groups
    are of the targets of all replicas, each of which has the losses of its own.

    Args:
      group: Most targets of a group.
      logq: Whether scores are corrected by the log-probability of being a candidate.
      temperature: Initial divisor of the cosines; it is trained.

    References:
      - In-batch softmax with logQ correction: Yi et al., 2019, RecSys, section 3.
      - In-batch and uniform negatives mixed: Yang et al., 2020, WWW companion, section 3.2.
    """

    def __init__(
        self, *, group: int = 256, logq: bool = True, temperature: float = 0.07, **kwargs
    ):
        super().__init__(**kwargs)
        self.group, self.logq, self.temperature = group, logq, temperature
        self.task = tfrs.tasks.Retrieval(
            loss=tf_keras.losses.CategoricalCrossentropy(
                from_logits=True, reduction=tf_keras.losses.Reduction.NONE
            ),
            remove_accidental_hits=True,
        )

    def build(self, input_shape):
        self.log_scale = self.add_weight(
            "log_scale",
            (),
            initializer=tf_keras.initializers.Constant(-np.log(self.temperature)),
        )
        super().build(input_shape)

    def call(
        self, query, *, items, pooled, target, negatives, taken, real, frequency, first=0
    ):
        """Loss of each of a replica's own targets.

        Args:
          query: `[n, d]` unit vectors; n is static.
          items: `[U]` rows of the step's items, each once.
          pooled: `[U, d]` their unit vectors.
          target: `[N]` where each target of all replicas is among `items`; N is static.
          negatives: `[K]` where the negatives are among `items`, drawn uniformly from
            those of a `frequency` above 0.
          taken: `[B, U]` True where an item is a positive of a user, so no negative; the
            targets of each of the B users stand together, n / B each.
          real: `[N]` False where a target is padding, so no candidate.
          frequency: `[I]` share of each item row among the training targets.
          first: Which of the N is the first of the n.

        Returns:
          `[n]` float32; where `real` is False a number without meaning.
        """
        count, total = query.shape[0], target.shape[0]
        each = count // taken.shape[0]
        losses = []
        for start in range(0, total, self.group):
            stop = min(start + self.group, total)
            begin, end = max(start, first), min(stop, first + count)
            if begin >= end:
                continue
            # A query's own candidate stands in its place: the replica's own come first.
            ordered = lambda x, *cut: tf.concat([x[a:b] for a, b in cut], 0)
            cut = (begin, end), (start, begin), (end, stop)
            at = tf.concat([ordered(target, *cut), negatives], 0)
            g = slice(begin - first, end - first)
            # Few users own a group's targets: columns first, rows after.
            owner = np.arange(g.start, g.stop) // each
            theirs = tf.gather(taken[owner[0] : owner[-1] + 1], at, axis=1)
            own = tf.gather(theirs, owner - owner[0])
            chosen = ordered(real, *cut)
            losses.append(self._group(query[g], items, pooled, at, own, chosen, frequency))
        return tf.concat(losses, 0)

    def _group(self, query, items, pooled, at, taken, real, frequency):
        ids = tf.gather(items, at)
        drawn = tf.fill(tf.shape(at) - tf.shape(real), True)
        usable = tf.concat([real, drawn], 0) & ~taken
        own = tf.eye(tf.shape(query)[0], tf.shape(at)[0]) > 0
        return self.task(
            query * tf.exp(self.log_scale),
            tf.gather(pooled, at),
            candidate_ids=ids,
            candidate_sampling_probability=(
                self._probability(ids, real, drawn, frequency) if self.logq else None
            ),
            score_mask=own | usable,
            compute_metrics=False,
            compute_batch_metrics=False,
        )

    def _probability(self, ids, real, drawn, frequency):
        """Each candidate's expected share of a group's columns, `[C]`."""
        count = lambda mask: tf.reduce_sum(tf.cast(mask, tf.float32))
        uniform = 1 / tf.cast(tf.math.count_nonzero(frequency), tf.float32)
        expected = count(real) * tf.gather(frequency, ids) + count(drawn) * uniform
        # A group of padding has no columns.
        return tf.math.divide_no_nan(expected, count(real) + count(drawn))


# Ways to learn an order. Of each, `scores` are `[n, C]` logits of which candidate 0 is the
# target, `mask` is `[n, C]`, True for real candidates, and the result `[n]` losses;
# `smoothing` is the share of the truth that is taken from the target.


def listwise(scores, mask, smoothing: float = 0.0):
    """Softmax cross-entropy of the target against the others; what is taken from it goes
    to all real candidates alike.

    References:
      - Cao et al., 2007, ICML (ListNet), with one relevant candidate.
      - Label smoothing: Szegedy et al., 2016, arXiv:1512.00567, section 7.
    """
    wanted = (1 - smoothing) * scores[:, 0] + smoothing * _mean(scores, mask)
    return tf.reduce_logsumexp(tf.where(mask, scores, -1e9), -1) - wanted


def pairwise(scores, mask, smoothing: float = 0.0):
    """The mean over the others of how likely each is to be put before the target.

    References:
      - Burges et al., 2005, ICML (RankNet); Rendle et al., 2009, UAI (BPR).
    """
    losses = _binary(scores[:, :1] - scores[:, 1:], 1.0, smoothing)
    return _mean(losses, mask[:, 1:])


def pointwise(scores, mask, smoothing: float = 0.0):
    """The mean of two halves: of the target as a hit, and of the others as none."""
    others = _mean(_binary(scores[:, 1:], 0.0, smoothing), mask[:, 1:])
    return (_binary(scores[:, 0], 1.0, smoothing) + others) / 2


def distilled(student, teacher, mask):
    """How far one order is from another's, where no gradient flows to the teacher.

    References:
      - Hinton et al., 2015, arXiv:1503.02531, at temperature 1.
    """
    return divergence(tf.stop_gradient(teacher), student, mask)


def divergence(logits, others, mask):
    """`KL(softmax(logits) ‖ softmax(others))`: `[n, C]` each, and `[n, C]` True for real
    candidates, to `[n]`."""
    log = lambda logits: tf.nn.log_softmax(tf.where(mask, logits, -1e9))
    logits, others = log(logits), log(others)
    return tf.reduce_sum(tf.exp(logits) * (logits - others), -1)


def _binary(logits, label: float, smoothing: float):
    label = label * (1 - smoothing) + smoothing / 2
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), label), logits)


def _mean(values, mask):
    """Over the real ones; 0 where there is none."""
    total = tf.reduce_sum(tf.where(mask, values, 0.0), -1)
    return tf.math.divide_no_nan(total, tf.math.count_nonzero(mask, -1, dtype=tf.float32))


class Feedback(tf_keras.layers.Layer):
    """Which of the article's labels a user will give an item (section 5.2).

    Inputs: `[n, d]` pooled user, `[n, d]` pooled item and `[n]` ranking score.
    Output: `[n, 5]` logits in the order of `LABELS`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = tf_keras.layers.Dense(len(LABELS))

    def call(self, user, item, score):
        return self.dense(tf.concat([user * item, user, item, score[:, None]], -1))
