"""The share of the scorer, against a second fit and by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.evaluation.test_comparison import GOAL, ITEMS, PAST, Stub, events
from tfrec_attn.data import examples
from tfrec_attn.evaluation import weighing
from tfrec_attn.model import stored


def chosen(count, candidates, retrieval, scorer):
    """Shortlists whose targets are drawn by the softmax of both logits, with factors."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(count, candidates, 2))
    utility = logits @ [retrieval, scorer] + draw.gumbel(size=(count, candidates))
    real = np.ones((count, candidates), bool)
    return weighing.Shortlists(logits, real, utility.argmax(-1), np.arange(count))


def test_of_two_candidates_it_is_the_logistic_regression_on_their_difference():
    lists = chosen(500, 2, 0.7, 1.1)
    apart = lists.logits[:, 1] - lists.logits[:, 0]
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    fitted.fit(apart, lists.target)
    retrieval, scorer = fitted.coef_[0]
    assert weighing.weigh(lists).share == pytest.approx(scorer / retrieval, rel=1e-3)


def test_the_gain_is_that_of_the_likelihood_and_its_error_that_over_users():
    lists = chosen(400, 6, 1.0, 0.8)
    found = weighing.weigh(lists)
    assert found.share == pytest.approx(0.8, abs=0.2)

    def log(factors):
        e = np.exp(lists.logits @ factors)
        return np.log(e[np.arange(400), lists.target] / e.sum(1))

    # The best factors by looking at all of a grid.
    grid = np.linspace(0.5, 1.5, 101)
    both = max((log([a, a * found.share]) for a in grid), key=np.mean)
    alone = max((log([a, 0]) for a in grid), key=np.mean)
    assert found.gain == pytest.approx((both - alone).mean(), abs=1e-3)
    assert found.error == pytest.approx((both - alone).std() / 20, rel=0.05)


def test_how_sure_the_retrieval_is_only_changes_the_unit():
    lists = chosen(300, 5, 1.0, 0.6)
    surer = lists._replace(logits=lists.logits * [3.0, 1.0])
    one, other = weighing.weigh(lists), weighing.weigh(surer)
    assert other.share == pytest.approx(3 * one.share, rel=1e-3)
    assert other.gain == pytest.approx(one.gain, rel=1e-3)


@pytest.mark.parametrize("retrieval", [0.0, -0.5], ids=["noise", "worse than noise"])
def test_beside_a_retrieval_that_tells_nothing_the_share_is_bounded(retrieval):
    found = weighing.weigh(chosen(300, 5, retrieval, 1.0))
    assert found.share == pytest.approx(weighing.MOST)
    assert found.gain > found.error


@pytest.mark.parametrize("scorer", [0.0, -0.5], ids=["noise", "worse than noise"])
def test_a_scorer_that_does_not_surely_help_does_not_count(scorer):
    found = weighing.weigh(chosen(300, 5, 1.0, scorer))
    assert found.share == 0
    assert found.gain <= found.error


def test_what_the_user_knows_is_no_candidate():
    lists = chosen(200, 5, 1.0, 0.6)
    more = np.full((200, 2, 2), 50.0)
    known = weighing.Shortlists(
        np.concatenate([more, lists.logits], 1),
        np.concatenate([np.zeros((200, 2), bool), lists.real], 1),
        lists.target + 2,
        lists.user,
    )
    assert weighing.weigh(known) == pytest.approx(weighing.weigh(lists))


def test_a_user_counts_once():
    lists = chosen(60, 5, 1.0, 1.0)
    again = np.r_[np.arange(60), np.repeat(0, 40)]
    more = weighing.Shortlists(*(part[again] for part in lists))
    assert weighing.weigh(more) == pytest.approx(weighing.weigh(lists), rel=1e-6)


class Opinionated(Stub):
    def opinions_at(self, user, pooled, tokens, mask):
        return pooled[..., 0], self.rank_at(user, pooled, tokens, mask)


def lists_of(size):
    queries = examples.make(events(PAST), events(GOAL), length=1)
    cosine, logits = [0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [10, 11, 12, 13, 14, 15, 16]
    return weighing.shortlists(Opinionated(cosine, logits), queries, ITEMS, size)


def test_lists_are_what_is_reranked_of_queries_whose_target_is_in_them():
    # User 0 may be given 5, 6 and 0, in this order of cosines; the targets are 0 and 6.
    # User 1 all but 5: first 1, the target.
    found = lists_of(2)
    assert found.user.tolist() == [0, 1]
    assert found.target.tolist() == [1, 0]
    want = [[[0.5, 15], [0.4, 16]], [[0.9, 11], [0.8, 12]]]
    np.testing.assert_allclose(found.logits, want, rtol=1e-6)
    assert found.real.all()


def test_a_list_longer_than_what_is_left_has_places_that_are_not_real():
    found = lists_of(99)
    assert found.logits.shape == (3, ITEMS, 2)
    assert found.real.sum(1).tolist() == [3, 3, 6]
    assert np.take_along_axis(found.real, found.target[:, None], 1).all()


class Thirds(Opinionated):
    """Its scorer's logit is the item's token, a third of its row."""

    def encode_items(self, tokens="float32"):
        matrices = super().encode_items()
        thirds = stored.pack(matrices.tokens.values / 3, tokens)
        return matrices._replace(tokens=thirds)

    def rank_at(self, user, pooled, tokens, mask):
        return tokens[..., 0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_scorer_is_weighed_as_it_is_served(dtype):
    queries = examples.make(events(PAST), events(GOAL), length=1)
    model = Thirds(-np.arange(ITEMS), np.zeros(ITEMS))
    found = weighing.shortlists(model, queries, ITEMS, 99, dtype)
    rows = -found.logits[..., 0]
    want = (rows.astype(np.float32) / np.float32(3)).astype(dtype)
    np.testing.assert_array_equal(found.logits[..., 1], want)


def test_no_target_in_any_list_tells_nothing():
    queries = examples.make(events(PAST), events(GOAL[:1]), length=1)
    model = Opinionated(np.arange(ITEMS), np.zeros(ITEMS))
    found = weighing.weigh(weighing.shortlists(model, queries, ITEMS, 2))
    assert found == (0, 0, 0)
