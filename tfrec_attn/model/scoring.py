"""The attention-weighted cosine: pure functions of tensors.

Letters: B users, C candidates, n user tokens, m item tokens, d width, h heads. Candidates
are `[B, C, m, d]` (each user's own: *pairs*) or `[C, m, d]` (the same for all: *cross*).
Masks are True for real tokens. All is computed in float32, whatever comes in.
"""

import tensorflow as tf

TINY = 1e-12
LOW = -1e9  # a logit that softmax turns into exactly 0


def unit(tokens):
    """`[.., d]` to vectors of length 1; a zero vector stays zero, its gradient too.

    Divides by the largest component first, so that norms from 1e-20 to 1e20 neither
    vanish nor overflow when squared.
    """
    top = tf.reduce_max(tf.abs(tokens), -1, keepdims=True)
    empty = top < 1e-30
    scaled = tokens / tf.stop_gradient(tf.where(empty, tf.ones_like(top), top))
    return scaled * tf.math.rsqrt(
        tf.maximum(tf.reduce_sum(tf.square(scaled), -1, keepdims=True), TINY)
    )


def masked_softmax(logits, mask, axis):
    """Softmax over the real entries; 0 everywhere where there is none."""
    weights = tf.nn.softmax(tf.where(mask, logits, LOW), axis)
    return tf.where(mask, weights, tf.zeros_like(weights))


def softmax_score(
    user,
    item,
    user_values,
    item_values,
    user_mask,
    item_mask,
    *,
    focus,
    user_weight=None,
    item_weight=None,
    bidirectional=False,
    drop=None,
):
    """How well each item token is matched by what it sees of the user.

    `A = softmax_i(focus · cos(q_i, k_j) + β_i)`, `Q̃_j = Σ_i A_ij v_i`,
    `s_j = cos(Q̃_j, w_j)`; the score is `Σ_j ω_j s_j` with ω a softmax over the item's real
    tokens, averaged over heads. `bidirectional` also lets each user token attend over the
    item, in the same way, and averages both.

    Args:
      user, user_values: `[B, n, h, d]`: what is attended to, and what is carried on.
      item, item_values: `[B, C, m, h, d]` or `[C, m, h, d]`.
      user_mask: `[B, n]`; item_mask: `[B, C, m]` or `[C, m]`.
      focus: Scalar. 0 averages the user's tokens; large values are MaxSim.
      user_weight: β, `[B, n, h]`; 0 by default.
      item_weight: Logits of ω, `[.., m, h]`; uniform by default.
      drop: A function applied to A.

    Returns:
      Scores `[B, C]` in [-1, 1], and a dict: `A` `[B, C, h, n, m]`, `contributions`
      `[B, C, h, m]` of item tokens and, of both directions, `A_item` and
      `user_contributions` `[B, C, h, n]`. All contributions sum to the score.
    """
    c = "bc" if item.shape.rank == 5 else "c"
    drop = drop or (lambda weights: weights)
    dots = lambda u, k: tf.einsum(f"bnhd,{c}mhd->bchnm", u, k)
    user_real = user_mask[:, None, None, :, None]
    item_real = _lead(item_mask, 3)[:, :, None, None, :]
    affinity = focus * dots(unit(user), unit(item))
    beta = (
        0.0
        if user_weight is None
        else _lead(tf.einsum("bnh->bhn", user_weight)[:, None, :, :, None], 5)
    )
    weights = drop(masked_softmax(affinity + beta, user_real, -2))
    user_values = _bounded(user_values)
    gram = tf.einsum("bnhd,bkhd->bhnk", user_values, user_values)
    # <Q̃_j, w_j> = Σ_i A_ij <v_i, w_j> and |Q̃_j|² = Σ_ik A_ij A_kj <v_i, v_k>: Q̃ itself,
    # C·m·d numbers a user, is never made.
    match = _cosine(
        tf.reduce_sum(weights * dots(user_values, unit(item_values)), -2),
        tf.reduce_sum(weights * tf.einsum("bhnk,bchkm->bchnm", gram, weights), -2),
    )
    logits = (
        0.0 if item_weight is None else _lead(tf.einsum("...mh->...hm", item_weight), 4)
    )
    omega = masked_softmax(logits + tf.zeros_like(match), item_real[..., 0, :], -1)
    known = tf.reduce_any(user_real, -2)
    contributions = tf.where(known, omega * match, tf.zeros_like(match))
    parts = {"A": weights, "contributions": contributions / match.shape[2]}
    if bidirectional:
        parts["contributions"] /= 2
        parts |= _reverse(
            affinity, user_values, item_values, user_real, item_real, dots, c, drop
        )
    score = sum(
        tf.reduce_sum(value, (-2, -1))
        for name, value in parts.items()
        if name.endswith("contributions")
    )
    return score, parts


