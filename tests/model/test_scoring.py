"""The scorer against loops in NumPy, and what masks, sizes and order must never do."""

import functools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tests.model import reference
from tests.model.scored import (
    EVERY,
    MODES,
    SOFTMAX,
    TWO_SIDED,
    B,
    C,
    D,
    M,
    N,
    article_score,
    cosines,
    random_weights,
    softmax_score,
    tokens,
)
from tfrec_attn.model import scoring

AXES = {
    "nm": ("A", "A_item", "S", "R", "pair_contributions"),
    "m": ("s", "omega", "contributions"),
    "n": ("s_user", "omega_user", "user_contributions"),
    "m.": ("Q_tilde",),
    "n.": ("K_tilde",),
    ".m": ("F",),
}


def check_all_quantities(found, pair, inputs):
    """Scores and parts of every pair, at real tokens."""
    user, item, um, im = inputs
    score, parts = found
    axes_of = {name: axes for axes, names in AXES.items() for name in names}
    for b, c in np.ndindex(B, C):
        at = (b, c) if item.ndim == 4 else (c,)
        want = pair(user[b][um[b]], item[at][im[at]])
        np.testing.assert_allclose(score[b, c], want.pop("score"), rtol=1e-9)
        assert set(want) == set(parts)
        for name, value in want.items():
            axes, got = axes_of[name], parts[name][b, c].numpy()
            sizes = got.shape[-len(axes) :]
            masks = {"n": um[b], "m": im[at]}
            real = np.ix_(
                *[masks.get(a, np.ones(k, bool)) for a, k in zip(axes, sizes, strict=True)]
            )
            np.testing.assert_allclose(
                got[(..., *real)], value, rtol=1e-9, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("focus", [0.0, 1.0, 20.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 2}, {"heads": 3, **TWO_SIDED}, {"heads": 2, "dim": 8, **TWO_SIDED}],
    ids=["plain", "heads", "both-ways", "wide"],
)
def test_softmax_mode_matches_numpy(options, focus, pairs):
    inputs = tokens(pairs=pairs)
    heads = options.get("heads", 1)
    weights = random_weights(heads, options.get("dim", D)) if options else None
    options = {"weights": weights, "heads": heads, "focus": focus, "scale": 1.7} | {
        name: value for name, value in options.items() if name == "bidirectional"
    }
    found = softmax_score(*inputs, **options, return_attention=True)
    check_all_quantities(
        found, functools.partial(reference.softmax_pair, **options), inputs
    )
    np.testing.assert_array_equal(softmax_score(*inputs, **options), found[0])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("normalizer", ["l2", "softmax"])
def test_article_mode_matches_numpy(normalizer, pairs):
    # Small enough for σ to be above its bound.
    inputs = tokens(pairs=pairs, scale=0.2)
    found = article_score(*inputs, normalizer=normalizer, return_attention=True)
    pair = functools.partial(reference.article_pair, normalizer=normalizer)
    check_all_quantities(found, pair, inputs)
    np.testing.assert_array_equal(article_score(*inputs, normalizer=normalizer), found[0])


def test_the_bounds_of_the_article_s_softmax():
    """One user token, so that a = 1."""
    score = functools.partial(MODES["article-softmax"], return_attention=True)
    one, two = np.ones((1, 1), bool), np.ones((1, 2), bool)
    # A norm of 100 is as it is, one of 1000 becomes 100: A = 100², Q̃ and K̃ have 100³.
    for norm in (100.0, 1000.0):
        user, item = np.array([[[0.6, 0.8]]]) * norm, np.array([[[0.6, 0.8]]]) * norm
        found, _ = score(user, item, one, one)
        np.testing.assert_allclose(found, [[1e12]])
    # σ = (1, e⁻²⁴) becomes (1, 1e-6), so b = (1, 1e-3): A = (5, 1000), K̃ = 25 + 1000.
    user, item = np.array([[[1.0, 0.0]]]), np.array([[[5.0, 0.0], [1.0, 0.0]]])
    found, parts = score(user, item, one, two)
    np.testing.assert_allclose(parts["A"], [[[[5.0, 1000.0]]]])
    np.testing.assert_allclose(parts["S"], [[[[1025 * 5.0, 1025 * 1000 / 1e-3]]]])
    np.testing.assert_allclose(found, [[1.025e9]])
    # σ = (1 - 4.5e-5, 4.5e-5) is above its bound.
    item = np.array([[[3.0, 1.0], [0.0, 0.0]]])
    _, parts = score(user, item, one, two)
    np.testing.assert_allclose(parts["A"], [[[[3 / np.sqrt(1 / (1 + np.exp(-10))), 0.0]]]])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 1), (1, 4)])
