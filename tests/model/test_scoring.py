"""The scorer against loops in NumPy, and what masks must never do."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model import reference
from tfrec_attn.model import scoring

B, C, D = 2, 3, 5


def tokens(n, m, seed=0, scale=1.0):
    draw = np.random.default_rng(seed)
    user, item = draw.normal(size=(B, n, D)) * scale, draw.normal(size=(C, m, D)) * scale
    user_mask, item_mask = draw.random((B, n)) < 0.7, draw.random((C, m)) < 0.7
    user_mask[0], item_mask[0] = True, True
    return user, item, user_mask, item_mask


def softmax_score(user, item, user_mask, item_mask, **options):
    heads = lambda value: tf.constant(value, tf.float32)[..., None, :]
    u, k = heads(user), heads(item)
    return scoring.softmax_score(
        u, k, u, k, tf.constant(user_mask), tf.constant(item_mask), **options
    )


def article_score(user, item, user_mask, item_mask, **options):
    cast = lambda value: tf.constant(value, tf.float32)
    return scoring.article_score(
        cast(user), cast(item), tf.constant(user_mask), tf.constant(item_mask), **options
    )


@pytest.mark.parametrize("focus", [0.0, 1.0, 20.0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 1), (1, 4), (7, 4)])
def test_softmax_mode_matches_numpy(n, m, focus):
    user, item, um, im = tokens(n, m)
    found, _ = softmax_score(user, item, um, im, focus=focus)
    want = [
        [reference.softmax_score(user[b], item[c], um[b], im[c], focus) for c in range(C)]
        for b in range(B)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalizer", ["l2", "softmax"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 1), (1, 4), (7, 4)])
def test_article_mode_matches_numpy(n, m, normalizer):
    user, item, um, im = tokens(n, m, scale=0.5)
    found, _ = article_score(user, item, um, im, normalizer=normalizer)
    want = [
        [
            reference.article_score(user[b], item[c], um[b], im[c], normalizer)
            for c in range(C)
        ]
        for b in range(B)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("focus", [1.0, 200.0])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_never_changes_a_score(focus, bidirectional):
    user, item = np.abs(tokens(7, 4)[0]), -np.abs(tokens(7, 4)[1])
    um, im = np.ones((B, 7), bool), np.ones((C, 4), bool)
    score = lambda *inputs: softmax_score(
        *inputs, focus=focus, bidirectional=bidirectional
    )[0]
    pad = lambda value, fill: np.concatenate([value, np.full_like(value[:, :2], fill)], 1)
    np.testing.assert_allclose(
        score(pad(user, 1e3), pad(item, -1e3), pad(um, False), pad(im, False)),
        score(user, item, um, im),
        atol=1e-5,
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_pairs_agree_with_cross(bidirectional):
    user, item, um, im = tokens(7, 4)
    cross, _ = softmax_score(user, item, um, im, focus=5.0, bidirectional=bidirectional)
    pairs, _ = softmax_score(
        user,
        np.stack([item] * B),
        um,
        np.stack([im] * B),
        focus=5.0,
        bidirectional=bidirectional,
    )
    np.testing.assert_allclose(cross, pairs, atol=1e-6)


def test_large_focus_is_maxsim():
    user, item, um, im = tokens(7, 4)
    cosines = np.einsum("bnd,cmd->bcnm", scoring.unit(user), scoring.unit(item))
    best = np.where(um[:, None, :, None], cosines, -2).max(2)
    want = (best * im).sum(-1) / im.sum(-1)
    np.testing.assert_allclose(
        softmax_score(user, item, um, im, focus=1e4)[0], want, atol=1e-3
    )


@pytest.mark.parametrize("score", [lambda *x: softmax_score(*x, focus=5.0), article_score])
def test_contributions_sum_to_the_score(score):
    found, parts = score(*tokens(7, 4))
    total = tf.reduce_sum(
        parts["contributions"], list(range(2, parts["contributions"].shape.rank))
    )
    np.testing.assert_allclose(total, found, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e20])
def test_nothing_known_scores_0_and_all_is_finite(size):
    user, item, um, im = tokens(7, 4)
    um[1], im[2] = False, False
    u, k = tf.constant(user * size, tf.float32), tf.constant(item * size, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([u, k])
        score, _ = scoring.softmax_score(
            u[..., None, :],
            k[..., None, :],
            u[..., None, :],
            k[..., None, :],
            tf.constant(um),
            tf.constant(im),
            focus=10.0,
        )
    gradients = tape.gradient(score, [u, k])
    assert np.isfinite(score).all()
    assert np.isfinite(gradients[0]).all()
    assert np.isfinite(gradients[1]).all()
    assert not np.any(score[1])
    assert not np.any(score[:, 2])
    assert not np.any(gradients[0][1])
