"""What any model has to beat: fitted to events, asked with histories, in NumPy and SciPy.

Each takes `Events` and gives `Scores`: from histories, `[B, I]` with 1 where one of B
users has met an item, to `[B, I]` scores. So a baseline knows of a user what the model is
shown, and no matrix of all users by all items is held. A pair that repeats counts once,
but for `popularity`. Letters: U users, I items, G categories, B histories, N events.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

Scores = Callable[[sparse.csr_array], np.ndarray]
BLOCK = 1024
# EASE inverts an [I, I] matrix in float64: 0.8 GB each of the two, and a minute, at this.
LARGEST_EASE = 10_000


class UnavailableError(ValueError):
    """A baseline cannot be fitted to these events, or not without another package."""


class Events(NamedTuple):
    """What a baseline is fitted to.

    Attributes:
      user, item: `[N]` rows.
      n_users, n_items: U and I.
      categories: `[I, G]` sparse or dense, 1 where an item is in a category.
      counts: `[I]` events of each item, where `user` and `item` are only some of them.
    """

    user: np.ndarray
    item: np.ndarray
    n_users: int
    n_items: int
    categories: Any = None
    counts: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A baseline and the values to try of each of its settings."""

    fit: Callable[..., Scores]
    grid: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)

    def settings(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grid; one empty one where there is none."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


def random(events: Events, *, seed: int = 0) -> Scores:
    """Uniform scores, drawn anew for each history: what a metric is worth by chance."""
    rng = np.random.default_rng(seed)
    return lambda history: rng.random(history.shape, np.float32)


def constant(events: Events) -> Scores:
    """One score for everything: what a metric is worth by its rule for ties."""
    return lambda history: np.zeros(history.shape, np.float32)


def popularity(events: Events) -> Scores:
    """The number of events of each item, the same for every user (read only)."""
    counts = events.counts
    if counts is None:
        counts = np.bincount(events.item, minlength=events.n_items)
    scores = counts.astype(np.float32)
    return lambda history: np.broadcast_to(scores, history.shape)


def category_popularity(events: Events, *, prior: float = 0.1, seed: int = 0) -> Scores:
    """How popular an item's categories are, with the user above all; no event of it needed.

    The sum over the item's categories of the rate `(n_ug + prior * mean_u n_ug) / i_g`:
    n_ug the user's events in category g, i_g the number of items in g with an event; each
    user's rates are scaled to sum to 1. The share of items that all have the same
    categories is large, so what ties is drawn by lot.

    Args:
      events: With categories.
      prior: Weight of the average user's events beside the user's own. Above 0; the
        larger, the less personal.
      seed: Of the lots.

    Raises:
      UnavailableError: Without categories.
    """
    if prior <= 0:
        raise ValueError(
            f"prior must be above 0, for users without events. Received: {prior}."
        )
    if events.categories is None:
        raise UnavailableError("The items have no category or categories column.")
    categories = sparse.csr_array(events.categories, dtype=np.float64)
    chosen = interactions(events)
    average = (chosen @ categories).sum(axis=0) / events.n_users
    alive = np.maximum((chosen.sum(axis=0) > 0) @ categories, 1)
    lots = random(events, seed=seed)

    def scores(history):
        rates = ((history @ categories).toarray() + prior * average) / alive
        total = np.maximum(rates.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return rates / total @ categories.T + 1e-9 * lots(history)

    return scores


def item_knn(events: Events, *, neighbours: int = 100, shrink: float = 0.0) -> Scores:
    """Sum of the cosines of an item to those of the user's items that are close to it.

    Args:
      events: Any.
      neighbours: Each item keeps its cosines to that many others, its closest.
      shrink: Added to the product of norms, against items of few events.

    References:
      - Sarwar et al., 2001; the shrinkage as in Ferrari Dacrema et al., 2019,
        arXiv:1907.06902.
    """
    chosen = interactions(events)
    by_item = chosen.T.tocsr()
    norms = np.sqrt(chosen.sum(axis=0))
    near = []
    for start in range(0, events.n_items, BLOCK):
        rows = np.arange(start, min(start + BLOCK, events.n_items))
        cosine = (by_item[rows] @ chosen).toarray()
        cosine /= np.outer(norms[rows], norms) + shrink + np.finfo(cosine.dtype).tiny
        cosine[rows - start, rows] = 0
        if neighbours < events.n_items:
            place = events.n_items - neighbours
            cosine[cosine < np.partition(cosine, place, axis=1)[:, [place]]] = 0
        near.append(sparse.csr_array(cosine))
    to_item = sparse.vstack(near).T.tocsr()
    return lambda history: (history @ to_item).toarray()


def ease(events: Events, *, l2: float = 200.0) -> Scores:
    """The linear item-to-item model with zero diagonal that fits the events best.

    Args:
      events: Of at most `LARGEST_EASE` items.
      l2: Penalty on the weights. Positive.

    Raises:
      UnavailableError: With more items.

    References:
      - EASE: Steck, 2019, arXiv:1905.03375; the closed form is its equation 8.
    """
    if events.n_items > LARGEST_EASE:
        raise UnavailableError(
            f"EASE inverts an item-by-item matrix: at most {LARGEST_EASE} items. "
            f"Received: {events.n_items}."
        )
    chosen = interactions(events)
    gram = (chosen.T @ chosen).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    inverse = np.linalg.inv(gram)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return lambda history: history @ weights


def als(
    events: Events,
    *,
    factors: int = 32,
    regularization: float = 1.0,
    alpha: float = 1.0,
    seed: int = 0,
) -> Scores:
    """Weighted matrix factorisation by alternating least squares, by `implicit`.

    Args:
      events: Any.
      factors: Width of the vectors of users and items.
      regularization: Penalty on the vectors.
      alpha: Weight of an event beside the weight 1 of what did not happen.
      seed: Of the first vectors.

    Raises:
      UnavailableError: Where `implicit` is not installed.

    References:
      - Hu, Koren and Volinsky, 2008, ICDM.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise UnavailableError("Needs pip install 'tfrec-attn[baselines]'.") from error
    from threadpoolctl import threadpool_limits

    # It has threads of its own; BLAS's beside them would fight for the cores.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, random_state=seed
        )
        model.fit(sparse.csr_matrix(interactions(events)), show_progress=False)

    def scores(history):
        rows = np.arange(history.shape[0])
        return (
            model.recalculate_user(rows, sparse.csr_matrix(history)) @ model.item_factors.T
        )

    return scores


def interactions(events: Events) -> sparse.csr_array:
    """`[U, I]` float32, 1 where the user has an event with the item."""
    ones = np.ones(len(events.user), np.float32)
    shape = events.n_users, events.n_items
    chosen = sparse.csr_array((ones, (events.user, events.item)), shape=shape)
    chosen.sum_duplicates()
    chosen.data[:] = 1
    return chosen


METHODS = {
    "random": Method(random),
    "constant": Method(constant),
    "popularity": Method(popularity),
    "category popularity": Method(category_popularity, {"prior": [0.1, 1, 10]}),
    "item-kNN": Method(
        item_knn, {"neighbours": [100, 200, 400, 800], "shrink": [0, 20, 100]}
    ),
    "EASE": Method(ease, {"l2": [50, 100, 200, 400, 800, 1600]}),
    "implicit ALS": Method(
        als, {"factors": [32, 64], "regularization": [0.1, 1, 10], "alpha": [1, 4]}
    ),
}
