"""From a user to answers: exact retrieval over all items, then re-ranking of a shortlist.

Letters: B users, I items, C candidates, S shortlist, K answers, d width, m item tokens.
"""

import tensorflow as tf

LEFT_OUT = float("-inf")


class Index(tf.Module):
    """Item matrices as variables, and the search over them.

    Args:
      model: The trained recommender.
      shortlist: Items that the retrieval hands to the scorer; 0 serves the retrieval alone.
      dtype: Of the stored token matrices: float16 halves them.
    """

    def __init__(self, model, *, shortlist: int, dtype=tf.float16):
        super().__init__(name="index")
        matrices = model.encode_items()
        store = lambda value, name: tf.Variable(value, trainable=False, name=name)
        self.model = model
        self.vector = store(matrices.vector, "item_vector")
        self.pooled = store(matrices.pooled, "item_pooled")
        self.tokens = store(tf.cast(matrices.tokens, dtype), "item_tokens")
        self.mask = store(matrices.mask, "item_mask")
        self.shortlist = min(shortlist, self.pooled.shape[0])

    def search(self, user, allowed, k):
        """The best allowed items of each user.

        Args:
          user: `UserState` of B users.
          allowed: `[B, I]` bool.
          k: K, a scalar: most answers of any user.

        Returns:
          Item rows `[B, K]`, scores `[B, K]`, falling, and `[B, K]` bool, False where
          there was no allowed item left.
        """
        cosine = tf.matmul(user.query, self.pooled, transpose_b=True)
        cosine = tf.where(allowed, cosine, LEFT_OUT)
        if not self.shortlist:
            scores, rows = tf.math.top_k(cosine, k)
            return rows, scores, scores > LEFT_OUT
        # More answers than the shortlist holds: then all of them are re-ranked.
        size = tf.minimum(tf.maximum(self.shortlist, k), tf.shape(cosine)[1])
        best, rows = tf.math.top_k(cosine, size)
        scores = tf.where(best > LEFT_OUT, self.score(user, rows), LEFT_OUT)
        scores, place = tf.math.top_k(scores, k)
        return tf.gather(rows, place, batch_dims=1), scores, scores > LEFT_OUT

    def score(self, user, rows):
        """Ranking logits `[B, C]` of item rows `[B, C]`."""
        take = lambda matrix: tf.gather(matrix, rows)
        return self.model.rank(
            user, take(self.pooled), tf.cast(take(self.tokens), tf.float32), take(self.mask)
        )
