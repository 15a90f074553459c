"""One part of the users at a time: the same folds, windows and cuts as of the whole."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec_attn.data import batches, examples, partitions, shards, splits

event = st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(-3, 8))
events = st.lists(event, min_size=1, max_size=41)
drawn = settings(max_examples=60, deadline=None)


def frame(rows, *, numbers=True):
    user, item, time = np.array(rows, np.int64).reshape(-1, 3).T
    return pl.DataFrame(
        {
            "user": user if numbers else [f"u{u}" for u in user],
            "item": item,
            "time": time,
            "feedback": (item % 5).astype(np.int8),
            "weight": np.ones(len(user), np.float32),
            "row": np.arange(len(user)),
        }
    )


@pytest.mark.parametrize("numbers", [True, False])
@drawn
@given(rows=events)
def test_each_users_last_is_left_out(numbers, rows):
    part = partitions.ordered(frame(rows, numbers=numbers), None)
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    order = np.lexsort((np.arange(len(rows)), columns[2]))
    want = np.zeros(len(rows), int)
    for user in set(columns[0].tolist()):
        mine = [row for row in order if columns[0][row] == user]
        if len(mine) >= 3:
            want[mine[-2]], want[mine[-1]] = 1, 2
    found = np.empty(len(rows), int)
    found[part.events.row] = part.fold
    assert found.tolist() == want.tolist()
    name = {row: rows[row][0] for row in range(len(rows))}
    ids = [part.users[int(u)].removeprefix("u") for u in part.events.user]
    assert ids == [str(name[row]) for row in part.events.row]


@pytest.mark.parametrize("wide", [1, 2**45])
@drawn
@given(rows=events)
def test_a_part_is_in_order_whatever_its_span(wide, rows):
    rows = [(user * wide, item, time * wide) for user, item, time in rows]
    found = partitions.ordered(frame(rows), None).events
    want = examples.sort(
        *(np.array([row[i] for row in rows]) // (wide if i == 0 else 1) for i in range(3)),
        np.zeros(len(rows)),
        np.ones(len(rows)),
    )
    assert found.row.tolist() == want.row.tolist()
    assert found.time.tolist() == want.time.tolist()


@drawn
@given(
    rows=events,
    validation=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    spans=st.sampled_from([1, 3, 2**16]),
)
def test_cuts_in_time_are_those_of_the_split(rows, validation, test, spans):
    time = np.array([row[2] for row in rows])
    parts = lambda: iter(np.array_split(time, 3) if len(time) > 2 else [time])
    before, partitions.SPANS = partitions.SPANS, spans
    try:
        cuts = partitions.cuts(parts, len(time), validation, test)
    finally:
        partitions.SPANS = before
    fold = np.searchsorted(cuts, time, side="right")
    try:
        want = splits.global_time(*np.array(rows).T, validation=validation, test=test)
    except ValueError:
        assert len(set(fold)) < 3
        return
    for number, name in enumerate(partitions.FOLDS):
        assert np.flatnonzero(fold == number).tolist() == getattr(want, name).tolist()
    assert splits.digest_of(fold) == want.digest


@drawn
@given(rows=events, count=st.integers(1, 3))
def test_all_users_are_in_one_part_and_all_rows_in_some(rows, count):
    table = frame(rows)
    scattered, bounds = partitions.scattered(table, count)
    pieces = [scattered[a:b] for a, b in itertools.pairwise(bounds)]
    assert sorted(scattered["row"]) == list(range(len(rows)))
    users = [set(piece["user"]) for piece in pieces]
    assert sum(map(len, users)) == len(set(table["user"]))
    assert all(piece["row"].is_sorted() for piece in pieces)


def test_what_is_new_to_its_user():
    rows = [(0, 1, 1), (0, 2, 2), (0, 1, 5), (1, 1, 5), (1, 2, 6), (0, 2, 6)]
    part = partitions.ordered(frame(rows), (5, 6))
    assert partitions.fresh(part, "validation", 9).tolist() == [False, True]
    assert partitions.fresh(part, "test", 9).tolist() == [False, True]


def test_counts_and_sums():
    # Labels are item % 5: items 0 and 1 are liked.
    rows = [(0, 1, 1), (0, 7, 2), (0, 1, 5), (1, 1, 5), (1, 6, 6), (2, 0, 1)]
    part = partitions.ordered(frame(rows), (5, 6))
    found = partitions.counted(part, np.array([True, True, False, False, False]), 8)
    sums, arrays = found["sums"], found["arrays"]
    assert [sums[name] for name in partitions.FOLDS] == [3, 2, 1]
    assert (sums["validation queries"], sums["validation repeated"]) == (1, 1)
    assert (sums["test queries"], sums["users"]) == (1, 3)
    assert (sums["users_only_in_training"], sums["users_not_in_training"]) == (1, 1)
    assert arrays["train"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert arrays["validation"].tolist() == [0, 2, 0, 0, 0, 0, 0, 0]
    assert np.flatnonzero(arrays["seen"]).tolist() == [0, 1, 7]
    assert np.flatnonzero(arrays["asked"]).tolist() == [1, 6]


def shown(batch):
    """The real examples of a batch, in an order of their own."""
    names = sorted(batch.keys() - {"positives"})
    values = [batch[name] for name in names]
    rows = zip(*(np.asarray(value).tolist() for value in values), strict=True)
    place = names.index("weight")
    return sorted(row for row in rows if any(row[place]))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("size", [5, 1000])
def test_records_hold_the_examples(tmp_path, size, single):
    draw = np.random.default_rng(0)
    rows = np.stack([draw.integers(0, high, 97) for high in (7, 11, 9)], 1)
    past = partitions.ordered(frame(rows), None).of("train")
    cut = examples.make(past, past, length=3, count=2)
    path = tmp_path / "part.tfrecord"
    made = shards.write(partitions.records(cut, size), path)
    shard = shards.Shard(path, 0, len(cut), len(past), made)
    stream = shards.Shards([shard], length=3, count=2, positives=(1, 3))
    want = cut
    if single:
        stream, want = stream.singly(), cut.singly()
    assert (len(stream), stream.n_targets) == (len(want), len(past))
    (batch,) = stream.batches(len(want), seed=0).take(1)
    batch = {name: value.numpy() for name, value in batch.items()}
    all_of = batches.gather(want, np.arange(len(want)))
    assert shown(batch) == shown(all_of)
    for user, liked in zip(batch["user"], batch["positives"], strict=True):
        mine = past.item[(past.user == user) & np.isin(past.feedback, [1, 3])]
        assert liked[liked >= 0].tolist() == mine.tolist()


def test_a_batch_comes_in_the_shares_of_replicas(tmp_path):
    draw = np.random.default_rng(0)
    rows = np.stack([draw.integers(0, high, 97) for high in (7, 11, 9)], 1)
    past = partitions.ordered(frame(rows), None).of("train")
    cut = examples.make(past, past, length=3, count=2)
    path = tmp_path / "part.tfrecord"
    made = shards.write(partitions.records(cut), path)
    shard = shards.Shard(path, 0, len(cut), len(past), made)
    stream = shards.Shards([shard], length=3, count=2, positives=(1, 3))
    at = np.array([[3, 0, -1], [1, 4, 2]])
    (whole,) = stream.batches(5, seed=0).take(1).as_numpy_iterator()
    shared = stream.batches(5, seed=0, at=at)
    assert all(spec.shape[0] == 3 for spec in shared.element_spec.values())
    for places, found in zip(at, shared.take(2).as_numpy_iterator(), strict=True):
        for name, value in found.items():
            real = places >= 0
            np.testing.assert_array_equal(value[real], whole[name][places[real]])
            empty = -1 if name in ("history", "positives") else 0
            assert (value[~real] == empty).all()
