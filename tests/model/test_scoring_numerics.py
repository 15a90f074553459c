"""The scorer's gradients against finite differences, and what stays finite and at 0."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.model import reference
from tests.model.scored import (
    EVERY,
    MODES,
    TWO_SIDED,
    B,
    C,
    article_score,
    random_weights,
    softmax_score,
    tokens,
)
from tfrec_attn.model import scoring


@pytest.mark.parametrize("name", MODES)
def test_gradients_match_finite_differences(name):
    """TensorFlow's gradient in float64 against differences of the NumPy reference."""
    user, item, um, im = tokens(n=4, m=3, scale=0.2)
    options = {"normalizer": "softmax"} if name == "article-softmax" else {}
    if name.startswith("article"):
        pair = functools.partial(reference.article_pair, **options)
    else:
        options = (
            MODES["all"].keywords | {"focus": 5.0} if name == "all" else {"focus": 5.0}
        )
        pair = functools.partial(reference.softmax_pair, **options)
    total = lambda u, k: sum(
        (1 + b + 2 * c) * pair(u[b][um[b]], k[c][im[c]])["score"]
        for b, c in np.ndindex(B, C)
    )
    u, k = tf.constant(user), tf.constant(item)
    with tf.GradientTape() as tape:
        tape.watch([u, k])
        weight = 1.0 + np.arange(B)[:, None] + 2 * np.arange(C)
        loss = tf.reduce_sum(MODES[name](u, k, um, im) * weight)
    got = tape.gradient(loss, [u, k])
    for which, x in enumerate((user, item)):
        want = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-5
            up, down = ([user, item] for _ in range(2))
            up[which], down[which] = x + step, x - step
            want[at] = (total(*up) - total(*down)) / 2e-5
        np.testing.assert_allclose(got[which], want, rtol=1e-5, atol=1e-7)


def test_both_norms_have_one_gradient():
    """Above the floor, below it, and at 0, where TensorFlow's own would be NaN."""
    vectors = tf.constant([[[3.0, -4.0], [1e-9, 0.0], [0.0, 0.0]]])
    floor, gradients = tf.constant([[1e-6]]), []
    for norm in (scoring._norm, scoring._norm_in_one):
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            lengths = norm(vectors, floor)
        np.testing.assert_allclose(lengths, [[5.0, 1e-6, 1e-6]], rtol=1e-6)
        gradients.append(tape.gradient(lengths, vectors))
    np.testing.assert_allclose(gradients[0], [[[0.6, -0.8], [0, 0], [0, 0]]], rtol=1e-6)
    np.testing.assert_array_equal(*gradients)


def test_gradients_of_weights_match_finite_differences():
    """Along a random direction of each weight."""
    user, item, um, im = tokens(n=4, m=3)
    weights = random_weights(2)
    scalars = {"focus": np.array(2.0), "scale": np.array(3.0)}
    pull = 1.0 + np.arange(B)[:, None] + 2 * np.arange(C)

    def total(values):
        kernels = {name: values[name] for name in weights}
        options = {name: values[name] for name in scalars} | {"heads": 2, **TWO_SIDED}
        return sum(
            pull[b, c]
            * reference.softmax_pair(
                user[b][um[b]], item[c][im[c]], weights=kernels, **options
            )["score"]
            for b, c in np.ndindex(B, C)
        )

    at = {**weights, **scalars}
    variables = {name: tf.Variable(value) for name, value in at.items()}
    with tf.GradientTape() as tape:
        found = softmax_score(
            user, item, um, im,
            weights={name: variables[name] for name in weights},
            focus=variables["focus"],
            scale=variables["scale"],
            heads=2,
            **TWO_SIDED,
        )  # fmt: skip
        loss = tf.reduce_sum(found * pull)
    draw = np.random.default_rng(3)
    for name, gradient in tape.gradient(loss, variables).items():
        way = draw.normal(size=at[name].shape)
        up, down = (total(at | {name: at[name] + by * way}) for by in (1e-5, -1e-5))
        want = (up - down) / 2e-5
        assert abs(want) > 1e-4, name
        np.testing.assert_allclose(np.sum(gradient * way), want, rtol=1e-5, err_msg=name)


