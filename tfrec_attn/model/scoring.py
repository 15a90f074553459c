"""The attention-weighted cosine: pure functions of tensors.

Letters: B users, C candidates, n user tokens, m item tokens, d width, h heads, e width of
a head. Candidates are `[B, C, m, d]` (each user's own: *pairs*) or `[C, m, d]` (the same
for all: *cross*). Masks are True for real tokens. float16 and bfloat16 come in as they are
and all is computed in float32; float64 stays float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

# A logit that softmax turns into exactly 0, whatever β and focus are.
LOW = -1e30

# A norm is never taken for less than this share of its set's largest component: float32
# rounds at 1e-7, and the gradient of a direction grows as 1 / norm.
_SHARE = 1e-6

# The same as a size, for sets that are all but zero: 1 / size has to be a finite gradient
# in the dtype that came in.
_SMALLEST = {tf.float16: 1e-4}

# The article's softmax of squared norms divides by all but zero as soon as two norms differ
# by more than a few: these bounds keep the sixth power of their quotient finite.
_LONGEST, _LEAST = 100.0, 1e-6


class Side(NamedTuple):
    """What one side, user or item, brings to a comparison.

    An index can hold the items' sides: they depend on nothing of the user.

    Attributes:
      keys: `[b, h, .., t, e]` unit vectors that the attention compares.
      values: `[b, h, .., t, e]`, what is carried on, and compared in the end; over `size`.
      norms: `[b, h, .., t]`, the lengths of `values`, never 0.
      bias: `[b, h, .., t]`, β, and `LOW` at padding.
      weights: `[b, h, .., t]`, ω: 0 at padding, and else of sum 1 over t.
      floor: `[b, 1, .., 1]`, what `norms` are never below.
      size: `[b, 1, .., 1]`, the largest component of the set: cosines do not see it.
    """

    keys: tf.Tensor
    values: tf.Tensor
    norms: tf.Tensor
    bias: tf.Tensor
    weights: tf.Tensor
    floor: tf.Tensor
    size: tf.Tensor


def side(tokens, mask, *, key=None, value=None, attend=None, weigh=None, heads=1) -> Side:
    """Projects tokens, once for all comparisons that they take part in.

    β and ω are linear in the token over its root mean square: like the cosines, they see
    the direction of a token and not its size.

    Args:
      tokens: `[b, n, d]` of users, or `[b, C, m, d]` of candidates, b = 1 where all users
        share them.
      mask: `[b, n]` or `[b, C, m]`.
      key, value: `[d, h·e]` projections; None gives each head its part of d.
      attend, weigh: `[d, h]`, β and the logits of ω; None is 0.
      heads: h.
    """
    tokens, floor, common = _bounded(tokens, mask)
    keys, values = (
        _by_head(tokens if kernel is None else _times(tokens, kernel), heads)
        for kernel in (key, value)
    )
    size = _norm(tokens, floor)[..., None] * tokens.shape[-1] ** -0.5
    bias, logits = (
        tf.zeros_like(keys[..., 0])
        if kernel is None
        else _by_head(_times(tokens, kernel) / size, heads)[..., 0]
        for kernel in (attend, weigh)
    )
    floor, real = floor[:, None], mask[:, None]
    return Side(
        keys=keys / _norm(keys, floor)[..., None],
        values=values,
        norms=_norm(values, floor),
        bias=tf.where(real, bias, LOW),
        weights=_masked_softmax(logits, real, -1),
        floor=floor,
        size=common[:, None, ..., 0],
    )


def softmax_score(
    user: Side,
    item: Side,
    *,
    focus: Any,
    scale: Any = 1.0,
    bidirectional: bool = False,
    drop: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    return_attention: bool = False,
    xla: bool = True,
):
    """How well each item token is matched by what it sees of the user.

    `A = softmax_i(focus · cos(q_i, k_j) + β_i)`, `Q̃_j = Σ_i A_ij v_i`,
    `s_j = cos(Q̃_j, w_j)`; the score is `scale · Σ_j ω_j s_j`, averaged over heads, so that
    it lies in `[-scale, scale]`. `bidirectional` also lets each user token attend over the
    item, in the same way with the other β and ω, and averages both.

    A positive factor on an item token changes nothing. One on a user token leaves A as it
    is and gives the token that much more of Q̃; one on all of a user's tokens changes
    nothing. With `bidirectional`, what holds for the user holds for the item too.

    Args:
      user: Of `[B, n, d]` tokens.
      item: Of `[B, C, m, d]` or `[1, C, m, d]` tokens.
      focus: Scalar, τ_a. 0 averages the user's tokens; large values are MaxSim.
      scale: Scalar, τ_s.
      drop: Applied to A: dropout.
      xla: False takes the norms of Q̃ by a kernel that XLA does not have.

    Returns:
      Scores `[B, C]`, 0 for a user or a candidate without any real token. With
      `return_attention` also a dict of `A` `[B, C, h, n, m]`, `Q_tilde` `[B, C, h, m, e]`,
      `s`, `omega` and `contributions` `[B, C, h, m]`, and `pair_contributions`
      `[B, C, n, m]`. With `bidirectional` also, of the other direction, `A_item`
      `[B, C, h, n, m]`, `K_tilde` `[B, C, h, n, e]`, and `s_user`, `omega_user` and
      `user_contributions` `[B, C, h, n]`. Pairs sum to the score; so do contributions and
      user contributions together.
    """
    shape = tf.shape(item.weights)
    flat = lambda x: tf.reshape(x, tf.concat([shape[:2], [-1], tf.shape(x)[4:]], 0))
    apart = lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:2], shape[2:4], [-1]], 0))
    # [B, h, C·m, n]: one large product a user, whether candidates are shared or not.
    cosine = tf.matmul(flat(item.keys), user.keys, transpose_b=True)
    affinity = cosine * _like(cosine, focus)
    attention = drop(tf.nn.softmax(affinity + user.bias[:, :, None]))
    # Q̃ is one product more; ⟨Q̃, w⟩ and ‖Q̃‖ without it, by Gram matrices, are two.
    seen = tf.matmul(attention, user.values)
    norm = _norm if xla else _norm_in_one
    length = norm(seen, user.floor) * flat(item.norms)
    match = tf.reduce_sum(seen * flat(item.values), -1) / length
    ways = [_Way(attention, apart(match), apart(length), item.weights[..., None])]
    inner = None
    if bidirectional or return_attention:
        inner = apart(tf.matmul(flat(item.values), user.values, transpose_b=True))
    if bidirectional:
        ways.append(_back(apart(affinity), inner, user, item, drop))
    scale = _like(match, scale) / (len(ways) * user.keys.shape[1])
    score = scale * sum(tf.reduce_sum(w.match * w.weights, (1, 3, 4)) for w in ways)
    if not return_attention:
        return score
    ways[0] = ways[0]._replace(attention=apart(attention))
    return score, _parts(ways, apart(seen), inner, user, item, scale)


class _Way(NamedTuple):
    """One direction of attention; all but the first broadcast against it."""

    attention: tf.Tensor  # [B, h, C, m, n]
    match: tf.Tensor  # s
    length: tf.Tensor  # the product of the norms that s was divided by
    weights: tf.Tensor  # ω


def _back(affinity, inner, user, item, drop):
    """User tokens attend over each item's. n is mostly larger than m, so K̃ is not made:
    `‖K̃_i‖² = Σ_jl A'_ij A'_il ⟨w_j, w_l⟩`."""
    attention = drop(tf.nn.softmax(affinity + item.bias[..., None], -2))
    gram = tf.matmul(item.values, item.values, transpose_b=True)
    square = tf.reduce_sum(attention * tf.matmul(gram, attention), -2, keepdims=True)
    length = _root(square, item.floor[..., None]) * user.norms[:, :, None, None]
    match = tf.reduce_sum(attention * inner, -2, keepdims=True) / length
    return _Way(attention, match, length, user.weights[:, :, None, None])


def _parts(ways, seen, inner, user, item, scale):
    """What made a score, candidates before heads and user tokens before item tokens."""
    vector = lambda x: tf.transpose(x, [0, 2, 1, 3])
    matrix = lambda x: tf.transpose(x, [0, 2, 1, 4, 3])
    pairs = sum(scale * w.weights * w.attention * inner / w.length for w in ways)
    q_tilde = seen * user.size[..., None, None]
    parts = {
        "Q_tilde": tf.transpose(q_tilde, [0, 2, 1, 3, 4]),
        "pair_contributions": tf.einsum("bhcmn->bcnm", pairs),
    }
    if len(ways) == 2:
        k_tilde = tf.matmul(ways[1].attention, item.values, transpose_a=True)
        k_tilde *= item.size[..., None]
        parts["K_tilde"] = tf.transpose(k_tilde, [0, 2, 1, 3, 4])
    user_real, item_real = (x.bias[:, :1] > LOW / 2 for x in (user, item))
    real = tf.cast(user_real[:, :, None, None] & item_real[..., None], seen.dtype)
    names = (
        ("A", "s", "omega", "contributions"),
        ("A_item", "s_user", "omega_user", "user_contributions"),
    )
    for way, keys, axis in zip(ways, names, (-1, -2), strict=False):
        weights = tf.broadcast_to(way.weights, tf.shape(way.match))
        quantities = (way.match, weights, scale * weights * way.match)
        parts[keys[0]] = matrix(way.attention * real)
        parts |= {
            key: vector(tf.squeeze(x, axis))
            for key, x in zip(keys[1:], quantities, strict=True)
        }
    return parts


def article_score(
    user, item, user_mask, item_mask, *, normalizer="l2", return_attention=False
):
    """The article's section 4 formulas, in the only reading in which all shapes agree.

    `A = QKᵀ / (a bᵀ)`, `Q̃ = AᵀQ`, `K̃ = AK`, `S = K̃Q̃ᵀ / (a bᵀ)`, `R = softmax_j(S)`,
    `F = QᵀR`; the scalar that ranks is `Σ_ij R_ij S_ij / n` over real tokens.

    With `l2`, a positive factor on all tokens of a user, or of an item, changes nothing;
    one on a single token leaves A as it is and changes S. With `softmax` every factor
    changes A. There norms above 100 are brought to 100 and σ is never below 1e-6: without
    bounds the formulas overflow on usual token norms.

    S divides by a and b twice: at short tokens its gradient can be past 65504. For float16
    tokens such a gradient comes back as ±65504, never as an infinity: finite, but a loss
    scaler that waits for infinities does not see it.

    Args:
      user: `[B, n, d]`; item: `[B, C, m, d]` or `[C, m, d]`.
      user_mask: `[B, n]`; item_mask: `[B, C, m]` or `[C, m]`.
      normalizer: `l2`: a and b are the tokens' norms; `softmax`: the square root of the
        softmax of their squares over real tokens, the article's σ.

    Returns:
      Scores `[B, C]`, 0 for a user or a candidate without any real token. With
      `return_attention` also a dict of `A`, `S` and `R` `[B, C, n, m]`, `Q_tilde`
      `[B, C, m, d]`, `K_tilde` `[B, C, n, d]`, `F` `[B, C, d, m]`, and of `contributions`
      `[B, C, m]` and `pair_contributions` `[B, C, n, m]`, which sum to the score.
    """
    if item.shape.rank == 3:
        item, item_mask = tf.expand_dims(item, 0), tf.expand_dims(item_mask, 0)
    user, item = (_finite_gradient(x) if x.dtype == tf.float16 else x for x in (user, item))
    normalize = {"l2": _lengths, "softmax": _softmax_of_lengths}[normalizer]
    q, a, q_size = normalize(user, user_mask)
    k, b, k_size = normalize(item, item_mask)
    # [B, C, m, n] within: one large product a user.
    shape = tf.shape(k)
    flat = lambda x: tf.reshape(x, [shape[0], -1, x.shape[-1]])
    dots = lambda x, y: tf.reshape(
        tf.matmul(flat(x), y, transpose_b=True),
        [tf.shape(y)[0], shape[1], shape[2], tf.shape(y)[1]],
    )
    a, b = a[..., None], b[..., None]
    attention = dots(k / b, q / a)
    # S = A K Qᵀ A / (a bᵀ), taken from the side where the product is m×m, not n×d.
    inner = tf.matmul(dots(k, q), attention, transpose_b=True)
    inner /= tf.linalg.matrix_transpose(b)
    similarity = tf.matmul(attention, inner, transpose_a=True) / a[:, None]
    real = item_mask[:, :, None] & user_mask[:, None, :, None]
    weights = _masked_softmax(similarity, real, -1)
    count = tf.maximum(tf.math.count_nonzero(user_mask, -1, dtype=q.dtype), 1.0)
    pairs = weights * similarity / count[:, None, None, None]
    score = tf.reduce_sum(pairs, (-2, -1))
    if not return_attention:
        return score
    q, k = q * q_size, k * k_size
    return score, {
        "A": tf.linalg.matrix_transpose(attention),
        "Q_tilde": tf.matmul(attention, q[:, None]),
        "K_tilde": tf.matmul(attention, k, transpose_a=True),
        "S": similarity,
        "R": weights,
        "F": tf.matmul(q[:, None], weights, transpose_a=True),
        "contributions": tf.reduce_sum(pairs, -2),
        "pair_contributions": pairs,
    }


def _lengths(tokens, mask):
    """Tokens over their size, a or b `[.., t]`, and the size."""
    tokens, floor, size = _bounded(tokens, mask)
    return tokens, _norm(tokens, floor), size


def _softmax_of_lengths(tokens, mask):
    """The same by the article's σ, which a size would change: tokens as they are."""
    tokens, floor, size = _bounded(tokens, mask)
    # Not `norm * size`, which may overflow; up to `_LONGEST` the factor is exactly `size`.
    tokens *= tf.minimum(size, _LONGEST / _norm(tokens, floor)[..., None])
    sigma = _masked_softmax(tf.reduce_sum(tf.square(tokens), -1), mask, -1)
    return tokens, tf.sqrt(tf.maximum(sigma, _LEAST)), tf.ones_like(size)


