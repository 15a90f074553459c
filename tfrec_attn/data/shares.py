"""Which examples go to whom: those of a batch to replicas, those of files to workers."""

import numpy as np


def places(size: int, *, replicas: int = 1, parts: int = 1) -> np.ndarray:
    """The places of a batch that each replica has.

    Each part of a batch (`train.accumulate`) is shared by all replicas, so that it holds
    what it holds on one.

    Args:
      size: Examples of a batch over all replicas.
      replicas: How many share it.
      parts: Of a batch; they divide it where they are more than one.

    Returns:
      `[replicas, b]`, each place once; -1 fills up where the batch cannot be shared evenly.
    """
    each = -(-size // (replicas * parts))
    by_part = np.arange(parts * replicas * each).reshape(parts, replicas, each)
    at = by_part.transpose(1, 0, 2).reshape(replicas, -1)
    return np.where(at < size, at, -1)


def owners(sizes: np.ndarray, workers: int) -> np.ndarray:
    """`[n]` whose each of n files is, so that all workers have about as many examples: the
    largest goes first, to who has the fewest so far.

    Args:
      sizes: `[n]` examples of each file.
      workers: How many there are.
    """
    owner, total = np.zeros(len(sizes), int), np.zeros(workers, int)
    for file in np.argsort(-sizes, kind="stable"):
        owner[file] = total.argmin()
        total[owner[file]] += sizes[file]
    return owner


def taken(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Some places of a batch's rows `[size]`; -1, an empty example, where a place is -1."""
    return np.where(at < 0, -1, rows[at])
