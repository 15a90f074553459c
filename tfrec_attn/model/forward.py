"""What a BERT computes: its layers, without the calls of `TFBertModel`.

That one takes `[B, m, d]` through every map, which TensorFlow computes slowly, and for
padding too; here maps see the pieces of all texts as one matrix, and only the attention
knows texts. Maps and products are of the dtype that their Keras layers compute in, all
else is float32. Letters: B texts, m token ids a text, d width, T pieces of all texts.
"""

import functools

import tensorflow as tf

from tfrec_attn.model import quantization


class Packed:
    """The pieces of all texts in one row, without the padding between them.

    Args:
      real: `[B, m]` bool, which places hold a piece; one of each text at least.
    """

    def __init__(self, real):
        flat = tf.reshape(real, [-1])
        self.real = real
        self.at = tf.squeeze(tf.where(flat), 1)
        # Of padding, that of the piece before it, which nothing reads.
        self.row = tf.reshape(tf.cumsum(tf.cast(flat, tf.int32)) - 1, tf.shape(real))

    def pack(self, values):
        """`[B, m, ..]` to `[T, ..]`."""
        return tf.gather(tf.reshape(values, [-1, *values.shape[2:]]), self.at)

    def unpack(self, values):
        """`[T, d]` to `[B, m, d]`, with something or other where the padding is."""
        return tf.gather(values, self.row)


class Padded:
    """The same with the padding between them, for a shape that does not change."""

    def __init__(self, real):
        self.real = real

    def pack(self, values):
        """`[B, m, ..]` to `[B m, ..]`."""
        return tf.reshape(values, [-1, *values.shape[2:]])

    def unpack(self, values):
        """`[B m, d]` to `[B, m, d]`."""
        return tf.reshape(values, [*self.real.shape, values.shape[-1]])


class Dropout:
    """What is dropped in one pass: a function of its seed, so that the pass can be computed
    again.

    Args:
      seed: `[2]`; drawn where it is None.
    """

    def __init__(self, seed=None):
        if seed is None:
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        self.seed = seed

    def __call__(self, values, layer, place: int):
        """Values of a place with a number of its own, at the rate of a Keras layer."""
        seed = tf.random.experimental.stateless_fold_in(self.seed, place)
        return tf.nn.experimental.stateless_dropout(values, layer.rate, seed)


def states(
    model, ids, texts: Packed | Padded, drop: Dropout | None = None, recompute=False
):
    """Hidden states `[T, d]` before the first block of a `TFBertModel` and after each.

    Args:
      model: The `TFBertModel`.
      ids: `[B, m]`.
      texts: Which of them are pieces.
      drop: None drops nothing.
      recompute: Whether nothing is kept of a block but its input, from which the backward
        pass computes the block again.

    References:
      - Devlin et al., 2018, arXiv:1810.04805; blocks are those of Vaswani et al., 2017,
        arXiv:1706.03762, section 3.
      - Recompute: Chen et al., 2016, arXiv:1604.06174, section 3.
    """
    dropped = drop or (lambda values, layer, place: values)
    embed = model.bert.embeddings
    words = quantization.rows(embed.weight, texts.pack(ids))
    place = tf.broadcast_to(tf.range(tf.shape(ids)[1]), tf.shape(ids))
    places = tf.gather(embed.position_embeddings, texts.pack(place))
    x = _normed(words + places + embed.token_type_embeddings[0], embed.LayerNorm)
    found = [dropped(x, embed.dropout, 0)]
    for number, block in enumerate(model.bert.encoder.layer):
        after = functools.partial(_block, block, texts, dropped, 1 + 3 * number)
        found.append((tf.recompute_grad(after) if recompute else after)(found[-1]))
    if recompute:
        # The gradient of what takes places out is sparse, which a recompute does not take.
        found[-1] = tf.reshape(found[-1], tf.shape(found[-1]))
    return found


def _block(block, texts, drop, place: int, x):
    """`[T, d]` to `[T, d]`; it drops at three places."""
    after = block.attention.dense_output
    attend = lambda weights: drop(weights, block.attention.self_attention.dropout, place)
    found = after.dense(_attended(block.attention.self_attention, texts, attend, x))
    found = drop(tf.cast(found, x.dtype), after.dropout, place + 1)
    x = _normed(x + found, after.LayerNorm)
    inner, after = block.intermediate, block.bert_output
    found = after.dense(inner.intermediate_act_fn(inner.dense(x)))
    found = drop(tf.cast(found, x.dtype), after.dropout, place + 2)
    return _normed(x + found, after.LayerNorm)


def _attended(attention, texts, drop, x):
    """`[T, d]`, what each piece takes of its text."""
    heads, width = attention.num_attention_heads, attention.attention_head_size

    def split(layer):
        y = texts.unpack(layer(x))
        # What prefix tuning has before the keys and values of every text.
        first = getattr(layer, "prefix", None)
        if first is not None:
            first = tf.broadcast_to(first, (tf.shape(y)[0], *first.shape))
            y = tf.concat([tf.cast(first, y.dtype), y], 1)
        y = tf.reshape(y, [tf.shape(y)[0], tf.shape(y)[1], heads, width])
        return tf.transpose(y, [0, 2, 1, 3])

    maps = attention.query, attention.key, attention.value
    query, key, value = (split(layer) for layer in maps)
    before = tf.shape(key)[2] - tf.shape(query)[2]
    seen = tf.pad(texts.real, [[0, 0], [before, 0]], constant_values=True)
    logits = tf.cast(tf.matmul(query, key, transpose_b=True), x.dtype) * width**-0.5
    logits += tf.where(seen, 0.0, -1e9)[:, None, None, :]
    weights = drop(tf.nn.softmax(logits))
    found = tf.matmul(tf.cast(weights, value.dtype), value)
    found = tf.transpose(found, [0, 2, 1, 3])
    return tf.reshape(texts.pack(found), [-1, heads * width])


def _normed(x, layer):
    """Layer normalization (arXiv:1607.06450) by the weights of a Keras layer, which itself
    insists on the number of axes that it was built for."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * (tf.math.rsqrt(variance + layer.epsilon) * layer.gamma) + layer.beta
