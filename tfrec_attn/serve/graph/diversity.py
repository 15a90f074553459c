"""Lists whose items are unlike one another.

Letters: B users, S items to choose from, K chosen, d width.
"""

import tensorflow as tf

# Below every worth, and above the least number, which argmax takes for none.
_LAST = -1e30


def reordered(scores, vectors, diversity, k):
    """Maximal marginal relevance (Carbonell and Goldstein, 1998, SIGIR).

    Chooses one item after another, each time the one with the largest
    `(1 - λ) · relevance - λ · largest cosine to what is chosen`, where relevance is the
    score, moved and scaled so that a user's items span 0 to 1.

    Args:
      scores: `[B, S]`, falling; -inf for what must not be chosen.
      vectors: `[B, S, d]` unit vectors.
      diversity: λ, `[B]` between 0, which leaves the order as it is, and 1.
      k: K, a scalar, at most S.

    Returns:
      `[B, K]` places among the S.
    """
    real = scores > float("-inf")
    low = tf.reduce_min(tf.where(real, scores, float("inf")), 1, keepdims=True)
    span = tf.reduce_max(scores, 1, keepdims=True) - low
    relevance = tf.where(real, tf.math.divide_no_nan(scores - low, span), scores)
    share = diversity[:, None]
    batch, size = tf.shape(scores)[0], tf.shape(scores)[1]

    def step(count, chosen, nearest, left):
        # Nothing is near to an empty list.
        near = tf.where(count > 0, nearest, tf.zeros_like(nearest))
        worth = tf.where(left, (1 - share) * relevance - share * near, float("-inf"))
        # Where all that is left must not be chosen, it follows in its order.
        worth = tf.where(left & ~real, _LAST, worth)
        pick = tf.argmax(worth, 1, output_type=tf.int32)
        vector = tf.gather(vectors, pick, batch_dims=1)
        cosine = tf.einsum("bsd,bd->bs", vectors, vector)
        left &= tf.range(size)[None] != pick[:, None]
        chosen = tf.concat([chosen, pick[:, None]], 1)
        return count + 1, chosen, tf.maximum(nearest, cosine), left

    shapes = tuple(tf.TensorShape(s) for s in ([], *[[None, None]] * 3))
    _, chosen, _, _ = tf.while_loop(
        lambda count, *_: count < k,
        step,
        (
            0,
            tf.zeros([batch, 0], tf.int32),
            tf.fill([batch, size], -1.0),
            tf.fill([batch, size], True),
        ),
        shape_invariants=shapes,
    )
    same = tf.broadcast_to(tf.range(k)[None], tf.shape(chosen))
    return tf.where(share > 0, chosen, same)
