"""The losses: retrieval over all candidates of a step, ranking over shortlists, feedback.

Each gives one loss per target, so that whoever sums them decides on the divisor. Letters:
n targets, U different items of a step, K negatives, C candidates, d width.
"""

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.keras_binding import require_legacy_keras
from tfrec_attn.labels import LABELS

require_legacy_keras()

import tensorflow_recommenders as tfrs  # noqa: E402


class Retrieval(tf_keras.layers.Layer):
    """In-batch softmax over pooled cosines with extra negatives: `tfrs.tasks.Retrieval`.

    The targets come in groups; a group's candidates are its own targets and the
    negatives that all groups share. So the cost is linear in the targets of a step.

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

    def call(self, query, *, items, pooled, target, negatives, taken, real, frequency):
        """Loss of each target.

        Args:
          query: `[n, d]` unit vectors; n is static.
          items: `[U]` rows of the step's items, each once.
          pooled: `[U, d]` their unit vectors.
          target: `[n]` where each target is among `items`.
          negatives: `[K]` where the negatives are among `items`, drawn uniformly from
            those of a `frequency` above 0.
          taken: `[B, U]` True where an item is a positive of a user, so no negative; the
            targets of each of the B users stand together, n / B each.
          real: `[n]` False where a target is padding, so no candidate.
          frequency: `[I]` share of each item row among the training targets.

        Returns:
          `[n]` float32; where `real` is False a number without meaning.
        """
        each = query.shape[0] // taken.shape[0]
        losses = []
        for start in range(0, query.shape[0], self.group):
            g = slice(start, min(start + self.group, query.shape[0]))
            at = tf.concat([target[g], negatives], 0)
            # Few users own a group's targets: columns first, rows after.
            owner = np.arange(g.start, g.stop) // each
            theirs = tf.gather(taken[owner[0] : owner[-1] + 1], at, axis=1)
            own = tf.gather(theirs, owner - owner[0])
            losses.append(self._group(query[g], items, pooled, at, own, real[g], frequency))
        return tf.concat(losses, 0)

    def _group(self, query, items, pooled, at, taken, real, frequency):
        ids = tf.gather(items, at)
        drawn = tf.fill(tf.shape(at) - tf.shape(real), True)
        usable = tf.concat([real, drawn], 0) & ~taken
        own = tf.eye(tf.shape(real)[0], tf.shape(at)[0]) > 0
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
        return expected / (count(real) + count(drawn))


def listwise(scores, mask):
    """Softmax cross-entropy of the first candidate against the others.

    Args:
      scores: `[n, C]` logits; candidate 0 is the target.
      mask: `[n, C]` bool, True for real candidates.

    Returns:
      `[n]` losses.

    References:
      - Cao et al., 2007, ICML (ListNet), with one relevant candidate.
    """
    scores = tf.where(mask, scores, -1e9)
    return tf.reduce_logsumexp(scores, -1) - scores[:, 0]


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
