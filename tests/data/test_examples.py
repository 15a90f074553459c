"""What a target may see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfrec_attn.data import batches, examples

USER = [0, 0, 0, 0, 1, 1]
ITEM = [10, 11, 12, 13, 20, 21]
TIME = [5, 7, 7, 9, 3, 4]


def events(user=USER, item=ITEM, time=TIME):
    n = len(user)
    return examples.sort(user, item, time, np.zeros(n), np.ones(n))


def seen(made):
    """Item of each target, and what it may see."""
    batch = batches.gather(made, np.arange(len(made)))
    found = {}
    for b, t in zip(*np.nonzero(batch["weight"]), strict=True):
        past = batch["history"][b][: batch["target_seen"][b, t]]
        found[int(batch["target"][b, t])] = [int(i) for i in past]
    return found


def test_an_example_sees_only_what_came_strictly_before():
    want = {10: [], 11: [10], 12: [10], 13: [10, 11, 12], 20: [], 21: [20]}
    assert seen(examples.make(events(), events(), length=3)) == want
    assert seen(examples.make(events(), events(), length=3, count=2)) == want


rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=40)


@given(rows, st.integers(1, 5), st.integers(1, 7))
def test_every_target_once_with_its_latest_past(made, length, count):
    user, time = np.array(made).T
    item = np.arange(len(user))
    all_events = events(user, item, time)
    cut = examples.make(all_events, all_events, length=length, count=count)
    found = seen(cut)
    assert sorted(found) == list(item)
    for target, past in found.items():
        want = sorted(
            (time[i], i) for i in item if user[i] == user[target] and time[i] < time[target]
        )
        assert past[-length:] == [i for _, i in want][-length:]


def test_an_epoch_holds_every_target_once_and_depends_on_its_number():
    made = examples.make(events(), events(), length=3, count=2)
    stream = batches.training(made, 2, seed=1).take(2 * batches.steps(made, 2))
    targets = [
        batch["target"].numpy()[batch["weight"].numpy() > 0].tolist() for batch in stream
    ]
    half = len(targets) // 2
    assert sorted(t for batch in targets[:half] for t in batch) == ITEM
    later = batches.training(made, 2, seed=1, epoch=1).take(half)
    again = [
        batch["target"].numpy()[batch["weight"].numpy() > 0].tolist() for batch in later
    ]
    assert again == targets[half:]
