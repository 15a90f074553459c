"""How much the scorer counts beside the retrieval: chosen on held-out events.

Letters: Q queries, C candidates.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import optimize, special

from tfrec_attn.data.examples import Examples
from tfrec_attn.evaluation import ranking

# Of the retrieval's logit: there is no share of nothing.
LEAST = 1e-3
# A retrieval that tells nothing of a shortlist's order would make the share, and the scores
# with it, as large as one likes.
MOST = 10.0


class Shortlists(NamedTuple):
    """What both stages say of the candidates of Q queries, with the target among them.

    Attributes:
      logits: `[Q, C, 2]`, the retrieval's and the scorer's.
      real: `[Q, C]` bool; the others are known to the user.
      target: `[Q]` place of the target.
      user: `[Q]`
    """

    logits: np.ndarray
    real: np.ndarray
    target: np.ndarray
    user: np.ndarray


class Weighed(NamedTuple):
    """Attributes:
    share: Of the scorer's score, added to the retrieval's logit.
    gain: By which the score raises the mean log-likelihood of a user's targets, in nats.
    error: Its standard error over the users.
    """

    share: float
    gain: float
    error: float


def shortlists(
    model, queries: Examples, n_items: int, size: int, tokens: str = "float32"
) -> Shortlists:
    """The shortlists that the model would re-rank, those without the target left out.

    Args:
      model: A trained `recommender.Recommender`.
      queries: Held-out events, one target each.
      n_items: Items of the catalogue.
      size: C, of which no more are taken than there are.
      tokens: Dtype in which the items' token matrices are kept; see `stored`.
    """
    matrices, found = model.encode_items(tokens), []
    for index, left_out in ranking.in_batches(queries, n_items):
        blocked = ranking.mask_of(left_out, n_items)
        user = ranking.users(model, matrices, queries, index)
        cosine = tf.matmul(user.query, matrices.pooled, transpose_b=True)
        rows = ranking.shortlisted(cosine, blocked, size)
        both = ranking.opinions(model, user, matrices, rows)
        is_target = rows.numpy() == queries.targets.item[index][:, None]
        there = is_target.any(1)
        found.append(
            (
                np.stack(both, -1).astype(np.float64)[there],
                ~np.take_along_axis(blocked, rows.numpy(), 1)[there],
                is_target.argmax(1)[there],
                queries.user[index][there],
            )
        )
    return Shortlists(*map(np.concatenate, zip(*found, strict=True)))


def weigh(lists: Shortlists) -> Weighed:
    """The share, up to `MOST`, at which the targets are likeliest, as choices among their
    shortlists.

    A factor of both logits is fitted too, so that the share does not depend on how sure
    either of them is. Every user counts alike. A gain within its standard error is none:
    then the share is 0.

    References:
      - The conditional logit: McFadden, 1974, Conditional Logit Analysis of Qualitative
        Choice Behavior.
      - A second stage's weight, fitted on held-out predictions: Wolpert, 1992, Stacked
        Generalization.
      - The rule of one standard error: Breiman et al., 1984, Classification and Regression
        Trees, section 3.4.3.
    """
    _, user, count = np.unique(lists.user, return_inverse=True, return_counts=True)
    if not len(user):
        return Weighed(0.0, 0.0, 0.0)
    by_user = lambda values: np.bincount(user, values) / count

    def likelihood(scale, share):
        """`[Q]` log-likelihoods, and `[Q, 2]` their slopes by scale and share."""
        both = lists.logits @ (1, share)
        log = special.log_softmax(np.where(lists.real, scale * both, -np.inf), -1)
        chosen = lambda values: np.take_along_axis(values, lists.target[:, None], 1)[:, 0]
        over_mean = lambda values: chosen(values) - (np.exp(log) * values).sum(-1)
        slopes = over_mean(both), scale * over_mean(lists.logits[..., 1])
        return chosen(log), np.stack(slopes, -1)

    def loss(parameters):
        value, slope = likelihood(*parameters)
        slope = [by_user(part).mean() for part in slope.T]
        return -by_user(value).mean(), -np.array(slope)

    def fitted(most: float):
        bounds = ((LEAST, None), (0.0, most))
        return optimize.minimize(loss, (1.0, 0.0), jac=True, bounds=bounds).x

    alone, both = fitted(0.0), fitted(MOST)
    gains = by_user(likelihood(*both)[0] - likelihood(*alone)[0])
    gain, error = float(gains.mean()), float(gains.std() / len(gains) ** 0.5)
    return Weighed(float(both[1]) if gain > error else 0.0, gain, error)