def finite(score, user, item, um, im):
    with tf.GradientTape() as tape:
        tape.watch([user, item])
        found = score(user, item, um, im)
        total = tf.reduce_sum(found)
    gradients = tape.gradient(total, [user, item])
    for value in (found, *gradients):
        assert np.isfinite(tf.cast(value, tf.float32)).all()
    return found, gradients


@pytest.mark.parametrize("score", EVERY)
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
@pytest.mark.parametrize("kind", ["tiny", "huge", "mixed", "zero", "identical", "opposite"])
# The ends of float16; beyond them its tokens are 0 and infinite.
@pytest.mark.parametrize(("tiny", "huge"), [(1e-20, 1e20), (6e-8, 6e4)])
def test_all_sizes_are_finite(score, dtype, kind, tiny, huge):
    user, item, um, im = tokens()
    user, item = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (user, item))
    if kind in ("tiny", "huge"):
        size = {"tiny": tiny, "huge": huge}[kind]
        user, item = user * size, item * size
    elif kind == "mixed":
        user[:, ::2] *= tiny
        user[:, 1::2] *= huge
        item[:, ::2] *= huge
        item[:, 1::3] *= tiny
    elif kind == "zero":
        user[:, 1], item[:, 0] = 0, 0
        user[1], item[2] = 0, 0
    else:
        user[:], item[:] = 1.0, 1.0
        user[:, ::2] *= -1 if kind == "opposite" else 1
    user, item = tf.cast(user, dtype), tf.cast(item, dtype)
    found, _ = finite(score, user, item, um, im)
    assert found.dtype == tf.float32


@pytest.mark.parametrize("score", EVERY)
def test_an_infinite_float16_is_the_largest(score):
    user, item, um, im = tokens()
    user[0, 1], item[0, 2, :3] = 1e20, -1e20
    half = [tf.cast(x, tf.float16) for x in (user, item)]
    largest = [tf.cast(np.clip(x, -65504, 65504), tf.float16) for x in (user, item)]
    np.testing.assert_array_equal(score(*half, um, im), score(*largest, um, im))


# 2**15 is where loss scalers start.
@pytest.mark.parametrize(("normalizer", "of_loss"), [("l2", 2.0**15), ("softmax", 1.0)])
def test_a_gradient_past_float16_is_its_largest(normalizer, of_loss):
    """Of `mode="article"`; all others are the gradients of the same tokens in float32."""
    user, item, um, im = tokens()
    user[:, ::2], item[:, ::2] = user[:, ::2] * 20, item[:, ::2] * 20
    score = lambda *x: of_loss * article_score(*x, normalizer=normalizer)
    half = [tf.cast(x, tf.float16) for x in (user, item)]
    _, found = finite(score, *half, um, im)
    _, single = finite(score, *(tf.cast(x, tf.float32) for x in half), um, im)
    want = [np.clip(x, -65504, 65504).astype(np.float16) for x in single]
    assert any(np.any(np.abs(x) > 65504) for x in single)
    for got, value in zip(found, want, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("score", EVERY)
@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16, tf.float16])
def test_nothing_known_scores_0_with_zero_gradient(score, dtype):
    user, item, um, im = tokens(scale=0.5)
    um[1], im[2] = False, False
    user, item = tf.cast(user, dtype), tf.cast(item, dtype)
    found, gradients = finite(score, user, item, um, im)
    by_user, by_item = (tf.cast(gradient, tf.float32) for gradient in gradients)
    assert not np.any(found[1])
    assert not np.any(found[:, 2])
    assert np.all(found[0, :2] != 0)
    assert not np.any(by_user[1])
    assert not np.any(by_item[2])
    assert np.any(by_user[0])
    assert np.any(by_item[0])
    parts = score(user, item, um, im, return_attention=True)[1]
    for name, value in parts.items():
        assert np.isfinite(value).all(), name
        if "contributions" in name or name in ("A", "A_item", "R", "omega_user"):
            assert not np.any(value[1]), name
        if "contributions" in name or name in ("A", "A_item", "R", "omega"):
            assert not np.any(value[:, 2]), name
    nobody = score(user[:, :0], item, um[:, :0], im)
    np.testing.assert_array_equal(nobody, np.zeros((B, C)))