def some(side, at):
    """The sides of some of the candidates that all users share.

    Args:
      side: Of `[1, C, m, d]` candidates: a `Side`, or tokens and mask.
      at: `[B, K]` places among them, or `[1, K]` for all users.

    Returns:
      The same of `[B, K, m, d]` or `[1, K, m, d]` candidates.
    """
    if not isinstance(side, Side):
        return tuple(tf.gather(tf.squeeze(part, 0), at) for part in side)
    # Not part[0], whose gradient is a copy of all candidates.
    heads_first = lambda part: tf.gather(tf.squeeze(part, 0), at, axis=1)
    swapped = lambda x: tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
    return Side(*(swapped(heads_first(part)) for part in side))


def by_chunks(score: Callable[[Any], tf.Tensor], item: Any, axis: int, size: int):
    """`score(item)`, a few candidates at a time, so that memory is bounded by `size`.

    Args:
      score: Gives `[B, C']` for a part of `item`.
      item: A tensor or a nest of them, with the C candidates on `axis`.
      size: Candidates a step; the last step may have fewer.
    """
    first = tf.nest.flatten(item)[0]
    count = tf.shape(first)[axis]
    width = tf.minimum(size, count)
    # Outside the loop, where XLA can see that the size of a step is a constant.
    offsets = tf.range(width)

    def step(i, found):
        # The last step goes over its last candidate again; what is too much is cut off.
        rows = tf.minimum(i * width + offsets, count - 1)
        part = tf.nest.map_structure(lambda x: tf.gather(x, rows, axis=axis), item)
        return i + 1, found.write(i, tf.transpose(score(part)))

    # Once at least: what nothing was written to has no shape.
    steps = tf.maximum(1, -(-count // tf.maximum(width, 1)))
    dtype = tf.float64 if first.dtype == tf.float64 else tf.float32
    found = tf.TensorArray(dtype, steps, element_shape=[None, None])
    more = lambda i, _: i < steps
    _, found = tf.while_loop(more, step, (0, found), parallel_iterations=1)
    return tf.transpose(found.concat()[:count])


def _bounded(tokens, mask):
    """Each set `[.., t, d]` over its size, so that no square overflows or vanishes.

    A float16 infinity, which is what 1e20 becomes there, counts as the largest float16.

    Returns:
      The tokens, 0 at padding (not even a NaN passes from there), the floor `[.., 1]` of
      norms in that measure, and the size `[.., 1, 1]`, the set's largest component.
    """
    dtype = tokens.dtype
    smallest = _SMALLEST.get(dtype, 1e-12)
    if dtype != tf.float64:
        tokens = tf.cast(tokens, tf.float32)
    if dtype == tf.float16:
        # After the cast: in float16 it takes as long as a quarter of the score.
        tokens = tf.clip_by_value(tokens, dtype.min, dtype.max)
    tokens = tf.where(mask[..., None], tokens, 0.0)
    size = tf.reduce_max(tf.abs(tokens), (-2, -1), keepdims=True)
    size = tf.stop_gradient(tf.maximum(size, 1e-12))
    return tokens / size, tf.maximum(smallest / size, _SHARE)[..., 0], size


@tf.custom_gradient
def _finite_gradient(x):
    """`x`; a gradient that overflowed its dtype comes back as the largest that it holds."""
    return tf.identity(x), lambda by_x: tf.clip_by_value(by_x, x.dtype.min, x.dtype.max)


def _norm(vectors, floor):
    return _root(tf.reduce_sum(tf.square(vectors), -1), floor)


@tf.custom_gradient
def _norm_in_one(vectors, floor):
    """The same in one pass over the vectors; TensorFlow's own gradient is NaN at 0."""
    norm = tf.maximum(tf.raw_ops.EuclideanNorm(input=vectors, axis=-1), floor)

    def gradient(by_norm):
        share = tf.where(norm > floor, by_norm / norm, 0.0)
        return share[..., None] * vectors, tf.zeros_like(floor)

    return norm, gradient


def _root(square, floor):
    """Below the floor constant: at 0 the gradient of a root is infinite."""
    return tf.sqrt(tf.maximum(square, tf.square(floor)))


def _times(tokens, kernel):
    return tf.tensordot(tokens, _like(tokens, kernel), 1)


def _like(x, value):
    """`value` in the dtype of `x`; a Python number does not pass through float32."""
    return tf.cast(tf.convert_to_tensor(value, dtype_hint=x.dtype), x.dtype)


def _by_head(x, heads):
    """`[b, .., t, h·e]` to `[b, h, .., t, e]`."""
    if heads == 1:
        return tf.expand_dims(x, 1)  # the gradient of x[:, None] is a copy
    x = tf.reshape(x, tf.concat([tf.shape(x)[:-1], [heads, x.shape[-1] // heads]], 0))
    return tf.transpose(
        x, [0, x.shape.rank - 2, *range(1, x.shape.rank - 2), x.shape.rank - 1]
    )


def _masked_softmax(logits, mask, axis):
    """Softmax over the real entries; 0 everywhere where there is none."""
    weights = tf.nn.softmax(tf.where(mask, logits, LOW), axis)
    return tf.where(mask, weights, 0.0)
