"""Batches: what stands where, padding, and the order of an epoch."""

import itertools

import numpy as np
import pytest

from tfrec_attn.data import batches, examples

# Two users; the first one's events 1 and 2 are at one time.
USER = [0, 0, 0, 0, 1, 1]
ITEM = [10, 11, 12, 13, 20, 21]
TIME = [5, 7, 7, 9, 3, 4]
LABEL = [0, 1, 2, 3, 4, 0]
WEIGHT = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def made(length=2, count=2, rows=None):
    events = examples.sort(USER, ITEM, TIME, LABEL, WEIGHT, rows)
    return examples.make(events, events, length=length, count=count)


def test_an_example_is_its_window_and_its_targets():
    found = batches.gather(made(), np.arange(len(made())))
    want = {
        # Windows of 2 + 2 - 1 events; blocks of positions 0, 1 | 3 and 0, 1.
        "user": [0, 0, 0, 1],
        "history": [[10, -1, -1], [10, -1, -1], [11, 12, -1], [20, -1, -1]],
        "history_feedback": [[0, 0, 0], [0, 0, 0], [1, 2, 0], [4, 0, 0]],
        "history_time": [[5, 0, 0], [5, 0, 0], [7, 7, 0], [3, 0, 0]],
        "target": [[10, 11], [12, 0], [13, 0], [20, 21]],
        "target_seen": [[0, 1], [1, 0], [2, 0], [0, 1]],
        "target_feedback": [[0, 1], [2, 0], [3, 0], [4, 0]],
        "target_time": [[5, 7], [7, 0], [9, 0], [3, 4]],
        "weight": [[1, 2], [3, 0], [4, 0], [5, 6]],
    }
    assert {name: value.tolist() for name, value in found.items()} == want
    whole = {"history_time": np.int64, "target_time": np.int64, "weight": np.float32}
    assert {n: v.dtype for n, v in found.items()} == {
        n: whole.get(n, np.int32) for n in want
    }


def test_an_empty_example_is_all_padding():
    real, empty = (batches.gather(made(), np.array([i])) for i in (0, -1))
    for name, value in empty.items():
        assert value.shape == real[name].shape
        assert (value == (-1 if name == "history" else 0)).all()


def test_no_history_at_all_is_padding_too():
    nothing, goal = examples.sort(*[[]] * 5), examples.sort(USER, ITEM, TIME, LABEL, WEIGHT)
    cut = examples.make(nothing, goal, length=2, count=3)
    found = batches.gather(cut, np.arange(len(cut)))
    assert (found["history"] == -1).all()
    assert sorted(found["target"][found["weight"] > 0]) == ITEM


def epochs(count, size=3, **options):
    """What each example holds, epoch by epoch: the targets, in the order they come."""
    cut = made(count=1)
    per_epoch = batches.steps(cut, size)
    stream = batches.training(cut, size, **{"seed": 1, **options}).take(count * per_epoch)
    order = [
        batch["target"].numpy()[batch["weight"].numpy() > 0].tolist() for batch in stream
    ]
    starts = range(0, len(order), per_epoch)
    return [list(itertools.chain(*order[i : i + per_epoch])) for i in starts]


@pytest.mark.parametrize("size", [1, 3, 4, 6, 100])
def test_every_epoch_holds_each_example_once(size):
    found = epochs(4, size)
    assert len(found) == 4
    assert all(sorted(epoch) == ITEM for epoch in found)
    assert found.count(found[0]) < 4


def test_the_order_is_a_function_of_seed_and_epoch():
    first = epochs(3)
    assert epochs(3) == first
    assert epochs(2, epoch=1) == first[1:]
    assert epochs(3, size=4) == first  # nor does the size of a batch change it
    assert epochs(3, seed=2) != first


def test_an_epoch_that_was_begun_goes_on_where_it_was():
    stream = lambda **begin: batches.training(made(), 3, seed=1, **begin).take(4)
    times = lambda **begin: [b["target_time"].numpy().tolist() for b in stream(**begin)]
    whole = times(epoch=2)
    assert times(epoch=2, step=1)[:3] == whole[1:]
    assert whole[0] != whole[2]


@pytest.mark.parametrize(("size", "steps"), [(1, 6), (3, 2), (4, 2), (6, 1), (100, 1)])
def test_a_batch_has_one_static_shape_and_the_last_is_filled_up(size, steps):
    cut = made(count=1)
    assert batches.steps(cut, size) == steps
    stream = batches.training(cut, size, seed=0)
    assert all(spec.shape[0] == size for spec in stream.element_spec.values())
    epoch = list(stream.take(steps))
    assert all(batch["user"].shape == (size,) for batch in epoch)
    real = [int((batch["weight"].numpy() > 0).sum()) for batch in epoch]
    assert real == [size] * (6 // size) + [6 % size] * (6 % size > 0)


def test_no_tuner_outlives_the_stream():
    """Its thread sleeps up to a minute, and who lets go of an iterator waits for it."""
    assert batches.training(made(), 1, seed=0).options().autotune.enabled is False