def test_single_tokens_match_numpy(n, m):
    inputs = tokens(n=n, m=m)
    found = softmax_score(*inputs, **TWO_SIDED, return_attention=True)
    pair = functools.partial(reference.softmax_pair, focus=5.0, **TWO_SIDED)
    check_all_quantities(found, pair, inputs)
    found = article_score(*inputs, return_attention=True)
    check_all_quantities(found, reference.article_pair, inputs)


@pytest.mark.parametrize("score", EVERY)
def test_float32_is_close_to_float64(score):
    user, item, um, im = tokens(scale=0.5)
    single = score(user.astype(np.float32), item.astype(np.float32), um, im)
    assert single.dtype == tf.float32
    np.testing.assert_allclose(single, score(user, item, um, im), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("score", [*EVERY, pytest.param(
    functools.partial(softmax_score, focus=200.0, **TWO_SIDED), id="sharp")])  # fmt: skip
@pytest.mark.parametrize("fill", [1e3, 1e20, np.nan])
def test_padding_never_changes_a_score(score, fill, pairs):
    """Against the padding of a zero-filled mask too: all cosines here are negative."""
    user, item, um, im = tokens(pairs=pairs, scale=0.5)
    user, item = np.abs(user), -np.abs(item)
    short = score(user, item, um, im)
    blank = np.where(um[..., None], user, fill), np.where(im[..., None], item, fill)
    wider = lambda x, axis, value: np.concatenate(
        [x, np.full_like(np.take(x, [0, 0], axis), value)], axis
    )
    padded = (
        wider(blank[0], -2, fill),
        wider(blank[1], -2, fill),
        wider(um, -1, False),
        wider(im, -1, False),
    )
    np.testing.assert_allclose(score(*padded), short, rtol=1e-9)


@pytest.mark.parametrize("score", EVERY)
@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**20))
def test_the_order_of_tokens_does_not_matter(score, seed):
    user, item, um, im = tokens(seed, scale=0.5)
    draw = np.random.default_rng(seed)
    i, j = draw.permutation(N), draw.permutation(M)
    base, parts = score(user, item, um, im, return_attention=True)
    for by_user, by_item in ((i, slice(None)), (slice(None), j), (i, j)):
        inputs = user[:, by_user], item[:, by_item], um[:, by_user], im[:, by_item]
        found, shuffled = score(*inputs, return_attention=True)
        np.testing.assert_allclose(found, base, rtol=1e-8)
        pairs = parts["pair_contributions"].numpy()[:, :, by_user][..., by_item]
        np.testing.assert_allclose(shuffled["pair_contributions"], pairs, atol=1e-8)


