"""Ranked-list metrics, one value a user, in NumPy.

`U` users, `I` items, `P` targets in all. The whole catalogue is ranked, never a sample.

The rank of a target is its place in its user's one list: all items but those left out,
the user's other targets among them, by falling score. Ties go against the targets: an
item that is no target comes before every target of the same score, so a model that gives
all items one score has its targets last.

A user without targets has no value, rather than 0. Every `[U]` result of
`ranked_metrics` therefore means the users of `answered(targets)`, in that order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Lists(NamedTuple):
    """Item rows of each user: those of user `u` are `indices[indptr[u] : indptr[u + 1]]`.

    The form of `scipy.sparse.csr_array`. `indptr` is `[U + 1]`, `indices` `[P]`.
    """

    indptr: np.ndarray
    indices: np.ndarray


class Interval(NamedTuple):
    """A mean over users and the bounds of its bootstrap interval, numbers or `[M]`."""

    mean: Any
    low: Any
    high: Any


def item_lists(user, item, n_users):
    """The distinct items of each user, in order of row, from `[N]` interactions."""
    pairs = np.unique(
        np.stack([np.asarray(user), np.asarray(item)]).astype(np.int64), axis=1
    )
    sizes = np.bincount(pairs[0], minlength=n_users)
    if len(sizes) > n_users:
        raise ValueError(f"user must be below n_users={n_users}. Received: {pairs[0, -1]}.")
    return Lists(np.concatenate([[0], np.cumsum(sizes)]), pairs[1])


def without(lists, seen):
    """`lists` less what each user has `seen`: a list of new items cannot hold a repeat."""
    lists, seen = _lists(lists), _lists(seen)
    width = 1 + max(lists.indices.max(initial=0), seen.indices.max(initial=0))
    mine = _owners(lists) * width + lists.indices
    kept = ~np.isin(mine, _owners(seen) * width + seen.indices)
    return item_lists(_owners(lists)[kept], lists.indices[kept], len(lists.indptr) - 1)


def answered(targets):
    """Rows of the users who have a target."""
    return np.flatnonzero(np.diff(_lists(targets).indptr))


def ranks(scores, targets, exclude=None):
    """Ranks each user's targets among all items that are not left out.

    Args:
      scores: `[U, I]` the higher the better. Infinities are scores like others.
      targets: `Lists`, or a sequence of U vectors of distinct item rows.
      exclude: In the same form, items left out of the list, such as those already
        seen. None of them may be a target (`without` takes such targets out).

    Returns:
      `[P]` int64 ranks from 1, beside `targets.indices`.
    """
    scores, targets = np.asarray(scores), _lists(targets)
    exclude = _lists([()] * len(scores) if exclude is None else exclude)
    _check(scores, targets, exclude)
    _check_targets(targets, exclude, scores.shape[1])
    if (np.diff(targets.indptr) == 1).all():
        return _ranks_of_one(scores, targets.indices, exclude)
    found = np.empty(len(targets.indices), np.int64)
    for u, row in enumerate(scores):
        asked = slice(*targets.indptr[u : u + 2])
        mine = targets.indices[asked]
        others = np.ones(len(row), bool)
        others[mine] = False
        others[exclude.indices[slice(*exclude.indptr[u : u + 2])]] = False
        found[asked] = _places(row[mine], np.sort(row[others]))
    return found


def _ranks_of_one(scores, target, exclude):
    """The same of one target a user: who is counted ahead need not be in order."""
    mine = np.take_along_axis(scores, target[:, None], 1)
    # A row stays in the cache, all of them together do not.
    counts = (
        np.count_nonzero(row >= least) for row, least in zip(scores, mine, strict=True)
    )
    ahead = np.fromiter(counts, np.int64, len(scores))
    # A list may name an item twice.
    left_out = np.unique(_owners(exclude) * scores.shape[1] + exclude.indices)
    owner, item = np.divmod(left_out, scores.shape[1])
    none = scores[owner, item] >= mine[owner, 0]
    return ahead - np.bincount(owner[none], minlength=len(scores))


def _places(mine, others):
    """Ranks of the scores `mine` in one list with `others`, which are in rising order."""
    ahead = len(others) - np.searchsorted(others, mine, side="left")
    among = np.empty(len(mine), np.int64)
    among[np.argsort(mine, kind="stable")[::-1]] = np.arange(len(mine))
    return 1 + ahead + among


def ranked_metrics(ranks, targets, ks=(5, 10, 20)):
    """Metrics of each user who has targets.

    With r the ranks of a user's n targets, and the i-th smallest of them `r_i`:

    - `hit@k`: 1 if any r ≤ k, else 0. HR where n = 1.
    - `recall@k`: |{r ≤ k}| / n.
    - `precision@k`: |{r ≤ k}| / k.
    - `ndcg@k`: Σ_{r ≤ k} 1 / log2(1 + r), over its largest value Σ_{i ≤ min(k, n)}
      1 / log2(1 + i). Binary relevance.
    - `mrr`: 1 / r_1; `mrr@k`: the same where r_1 ≤ k, else 0.
    - `map@k`: Σ_{i: r_i ≤ k} (i / r_i) / min(k, n), the mean over the targets that fit
      into the list of the precision at each of them.

    Args:
      ranks: `[P]` from `ranks`.
      targets: The same targets.
      ks: Lengths of the list.

    Returns:
      Dict of name to `[U]` float64, of the users `answered(targets)`.

    References:
      - NDCG: Järvelin and Kekäläinen, 2002, with its log2 discount from rank 1 on.
      - The others: Manning, Raghavan and Schütze, 2008, chapter 8. They differ over
        libraries in name and divisor: Tamm, Damdinov and Vasilev, 2021, arXiv:2107.10554.
    """
    targets, ranks = _lists(targets), np.asarray(ranks)
    if len(ranks) != len(targets.indices):
        raise ValueError(
            f"Each target needs a rank. Received: {len(ranks)} for {len(targets.indices)}."
        )
    n = np.diff(targets.indptr)
    n = n[n > 0]
    owner = np.repeat(np.arange(len(n)), n)
    first = np.cumsum(n) - n
    rank = ranks[np.lexsort((ranks, owner))]
    place = np.arange(len(rank)) - first[owner] + 1
    best = rank[first]
    values = {"mrr": 1 / best}
    for k in ks:
        _check_k(k)
        fits = np.minimum(k, n)
        within = lambda weight, k=k: np.bincount(
            owner, weight * (rank <= k), minlength=len(n)
        )
        hits = within(np.ones(len(rank)))
        ideal = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        values[f"ndcg@{k}"] = within(1 / np.log2(1 + rank)) / ideal[fits]
        values[f"hit@{k}"] = (best <= k).astype(np.float64)
        values[f"recall@{k}"] = hits / n
        values[f"precision@{k}"] = hits / k
        values[f"mrr@{k}"] = (best <= k) / best
        values[f"map@{k}"] = within(place / rank) / fits
    return values


def top_k(scores, k, exclude=None):
    """`[U, k]` item rows of the k highest scores; -1 where fewer items are left.

    Items of one score are in order of row.
    """
    scores = np.asarray(scores)
    exclude = _lists([()] * len(scores) if exclude is None else exclude)
    _check(scores, exclude)
    _check_k(k)
    left_out = np.zeros(scores.shape, bool)
    left_out[_owners(exclude), exclude.indices] = True
    # Two keys, since a score of -inf is a score: it comes before what is left out.
    best = np.lexsort((-scores.astype(np.float64), left_out), axis=-1)[:, :k]
    return np.where(np.take_along_axis(left_out, best, axis=-1), -1, best)


def coverage(recommended, n_items):
    """Share of the catalogue that is in at least one of the `[U, k]` lists."""
    return len(np.unique(recommended[recommended >= 0])) / n_items


def popularity(recommended, counts):
    """`[U]` mean of the training counts `[I]` over each user's `[U, k]` list.

    NaN for a list without any item.
    """
    real = recommended >= 0
    total = np.sum(np.asarray(counts)[recommended] * real, axis=-1)
    n = real.sum(axis=-1)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def summary(values):
    """Dict of name to mean over users, from a dict of name to `[U]`."""
    return {
        name: float(np.mean(_some(per_user, name))) for name, per_user in values.items()
    }


def bootstrap(values, baseline=None, *, n=1000, seed=0, level=0.95):
    """Percentile interval of a mean over users.

    Args:
      values: `[U]` one metric of each user, or `[U, M]`, M of them over the same draws.
      baseline: The same of the same users by another model. The interval is then of the
        mean difference, the users drawn in pairs; without 0 in it, the models differ.
      n: Number of draws of U users, with replacement.
      seed: Of the draws.
      level: Share of the draws within the interval.
    """
    values = _some(values, "values")
    if baseline is not None:
        if np.shape(baseline) != values.shape:
            raise ValueError(
                "A paired bootstrap needs the same users in values and baseline. "
                f"Received: {len(values)} and {len(baseline)}."
            )
        values = values - baseline
    rng, users = np.random.default_rng(seed), len(values)
    times = (
        np.bincount(rng.integers(users, size=users), minlength=users) for _ in range(n)
    )
    means = np.stack([drawn @ values for drawn in times]) / users
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(values.mean(axis=0), low, high)


def _lists(lists: Lists | Sequence) -> Lists:
    if isinstance(lists, Lists):
        return Lists(np.asarray(lists.indptr), np.asarray(lists.indices))
    rows = [np.asarray(row, np.int64) for row in lists]
    sizes = [len(row) for row in rows]
    return Lists(np.cumsum([0, *sizes]), np.concatenate([np.zeros(0, np.int64), *rows]))


def _owners(lists):
    """`[P]` the user of each entry."""
    return np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))


def _check(scores, *all_lists):
    if scores.ndim != 2:
        raise ValueError(f"scores must be [users, items]. Received: shape {scores.shape}.")
    # Of numbers with a NaN among them, that is the least.
    if scores.size and np.isnan(scores.min()):
        users = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(
            f"scores must be numbers. Received: NaN, first for user {users[0]}."
        )
    for lists in all_lists:
        rows, n_lists = lists.indices, len(lists.indptr) - 1
        if n_lists != len(scores):
            raise ValueError(
                f"Each row of scores needs its list. Received: {len(scores)} and {n_lists}."
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < scores.shape[1]:
            raise ValueError(
                f"Item rows must be 0 to {scores.shape[1] - 1}, the columns of scores. "
                f"Received: {rows.min()} to {rows.max()}."
            )


def _check_targets(targets, exclude, n_items):
    mine = _owners(targets) * n_items + targets.indices
    if len(np.unique(mine)) < len(mine):
        raise ValueError(
            "A user's targets must be distinct; metrics.item_lists makes them so."
        )
    both = np.isin(mine, _owners(exclude) * n_items + exclude.indices)
    if both.any():
        user, item = np.divmod(mine[both][0], n_items)
        raise ValueError(
            f"exclude must leave the targets in. Received: {both.sum()} that are in both, "
            f"first item {item} of user {user}; metrics.without drops them."
        )


def _check_k(k):
    if k < 1:
        raise ValueError(f"k must be 1 or more. Received: {k}.")


def _some(per_user, name):
    if not len(per_user):
        raise ValueError(f"{name} has no user to average over: no user has a target.")
    return np.asarray(per_user)
