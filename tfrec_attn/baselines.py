"""What any model has to beat: dense `[U, I]` score matrices from counts, in NumPy.

Each takes the training events as `[N]` user rows and `[N]` item rows; a pair that
repeats counts once, but for `popularity`. They are meant for evaluation, a batch of users
at a time where the catalogue is large: `ease` and `item_knn` hold an `[I, I]` matrix.
"""

import numpy as np


def random(n_users, n_items, seed=0):
    """Uniform scores: what a metric is worth by chance."""
    return np.random.default_rng(seed).random((n_users, n_items), dtype=np.float32)


def popularity(item, n_users, n_items):
    """The number of training events of each item, the same for every user (read only)."""
    counts = np.bincount(item, minlength=n_items).astype(np.float32)
    return np.broadcast_to(counts, (n_users, n_items))


def category_popularity(user, item, membership, n_users, *, prior=0.1, seed=0):
    """How popular an item's categories are, with the user above all; no event of it needed.

    The sum over the item's categories of the rate `(n_ug + prior * mean_u n_ug) / i_g`:
    n_ug the user's events in category g, i_g the number of items in g with an event. The
    share of items that all have the same categories is large, so what ties is drawn by lot.

    Args:
      user, item: `[N]` training events.
      membership: `[I, G]` bool, which categories an item is in.
      n_users: U.
      prior: Weight of the average user's events beside the user's own. Above 0; the
        larger, the less personal.
      seed: Of the lots.

    Returns:
      `[U, I]` float64, each user's rates scaled to sum to 1.
    """
    if prior <= 0:
        raise ValueError(
            f"prior must be above 0, for users without events. Received: {prior}."
        )
    membership = np.asarray(membership, np.float64)
    chosen = interactions(user, item, n_users, len(membership))
    taken = chosen @ membership
    rates = (taken + prior * taken.mean(axis=0)) / np.maximum(
        chosen.any(axis=0) @ membership, 1
    )
    rates /= np.maximum(rates.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return rates @ membership.T + 1e-9 * random(n_users, len(membership), seed)


def item_knn(user, item, n_users, n_items, *, neighbours=100, shrink=0.0):
    """Sum of the cosines of an item to those of the user's items that are close to it.

    Args:
      user, item: `[N]` training events.
      n_users, n_items: U and I.
      neighbours: Each item keeps its cosines to that many others, its closest.
      shrink: Added to the product of norms, against items of few events.

    References:
      - Sarwar et al., 2001; the shrinkage as in Ferrari Dacrema et al., 2019,
        arXiv:1907.06902.
    """
    chosen = interactions(user, item, n_users, n_items)
    norms = np.sqrt(chosen.sum(axis=0))
    near = chosen.T @ chosen
    near /= np.outer(norms, norms) + shrink + np.finfo(near.dtype).tiny
    np.fill_diagonal(near, 0)
    if neighbours < n_items:
        kept = np.partition(near, n_items - neighbours, axis=1)[:, [n_items - neighbours]]
        near[near < kept] = 0
    return chosen @ near.T


def ease(user, item, n_users, n_items, *, l2=200.0):
    """The linear item-to-item model with zero diagonal that fits the events best.

    Args:
      user, item: `[N]` training events.
      n_users, n_items: U and I.
      l2: Penalty on the weights. Positive.

    References:
      - EASE: Steck, 2019, arXiv:1905.03375; the closed form is its equation 8.
    """
    chosen = interactions(user, item, n_users, n_items)
    gram = (chosen.T @ chosen).astype(np.float64)
    gram[np.diag_indices(n_items)] += l2
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return chosen @ weights.astype(np.float32)


def interactions(user, item, n_users, n_items):
    """`[U, I]` float32, 1 where the user has an event with the item, else 0."""
    chosen = np.zeros((n_users, n_items), np.float32)
    chosen[user, item] = 1
    return chosen
