"""Splits: what each promises, over drawn interactions with many ties in time."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec_attn.data import splits

NAMES = ("leave_last_out", "global_time", "cold_items", "cold_users", "random")
FOLDS = ("train", "validation", "test", "context")

event = st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(-3, 8))
events = st.lists(event, min_size=1, max_size=41)
drawn = settings(max_examples=60, deadline=None)
by_name = pytest.mark.parametrize("name", NAMES)


def columns(rows):
    return np.array(rows, np.int64).reshape(-1, 3).T


def made(name, rows, **options):
    """The split, or None where these interactions are too few for it."""
    try:
        return splits.split(name, *columns(rows), **options)
    except ValueError as error:
        if "leaves" not in str(error) and "at least 3" not in str(error):
            raise
        return None


def chosen(split, fold, rows):
    return sorted(rows[i] for i in getattr(split, fold))


@by_name
@drawn
@given(rows=events)
def test_folds_are_disjoint_complete_and_sorted(name, rows):
    if split := made(name, rows):
        folds = [getattr(split, fold) for fold in FOLDS]
        assert sorted(np.concatenate(folds)) == list(range(len(rows)))
        assert all(np.all(np.diff(fold) > 0) and fold.dtype == np.int64 for fold in folds)
        assert all(len(fold) for fold in folds[:3])
        assert not any(fold.flags.writeable for fold in folds)


@by_name
@drawn
@given(rows=events)
def test_the_same_twice_and_the_digest_says_so(name, rows):
    if split := made(name, rows):
        again = made(name, rows)
        assert again.digest == split.digest
        folds = (split.train, split.validation, split.test)
        text = b"".join(
            len(fold).to_bytes(8, "little")
            + b"".join(int(row).to_bytes(8, "little") for row in fold)
            for fold in folds
        )
        assert split.digest == hashlib.sha256(text).hexdigest()


@by_name
@drawn
@given(rows=events)
def test_counts_of_users_and_items_without_a_part(name, rows):
    if split := made(name, rows):
        of = lambda column, *folds: {
            rows[i][column] for fold in folds for i in getattr(split, fold)
        }
        asked = ("validation", "test")
        assert split.users_only_in_training == len(of(0, "train") - of(0, *asked))
        assert split.users_not_in_training == len(of(0, *asked) - of(0, "train"))
        assert split.items_not_in_training == len(of(1, *asked) - of(1, "train"))


@by_name
@drawn
@given(rows=events, shift=st.integers(-(10**12), 10**12), factor=st.integers(1, 1000))
def test_only_the_order_of_times_counts(name, rows, shift, factor):
    later = [(user, item, factor * time + shift) for user, item, time in rows]
    split, moved = made(name, rows), made(name, later)
    assert (split and split.digest) == (moved and moved.digest)


@drawn
@given(rows=events)
def test_leave_last_out_is_last_and_last_but_one_of_each_user(rows):
    split = made("leave_last_out", rows)
    validation, test = [], []
    for user in {row[0] for row in rows}:
        # Python's sort is stable: at one time the later row of the file is the later event.
        mine = sorted(
            (i for i, row in enumerate(rows) if row[0] == user), key=lambda i: rows[i][2]
        )
        if len(mine) >= 3:
            validation.append(mine[-2])
            test.append(mine[-1])
    if split is None:
        assert not test
    else:
        assert split.validation.tolist() == sorted(validation)
        assert split.test.tolist() == sorted(test)


@drawn
@given(rows=events, validation=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
def test_global_time_lets_nothing_later_into_training(rows, validation, test):
    if split := made("global_time", rows, validation=validation, test=test):
        time = columns(rows)[2]
        assert time[split.train].max() < time[split.validation].min()
        assert time[split.validation].max() < time[split.test].min()
        # Ties only move events to the later fold.
        assert len(split.test) >= round(test * len(rows))


def test_global_time_by_hand():
    time = [50, 10, 40, 20, 30, 50, 60, 15, 25, 35]
    zeros = np.zeros(10, np.int64)
    split = splits.global_time(zeros, zeros, np.array(time), validation=0.2, test=0.2)
    # The last two of ten are 60 and one 50; the other 50 goes with it. Before: 40, 35 less
    # the place that the second 50 took, so only 40.
    assert split.test.tolist() == [0, 5, 6]
    assert split.validation.tolist() == [2]


@pytest.mark.parametrize(("name", "column"), [("cold_users", 0), ("cold_items", 1)])
@drawn
@given(rows=events, seed=st.integers(0, 99))
def test_what_is_cold_is_in_one_fold_only(name, column, rows, seed):
    if split := made(name, rows, share=0.3, seed=seed):
        of = lambda fold: {rows[i][column] for i in getattr(split, fold)}
        assert not of("train") & of("validation")
        assert not of("train") & of("test")
        assert not of("validation") & of("test")
        n = max(1, round(0.3 * len({row[column] for row in rows})))
        assert len(of("validation")) == len(of("test")) == n


@pytest.mark.parametrize("name", ["cold_items", "cold_users"])
@drawn
@given(rows=events, shuffle=st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_order_of_the_file(name, rows, shuffle):
    other = list(rows)
    shuffle.shuffle(other)
    split, shuffled = made(name, rows), made(name, other)
    if split:
        assert all(chosen(split, f, rows) == chosen(shuffled, f, other) for f in FOLDS)


@pytest.mark.parametrize("name", ["leave_last_out", "global_time"])
@drawn
@given(rows=events, shuffle=st.randoms(use_true_random=False))
def test_without_ties_the_order_of_the_file_does_not_count(name, rows, shuffle):
    rows = [(user, item, 50 * time + i) for i, (user, item, time) in enumerate(rows)]
    other = list(rows)
    shuffle.shuffle(other)
    split, shuffled = made(name, rows), made(name, other)
    if split:
        assert all(chosen(split, f, rows) == chosen(shuffled, f, other) for f in FOLDS)


@drawn
@given(rows=events, brought=st.integers(0, 3))
def test_cold_users_bring_their_first_events(rows, brought):
    if split := made("cold_users", rows, share=0.3, given=brought):
        cold = {rows[i][0] for fold in FOLDS[1:] for i in getattr(split, fold)}
        for user in cold:
            mine = sorted(
                (i for i, row in enumerate(rows) if row[0] == user),
                key=lambda i: rows[i][2],
            )
            assert set(mine[:brought]) <= set(split.context)
            assert not set(mine[brought:]) & set(split.context)
        assert not cold & {rows[i][0] for i in split.train}


@drawn
@given(rows=events, seed=st.integers(0, 99))
def test_random_by_user_keeps_each_user_in_training(rows, seed):
    options = {"validation": 0.25, "test": 0.3, "seed": seed, "by_user": True}
    if split := made("random", rows, **options):
        user = columns(rows)[0]
        sizes = np.bincount(user, minlength=5)
        folds = (split.test, split.validation, split.train)
        test, validation, train = (np.bincount(user[f], minlength=5) for f in folds)
        np.testing.assert_array_equal(test, np.floor(0.3 * sizes))
        np.testing.assert_array_equal(validation, np.floor(0.25 * sizes))
        assert np.all(train[sizes > 0] > 0)


def test_random_draws_by_the_seed_and_evenly():
    n = 10007
    zeros = np.zeros(n, np.int64)
    one, two = (splits.random(zeros, zeros, zeros, seed=seed) for seed in (1, 2))
    assert one.digest != two.digest
    assert (len(one.test), len(one.validation)) == (1000, 1000)
    # The mean of 1000 of the rows 0..10006; its standard error is 10007/√12/√1000 = 91.
    assert abs(one.test.mean() - 5003) < 4 * 91


def test_known_rows_are_those_of_the_folds_before():
    split = splits.cold_users(
        np.repeat(np.arange(11), 3), np.arange(33), np.arange(33), given=1
    )
    parts = lambda *folds: sorted(np.concatenate([getattr(split, fold) for fold in folds]))
    assert len(split.context) == 2
    assert split.known("validation").tolist() == parts("train", "context")
    assert split.known("test").tolist() == parts("train", "validation", "context")
    with pytest.raises(ValueError, match=r'"test". Received: train'):
        split.known("train")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("leave_last_out", "Other users' later events are"),
        ("global_time", "over all users"),
        ("cold_items", "No event of a test or validation item"),
        ("cold_users", "No event of a test or validation user"),
        ("random", "Nothing else"),
    ],
)
def test_the_promise_says_what_is_not_prevented(name, words):
    rows = [(user, (user + time) % 7, time) for user in range(11) for time in range(7)]
    split = made(name, rows)
    assert split.name == name
    assert words in split.promise


SIX = np.arange(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            ("loo", SIX, SIX, SIX, {}),
            "Unknown split 'loo'; known: leave_last_out, global_time",
        ),
        (
            ("random", SIX, SIX, SIX, {"share": 0.1}),
            "no option 'share'; known: validation, test",
        ),
        (("random", SIX, SIX, SIX, {"test": 0.9}), "Received: validation=0.1, test=0.9"),
        (
            ("cold_items", SIX, SIX, SIX, {"share": 0.5}),
            "below 0.5, it is taken twice.*: 0.5",
        ),
        (("cold_users", SIX, SIX, SIX, {"given": -1}), "Given must be 0 or more.*: -1"),
        (("leave_last_out", SIX, SIX, SIX, {"min_events": 2}), "at least 3, one for.*: 2"),
        (
            ("leave_last_out", SIX, SIX, SIX, {}),
            "leaves validation empty: .* 6 interactions",
        ),
        (
            ("global_time", SIX, SIX, 0 * SIX, {}),
            "Split global-time leaves train empty: .*of one time",
        ),
        (("random", SIX, SIX[1:], SIX, {}), "equally long. Received: .*'item': 5"),
        (("random", SIX[:0], SIX[:0], SIX[:0], {}), "needs interactions"),
        (("random", SIX, SIX, SIX / 2, {}), "Time must be integers. Received: float64"),
        (("random", SIX - 1, SIX, SIX, {}), "row numbers from 0. Received: -1"),
        (
            ("random", SIX[None], SIX, SIX, {}),
            r"User must be a vector. Received: shape \(1, 6\)",
        ),
    ],
)
def test_a_mistake_is_named(call, message):
    name, user, item, time, options = call
    with pytest.raises(ValueError, match=message):
        splits.split(name, user, item, time, **options)