@pytest.mark.parametrize("score", EVERY)
def test_pairs_equal_cross(score):
    """Of candidates that all users share; and of a part that each has of its own."""
    user, item, um, im = tokens(scale=0.5)
    cross, parts = score(user, item, um, im, return_attention=True)
    own = np.stack([item, item[::-1]]), np.stack([im, im[::-1]])
    pairs, others = score(user, own[0], um, own[1], return_attention=True)
    np.testing.assert_allclose(pairs[0], cross[0], rtol=1e-9)
    np.testing.assert_allclose(pairs[1], cross[1, ::-1], rtol=1e-9)
    assert set(parts) == set(others)
    for name, part in parts.items():
        np.testing.assert_allclose(others[name][0], part[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(others[name][1], part[1, ::-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", EVERY)
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**20),
    n=st.integers(1, 9),
    m=st.integers(1, 6),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    pairs=st.booleans(),
)
def test_of_any_number_of_tokens(score, seed, n, m, more, pairs):
    """Contributions sum to the score, all is within its bounds, padding adds nothing."""
    user, item, um, im = tokens(seed, n, m, pairs, scale=0.5)
    found, parts = score(user, item, um, im, return_attention=True)
    total = tf.reduce_sum(parts["pair_contributions"], (2, 3))
    np.testing.assert_allclose(total, found, rtol=1e-8, atol=1e-10)
    rest = tuple(range(2, parts["contributions"].shape.rank))
    total = tf.reduce_sum(parts["contributions"], rest)
    if "user_contributions" in parts:
        total += tf.reduce_sum(parts["user_contributions"], rest)
    np.testing.assert_allclose(total, found, rtol=1e-8, atol=1e-10)
    for name in {"A_item", "omega", "omega_user", "R", *("A" if "s" in parts else ())}:
        if name in parts:
            assert np.min(parts[name]) >= 0
            assert np.max(parts[name]) <= 1 + 1e-9
    for name in {"s", "s_user"} & set(parts):
        assert np.abs(parts[name]).max() <= 1 + 1e-9
    if "R" in parts:
        # The mean over user tokens of means over item tokens, weighted by R.
        real = um[:, None, :, None] & (im if pairs else im[None])[:, :, None]
        least, most = (
            f(np.where(real, parts["S"], rest), axis=(2, 3))
            for f, rest in ((np.min, np.inf), (np.max, -np.inf))
        )
        slack = 1e-8 * (1 + np.abs(parts["S"]).max())
        assert np.all((least - slack <= found) & (found <= most + slack))
    wider = lambda x, axis, count: np.pad(
        x,
        [(0, count if a == axis % x.ndim else 0) for a in range(x.ndim)],
        constant_values=9,
    )
    nothing = lambda mask, count: np.pad(
        mask, [(0, 0)] * (mask.ndim - 1) + [(0, count)], constant_values=False
    )
    padded = score(
        wider(user, -2, more[0]),
        wider(item, -2, more[1]),
        nothing(um, more[0]),
        nothing(im, more[1]),
    )
    np.testing.assert_allclose(padded, found, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_article_s_attention_is_a_cosine(seed):
    """Of `normalizer="l2"`: each entry of A, also between parallel tokens."""
    user, item, um, im = tokens(seed)
    item[:, 0] = -3 * user[0, 0]
    _, parts = article_score(user, item, um, im, return_attention=True)
    assert np.abs(parts["A"]).max() <= 1 + 1e-12
    np.testing.assert_allclose(parts["A"][0, :, 0, 0], -1.0)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
@pytest.mark.parametrize("score", SOFTMAX)
def test_what_the_size_of_a_token_changes(score, factor):
    user, item, um, im = tokens()
    base, parts = score(user, item, um, im, return_attention=True)
    larger = lambda x, at: np.concatenate(
        [x[:, :at], x[:, at : at + 1] * factor, x[:, at + 1 :]], 1
    )
    one_user, one = score(larger(user, 2), item, um, im, return_attention=True)
    np.testing.assert_allclose(one["A"], parts["A"], rtol=1e-9)
    assert np.abs(one_user - base).max() > 1e-3
    one_item, one = score(user, larger(item, 0), um, im, return_attention=True)
    np.testing.assert_allclose(one["A"], parts["A"], rtol=1e-9)
    both_ways = "A_item" in parts
    assert (np.abs(one_item - base).max() > 1e-9) == both_ways
    np.testing.assert_allclose(score(user * factor, item / factor, um, im), base, rtol=1e-9)


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("normalizer", ["l2", "softmax"])
def test_what_the_size_of_a_token_changes_in_the_article(normalizer, side):
    user, item, um, im = tokens(scale=0.5)
    score = functools.partial(article_score, normalizer=normalizer, return_attention=True)
    base, parts = score(user, item, um, im)
    by_user, by_item = (
        np.where(np.arange(x.shape[1]) == 1, 2.0 if name == side else 1.0, 1.0)[:, None]
        for name, x in (("user", user), ("item", item))
    )
    found, other = score(user * by_user, item * by_item, um, im)
    assert np.abs(found - base)[0, 0] > 1e-3
    same = np.abs(other["A"] - parts["A"]).max() < 1e-9
    assert same == (normalizer == "l2")
    sizes = (3.0, 1.0) if side == "user" else (1.0, 0.5)
    found = score(sizes[0] * user, sizes[1] * item, um, im)[0]
    same = np.abs(found - base).max() < 1e-9
    assert same == (normalizer == "l2")


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**20),
    at=st.integers(0, M - 1),
    one=st.floats(1e-2, 1e2),
    all_user=st.floats(1e-6, 1e6),
    all_item=st.floats(1e-6, 1e6),
)
def test_what_no_positive_factor_changes(seed, at, one, all_user, all_item):
    user, item, um, im = tokens(seed)
    sized = user * all_user, item * all_item, um, im
    longer = lambda x: x * np.where(np.arange(x.shape[1]) == at, one, 1.0)[:, None]
    user_longer, item_longer = (longer(user), item, um, im), (user, longer(item), um, im)
    for name in ("softmax", "all", "article"):
        score = functools.partial(MODES[name], return_attention=True)
        base, parts = score(user, item, um, im)
        found, other = score(*sized)
        np.testing.assert_allclose(found, base, rtol=1e-7)
        np.testing.assert_allclose(other["A"], parts["A"], atol=1e-9)
        for inputs in (user_longer, item_longer):
            found, other = score(*inputs)
            np.testing.assert_allclose(other["A"], parts["A"], atol=1e-9)
            if name == "softmax" and inputs is item_longer:
                np.testing.assert_allclose(found, base, rtol=1e-7)


@pytest.mark.parametrize("score", SOFTMAX)
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**20), size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_score_is_bounded_by_its_scale(score, seed, size):
    found = score(*tokens(seed, scale=size), scale=1.5)
    assert np.abs(found).max() <= 1.5 + 1e-9


