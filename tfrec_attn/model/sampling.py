"""What a training step compares: negatives, ranked targets, shortlists. No weights.

Every draw is a function of its seed, `[2]` int64, alone. Letters: I items, B examples,
W events of a window, T targets of an example, U different items of a step, R targets that
are ranked, C candidates, d width.
"""

import tensorflow as tf

# Below every cosine.
LEFT_OUT = -2.0


def negatives(items, count: int, seed):
    """Some of the items `[N]`, at most `count`, each once."""
    chance = tf.random.stateless_uniform(items.shape, seed)
    # The lowest, in order, without sorting the rest.
    order = tf.math.top_k(-chance, min(count, items.shape[0])).indices
    return tf.gather(items, order)


def each_once(parts):
    """The items that several tensors hold, each once, and where each is among them.

    Args:
      parts: Item rows of any shape, by name.

    Returns:
      `[U]` rows, and by name the places, of the shape of the rows.
    """
    items, index = tf.unique(tf.concat([tf.reshape(p, [-1]) for p in parts.values()], 0))
    sizes = [tf.size(part) for part in parts.values()]
    pieces = tf.split(index, sizes, num=len(sizes))
    return items, {
        name: tf.reshape(piece, tf.shape(part))
        for (name, part), piece in zip(parts.items(), pieces, strict=True)
    }


def taken(theirs: tf.RaggedTensor, items):
    """Which items are positives of which user.

    Args:
      theirs: `[B, None]` item rows of each user.
      items: `[U]` item rows, each once.

    Returns:
      `[B, U]` bool.
    """
    # Looked up in order, so that the cost is the step's and not the catalogue's.
    order = tf.argsort(items)
    ranked = tf.gather(items, order)
    at = tf.searchsorted(ranked, theirs.values)
    at = tf.minimum(at, tf.size(items) - 1)
    row = tf.cast(theirs.value_rowids(), tf.int32)
    found = tf.gather(ranked, at) == theirs.values
    pairs = tf.boolean_mask(tf.stack([row, tf.gather(order, at)], 1), found)
    ones = tf.ones([tf.shape(pairs)[0]], tf.int32)
    shape = tf.stack([tf.cast(theirs.nrows(), tf.int32), tf.size(items)])
    return tf.scatter_nd(pairs, ones, shape) > 0


def targets(weight, count: int, seed):
    """Some of the targets whose weight is above 0.

    Args:
      weight: `[B, T]`.
      count: How many at most.

    Returns:
      `[R, 2]` int32: example and place in it.
    """
    real = tf.cast(tf.where(weight > 0), tf.int32)
    chance = tf.random.stateless_uniform(tf.shape(real)[:1], seed)
    return tf.gather(real, tf.argsort(chance)[:count])


def shortlist(query, pooled, target, taken, *, size: int, count: int, seed, drawn=None):
    """What the scorer would be handed: the target, and some of the items that the
    retrieval ranks highest.

    Args:
      query: `[R, d]`; pooled: `[U, d]`, unit vectors.
      target: `[R]` place among the U items.
      taken: `[R, U]` bool, never a candidate beside the target.
      size: Items that the retrieval hands on.
      count: Of them, so many are drawn.
      seed: Of the draws.
      drawn: For how many rows is drawn, and `[R]` which of them these are; these alone by
        default.

    Returns:
      `[R, C]` places among the items, and `[R, C]` bool, False where there was none.
    """
    scores = tf.stop_gradient(tf.matmul(query, pooled, transpose_b=True))
    scores = tf.where(taken, LEFT_OUT, scores)
    size = tf.minimum(size, tf.shape(scores)[1])
    best, at = tf.math.top_k(scores, size)
    rows, mine = drawn or (tf.shape(best)[0], None)
    chance = tf.random.stateless_uniform([rows, size], seed)
    chance = chance if mine is None else tf.gather(chance, mine)
    chance = tf.where(best > LEFT_OUT, chance, -1.0)
    _, drawn = tf.math.top_k(chance, tf.minimum(count, size))
    real = tf.gather(best, drawn, batch_dims=1) > LEFT_OUT
    places = tf.concat([target[:, None], tf.gather(at, drawn, batch_dims=1)], 1)
    return places, tf.concat([tf.ones_like(real[:, :1]), real], 1)


def rejected(history, at, taken, count: int):
    """The last events of a window that never were a positive of its user.

    Args:
      history: `[R, W]` item rows, -1 pads; at: their places among the U items.
      taken: `[R, U]` bool.
      count: C, at most W.

    Returns:
      `[R, C]` places, and `[R, C]` bool, False where there was none.
    """
    liked = tf.gather(taken, at, batch_dims=1)
    place = tf.range(1, tf.shape(history)[1] + 1)
    rank = tf.where(~liked & (history >= 0), place, 0)
    last, where = tf.math.top_k(rank, min(count, history.shape[1]))
    return tf.gather(at, where, batch_dims=1), last > 0
