"""The protocol by hand on a few events, then the command on a small shop made here."""

import itertools
import json
import sys

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from sklearn.metrics import ndcg_score

from tfrec_attn import (
    baselines,
    comparison,
    evaluate,
    feedback_head,
    ranking,
    report,
    train,
)
from tfrec_attn.data import catalog, examples
from tfrec_attn.model.states import ItemMatrices, UserState

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

    def encode_items(self):
        row = tf.range(ITEMS, dtype=tf.float32)[:, None]
        return ItemMatrices(None, None, self.cosine[:, None], row, row > -1)

    def users_at(self, profile, items, batch):
        return UserState(tf.ones((len(batch["seen"]), 1)), None, None)

    def rank_at(self, user, pooled, tokens, mask):
        return tf.gather(self.logits, tf.cast(tokens[..., 0], tf.int32))


def test_a_shortlist_is_ranked_ahead_of_the_rest_and_holds_nothing_known(queries):
    model = Stub(cosine=[0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], logits=[9, 9, 9, 9, 9, -3, 2])
    alone = ranking.answers(ranking.of_model(model, 0), queries, ITEMS, k=3)
    both = ranking.answers(ranking.of_model(model, 2), queries, ITEMS, k=3)
    # User 0 may be given 0, 5 and 6: the two best cosines are 5 and 6, in that order; the
    # scorer turns them round, and its high logit of 0 is not asked for.
    assert alone.listed[:2].tolist() == [[5, 6, 0]] * 2
    assert both.listed[:2].tolist() == [[6, 5, 0]] * 2
    assert (alone.rank[:2].tolist(), both.rank[:2].tolist()) == ([3, 2], [3, 1])
    # User 1: 1 and 2 tie at 9, all items together where the list is longer than they are.
    assert ranking.answers(ranking.of_model(model, 99), queries, ITEMS).rank[2] == 5


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
        self.held_out, self.items = lambda name: queries, items


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


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 3], size=23)
    probability = rng.dirichlet(np.ones(5), size=23)

    def pairs(own, score):
        return np.mean([a > b for a, b in itertools.product(score[own], score[~own])])

    found = feedback_head.auc(label, probability)
    each = {
        f"{name} against the rest": pairs(label == i, probability[:, i])
        for i, name in ((0, "buy"), (1, "like"), (3, "dislike"))
    }
    want = each | {
        "mean of these": np.mean(list(each.values())),
        "buy or like against the rest": pairs(
            label < 2, probability[:, 0] + probability[:, 1]
        ),
    }
    assert found == pytest.approx(want)


def test_a_table_is_markdown():
    text = report.table([{"method": "a", "x": "1"}, {"method": "b", "x": "22"}])
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert [cells[0], *cells[2:]] == [["method", "x"], ["a", "1"], ["b", "22"]]


