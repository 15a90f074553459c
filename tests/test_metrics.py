"""Metrics: fractions by hand, loops, and scikit-learn beside them."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from tfrec_attn import metrics

USERS, ITEMS = 5, 13


def drawn(seed, n_scores=None):
    """Scores `[users, items]`, few distinct ones if asked, targets and excluded items."""
    rng = np.random.default_rng(seed)
    scores = (
        rng.normal(size=(USERS, ITEMS))
        if n_scores is None
        else rng.integers(n_scores, size=(USERS, ITEMS))
    )
    mixed = [rng.permutation(ITEMS) for _ in range(USERS)]
    sizes = [0, 1, 2, 3, 5]
    targets = [m[:n] for m, n in zip(mixed, sizes, strict=True)]
    exclude = [m[5 : 5 + n] for m, n in zip(mixed, sizes[::-1], strict=True)]
    return scores, targets, exclude


def reference_ranks(scores, targets, exclude):
    """Each user's list written out: falling score, what is no target first among ties."""
    found = []
    for row, mine, left_out in zip(scores, targets, exclude, strict=True):
        items = [i for i in range(len(row)) if i not in left_out]
        listed = sorted(items, key=lambda i: (-row[i], i in mine))
        found += [listed.index(i) + 1 for i in mine]
    return found


@pytest.mark.parametrize("seed", range(7))
def test_ranks_are_places_in_the_written_list(seed):
    case = drawn(seed)
    np.testing.assert_array_equal(metrics.ranks(*case), reference_ranks(*case))


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("n_scores", [2, None])
def test_one_target_a_user_has_the_same_place(seed, n_scores):
    """It is counted, where of several the list is sorted; here beside a user of two."""
    scores, _, exclude = drawn(seed) if n_scores is None else drawn(seed, n_scores)
    free = [np.setdiff1d(np.arange(ITEMS), out) for out in exclude]
    targets = [items[seed % 3 : seed % 3 + 1] for items in free]
    # An item that is left out twice is left out once.
    exclude = [np.repeat(out, 2) for out in exclude]
    ours = metrics.ranks(scores, targets, exclude)
    np.testing.assert_array_equal(ours, reference_ranks(scores, targets, exclude))
    assert ours.dtype == np.int64
    two = [*targets, np.array([0, 1])]
    sorted_too = metrics.ranks(np.vstack([scores, scores[:1]]), two, [*exclude, []])
    np.testing.assert_array_equal(ours, sorted_too[:-2])


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("n_scores", [1, 2, 4])
def test_ties_go_against_the_targets(seed, n_scores):
    scores, targets, exclude = drawn(seed, n_scores)
    ours = metrics.ranks(scores, targets, exclude)
    theirs = reference_ranks(scores, targets, exclude)
    # Which of two tied targets of one user comes first is left open.
    bounds = np.cumsum([len(mine) for mine in targets])[:-1]
    for a, b in zip(
        np.split(ours, bounds), np.split(np.array(theirs), bounds), strict=True
    ):
        assert sorted(a) == sorted(b)


def test_a_constant_scorer_comes_last():
    _, targets, exclude = drawn(0)
    ranks = metrics.ranks(np.full((USERS, ITEMS), 0.5), targets, exclude)
    lengths = [ITEMS - len(left_out) for left_out in exclude]
    want = [
        rank
        for n, mine in zip(lengths, targets, strict=True)
        for rank in range(n, n - len(mine), -1)
    ]
    assert sorted(ranks) == sorted(want)
    assert metrics.ranked_metrics(ranks, targets, [3])["hit@3"].sum() == 0


