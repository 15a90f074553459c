"""User and item tower: feature tokens, their mask, and one pooled unit vector.

Letters: R rows, t tokens of a row, d width, e width of the ranking's tokens, B examples, W
events of a window, P profile tokens, n = P + W, T targets of an example, L events that the
ranking sees.
"""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from tfrec_attn.labels import LABELS
from tfrec_attn.model.causal import CausalBlock

GAPS = (
    24  # buckets of a time gap: unknown, below a second, then one a doubling (to 48 days)
)


class FeatureTokens(tf_keras.layers.Layer):
    """All columns of some rows as one token matrix.

    Args:
      encoders: A layer for each column, by name. The encoder of `text` reads
        `text` `[R, m, width]` and `text_mask` `[R, m]`, and `text_mean` `[R, width]` where
        only a summary is wanted; the others read the feature of their own name.
    """

    def __init__(self, encoders: Mapping[str, tf_keras.layers.Layer], **kwargs):
        super().__init__(**kwargs)
        self.encoders = dict(encoders)

    def call(self, features, training=None):
        """Returns tokens `[R, t, d]` and mask `[R, t]`, columns side by side."""
        pairs = [self._encode(name, features, training) for name in self.encoders]
        return tf.concat([t for t, _ in pairs], 1), tf.concat([m for _, m in pairs], 1)

    def summary(self, features, training=None):
        """Returns `[R, d]`: the sum over columns of the mean of their real tokens. Without
        `id` the rows are of nobody: an unknown id adds nothing."""
        total = 0.0
        for name, encoder in self.encoders.items():
            if name == "id" and name not in features:
                continue
            if name == "text":
                real = tf.reduce_any(features["text_mask"], -1)[:, None]
                mean = encoder.project(features["text_mean"], training=training)
                total += tf.where(real, mean, tf.zeros_like(mean))
            else:
                total += masked_mean(*self._encode(name, features, training))
        return total

    def _encode(self, name, features, training):
        encoder, value = self.encoders[name], features[name]
        if name == "text":
            value = (value, features["text_mask"])
        elif value.shape.rank == 1 and value.dtype.is_integer:
            value = value[:, None]
        return encoder(value, training=training)


def masked_mean(tokens, mask):
    """The mean of the real tokens of `[.., t, d]`; zero where there is none."""
    real = tf.cast(mask, tokens.dtype)[..., None]
    total = tf.reduce_sum(tf.where(mask[..., None], tokens, tf.zeros_like(tokens)), -2)
    return tf.math.divide_no_nan(total, tf.reduce_sum(real, -2))


