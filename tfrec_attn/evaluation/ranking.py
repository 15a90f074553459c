"""What a method answers to held-out events: ranks in the whole catalogue, and lists.

A method is a `Score`: from all queries, the `[B]` places of those that are asked, and what
is left out for each of them, `[B, I]` bool, to `[B, I]` scores. Every query has one target.
Letters: Q queries, B queries of a batch, I items.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfrec_attn import metrics
from tfrec_attn.data import batches
from tfrec_attn.data.examples import Examples, begins
from tfrec_attn.evaluation import baselines

Score = Callable[[Examples, np.ndarray, np.ndarray], np.ndarray]
# Scores held at once: 256 queries of a catalogue of 130,000 items, 16 of two million.
LARGEST_BATCH, MOST_SCORES = 256, 2**25


class Answers(NamedTuple):
    """Attributes:
    rank: `[Q]` place of each query's target, from 1; ties go against it.
    listed: `[Q, k]` rows of the items recommended, -1 where none is left.
    """

    rank: np.ndarray
    listed: np.ndarray


def answers(score: Score, queries: Examples, n_items: int, *, k: int = 0) -> Answers:
    """Asks each query and leaves out all items of its user's history, whatever their time.

    Args:
      score: The method.
      queries: Held-out events, one target each.
      n_items: I.
      k: Length of the lists.
    """
    rank, listed = [], []
    for index, left_out in in_batches(queries, n_items):
        target = queries.targets.item[index]
        scores = score(queries, index, mask_of(left_out, n_items))
        rank.append(metrics.ranks(scores, list(target[:, None]), left_out))
        if k:
            listed.append(metrics.top_k(scores, k, left_out))
    return Answers(
        np.concatenate(rank), np.concatenate(listed) if k else np.zeros((len(queries), 0))
    )


def in_batches(
    queries: Examples, n_items: int
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Places of some queries `[B]`, and for each the rows of the items that its user knows:
    these are left out."""
    history = queries.history
    n_users = 1 + max(queries.user.max(initial=0), history.user.max(initial=0))
    known = metrics.item_lists(history.user, history.item, n_users)
    of = lambda user: known.indices[slice(*known.indptr[user : user + 2])]
    size = max(1, min(LARGEST_BATCH, MOST_SCORES // n_items))
    for index in chunks(len(queries), size):
        yield index, [of(user) for user in queries.user[index]]


def mask_of(left_out, n_items: int) -> np.ndarray:
    """`[B, I]` bool, True at the items that are left out for each of B users."""
    found = np.zeros((len(left_out), n_items), bool)
    for row, items in zip(found, left_out, strict=True):
        row[items] = True
    return found


def of_baseline(scores: baselines.Scores, positive: np.ndarray) -> Score:
    """A baseline, shown what the model is shown: events strictly before the target's time.

    Args:
      scores: From histories.
      positive: `[labels]` bool, which events are in the histories.
    """

    def score(queries, index, blocked):
        past, user = queries.history, queries.user[index]
        begin, stop = begins(past, user), queries.stop[queries.begin[index]]
        owner = np.repeat(np.arange(len(index)), stop - begin)
        event = np.concatenate([np.arange(*span) for span in zip(begin, stop, strict=True)])
        liked = positive[past.feedback[event]]
        events = baselines.Events(owner[liked], past.item[event[liked]], *blocked.shape)
        return scores(baselines.interactions(events))

    return score


def of_model(model, matrices, shortlist: int) -> Score:
    """The model as it is served.

    Args:
      model: A `recommender.Recommender`, as its weights are now.
      matrices: What its `encode_items` gives, with tokens as they are served.
      shortlist: Items that are re-ranked; 0 is the retrieval alone.
    """

    def score(queries, index, blocked):
        user = users(model, matrices, queries, index)
        cosine = tf.matmul(user.query, matrices.pooled, transpose_b=True)
        if not shortlist or tf.equal(model.share, 0.0):
            return cosine.numpy()
        best = shortlisted(cosine, blocked, shortlist)
        scores = cosine.numpy().astype(np.float64)
        # Above every cosine: what is re-ranked stays ahead of what is not.
        logits = 1e6 + rank(model, user, matrices, best).numpy().astype(np.float64)
        np.put_along_axis(scores, best.numpy(), logits, 1)
        return scores

    return score


def shortlisted(cosine, blocked: np.ndarray, size: int):
    """`[B, C]` rows of the best of `[B, I]` that are not left out, C at most `size`."""
    usable = tf.where(blocked, -np.inf, cosine)
    return tf.math.top_k(usable, min(size, blocked.shape[1])).indices


def chunks(count: int, size: int) -> Iterator[np.ndarray]:
    """0 to `count`, at most `size` at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def users(model, matrices, queries: Examples, index: np.ndarray):
    """The `states.UserState` of the queries at `index`."""
    batch = batches.gather(queries, index)
    shown = {name: batch[name] for name in ("history", "history_feedback", "history_time")}
    moment = {"seen": batch["target_seen"][:, 0], "time": batch["target_time"][:, 0]}
    return model.users_at(
        model.users.rows(batch["user"]),
        matrices,
        {name: tf.constant(value) for name, value in (shown | moment).items()},
    )


def rank(model, user, matrices, rows):
    """`[B, C]` ranking logits of the items at `rows` `[B, C]`."""
    return model.rank_at(user, *matrices.candidates(rows))


def opinions(model, user, matrices, rows):
    """The retrieval's and the scorer's logits of the items at `rows`, `[B, C]` each."""
    return model.opinions_at(user, *matrices.candidates(rows))