def _reverse(affinity, user_values, item_values, user_real, item_real, dots, c, drop):
    """The other direction: user tokens attend over the item's, all equally important."""
    weights = drop(masked_softmax(affinity, item_real, -1))
    item_values = _bounded(item_values)
    gram = _lead(tf.einsum(f"{c}mhd,{c}khd->{c}hmk", item_values, item_values), 5)
    match = _cosine(
        tf.reduce_sum(weights * dots(unit(user_values), item_values), -1),
        tf.reduce_sum(weights * tf.matmul(weights, gram), -1),
    )
    uniform = masked_softmax(tf.zeros_like(match), user_real[..., 0], -1)
    known = tf.reduce_any(item_real, -1)
    contributions = tf.where(known, uniform * match, tf.zeros_like(match))
    return {"A_item": weights, "user_contributions": contributions / match.shape[2] / 2}


def _bounded(values):
    """Values `[.., t, h, d]` over their largest component, so that none overflows when
    squared; the cosines that they go into do not change."""
    top = tf.reduce_max(tf.abs(values), (-3, -1), keepdims=True)
    empty = top < 1e-30
    return values / tf.stop_gradient(tf.where(empty, tf.ones_like(top), top))


def _cosine(dot, square):
    return dot * tf.math.rsqrt(tf.maximum(square, TINY))


def _lead(value, rank):
    """Puts a user dimension of 1 before what all users share."""
    return value[None] if value.shape.rank < rank else value


def article_score(user, item, user_mask, item_mask, *, normalizer="l2"):
    """The article's section 4 formulas, in the only reading in which all shapes agree.

    `A = QKᵀ / (a bᵀ)`, `Q̃ = AᵀQ`, `K̃ = AK`, `S = K̃Q̃ᵀ / (a bᵀ)`, `R = softmax_j(S)`,
    `F = QᵀR`; the scalar that ranks is `Σ_ij R_ij S_ij / n` over real tokens.

    Args:
      user: `[B, n, d]`; item: `[B, C, m, d]` or `[C, m, d]`.
      user_mask: `[B, n]`; item_mask: `[B, C, m]` or `[C, m]`.
      normalizer: `l2`: a and b are the tokens' norms; `softmax`: the square root of the
        softmax of their squares over real tokens, the article's σ.

    Returns:
      Scores `[B, C]` and a dict of `A`, `Q_tilde`, `K_tilde`, `S`, `R`, `F` and
      `contributions` `[B, C, m]`, which sum to the score.
    """
    lead = "bc" if item.shape.rank == 4 else "c"
    user = tf.where(user_mask[..., None], user, tf.zeros_like(user))
    item = tf.where(item_mask[..., None], item, tf.zeros_like(item))
    mask = _lead(item_mask, 3)
    a = _normalizer(user, user_mask, normalizer)[:, None, :, None]
    b = _lead(_normalizer(item, item_mask, normalizer), 3)[:, :, None, :]
    both = user_mask[:, None, :, None] & mask[:, :, None, :]
    divide = lambda value: tf.where(both, value / (a * b), tf.zeros_like(value))
    attention = divide(tf.einsum(f"bnd,{lead}md->bcnm", user, item))
    q_tilde = tf.einsum("bcnm,bnd->bcmd", attention, user)
    k_tilde = tf.einsum(f"bcnm,{lead}md->bcnd", attention, item)
    similarity = divide(tf.einsum("bcnd,bcmd->bcnm", k_tilde, q_tilde))
    weights = masked_softmax(similarity, both, axis=-1)
    count = tf.cast(tf.math.count_nonzero(user_mask, -1), tf.float32)[:, None, None]
    contributions = tf.math.divide_no_nan(tf.reduce_sum(weights * similarity, -2), count)
    return tf.reduce_sum(contributions, -1), {
        "A": attention,
        "Q_tilde": q_tilde,
        "K_tilde": k_tilde,
        "S": similarity,
        "R": weights,
        "F": tf.einsum("bnd,bcnm->bcdm", user, weights),
        "contributions": contributions,
    }


def _normalizer(tokens, mask, normalizer):
    """a or b, `[.., t]`: never 0, so that it can be divided by."""
    square = tf.reduce_sum(tf.square(tokens), -1)
    if normalizer == "softmax":
        square = masked_softmax(square, mask, -1)
    return tf.sqrt(tf.maximum(square, TINY))