def test_identical_sets_score_the_whole_scale():
    user, _, um, _ = tokens()
    same = np.broadcast_to(user[:1, :1], user.shape).copy()
    found = softmax_score(same, same, um, um, scale=2.5, **TWO_SIDED)
    np.testing.assert_allclose(found, np.full((B, B), 2.5))


def test_large_focus_is_maxsim():
    user, item, um, im = tokens()
    best = np.where(um[:, None, :, None], cosines(user, item), -2).max(2)
    want = (best * im).sum(-1) / im.sum(-1)
    np.testing.assert_allclose(
        softmax_score(user, item, um, im, focus=1e5), want, rtol=1e-6
    )
    best = np.where(im[None, :, None, :], cosines(user, item), -2).max(3)
    back = (best * um[:, None]).sum(-1) / um.sum(-1)[:, None]
    both = softmax_score(user, item, um, im, focus=1e5, **TWO_SIDED)
    np.testing.assert_allclose(both, (want + back) / 2, rtol=1e-6)


def test_no_focus_is_the_mean():
    user, item, um, im = tokens()
    mean = np.stack([u[real].mean(0) for u, real in zip(user, um, strict=True)])
    each = cosines(mean[:, None], item)[:, :, 0]
    want = (each * im).sum(-1) / im.sum(-1)
    np.testing.assert_allclose(softmax_score(user, item, um, im, focus=0.0), want)


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 2) for name in MODES), *(("softmax", i) for i in (1, 3, 4))]
)
@pytest.mark.parametrize("pairs", [False, True])
def test_chunks_give_the_same(name, size, pairs):
    user, item, um, im = tokens(pairs=pairs, scale=0.5)
    user, item, im, axis = tf.constant(user), tf.constant(item), tf.constant(im), int(pairs)
    score = lambda part: MODES[name](user, part[0], um, part[1])
    whole = score((item, im))
    chunked = lambda: scoring.by_chunks(score, (item, im), axis, size)
    np.testing.assert_allclose(chunked(), whole, rtol=1e-12)
    np.testing.assert_allclose(tf.function(chunked)(), whole, rtol=1e-12)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([user, item])
        ends = [score((item, im)), chunked()]
    pull = tf.random.stateless_normal((B, C), (0, 1), dtype=tf.float64)
    one, other = (tape.gradient(end, [user, item], output_gradients=pull) for end in ends)
    for want, found in zip(one, other, strict=True):
        found = tf.convert_to_tensor(found)
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)
    none = (item[:, :0], im[:, :0]) if pairs else (item[:0], im[:0])
    assert scoring.by_chunks(score, none, axis, size).shape == (B, 0)


def test_dropout_acts_on_the_attention():
    user, item, um, im = tokens()
    keep_first = lambda a: a * tf.cast(tf.range(tf.shape(a)[-1]) == 0, a.dtype)
    found = softmax_score(user, item, um, im, drop=keep_first)
    want = (cosines(user[:, :1], item)[:, :, 0] * im).sum(-1) / im.sum(-1)
    np.testing.assert_allclose(found, want)


def test_dropout_acts_on_both_directions():
    user, item, um, im = tokens()
    none = softmax_score(user, item, um, im, drop=tf.zeros_like, **TWO_SIDED)
    np.testing.assert_array_equal(none, np.zeros((B, C)))