def test_infinities_are_scores():
    scores = np.array([[-np.inf, 1.0, -np.inf, np.inf, 0.0]])
    assert metrics.ranks(scores, [[0]], [[1]]).tolist() == [4]
    assert metrics.ranks(scores, [[3]], [[1]]).tolist() == [1]
    assert metrics.top_k(scores, 5, [[1]]).tolist() == [[3, 4, 0, 2, -1]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_rising_maps_and_other_excluded_items_change_nothing(seed):
    scores, targets, exclude = drawn(seed)
    ranks = metrics.ranks(scores, targets, exclude)
    np.testing.assert_array_equal(ranks, metrics.ranks(np.exp(scores), targets, exclude))
    scores[np.repeat(range(USERS), [len(e) for e in exclude]), np.concatenate(exclude)] = (
        1e9
    )
    np.testing.assert_array_equal(ranks, metrics.ranks(scores, targets, exclude))


def test_metrics_as_fractions():
    """One user of 3 targets at ranks 2, 5, 9; one without; one of 1 target at rank 1."""
    targets = metrics.Lists(np.array([0, 3, 3, 4]), np.array([7, 8, 9, 7]))
    values = metrics.ranked_metrics([5, 2, 9, 1], targets, ks=(2, 5))
    gain = lambda rank: 1 / np.log2(1 + rank)
    want = {
        "mrr": [Fraction(1, 2), 1],
        "hit@2": [1, 1],
        "recall@2": [Fraction(1, 3), 1],
        "precision@2": [Fraction(1, 2), Fraction(1, 2)],
        "mrr@2": [Fraction(1, 2), 1],
        "map@2": [Fraction(1, 2) / 2, 1],
        "ndcg@2": [gain(2) / (gain(1) + gain(2)), 1],
        "hit@5": [1, 1],
        "recall@5": [Fraction(2, 3), 1],
        "precision@5": [Fraction(2, 5), Fraction(1, 5)],
        "mrr@5": [Fraction(1, 2), 1],
        "map@5": [(Fraction(1, 2) + Fraction(2, 5)) / 3, 1],
        "ndcg@5": [(gain(2) + gain(5)) / (gain(1) + gain(2) + gain(3)), 1],
    }
    assert values.keys() == want.keys()
    for name, per_user in want.items():
        np.testing.assert_allclose(values[name], [float(v) for v in per_user], err_msg=name)
    assert metrics.answered(targets).tolist() == [0, 2]


def test_a_rank_past_k_is_0():
    values = metrics.ranked_metrics([6], [[4]], ks=(5,))
    assert all(
        per_user.tolist() == [0] for name, per_user in values.items() if name != "mrr"
    )
    np.testing.assert_allclose(values["mrr"], 1 / 6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 7, ITEMS])
def test_agrees_with_scikit_learn(seed, k):
    scores, targets, _ = drawn(seed)
    relevant = np.zeros((USERS, ITEMS))
    for row, mine in zip(relevant, targets, strict=True):
        row[mine] = 1
    values = metrics.ranked_metrics(metrics.ranks(scores, targets), targets, ks=(k,))
    asked = metrics.answered(targets)
    ndcg = [ndcg_score(relevant[[u]], scores[[u]], k=k) for u in asked]
    np.testing.assert_allclose(values[f"ndcg@{k}"], ndcg)
    if k == ITEMS:
        precision = [average_precision_score(relevant[u], scores[u]) for u in asked]
        np.testing.assert_allclose(values[f"map@{k}"], precision)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, ITEMS))
def test_a_perfect_model_gets_1(seed, k):
    scores, targets, exclude = drawn(seed)
    for row, mine in zip(scores, targets, strict=True):
        row[mine] += 100
    values = metrics.ranked_metrics(
        metrics.ranks(scores, targets, exclude), targets, ks=(k,)
    )
    for name in (f"ndcg@{k}", f"hit@{k}", f"mrr@{k}", f"map@{k}", "mrr"):
        np.testing.assert_allclose(values[name], np.ones(4), err_msg=name)


def test_users_without_targets_are_absent_not_0():
    values = metrics.ranked_metrics(metrics.ranks(np.ones((2, 3)), [[], []]), [[], []])
    assert {len(per_user) for per_user in values.values()} == {0}
    with pytest.raises(ValueError, match="mrr has no user to average over"):
        metrics.summary(values)


def test_lists_from_interactions():
    lists = metrics.item_lists([2, 0, 2, 2], [5, 7, 3, 5], n_users=4)
    assert lists.indptr.tolist() == [0, 1, 1, 3, 3]
    assert lists.indices.tolist() == [7, 3, 5]
    rest = metrics.without(lists, [[7], [5], [5, 6], []])
    assert rest.indptr.tolist() == [0, 0, 0, 1, 1]
    assert rest.indices.tolist() == [3]


