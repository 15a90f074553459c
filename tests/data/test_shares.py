"""How a batch is shared: each place once, whoever has it."""

import numpy as np
import pytest

from tests.data.test_batches import ITEM, made
from tfrec_attn.data import batches, shares


@pytest.mark.parametrize(
    ("size", "replicas", "parts", "want"),
    [
        (4, 1, 1, [[0, 1, 2, 3]]),
        (4, 2, 1, [[0, 1], [2, 3]]),
        (5, 2, 1, [[0, 1, 2], [3, 4, -1]]),
        (1, 3, 1, [[0], [-1], [-1]]),
        # Of both parts, 0 to 3 and 4 to 7, each replica has a half.
        (8, 2, 2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (6, 1, 3, [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_each_place_goes_to_one_replica(size, replicas, parts, want):
    assert shares.places(size, replicas=replicas, parts=parts).tolist() == want


def test_an_empty_place_is_an_empty_example():
    at = np.array([[2, 0], [1, -1]])
    assert shares.taken(np.array([7, 8, -1]), at).tolist() == [[-1, 7], [8, -1]]


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("size", [1, 4, 5, 7])
def test_workers_see_each_example_once_an_epoch(size, workers):
    """Each with a stream of its own, whose batches meet in a step."""
    cut, every = made(count=1), shares.places(size, replicas=workers)
    steps = batches.steps(cut, size)
    stream = lambda at: batches.training(cut, size, seed=3, at=at).take(2 * steps)
    shared = [stream(every[worker : worker + 1]) for worker in range(workers)]
    targets = lambda batch: batch["target"].numpy()[batch["weight"].numpy() > 0].tolist()
    seen = []
    for one, *parts in zip(stream(None), *shared, strict=True):
        assert [item for part in parts for item in targets(part)] == targets(one)
        seen += targets(one)
    assert sorted(seen[: len(ITEM)]) == sorted(seen[len(ITEM) :]) == sorted(ITEM)