class ItemTower(tf_keras.layers.Layer):
    """Items to token matrices and to pooled vectors.

    The ranking has ids of its own, one table for candidates and one for the events of a
    history: what follows what is another thing than what is like what. Of all else it reads
    what the retrieval learned; no gradient flows there.

    Args:
      encoders: See `FeatureTokens`; that of `id` first.
      candidate, event: The ranking's encoders of `id`.
      most: Tokens of an item that the ranking reads, at least 2: the vector, the id, and
        the first real ones of the others.
      wide: e. Who follows whom is learned pair by pair, so ids need more room than the
        retrieval's vectors.
    """

    def __init__(
        self,
        encoders: Mapping[str, tf_keras.layers.Layer],
        *,
        candidate: tf_keras.layers.Layer,
        event: tf_keras.layers.Layer,
        most: int,
        wide: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.features, self.most = FeatureTokens(encoders), most
        self.candidate_id, self.event_id = candidate, event
        self.pool_norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.widen, self.widen_event = _dense(wide), _dense(wide)

    def vector(self, features, training=None):
        """`[R, d]`: what stands for an item in a user's history."""
        return self.features.summary(features, training=training)

    def pool(self, vector):
        """`[R, d]` vectors to `[R, d]` unit vectors, for the retrieval's cosine."""
        return tf.math.l2_normalize(self.pool_norm(vector), -1)

    def event(self, vector, ids, training=None):
        """`[R, e]`: what stands for an item in the history that the ranking sees."""
        own, known = self.event_id(ids[:, None], training=training)
        own = tf.where(known[..., None], own, tf.zeros_like(own))[:, 0]
        return self.widen_event(tf.stop_gradient(vector)) + own

    def call(self, features, training=None):
        """Tokens `[R, m, e]` of candidates and their mask: the item's vector, its id, and
        those at `places` of all the others."""
        vector = self.vector(features, training=training)[:, None]
        own, known = self.candidate_id(features["id"][:, None], training=training)
        tokens, mask = self.features(features, training=training)
        places = self.places(mask)
        rest, real = (tf.gather(part, places, batch_dims=1) for part in (tokens, mask))
        vector, rest = (self.widen(tf.stop_gradient(part)) for part in (vector, rest))
        tokens = tf.concat([vector, own, rest], 1)
        return tokens, tf.concat([tf.ones_like(known), known, real], 1)

    def places(self, mask):
        """Where the tokens beside vector and id stand among those of the columns: the first
        real ones behind the id. `[R, t]` mask to `[R, m - 2]` places."""
        padding = tf.cast(~mask[:, 1:], tf.int32)
        return 1 + tf.argsort(padding, 1, stable=True)[:, : self.most - 2]


class UserTower(tf_keras.layers.Layer):
    """Profile and history to pooled vectors, each of which knows only what was before it.

    The profile stands before the history: P tokens, the last of them learned and always
    real, so that a user of whom nothing is known has a vector too. Causal self-attention
    reaches back over `length` events and over the whole profile.

    Args:
      encoders: Of the profile's columns; may be empty.
      dim: d.
      heads, blocks: Of the self-attention.
      length: Events that one event sees, itself included.
      pooling: What stands for a user: the state after the `last` event, or the `mean` of
        the states after each.
      dropout: On tokens, attention and feed-forward layers.
      time: Whether gaps between events, and up to the request, are features.
    """

    def __init__(
        self,
        encoders: Mapping[str, tf_keras.layers.Layer],
        *,
        dim: int,
        heads: int,
        blocks: int,
        length: int,
        pooling: str = "last",
        dropout: float = 0.0,
        time: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.features = FeatureTokens(encoders) if encoders else None
        self.length, self.pooling, self.time = length, pooling, time
        self.feedback = tf_keras.layers.Embedding(
            len(LABELS), dim, embeddings_initializer=_normal(dim)
        )
        self.event_gap = tf_keras.layers.Embedding(
            GAPS, dim, embeddings_initializer="zeros"
        )
        self.request_gap = tf_keras.layers.Embedding(
            GAPS, dim, embeddings_initializer="zeros"
        )
        self.blocks = [CausalBlock(dim, heads, length, dropout) for _ in range(blocks)]
        self.dropout = tf_keras.layers.Dropout(dropout)
        self.norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.dim = dim

    def build(self, input_shape):
        self.anyone = self.add_weight("anyone", (self.dim,), initializer=_normal(self.dim))
        super().build(input_shape)

    def call(self, inputs, training=None):
        """The token matrix.

        Args:
          inputs: `profile`: the features of the profile's columns, `[B, ..]` each;
            `events` `[B, W, d]` item vectors; `mask` `[B, W]`; `feedback` `[B, W]` labels;
            `time` `[B, W]` ms, 0 where unknown.

        Returns:
          Tokens `[B, P + W, d]` and P.
        """
        events = inputs["events"] + self.feedback(inputs["feedback"])
        if self.time:
            time = inputs["time"]
            earlier = tf.pad(time[:, :-1], [[0, 0], [1, 0]])
            events += self.event_gap(gap(earlier, time))
        profile, real = self._prefix(inputs["profile"], tf.shape(events)[0], training)
        prefix = tf.shape(profile)[1]
        tokens = self.dropout(tf.concat([profile, events], 1), training=training)
        mask = tf.concat([real, inputs["mask"]], 1)
        for block in self.blocks:
            tokens = block((tokens, mask, prefix), training=training)
        return tokens, prefix

    def profile(self, features, batch, training=None):
        """The columns of B profiles: tokens `[B, P - 1, d]` and mask `[B, P - 1]`."""
        if self.features is None:
            return tf.zeros((batch, 0, self.dim)), tf.zeros((batch, 0), tf.bool)
        return self.features(features, training=training)

    def _prefix(self, features, batch, training):
        tokens, mask = self.profile(features, batch, training)
        anyone = tf.broadcast_to(self.anyone, (batch, 1, self.dim))
        if self.features is not None:
            anyone += self.features.summary(features, training=training)[:, None]
        real = tf.ones((batch, 1), bool)
        return tf.concat([tokens, anyone], 1), tf.concat([mask, real], 1)

    def query(self, tokens, prefix, seen, gaps, mask):
        """The pooled user as of some moments.

        Args:
          tokens: `[B, P + W, d]` from `call`.
          prefix: P.
          seen: `[B, T]` events of the window before the moment.
          gaps: `[B, T]` bucket of the time since the last of them.
          mask: `[B, W]`, which places of the window are events.

        Returns:
          `[B, T, d]` unit vectors.
        """
        # Before all events, and after each of them.
        states = tokens[:, prefix - 1 :]
        last = lambda: tf.gather(states, seen, batch_dims=1)
        state = self._mean(states, seen, mask) if self.pooling == "mean" else last()
        if self.time:
            state += self.request_gap(gaps)
        return tf.math.l2_normalize(self.norm(state), -1)

    def _mean(self, states, seen, mask):
        """Of the state before all events and those after the events among the last `length`
        places that are seen: `[B, 1 + W, d]`, `[B, T]` and `[B, W]` to `[B, T, d]`."""
        real = tf.cast(mask, states.dtype)[..., None]
        each = tf.concat([states[:, 1:] * real, real], -1)
        total = tf.pad(tf.cumsum(each, 1), [[0, 0], [1, 0], [0, 0]])
        until = lambda place: tf.gather(total, place, batch_dims=1)
        events = until(seen) - until(tf.maximum(seen - self.length, 0))
        return (states[:, :1] + events[..., :-1]) / (1 + events[..., -1:])


class UserTokens(tf_keras.layers.Layer):
    """What the ranking sees of users: their profile, a token of its own, the last events.

    The events are as they happened, not as the user tower has mixed them: each item token
    of a candidate can look for the event that it follows.

    Args:
      wide: e.
      length: L, the last events that are seen.
      time: Whether the time from each event to the request is a feature.
    """

    def __init__(self, *, wide: int, length: int, time: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.wide, self.length, self.time = wide, length, time
        zeros = {"embeddings_initializer": "zeros"}
        self.feedback = tf_keras.layers.Embedding(len(LABELS), wide, **zeros)
        self.gap = tf_keras.layers.Embedding(GAPS, wide, **zeros)
        self.widen = _dense(wide)

    def build(self, input_shape):
        start = {"initializer": _normal(self.wide)}
        self.anyone = self.add_weight("anyone", (self.wide,), **start)
        self.recency = self.add_weight(
            "recency", (self.length, self.wide), initializer="zeros"
        )
        super().build(input_shape)

    def call(self, inputs):
        """The token matrices, each as of one moment.

        Args:
          inputs: `profile` `[B, P, d]` and `profile_mask` `[B, P]`; `events` `[B, L, e]`,
            the latest last, with their `mask`, `feedback` and `time` `[B, L]`; `now` `[B]`
            ms, 0 where unknown.

        Returns:
          `[B, P + 1 + L, e]` tokens and `[B, P + 1 + L]` mask.
        """
        events = inputs["events"] + self.recency + self.feedback(inputs["feedback"])
        if self.time:
            events += self.gap(gap(inputs["time"], inputs["now"][:, None]))
        mask, profile = inputs["mask"], self.widen(inputs["profile"])
        anyone = tf.broadcast_to(self.anyone, (tf.shape(mask)[0], 1, self.wide))
        tokens = tf.concat([profile, anyone, events], 1)
        real = tf.ones_like(anyone[..., 0], tf.bool)
        return tokens, tf.concat([inputs["profile_mask"], real, mask], 1)


def latest(values, seen, count: int):
    """The last values of each row before a place.

    Args:
      values: `[B, W, ..]`.
      seen: `[B]` values before the place, at most W.
      count: L.

    Returns:
      `[B, L, ..]`, the latest last, zeros where there are fewer, and `[B, L]` bool, False
      there.
    """
    values = tf.convert_to_tensor(values)
    front = [[0, 0], [count, 0]] + [[0, 0]] * (values.shape.rank - 2)
    at = seen[:, None] + tf.range(count)
    return tf.gather(tf.pad(values, front), at, batch_dims=1), at >= count


def gap(earlier, later):
    """The bucket of the time between two moments, int64 ms, 0 where unknown.

    0 is unknown, 1 below a second, then one bucket a doubling.
    """
    seconds = tf.cast(later - earlier, tf.float32) / 1000.0
    bucket = 1 + tf.cast(
        tf.math.log(tf.maximum(seconds, 0.0) + 1.0) / tf.math.log(2.0), tf.int32
    )
    known = (earlier > 0) & (later > 0)
    return tf.where(known, tf.minimum(bucket, GAPS - 1), tf.zeros_like(bucket))


def request_gap(history_time, seen, time):
    """Bucket of the time between the last event seen and the request, `[B, T]`.

    Args:
      history_time: `[B, W]` ms.
      seen: `[B, T]` events before the request.
      time: `[B, T]` ms, 0 where unknown.
    """
    last = tf.gather(history_time, tf.maximum(seen - 1, 0), batch_dims=1)
    return gap(tf.where(seen > 0, last, tf.zeros_like(last)), time)


def _dense(width: int):
    return tf_keras.layers.Dense(width, use_bias=False)


def _normal(dim: int):
    return tf_keras.initializers.TruncatedNormal(stddev=dim**-0.5)
