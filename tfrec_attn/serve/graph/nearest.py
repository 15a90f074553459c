"""The first stage: of many vectors those nearest to a query, by core ops alone.

Letters: B queries, I vectors, d width, C vectors that are looked at together, S answers, N
lists, P of them searched.
"""

import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrec_attn.serve.graph import clusters

LEFT_OUT = float("-inf")
_log = logging.getLogger(__name__)
# Cosines of a request that are held at once, whatever the number of vectors.
_ROOM = 1 << 21
_LEAST = 1 << 12

# From cosines `[B, C]` and the rows they are of, `[C]` or `[B, C]`, to what is ranked:
# `LEFT_OUT` where a row is not wanted.
Adjust = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Exact(tf.Module):
    """Every vector is looked at, a block at a time.

    Args:
      vectors: `[I, d]` unit vectors.
    """

    def __init__(self, vectors):
        super().__init__(name="exact")
        self.vectors = tf.Variable(vectors, trainable=False, name="item_pooled")

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def rows(self, rows):
        """The vectors of some rows."""
        return tf.gather(self.vectors, rows)

    def __call__(self, query, adjust: Adjust, size):
        """The best rows of each query; of equals the first.

        Args:
          query: `[B, d]` unit vectors.
          adjust: What is ranked.
          size: S, a scalar, at most I.

        Returns:
          `[B, S]` values, falling, and their rows.
        """
        count, batch = len(self), tf.shape(query)[0]

        def of(vectors, rows):
            return adjust(tf.matmul(query, vectors, transpose_b=True), rows)

        if count <= _LEAST:
            return tf.math.top_k(of(self.vectors, tf.range(count)), size)
        block = tf.clip_by_value(_ROOM // tf.maximum(batch, 1), _LEAST, count)

        def step(start, best):
            stop = tf.minimum(start + block, count)
            rows = tf.range(start, stop)
            return stop, _best(best, of(self.vectors[start:stop], rows), rows, size)

        _, best = tf.while_loop(
            lambda start, best: start < count, step, (0, _nothing(batch, size))
        )
        return best


class Clustered(tf.Module):
    """Only the lists whose centroids are nearest to the query are looked at.

    An inverted file (Jégou et al., 2011, Product quantization for nearest neighbor search,
    section IV) whose lists hold the vectors as they are.

    Args:
      vectors: `[I, d]` unit vectors.
      lists: Of `clusters.train`.
      probes: P, as long as `search` is not told otherwise.
    """

    def __init__(self, vectors, lists: clusters.Lists, probes: int):
        super().__init__(name="clustered")
        fixed = lambda value, name: tf.Variable(value, trainable=False, name=name)
        self.centroids = fixed(lists.centroids, "list_centroids")
        self.starts = fixed(lists.starts, "list_starts")
        self.order = fixed(lists.order, "list_rows")
        place = tf.math.invert_permutation(lists.order)
        self.place = fixed(place, "item_place")
        self.vectors = fixed(tf.gather(vectors, lists.order), "item_pooled")
        self.probes = probes

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def rows(self, rows):
        """The vectors of some rows."""
        return tf.gather(self.vectors, tf.gather(self.place, rows))

    def __call__(self, query, adjust: Adjust, size):
        """See `Exact`: the best of the P nearest lists, and of all where these do not hold
        as many wanted rows as are asked for."""
        found = self.search(query, adjust, size, self.probes)
        return tf.cond(
            tf.reduce_all(found[0] > LEFT_OUT),
            lambda: found,
            lambda: self.search(query, adjust, size, self.centroids.shape[0]),
        )

    def search(self, query, adjust: Adjust, size, probes: int):
        """The best of the `probes` nearest lists."""
        batch = tf.shape(query)[0]
        cosine = tf.matmul(query, self.centroids, transpose_b=True)
        lists = tf.math.top_k(cosine, probes).indices
        longest = -(-len(self) // self.centroids.shape[0])
        together = tf.maximum(_ROOM // (16 * longest * tf.maximum(batch, 1)), 1)

        def step(start, best):
            stop = tf.minimum(start + together, probes)
            place = self._places(lists[:, start:stop])
            at = tf.maximum(place, 0)
            cosine = tf.einsum("bd,bcd->bc", query, tf.gather(self.vectors, at))
            rows = tf.gather(self.order, at)
            values = tf.where(place >= 0, adjust(cosine, rows), LEFT_OUT)
            return stop, _best(best, values, rows, size)

        _, best = tf.while_loop(
            lambda start, best: start < probes, step, (0, _nothing(batch, size))
        )
        return best

    def _places(self, lists):
        """`[B, C]` where the vectors of lists `[B, P]` stand, -1 behind the last."""
        flat = tf.reshape(lists, [-1])
        starts, ends = tf.gather(self.starts, flat), tf.gather(self.starts, flat + 1)
        places = tf.ragged.range(starts, ends)
        of_each = tf.reduce_sum(tf.reshape(ends - starts, tf.shape(lists)), 1)
        return tf.RaggedTensor.from_row_lengths(places.values, of_each).to_tensor(-1)


def clustered(
    vectors, *, count: int, recall: float, queries: np.ndarray, size: int
) -> Clustered:
    """An index that searches as few lists as find enough of what is really nearest.

    Args:
      vectors: `[I, d]` unit vectors.
      count: N.
      recall: Mean share of the `size` nearest rows of a query that is to be found.
      queries: `[B, d]` unit vectors like those that will be asked for.
      size: S.
    """
    lists = clusters.train(np.asarray(vectors), count)
    _, nearest = Exact(vectors)(tf.constant(queries), lambda cosine, _: cosine, size)
    of = np.empty(len(lists.order), np.int32)
    of[lists.order] = np.repeat(np.arange(count), np.diff(lists.starts))
    # How many lists of a query come before the one that holds an answer.
    before = np.argsort(np.argsort(-(queries @ lists.centroids.T), 1), 1)
    needed = np.take_along_axis(before, of[nearest.numpy()], 1) + 1
    found = np.cumsum(np.bincount(needed.ravel(), minlength=count + 1)) / needed.size
    probes = max(1, int(np.argmax(found >= recall)))
    _log.info(
        "%d lists of items, of which a request searches %d: it finds %.3f of the %d "
        "nearest items (index.recall=%g, %d queries)",
        count,
        probes,
        found[probes],
        size,
        recall,
        len(queries),
    )
    return Clustered(vectors, lists, probes)


def _nothing(batch, size):
    return tf.fill([batch, size], LEFT_OUT), tf.zeros([batch, size], tf.int32)


def _best(best, values, rows, size):
    """The best of what was found before and of a block's rows, `[C]` or `[B, C]`."""
    if rows.shape.rank == 1:
        rows = tf.broadcast_to(rows[None], tf.shape(values))
    # Of the block alone first: far fewer numbers are then moved.
    some = tf.minimum(size, tf.shape(values)[1])
    values, at = tf.math.top_k(values, some)
    rows = tf.concat([best[1], tf.gather(rows, at, batch_dims=1)], 1)
    values, at = tf.math.top_k(tf.concat([best[0], values], 1), size)
    return values, tf.gather(rows, at, batch_dims=1)
