"""Baselines: by hand on tables one can see through, and by another way of reckoning."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tfrec_attn import baselines

U, I = 7, 5  # noqa: E741 (items, as everywhere)


def drawn(seed=0, n=19):
    """`[N]` users and items; user 6 has no event, item 4 none, one pair repeats."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(6, size=n), rng.integers(4, size=n)
    return np.append(user, user[0]), np.append(item, item[0])


def test_random_scores_are_even_and_seeded():
    scores = baselines.random(31, 37, seed=3)
    assert scores.shape == (31, 37)
    # 1147 uniform values; the standard error of their mean is 1/√12/√1147 = 0.0085.
    assert abs(scores.mean() - 0.5) < 4 * 0.0085
    np.testing.assert_array_equal(scores, baselines.random(31, 37, seed=3))
    assert np.any(scores != baselines.random(31, 37, seed=4))


def test_popularity_counts_events():
    scores = baselines.popularity([2, 0, 2, 2], 3, 4)
    np.testing.assert_array_equal(scores, [[1, 0, 3, 0]] * 3)


def test_category_popularity_by_hand():
    """Items: 0 of a, 1 of a and b, 2 of b, 3 of b (no event), 4 of none."""
    membership = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [0, 0]], bool)
    # User 0 took 0 and 1: 2 of a, 1 of b. User 1 took 2: 0 and 1. User 2 none.
    scores = baselines.category_popularity([0, 0, 1], [0, 1, 2], membership, 3, prior=0.5)
    # With half the average user (2/3, 2/3), over the 2 items each category has with events.
    rates = (np.array([[2, 1], [0, 1], [0, 0]]) + 1 / 3) / 2
    shares = rates / rates.sum(axis=1, keepdims=True)
    a, b = shares.T
    np.testing.assert_allclose(scores, np.stack([a, a + b, b, b, 0 * a], axis=1), atol=2e-9)


def test_category_popularity_draws_lots_for_ties():
    membership = np.ones((11, 1), bool)
    scores = baselines.category_popularity([0], [0], membership, 3)
    assert len(np.unique(scores[0])) == 11
    assert np.argsort(scores[0]).tolist() != np.argsort(scores[1]).tolist()
    assert np.ptp(scores) < 1e-8


def test_category_popularity_without_a_single_event():
    none = np.zeros(0, np.int64)
    scores = baselines.category_popularity(none, none, np.eye(5, 3, dtype=bool), 2)
    assert np.all(np.isfinite(scores))


@pytest.mark.parametrize("neighbours", [1, 2, 5])
@pytest.mark.parametrize("shrink", [0.0, 3.0])
def test_item_knn_by_loops(neighbours, shrink):
    user, item = drawn(2, n=11)
    taken = [{u for u, i in zip(user, item, strict=True) if i == j} for j in range(I)]
    near = np.zeros((I, I))
    for j in range(I):
        for i in set(range(I)) - {j}:
            norm = np.sqrt(len(taken[i]) * len(taken[j]))
            if taken[i] & taken[j]:
                near[j, i] = len(taken[i] & taken[j]) / (norm + shrink)
        least = sorted(near[j])[-neighbours]
        near[j, near[j] < least] = 0
    want = [
        [sum(near[j, i] for i in range(I) if u in taken[i]) for j in range(I)]
        for u in range(U)
    ]
    scores = baselines.item_knn(user, item, U, I, neighbours=neighbours, shrink=shrink)
    np.testing.assert_allclose(scores, want, rtol=1e-6)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others():
    user, item = drawn(1)
    chosen = np.zeros((U, I))
    chosen[user, item] = 1
    want = np.zeros((U, I))
    for j in range(I):
        others = np.delete(chosen, j, axis=1)
        fit = Ridge(alpha=1.7, fit_intercept=False).fit(others, chosen[:, j])
        want[:, j] = others @ fit.coef_
    np.testing.assert_allclose(baselines.ease(user, item, U, I, l2=1.7), want, atol=1e-6)


def test_prior_must_be_above_0():
    with pytest.raises(ValueError, match=r"prior must be above 0.*Received: 0"):
        baselines.category_popularity([0], [0], np.eye(1, dtype=bool), 1, prior=0)