@pytest.mark.parametrize("seed", range(5))
def test_top_k_is_the_head_of_the_list(seed):
    scores, _, exclude = drawn(seed, n_scores=4)
    best = metrics.top_k(scores, 10, exclude)
    for row, left_out, listed in zip(scores, exclude, best, strict=True):
        items = [i for i in range(ITEMS) if i not in left_out]
        want = sorted(items, key=lambda i: (-row[i], i))[:10]
        assert listed.tolist() == want + [-1] * (10 - len(want))


def test_coverage_and_popularity():
    recommended = np.array([[0, 3], [3, -1], [-1, -1]])
    assert metrics.coverage(recommended, 5) == 2 / 5
    counts = np.array([10, 99, 99, 4, 99])
    np.testing.assert_array_equal(metrics.popularity(recommended, counts), [7, 4, np.nan])


def test_summary_is_the_mean_over_users():
    assert metrics.summary({"mrr": np.array([0.5, 1.0, 0.0])}) == {"mrr": 0.5}


def test_bootstrap_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1009)
    mean, low, high = metrics.bootstrap(values, n=2000, level=0.9)
    error = values.std() / np.sqrt(1009)
    assert mean == pytest.approx(values.mean())
    # 1.645 standard errors; a quantile of 2000 draws is off by about 0.05 of one.
    np.testing.assert_allclose(
        [low, high], mean + np.array([-1.645, 1.645]) * error, atol=0.2 * error
    )
    assert metrics.bootstrap(values, seed=1) == metrics.bootstrap(values, seed=1)
    assert metrics.bootstrap(values, seed=1) != metrics.bootstrap(values, seed=2)


def test_paired_bootstrap_sees_a_difference_that_users_hide():
    rng = np.random.default_rng(1)
    baseline = rng.normal(0, 5, size=211)
    ours = baseline + rng.normal(0.1, 0.1, size=211)
    assert metrics.bootstrap(ours).low < baseline.mean()
    assert 0.05 < metrics.bootstrap(ours, baseline).low < 0.1
    assert metrics.bootstrap(baseline, baseline) == (0, 0, 0)


def test_metrics_side_by_side_share_the_draws():
    values = np.random.default_rng(2).normal(size=(31, 3))
    together = metrics.bootstrap(values, values[:, [0]] * [0, 0, 1], n=50)
    alone = [metrics.bootstrap(column, n=50) for column in values[:, :2].T]
    alone.append(metrics.bootstrap(values[:, 2], values[:, 0], n=50))
    np.testing.assert_allclose(together, np.transpose(alone))


ROW = np.zeros((1, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ranks([[0, np.nan]], [[0]]), "Received: NaN, first for user 0"),
        (lambda: metrics.ranks(np.zeros(3), [[0]]), r"must be \[users, items\].*\(3,\)"),
        (lambda: metrics.ranks(ROW, [[3]]), "Item rows must be 0 to 2.*Received: 3 to 3"),
        (
            lambda: metrics.ranks(ROW, [[-1]]),
            "Item rows must be 0 to 2.*Received: -1 to -1",
        ),
        (lambda: metrics.ranks(ROW, [[0], [1]]), "needs its list. Received: 1 and 2"),
        (lambda: metrics.ranks(ROW, [[1, 1]]), "must be distinct"),
        (
            lambda: metrics.ranks(ROW, [[2, 1]], [[0, 1]]),
            "1 that are in both, first item 1",
        ),
        (lambda: metrics.ranked_metrics([1], [[1, 2]]), "needs a rank. Received: 1 for 2"),
        (
            lambda: metrics.ranked_metrics([1], [[1]], [0]),
            "k must be 1 or more. Received: 0",
        ),
        (lambda: metrics.top_k(ROW, 0), "k must be 1 or more. Received: 0"),
        (lambda: metrics.item_lists([3], [0], 3), "below n_users=3. Received: 3"),
        (lambda: metrics.bootstrap(ROW[0], ROW), "the same users"),
        (lambda: metrics.bootstrap([]), "no user to average over"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
