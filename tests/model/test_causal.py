"""Who sees whom: the block against loops, and what changes when one token changes."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model.causal import CausalBlock

DIM, HEADS, LENGTH, PROFILE = 6, 2, 3, 2


def block(length=LENGTH, **kwargs):
    """A block whose biases are not zero, as after training."""
    layer = CausalBlock(DIM, HEADS, length, **kwargs)
    layer((tf.zeros((1, 1, DIM)), tf.ones((1, 1), bool), 0))
    draw = np.random.default_rng(5)
    for variable in layer.variables:
        if variable.dtype == tf.float32:
            variable.assign(variable + draw.normal(0, 0.3, variable.shape))
    return layer


def tokens(n, seed=0):
    return np.random.default_rng(seed).normal(size=(1, n, DIM)).astype(np.float32)


def run(layer, x, mask=None, profile=PROFILE):
    mask = np.ones(x.shape[:2], bool) if mask is None else np.array([mask])
    return layer((tf.constant(x), tf.constant(mask), profile)).numpy()


def moved(layer, x, at, mask=None):
    """Which outputs change when token `at` does."""
    other = x.copy()
    # Not the same in every component, which the norm would take off.
    other[0, at] = other[0, at, ::-1]
    return (run(layer, x, mask) != run(layer, other, mask)).any(-1)[0]


def reference(layer, x, mask, profile):
    """One token and one head at a time, in float64."""

    def norm(row, sub):
        scale, shift = sub.gamma.numpy(), sub.beta.numpy()
        return (row - row.mean()) / np.sqrt(row.var() + 1e-6) * scale + shift

    dense = lambda row, sub: (
        row @ sub.kernel.numpy() + (sub.bias.numpy() if sub.use_bias else 0)
    )
    bias, width = layer.bias.numpy(), DIM // HEADS
    out = []
    parts = [dense(norm(row, layer.attend_norm), layer.qkv) for row in x]
    for i, row in enumerate(x):
        mixed = []
        for h in range(HEADS):
            part = lambda j, k, h=h: parts[j][k * DIM + h * width :][:width]
            weight = {}
            for j in range(i + 1):
                distance = LENGTH if j < profile else i - j
                if mask[j] and (j < profile or distance < LENGTH):
                    cosine = part(i, 0) @ part(j, 1) / np.sqrt(width)
                    weight[j] = np.exp(cosine + bias[h, distance])
            total = sum(weight.values())
            mixed.append(sum(w / total * part(j, 2) for j, w in weight.items()))
        row = row + dense(np.concatenate(mixed), layer.out)
        up = dense(norm(row, layer.forward_norm), layer.up)
        gelu = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        out.append(row + dense(gelu, layer.down))
    return np.array(out)


def test_matches_loops():
    layer = block()
    x, mask = tokens(9), np.array([1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
    np.testing.assert_allclose(
        run(layer, x, mask)[0], reference(layer, x[0], mask, PROFILE), atol=1e-4
    )


@pytest.mark.parametrize("at", range(PROFILE + 7))
def test_a_token_reaches_what_it_may_and_nothing_else(at):
    """An event: itself and the next two. A profile token: all from itself on."""
    n = PROFILE + 7
    want = np.arange(n) >= at
    if at >= PROFILE:
        want &= np.arange(n) < at + LENGTH
    np.testing.assert_array_equal(moved(block(), tokens(n), at), want)


def test_a_masked_token_is_seen_by_none_but_itself():
    mask = np.array([True, False, True, True, False, True])
    for at in (1, 4):
        np.testing.assert_array_equal(
            moved(block(), tokens(6), at, mask), np.arange(6) == at
        )


def test_a_row_that_sees_nothing_is_finite():
    layer, x = block(), tf.constant(tokens(4))
    mask = tf.constant([[False, False, True, False]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = layer((x, mask, 1))
    assert np.isfinite(out).all()
    assert np.isfinite(tape.gradient(out, x)).all()


@pytest.mark.parametrize("more", [1, 2, 11])
def test_where_in_a_window_an_event_stands_does_not_matter(more):
    """The last events alone, or after others, or with padding behind."""
    layer, x = block(), tokens(PROFILE + LENGTH)
    alone = run(layer, x)[0, -1]
    profile, events = np.split(x, [PROFILE], axis=1)
    wide = np.concatenate([profile, tokens(more, seed=1), events], axis=1)
    np.testing.assert_allclose(run(layer, wide)[0, -1], alone, atol=1e-5)
    padded = np.append(x, tokens(more, seed=1), axis=1)
    mask = np.arange(x.shape[1] + more) < x.shape[1]
    found = run(layer, padded, mask)[0, x.shape[1] - 1]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_order_matters():
    layer, x = block(), tokens(PROFILE + LENGTH)
    swapped = x[:, [0, 1, 3, 2, 4]]
    assert np.abs(run(layer, swapped)[0, -1] - run(layer, x)[0, -1]).max() > 1e-3


def test_dropout_is_of_training_only():
    layer, x = block(dropout=0.5), tokens(5)
    call = lambda training: layer((x, tf.ones((1, 5), bool), 0), training=training).numpy()
    np.testing.assert_array_equal(call(False), call(False))
    assert (call(True) != call(True)).any()
