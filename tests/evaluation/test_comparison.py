"""The protocol by hand, on a few events."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.data import catalog, examples
from tfrec_attn.evaluation import baselines, comparison, ranking
from tfrec_attn.model import stored
from tfrec_attn.model.states import ItemMatrices, UserState
from tfrec_attn.run.prepared import drawn

ITEMS = 7
POSITIVE = np.array([True, True, False, False, False])
#        user, item, time, feedback: 0 is a buy, 3 a dislike.
PAST = [(0, 1, 10, 0), (0, 2, 20, 3), (0, 3, 30, 0), (0, 4, 99, 0), (1, 5, 10, 0)]
GOAL = [(0, 0, 30, 0), (0, 6, 40, 0), (1, 1, 50, 0)]


def events(rows):
    user, item, time, feedback = np.array(rows).T
    return examples.sort(user, item, time, feedback, np.ones(len(rows)))


@pytest.fixture
def queries():
    """Windows of one event, so that what is seen of a history is not the window."""
    return examples.make(events(PAST), events(GOAL), length=1)


@pytest.fixture
def fold(queries):
    return comparison.Fold(
        queries, baselines.Events([0, 0, 0, 1], [1, 3, 4, 5], 2, ITEMS), POSITIVE
    )


def fixed(matrix):
    return lambda queries, index, blocked: np.asarray(matrix, float)[index]


SCORES = [
    # User 0 knows 1, 2, 3 and 4 (the last of them later than both targets).
    [5, 9, 9, 9, 9, 7, 6],  # target 0: 5 and 6 are before it
    [5, 9, 9, 9, 9, 7, 7],  # target 6: the tie with 5 goes against it
    [3, 4, 5, 1, 2, 9, 4],  # target 1 of user 1, who knows 5: after 2, and 6 of its score
]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_ranks_and_lists_leave_out_what_is_known_whenever(queries, batch, monkeypatch):
    monkeypatch.setattr(ranking, "LARGEST_BATCH", batch)
    found = ranking.answers(fixed(SCORES), queries, ITEMS, k=4)
    assert found.rank.tolist() == [3, 2, 3]
    assert found.listed.tolist() == [[5, 6, 0, -1], [5, 6, 0, -1], [2, 1, 6, 0]]


def test_a_large_catalogue_is_scored_in_small_batches(queries, monkeypatch):
    monkeypatch.setattr(ranking, "MOST_SCORES", 2 * ITEMS + 1)
    sizes = []

    def score(queries, index, blocked):
        sizes.append(len(index))
        return np.zeros((len(index), ITEMS))

    ranking.answers(score, queries, ITEMS)
    assert sizes == [2, 1]


def test_a_baseline_is_shown_the_positive_events_strictly_before(queries):
    shown = []

    def scores(history):
        shown.extend(row.nonzero()[0].tolist() for row in history.toarray())
        return np.zeros(history.shape)

    ranking.answers(ranking.of_baseline(scores, POSITIVE), queries, ITEMS)
    # Item 2 was disliked, 3 is of the first target's own time, 4 is later.
    assert shown == [[1], [1, 3], [5]]


class Stub:
    """A model of one-dimensional cosines and given ranking logits."""

    def __init__(self, cosine, logits):
        self.cosine, self.logits = (tf.constant(v, tf.float32) for v in (cosine, logits))
        self.users, self.share = self, tf.constant(1.0)

    def rows(self, rows):
        return {}

    def encode_items(self, tokens="float32"):
        row = tf.range(ITEMS, dtype=tf.float32)[:, None]
        kept = stored.pack(row, tokens)
        return ItemMatrices(None, None, self.cosine[:, None], kept, row > -1)

    def users_at(self, profile, items, batch):
        return UserState(tf.ones((len(batch["seen"]), 1)), None, None)

    def rank_at(self, user, pooled, tokens, mask):
        return tf.gather(self.logits, tf.cast(tokens[..., 0], tf.int32))


def test_a_shortlist_is_ranked_ahead_of_the_rest_and_holds_nothing_known(queries):
    model = Stub(cosine=[0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], logits=[9, 9, 9, 9, 9, -3, 2])
    matrices = model.encode_items()
    score = lambda size: ranking.of_model(model, matrices, size)
    alone = ranking.answers(score(0), queries, ITEMS, k=3)
    both = ranking.answers(score(2), queries, ITEMS, k=3)
    # User 0 may be given 0, 5 and 6: the two best cosines are 5 and 6, in that order; the
    # scorer turns them round, and its high logit of 0 is not asked for.
    assert alone.listed[:2].tolist() == [[5, 6, 0]] * 2
    assert both.listed[:2].tolist() == [[6, 5, 0]] * 2
    assert (alone.rank[:2].tolist(), both.rank[:2].tolist()) == ([3, 2], [3, 1])
    # User 1: 1 and 2 tie at 9, all items together where the list is longer than they are.
    assert ranking.answers(score(99), queries, ITEMS).rank[2] == 5


def test_a_user_counts_once(fold):
    values = fold.by_user(fold.ask("", fixed(SCORES), (2,)))
    # Ranks 3 and 2 of user 0, 3 of user 1.
    np.testing.assert_allclose(values["mrr"], [(1 / 3 + 1 / 2) / 2, 1 / 3])
    np.testing.assert_allclose(values["hit@2"], [0.5, 0])


def test_settings_are_those_of_the_best_on_the_validation_fold(fold):
    fitted = []

    def fit(events, power):
        fitted.append(events)
        column = np.array([1, 0, 0, 0, 0, 0, 2.0]) ** power
        return lambda history: np.tile(column, (history.shape[0], 1))

    # Power 1 puts the targets 0 and 6 of user 0 on the second and the first place.
    method = baselines.Method(fit, {"power": [-0.0, 1, 0]})
    settings, reached = comparison.tune(method, fold)
    assert settings == {"power": 1}
    # User 1's target 1 comes after 0 and 6 and all that tie with it: rank 6.
    want = ((1 / np.log2(3) + 1) / 2 + 1 / np.log2(7)) / 2
    assert reached == pytest.approx(want)
    assert all(events is fold.events for events in fitted)


def test_nothing_is_tuned_without_a_choice(fold):
    method = baselines.Method(lambda events: pytest.fail("fitted"))
    assert comparison.tune(method, fold) == ({}, None)


def test_what_is_listed_and_by_how_much_the_last_row_is_better(fold):
    worse = fold.ask("worse", fixed(np.zeros((3, ITEMS))), (3,), 3)
    best = fold.ask("best", fixed(SCORES), (3,), 3)
    found = comparison.figures(worse, best, fold, np.arange(ITEMS) / 10, 3)
    # Lists 0, 5, 6 twice, and 0, 1, 2.
    assert found["coverage@3"] == 5 / ITEMS
    assert found["popularity@3"] == pytest.approx((1.1 + 1.1 + 0.3) / 9)
    gain = found["difference ndcg@3"]
    want = fold.by_user(best)["ndcg@3"] - fold.by_user(worse)["ndcg@3"]
    assert gain["mean"] == pytest.approx(want.mean())
    assert gain["low"] == pytest.approx(want.min())
    assert found["metrics"]["hit@3"]["mean"] == fold.by_user(worse)["hit@3"].mean()


class Data:
    """What `comparison.fold` reads of a run."""

    users, label_is_positive = range(2), POSITIVE

    def __init__(self, queries, items):
        self.queries, self.items = queries, items

    def held_out(self, name, most=None):
        past, targets = self.queries.history, self.queries.targets
        chosen = drawn(len(targets), most)
        return examples.make(past, targets.take(chosen), length=self.queries.length)


def test_a_drawn_part_of_a_fold_is_asked_as_the_whole_is(queries):
    columns = {
        "kind": catalog.Column("category", vocabulary=("a", "b")),
        "tags": catalog.Column("categories", vocabulary=("x", "y", "z")),
        "price": catalog.Column("number", knots=(0.0, 1.0)),
    }
    kind, tags = np.array([1, 2, 0, 1, 1, 1, 2]), np.zeros((ITEMS, 2), int)
    tags[3] = [1, 3]
    features = {"kind": kind, "tags": tags, "price": np.ones(ITEMS)}
    data = Data(queries, catalog.Catalog(np.arange(ITEMS), [], columns, features))
    part, whole = comparison.fold(data, "test", most=2), comparison.fold(data, "test")
    assert (len(part.queries), len(whole.queries)) == (2, 3)
    own = np.isin(whole.queries.targets.row, part.queries.targets.row)
    for fold in (part, whole):
        # The dislike of item 2 is no event to fit to.
        assert fold.events.item.tolist() == [1, 3, 4, 5]
        assert fold.events.categories.toarray()[[1, 2, 3]].tolist() == [
            [0, 1, 0, 0, 0],
            [0, 0, 0, 0, 0],
            [1, 0, 1, 0, 1],
        ]
    rank = whole.ask("", fixed(SCORES), (2,)).answers.rank
    again = part.ask("", fixed(np.array(SCORES)[own]), (2,)).answers.rank
    assert again.tolist() == rank[own].tolist()


def test_groups_hold_all_queries_and_their_own_mean():
    row = comparison.Row("a", None, {"m": np.array([0.0, 1.0, 0.5, 0.25, 1.0])})
    found = comparison.groups([row], np.array([1, 1, 8, 5, 5]), "m", parts=2)
    assert [(g["group"], g["queries"], g["rows"]["a"][0]) for g in found] == [
        ("1", 2, 0.5),
        ("5–8", 3, pytest.approx(1.75 / 3)),
    ]
    assert comparison.groups([row], np.full(5, 3), "m") == []
