"""Whether answers are those of the trained model, computed without the served graph.

Letters: U users, W events of history, S shortlist, K answers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Of a user's largest score, at least of 1: sums of float32 are as exact as their terms.
TOLERANCE = 1e-5


class Answers(NamedTuple):
    """What the model itself recommends.

    Attributes:
      users: `[U]` ids.
      items: Of each user the ids that the model ranks, best first; may be more than K.
      scores: Their scores, falling.
      k: K.
    """

    users: list[str]
    items: list[list[str]]
    scores: list[np.ndarray]
    k: int


class Verdict(NamedTuple):
    """What a comparison found.

    Attributes:
      users: How many were compared.
      wrong: A line for each user whose answer is not the model's.
      ties: Users whose items are the model's but for the order of scores that the
        tolerance cannot tell apart.
      difference: The largest one between two scores of the same item.
    """

    users: int
    wrong: list[str]
    ties: int
    difference: float


def trained(
    model, prepared, *, k: int = 10, rows=None, offered=None, batch_size: int = 256
) -> Answers:
    """The model's answers to users that say nothing but who they are: everything they are
    known to have done is their history, and is not recommended again.

    Of equal cosines the first row comes first, of equal scores the better cosine.

    Args:
      model, prepared: From `runs.load`.
      k: K.
      rows: Users; all by default.
      offered: `[I]` bool, what may be recommended; all by default.
      batch_size: Users a step.
    """
    settings = prepared.config.index
    matrices = model.encode_items(settings.tokens)
    rows = np.arange(len(prepared.users)) if rows is None else np.asarray(rows)
    found = Answers([str(prepared.users.ids[row]) for row in rows], [], [], k)
    for state, events, past in _states(model, prepared, matrices, rows, batch_size):
        scores = tf.matmul(state.query, matrices.pooled, transpose_b=True).numpy()
        for row, mine in zip(scores, events, strict=True):
            row[past[mine]] = -np.inf
        if offered is not None:
            scores[:, ~offered] = -np.inf
        size = max(settings.shortlist, k)
        best = np.argsort(-scores, 1, kind="stable")[:, :size]
        scores = np.take_along_axis(scores, best, 1)
        if settings.shortlist:
            logits = model.rank_at(state, *matrices.candidates(best))
            scores = np.where(np.isfinite(scores), logits.numpy(), -np.inf)
        order = np.argsort(-scores, 1, kind="stable")
        for items, values in zip(
            np.take_along_axis(best, order, 1),
            np.take_along_axis(scores, order, 1),
            strict=True,
        ):
            real = np.isfinite(values)
            found.items.append([str(item) for item in prepared.items.ids[items[real]]])
            found.scores.append(values[real])
    return found


def queries(model, prepared, rows, batch_size: int = 256) -> np.ndarray:
    """`[U, d]` unit vectors of users who say nothing but who they are."""
    matrices = model.encode_items(prepared.config.index.tokens)
    found = _states(model, prepared, matrices, rows, batch_size)
    return np.concatenate([state.query.numpy() for state, _, _ in found])


def _states(model, prepared, matrices, rows, batch_size):
    """Of each batch of users what the model makes of them, the places of their events, and
    the items of all events."""
    past = prepared.events(np.arange(len(prepared.tables.interactions)))
    for at in range(0, len(rows), batch_size):
        users = rows[at : at + batch_size]
        events = [np.flatnonzero(past.user == user) for user in users]
        batch = _batch(past, events, prepared.config.examples.history)
        profile = model.users.rows(users.astype(np.int32))
        yield model.users_at(profile, matrices, batch), events, past.item


def _batch(past, events: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The last W of each user's events, at the front of their row."""
    last = [mine[-length:] for mine in events]
    mask = np.arange(length) < np.array([len(mine) for mine in last])[:, None]

    def fill(values, dtype, empty=0):
        full = np.full(mask.shape, empty, dtype)
        full[mask] = values[np.concatenate(last)]
        return full

    return {
        "history": fill(past.item, np.int32, -1),
        "history_feedback": fill(past.feedback, np.int32),
        "history_time": fill(past.time, np.int64),
        "seen": mask.sum(1, dtype=np.int32),
        "time": np.zeros(len(last), np.int64),
    }


def compare(
    want: Answers, items: Sequence[Sequence[str]], scores: Sequence, tolerance=TOLERANCE
) -> Verdict:
    """Holds answers against the model's.

    A place may hold another item than the model's only if the model's own scores of the
    two differ by no more than the tolerance.

    Args:
      want: From `trained`.
      items: Of each user of `want` the ids answered, best first, without padding.
      scores: Their scores.
      tolerance: Largest difference between two scores of an item, over the user's largest
        score where that is above 1.
    """
    wrong, ties, worst = [], 0, 0.0
    for user, ids, values, theirs, their_scores in zip(
        want.users, want.items, want.scores, items, scores, strict=True
    ):
        count = min(want.k, len(ids))
        if len(theirs) != count or len(set(theirs)) != count:
            wrong.append(f"user {user}: {len(set(theirs))} items instead of {count}.")
            continue
        own = dict(zip(ids, values, strict=True))
        # An item outside the model's list is as far away as can be.
        mine = np.array([own.get(item, np.inf) for item in theirs], np.float64)
        off = np.abs(mine - np.asarray(their_scores, np.float64))
        out_of_order = np.abs(mine - values[:count])
        worst = max(worst, off[np.isfinite(off)].max(initial=0.0))
        allowed = tolerance * max(1.0, np.abs(values).max(initial=0.0))
        bad = np.flatnonzero((off > allowed) | (out_of_order > allowed))
        if len(bad):
            place = bad[0]
            wrong.append(
                f"user {user}, place {place + 1}: item {theirs[place]} at "
                f"{their_scores[place]:.6f}, the model has {ids[place]} at "
                f"{values[place]:.6f}."
            )
            continue
        ties += list(theirs) != ids[:count]
    return Verdict(len(want.users), wrong, ties, float(worst))
