"""Baselines: by hand on tables one can see through, and by another way of reckoning."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tfrec_attn.evaluation import baselines
from tfrec_attn.evaluation.baselines import Events

USERS, ITEMS = 7, 5


def drawn(seed=0, n=19):
    """Events of which user 6 has none, item 4 none, and one pair repeats."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(6, size=n), rng.integers(4, size=n)
    return Events(np.append(user, user[0]), np.append(item, item[0]), USERS, ITEMS)


def all_of(scores, events):
    """The scores of all users' own histories, asked for in two batches of unequal sizes."""
    history = baselines.interactions(events)
    return np.concatenate([scores(history[:2]), scores(history[2:])])


def test_random_scores_are_even_and_seeded():
    events = Events([], [], 31, 37)
    scores = all_of(baselines.random(events, seed=3), events)
    assert scores.shape == (31, 37)
    # 1147 uniform values; the standard error of their mean is 1/√12/√1147 = 0.0085.
    assert abs(scores.mean() - 0.5) < 4 * 0.0085
    again, other = (all_of(baselines.random(events, seed=seed), events) for seed in (3, 4))
    np.testing.assert_array_equal(scores, again)
    assert np.any(scores != other)
    assert len(np.unique(scores[:, 0])) > 25


def test_popularity_counts_events():
    events = Events([0, 1, 1, 1], [2, 0, 2, 2], 3, 4)
    scores = all_of(baselines.popularity(events), events)
    np.testing.assert_array_equal(scores, [[1, 0, 3, 0]] * 3)


def test_constant_scores_say_nothing():
    events = Events([0], [0], 3, 4)
    scores = all_of(baselines.constant(events), events)
    np.testing.assert_array_equal(scores, np.zeros((3, 4)))


def test_category_popularity_by_hand():
    """Items: 0 of a, 1 of a and b, 2 of b, 3 of b (no event), 4 of none, 5 of b."""
    membership = np.array([[1, 0], [1, 1], [0, 1], [0, 1], [0, 0], [0, 1]], bool)
    # User 0 took 0, 1 and 5: 2 of a, 2 of b. User 1 took 2: 0 and 1. User 2 none.
    events = Events([0, 0, 0, 1], [0, 1, 5, 2], 3, 6, membership)
    scores = all_of(baselines.category_popularity(events, prior=0.5), events)
    # With half the average user (2/3, 1), over the 2 and 3 items with events.
    average = np.array([2 / 3, 1])
    rates = (np.array([[2, 2], [0, 1], [0, 0]]) + 0.5 * average) / [2, 3]
    a, b = (rates / rates.sum(axis=1, keepdims=True)).T
    want = np.stack([a, a + b, b, b, 0 * a, b], axis=1)
    np.testing.assert_allclose(scores, want, atol=2e-9)


def test_category_popularity_draws_lots_for_ties():
    events = Events([0], [0], 3, 11, np.ones((11, 1), bool))
    scores = all_of(baselines.category_popularity(events), events)
    assert len(np.unique(scores[0])) == 11
    assert np.argsort(scores[0]).tolist() != np.argsort(scores[1]).tolist()
    assert np.ptp(scores) < 1e-8


def test_category_popularity_without_a_single_event():
    none = np.zeros(0, np.int64)
    events = Events(none, none, 2, 5, np.eye(5, 3, dtype=bool))
    scores = all_of(baselines.category_popularity(events), events)
    assert np.all(np.isfinite(scores))


@pytest.mark.parametrize("neighbours", [1, 2, 5])
@pytest.mark.parametrize("shrink", [0.0, 3.0])
def test_item_knn_by_loops(neighbours, shrink, monkeypatch):
    monkeypatch.setattr(baselines, "BLOCK", 2)
    events = drawn(2, n=11)
    pairs = set(zip(events.user, events.item, strict=True))
    taken = [{u for u, i in pairs if i == j} for j in range(ITEMS)]
    near = np.zeros((ITEMS, ITEMS))
    for j in range(ITEMS):
        for i in set(range(ITEMS)) - {j}:
            norm = np.sqrt(len(taken[i]) * len(taken[j]))
            if taken[i] & taken[j]:
                near[j, i] = len(taken[i] & taken[j]) / (norm + shrink)
        least = sorted(near[j])[-neighbours]
        near[j, near[j] < least] = 0
    want = [
        [sum(near[j, i] for i in range(ITEMS) if u in taken[i]) for j in range(ITEMS)]
        for u in range(USERS)
    ]
    scores = baselines.item_knn(events, neighbours=neighbours, shrink=shrink)
    np.testing.assert_allclose(all_of(scores, events), want, rtol=1e-6)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others():
    events = drawn(1)
    chosen = np.zeros((USERS, ITEMS))
    chosen[events.user, events.item] = 1
    want = np.zeros((USERS, ITEMS))
    for j in range(ITEMS):
        others = np.delete(chosen, j, axis=1)
        fit = Ridge(alpha=1.7, fit_intercept=False).fit(others, chosen[:, j])
        want[:, j] = others @ fit.coef_
    np.testing.assert_allclose(
        all_of(baselines.ease(events, l2=1.7), events), want, atol=1e-6
    )


def test_ease_of_too_many_items_is_refused(monkeypatch):
    monkeypatch.setattr(baselines, "LARGEST_EASE", 4)
    with pytest.raises(ValueError, match=r"at most 4 items. Received: 5"):
        baselines.ease(drawn())


def test_als_tells_two_circles_of_users_apart():
    """Users 0-9 take items 0-4, users 10-19 items 5-9, each all but one of them."""
    pytest.importorskip("implicit", reason="pip install 'tfrec-attn[baselines]'")
    user, item = np.indices((20, 10)).reshape(2, -1)
    own = user // 10 == item // 5
    missing = own & (user % 5 == item % 5)
    taken = own & ~missing
    events = Events(user[taken], item[taken], 20, 10)
    scores = all_of(baselines.als(events, factors=2), events).ravel()
    assert scores[missing].min() > 0.4
    assert np.abs(scores[~own]).max() < 0.1


def test_prior_must_be_above_0():
    with pytest.raises(ValueError, match=r"prior must be above 0.*Received: 0"):
        baselines.category_popularity(Events([0], [0], 1, 1, np.eye(1)), prior=0)


def test_every_combination_of_a_grid_is_tried():
    method = baselines.Method(baselines.als, {"factors": [1, 2], "alpha": [3]})
    assert list(method.settings()) == [
        {"factors": 1, "alpha": 3},
        {"factors": 2, "alpha": 3},
    ]
    assert list(baselines.METHODS["popularity"].settings()) == [{}]
