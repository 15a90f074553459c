"""How a batch is shared: each place once, whoever has it."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.test_batches import ITEM, made
from tfrec_attn.data import batches, shares
from tfrec_attn.data.shards import Shard, Shards


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


@pytest.mark.parametrize(
    ("sizes", "workers", "want"),
    [
        # The largest, 7, to the first; 5 and 3 to the second; 2 to the first, which has 9.
        ([2, 7, 3, 5, 0], 2, [0, 0, 1, 1, 1]),
        ([2, 7, 3, 5, 0], 3, [2, 0, 2, 1, 1]),
        ([4, 4, 4], 3, [0, 1, 2]),
        ([3, 1], 1, [0, 0]),
    ],
)
def test_files_are_divided_by_size(sizes, workers, want):
    assert shares.owners(np.array(sizes), workers).tolist() == want


def test_a_worker_has_whole_shards_and_epochs_as_long_as_the_others():
    """By examples, 2, 7 and 3, or by targets, 9, 8 and 3; one shard has nothing."""
    sizes = {"a": (2, 9), "b": (7, 8), "c": (3, 3), "d": (0, 0)}
    files = [Shard(Path(name), 0, *size, bytes=0) for name, size in sizes.items()]
    made = Shards(files, length=5, count=9, positives=())
    found = lambda shards: [shards.own(worker, 2) for worker in range(2)]
    names = lambda shards: ["".join(str(s.path) for s in x.shards) for x in found(shards)]
    assert names(made) == ["b", "acd"]
    assert names(made.singly()) == ["ad", "bc"]
    assert [(one.empty, len(one)) for one in found(made)] == [(0, 7), (2, 7)]
    assert [(one.empty, len(one)) for one in found(made.singly())] == [(2, 11), (0, 11)]
    with pytest.raises(ValueError, match=r"Received: 3 for 4 workers\. Start fewer"):
        made.own(0, 4)


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
