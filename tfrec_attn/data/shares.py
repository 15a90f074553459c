"""Which examples of a batch go to which replica."""

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


def taken(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Some places of a batch's rows `[size]`; -1, an empty example, where a place is -1."""
    return np.where(at < 0, -1, rows[at])
