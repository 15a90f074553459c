"""From a user to answers: exact retrieval over all items, then re-ranking of a shortlist.

Letters: B users, I items, C candidates, S shortlist, K answers, d width, n user tokens, m
item tokens.
"""

import tensorflow as tf

from tfrec_attn.model import stored
from tfrec_attn.serve.graph.diversity import reordered
from tfrec_attn.serve.graph.nearest import LEFT_OUT, Exact

# Items that a diverse answer is chosen from, where no shortlist is ranked.
_POOL = 100


class Index(tf.Module):
    """Item matrices as variables, and the search over them.

    Args:
      model: The trained recommender.
      shortlist: Items that the retrieval hands to the scorer; 0 serves the retrieval alone.
      tokens: Dtype of the stored token matrices; see `stored`. Every score is that of the
        tokens as they are stored.
      first: Makes the first stage of the pooled vectors; see `nearest`.
    """

    def __init__(self, model, *, shortlist: int, tokens: str = "float32", first=Exact):
        super().__init__(name="index")
        matrices = model.encode_items(tokens)
        store = lambda value, name: tf.Variable(value, trainable=False, name=name)
        # Tracked as variables only: of what it tracks Keras also saves traces of its own
        # and the model's, which hold the features of all items as constants.
        self.weights = list(model.variables)
        self._model = lambda: model
        self.vector = store(matrices.vector, "item_vector")
        self.event = store(matrices.event, "item_event")
        self.first = first(matrices.pooled)
        values, step = matrices.tokens
        self.tokens = stored.Stored(store(values, "item_tokens"), store(step, "item_step"))
        self.mask = store(matrices.mask, "item_mask")
        self.shortlist = min(shortlist, len(self.first))

    @property
    def model(self):
        """The trained recommender."""
        return self._model()

    def keep_read(self, calls):
        """Leaves out of what is saved the weights that none of some concrete functions
        reads, such as a table over all items whose vectors are there already."""
        read = {id(tensor) for call in calls for tensor in call.captured_inputs}
        self.weights = [weight for weight in self.weights if id(weight.handle) in read]

    def search(self, user, rules, k, diversity=None):
        """The best items of each user that the rules allow. Of equal cosines or scores the
        first comes first: by row in the shortlist, by place in the shortlist in the answer.

        Args:
          user: `UserState` of B users.
          rules: `conditions.Rules`. What they add to a score is a logit, in both stages.
          k: K, a scalar: most answers of any user.
          diversity: `[B]`, see `diversity.reordered`; None where it is not asked for.

        Returns:
          Item rows `[B, K]`, scores `[B, K]`, falling but for diversity, and `[B, K]` bool,
          False where there was no allowed item left.
        """
        scale = tf.exp(self.model.retrieval.log_scale)

        def adjust(cosine, rows):
            worth = cosine + rules.bonus(rows) / scale
            return tf.where(rules.keep(rows), worth, LEFT_OUT)

        # More answers than the shortlist holds: then all of them are re-ranked.
        size = self.shortlist or (0 if diversity is None else _POOL)
        size = tf.minimum(tf.maximum(size, k), len(self.first))
        scores, rows = self.first(user.query, adjust, size)
        if self.shortlist:
            logits = self.score(user, rows) + rules.bonus(rows)
            scores = tf.where(scores > LEFT_OUT, logits, LEFT_OUT)
        scores, place = tf.math.top_k(scores, k if diversity is None else size)
        if diversity is not None:
            vectors = self.first.rows(tf.gather(rows, place, batch_dims=1))
            chosen = reordered(scores, vectors, diversity, k)
            scores, place = (tf.gather(v, chosen, batch_dims=1) for v in (scores, place))
        return tf.gather(rows, place, batch_dims=1), scores, scores > LEFT_OUT

    def score(self, user, rows):
        """What ranks item rows `[B, C]`: logits, the cosine where there is no ranking."""
        pooled = self.first.rows(rows)
        if not self.shortlist:
            return tf.einsum("bd,bcd->bc", user.query, pooled)
        return self.model.rank(user, pooled, *self._tokens(rows))

    def explain(self, user, row):
        """The score of one item `[B]` for each user, and what the scorer adds to it.

        Returns:
          `[B]` scores; contributions `[B, n, m]`, which with the retrieval's sum to the
          score; attention `[B, n, m]`, the mean over heads.
        """
        tokens, mask = self._tokens(row[:, None])
        inputs = {
            "user": user.tokens,
            "user_mask": user.mask,
            "item": tokens,
            "item_mask": mask,
        }
        _, parts = self.model.scorer(inputs, training=False, return_attention=True)
        pairs = self.model.share * parts["pair_contributions"][:, 0]
        attention = parts["A"][:, 0]
        if attention.shape.rank == 4:
            attention = tf.reduce_mean(attention, 1)
        if not self.shortlist:
            pairs = tf.zeros_like(pairs)
        return self.score(user, row[:, None])[:, 0], pairs, attention

    def _tokens(self, rows):
        return stored.rows(self.tokens, rows), tf.gather(self.mask, rows)
