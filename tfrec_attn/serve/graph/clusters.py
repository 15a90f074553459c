"""Vectors in lists of neighbours, for an index that looks at some of them only.

Letters: I vectors, d width, N lists.
"""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import MiniBatchKMeans

# Vectors of a list that its centroid is learned from, as faiss takes them at most.
_SAMPLE = 256
_BLOCK = 1 << 16


class Lists(NamedTuple):
    """Attributes:
    centroids: `[N, d]` float32 unit vectors.
    starts: `[N + 1]` int32, where in `order` each list begins.
    order: `[I]` int32, rows list by list, rising within each.
    """

    centroids: np.ndarray
    starts: np.ndarray
    order: np.ndarray


def train(vectors: np.ndarray, count: int, seed: int = 0) -> Lists:
    """Spherical k-means: every vector is in the list of the centroid nearest by cosine.

    Args:
      vectors: `[I, d]` float32 unit vectors.
      count: N.
      seed: Of the draw of the first centroids.

    Raises:
      ValueError: When there are fewer vectors than lists.
    """
    if count > len(vectors):
        raise ValueError(
            f"index.clusters must be at most the number of items, {len(vectors)}: received "
            f"{count}. The square root of that number is a good start."
        )
    draw = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > _SAMPLE * count:
        sample = vectors[np.sort(draw.choice(len(vectors), _SAMPLE * count, replace=False))]
    means = MiniBatchKMeans(
        count, batch_size=max(1024, 4 * count), n_init=1, max_iter=10, random_state=seed
    ).fit(sample)
    norms = np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True)
    centroids = (means.cluster_centers_ / np.maximum(norms, 1e-12)).astype(np.float32)
    of = np.concatenate(
        [
            np.argmax(vectors[at : at + _BLOCK] @ centroids.T, 1)
            for at in range(0, len(vectors), _BLOCK)
        ]
    )
    starts = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=count))])
    order = np.argsort(of, kind="stable")
    return Lists(centroids, starts.astype(np.int32), order.astype(np.int32))