USERS, LENGTH, GOODS = 29, 9, 31
LABELS = {1: "buy", 2: "like", 3: "dislike"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run; each user's first three events have one time, and so the last two."""
    place, draw = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    items = ["item_id,kind", *(f"i{i},{'ab'[i % 2]}" for i in range(GOODS))]
    lines = ["user_id,item_id,timestamp,rating"]
    for u in range(USERS):
        for t, i in enumerate(draw.permutation(GOODS)[:LENGTH]):
            moment = {1: 0, 2: 0, LENGTH - 1: LENGTH - 2}.get(t, t)
            lines.append(f"u{u},i{i},{10**9 + 60 * moment},{1 + draw.integers(3)}")
    (place / "items.csv").write_text("\n".join(items) + "\n")
    (place / "interactions.csv").write_text("\n".join(lines) + "\n")
    rules = ", ".join(f'{label} = "=={rating}"' for rating, label in LABELS.items())
    (place / "run.toml").write_text(
        f"""
        [schema.items]
        id = "item_id"
        columns = {{ kind = "category" }}
        [schema.interactions]
        user = "user_id"
        item = "item_id"
        time = "timestamp"
        feedback = {{ column = "rating", labels = {{ {rules} }} }}
        [split]
        name = "leave-last-out"
        [examples]
        history = 4
        [text]
        backbone = ""
        [model]
        dim = 8
        [index]
        shortlist = 5
        [loss]
        group = 16
        negatives = 16
        hard_negatives = 3
        [train]
        epochs = 2
        batch_size = 8
        learning_rate = 0.05
        strategy = "one"
        """
    )
    out = place / "<b>run"
    tables = [f"--{n}={place / n}.csv" for n in ("items", "interactions")]
    assert train.main([f"--config={place / 'run.toml'}", f"--out={out}", *tables]) == 0
    return out


@pytest.fixture(scope="module")
def result(run):
    assert evaluate.main(["--run", str(run), "--k", "3", "1"]) == 0
    return json.loads((run / "evaluation.json").read_text())


def test_every_row_is_measured_by_the_training_s_protocol(run, result):
    assert list(result["rows"]) == [
        *baselines.METHODS,
        "untrained",
        "retrieval",
        "retrieval + ranking",
    ]
    trained = json.loads((run / "metrics.json").read_text())["test"]
    for name, row in trained.items():
        assert result["rows"][name]["metrics"]["mrr"]["mean"] == pytest.approx(row["mrr"])
    means = {name: row["metrics"]["mrr"]["mean"] for name, row in result["rows"].items()}
    assert means["untrained"] != means["retrieval + ranking"]
    assert result["rows"]["constant"]["metrics"]["hit@3"]["high"] == 0
    assert (result["ks"], result["k"]) == ([1, 3], 3)


def test_ranks_give_the_same_ndcg_by_scikit_learn(run, result):
    ranks = pl.read_csv(run / "ranks.csv")
    for name, row in result["rows"].items():
        scores = -np.abs(np.arange(1, GOODS + 1) - np.zeros((len(ranks), 1)))
        relevant = np.arange(1, GOODS + 1) == ranks[name].to_numpy()[:, None]
        assert row["metrics"]["ndcg@3"]["mean"] == pytest.approx(
            ndcg_score(relevant, scores, k=3)
        )


def test_the_head_is_asked_for_events_of_all_labels(result):
    found = result["feedback"]
    assert found["events"] == USERS
    support = {name: found["report"][name]["support"] for name in LABELS.values()}
    assert sum(support.values()) == USERS
    assert support["dislike"] > 0
    assert found["most_frequent"] == max(support.values()) / USERS


def test_the_protocol_is_counted(result):
    """Two of each user's events have the time of the one before, and so has the last."""
    text, queries = " ".join(result["protocol"]), result["queries"]
    disliked = int(result["feedback"]["report"]["dislike"]["support"])
    assert queries == USERS - disliked
    assert f"{disliked} of {USERS} events for their label" in text
    assert f"{3 * USERS} of {LENGTH * USERS} events have the time" in text
    assert f"in {queries} of {queries} queries the model is not shown" in text
    assert f"({queries} in all), in 0 of {queries} not those of later times" in text
    assert "Within a user, nothing later than a target is trained on" in text


def test_the_report_is_written_and_escaped(run, result):
    text, page = ((run / f"report.{kind}").read_text() for kind in ("md", "html"))
    for name in ("methods.png", "groups_1.png", "learning_curves.png"):
        assert f"({name})" in text
        assert f'src="{name}"' in page
        assert (run / name).read_bytes()[:4] == b"\x89PNG"
    tables = [line for line in text.splitlines() if line.startswith("|--")]
    # The main one, two lengths of the list, settings, labels and AUC.
    assert page.count("<table>") == len(tables) == 6
    assert "&lt;b&gt;run" in page
    assert "<b>" not in page


def test_a_baseline_that_is_not_installed_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    assert evaluate.main(["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "No row for implicit ALS: Needs pip install 'tfrec-attn[baselines]'" in out
    assert "| EASE " in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "5", "0"], "--k takes lengths of 1 or more. Received: 0"),
        (["--run", "nowhere"], "nowhere holds no trained model"),
    ],
)
def test_a_mistake_is_named(run, flags, message, capsys):
    assert evaluate.main(["--run", str(run), *flags]) == 2
    assert message in capsys.readouterr().err
