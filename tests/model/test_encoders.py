"""Each column kind against NumPy: tokens, masks, what is missing, and what is saved."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfrec_attn.model import encoders

DIM = 5
KNOTS = (-2.0, 0.5, 1.0, 7.0)


# Class, arguments, and a call's inputs; the suites below run over all of them.
CASES = {
    "CategoryTokens": (
        {"size": 7, "dim": DIM, "drop": 0.25},
        lambda: tf.constant([[1, 7, 0], [3, 3, 2]]),
    ),
    "EmbeddingTokens": (
        {"dim": DIM, "dropout": 0.25},
        lambda: tf.constant([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]]),
    ),
    "NumberTokens": (
        {"knots": KNOTS, "dim": DIM},
        lambda: tf.constant([0.75, np.nan]),
    ),
    "TextTokens": (
        {"dim": DIM, "dropout": 0.25},
        lambda: (
            tf.constant(np.random.default_rng(0).normal(size=(2, 3, 11)), tf.float16),
            tf.constant([[True, True, False], [False, False, False]]),
        ),
    ),
}
by_name = pytest.mark.parametrize("name", CASES)


def made(name):
    kwargs, inputs = CASES[name]
    return getattr(encoders, name)(**kwargs), inputs()


def test_no_encoder_is_left_out():
    assert set(encoders.__all__) == set(CASES)


@by_name
def test_tokens_are_as_wide_as_asked_and_have_a_mask(name):
    layer, inputs = made(name)
    tokens, mask = layer(inputs)
    assert (tokens.dtype, mask.dtype) == (tf.float32, tf.bool)
    assert tokens.shape == (*mask.shape, DIM)
    assert mask.shape == ((2, 3) if name in ("CategoryTokens", "TextTokens") else (2, 1))


@by_name
def test_a_copy_from_its_config_and_weights_is_equal(name):
    layer, inputs = made(name)
    want, mask = layer(inputs)
    entry = tf_keras.utils.serialize_keras_object(layer)
    copy = tf_keras.utils.deserialize_keras_object(entry)
    copy(inputs)
    copy.set_weights(layer.get_weights())
    assert copy.get_config() == layer.get_config()
    kwargs = CASES[name][0]
    assert {k: layer.get_config()[k] for k in kwargs} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in kwargs.items()
    }
    np.testing.assert_array_equal(copy(inputs)[0], want)
    np.testing.assert_array_equal(copy(inputs)[1], mask)


@by_name
def test_every_trained_weight_has_a_gradient_and_nothing_else_does(name):
    layer, inputs = made(name)
    with tf.GradientTape() as tape:
        tokens, _ = layer(inputs)
        loss = tf.reduce_sum(tokens**2)
    assert all(g is not None for g in tape.gradient(loss, layer.trainable_variables))
    frozen = {"TextTokens": 2}.get(name, 0)
    assert len(layer.non_trainable_variables) - frozen == sum(
        "random_generator" in v.name or "seed" in v.name
        for v in layer.non_trainable_variables
    )


def test_a_category_is_its_row_of_the_table_and_zero_is_unknown():
    layer = encoders.CategoryTokens(4, DIM)
    index = np.array([[4, 0, 1]])
    tokens, mask = layer(index)
    np.testing.assert_array_equal(tokens, layer.table.numpy()[index])
    assert mask.numpy().tolist() == [[True, False, True]]
    assert layer.table.shape == (5, DIM)


def test_dropped_categories_are_masked_in_training_only():
    layer = encoders.CategoryTokens(3, DIM, drop=0.25)
    index = np.tile([[0, 1, 2, 3]], (1009, 1))
    _, mask = layer(index, training=True)
    kept = mask.numpy().mean(0)
    assert kept[0] == 0
    # Four standard deviations of 1009 draws.
    np.testing.assert_allclose(kept[1:], 0.75, atol=4 * (0.25 * 0.75 / 1009) ** 0.5)
    np.testing.assert_array_equal(layer(index)[1], index > 0)
    never = encoders.CategoryTokens(3, DIM)
    np.testing.assert_array_equal(never(index, training=True)[1], index > 0)


def piecewise_linear(value, knots):
    """Gorishniy et al., equation 1, with the outer intervals closed at the knots."""
    parts = []
    for low, high in itertools.pairwise(knots):
        if value < low:
            parts.append(0.0)
        elif value >= high:
            parts.append(1.0)
        else:
            parts.append((value - low) / (high - low))
    return parts


@pytest.mark.parametrize("value", [-9.0, -2.0, -1.0, 0.5, 0.6, 1.0, 4.0, 7.0, 1e9])
def test_a_number_is_encoded_piecewise_linearly(value):
    layer = encoders.NumberTokens(KNOTS, DIM)
    layer.build(None)
    layer.bias.assign(np.arange(DIM) + 1.0)
    tokens, mask = layer(tf.constant([value]))
    want = piecewise_linear(value, KNOTS) @ layer.kernel.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(tokens[0, 0], want, rtol=1e-5)
    assert mask.numpy().tolist() == [[True]]


def test_a_missing_number_is_masked_and_finite():
    tokens, mask = encoders.NumberTokens(KNOTS, DIM)(tf.constant([np.nan, 1.0]))
    assert mask.numpy().tolist() == [[False], [True]]
    assert np.isfinite(tokens).all()


@pytest.mark.parametrize("knots", [[], [1.0], [1.0, 1.0], [1.0, 3.0, 2.0]])
def test_knots_that_do_not_increase_are_named(knots):
    with pytest.raises(ValueError, match=r"knots must increase, two at least. Received"):
        encoders.NumberTokens(knots, DIM)


def test_of_an_embedding_only_the_direction_counts():
    layer = encoders.EmbeddingTokens(DIM)
    vector = np.array([[3.0, -4.0, 0.0, 12.0]], np.float32)
    token, mask = layer(vector)
    unit = vector / 13 * 2  # times the root of the width
    np.testing.assert_allclose(token[0], unit @ layer.weights[0].numpy(), rtol=1e-5)
    for factor in (1e-3, 1e3):
        np.testing.assert_allclose(layer(factor * vector)[0], token, rtol=1e-5)
    assert np.abs(layer(-vector)[0] - token).max() > 0.1
    assert mask.numpy().tolist() == [[True]]


def test_a_vector_of_zeros_is_missing_and_a_negative_one_is_not():
    tokens, mask = encoders.EmbeddingTokens(DIM)(tf.constant([[0.0, 0.0], [0.0, -1.0]]))
    assert mask.numpy().tolist() == [[False], [True]]
    assert np.isfinite(tokens).all()


def adapted(dropout=0.0):
    draw = np.random.default_rng(1)
    means = draw.normal(3.0, 0.5, (13, 11)).astype(np.float32)
    layer = encoders.TextTokens(DIM, dropout)
    layer.adapt(means)
    return layer, means


def test_adapt_centres_the_catalogue_and_makes_its_variance_one():
    layer, means = adapted()
    np.testing.assert_allclose(layer.centre, means.mean(0), rtol=1e-5)
    rest = (means - layer.centre.numpy()) * layer.scale.numpy()
    np.testing.assert_allclose([rest.mean(), rest.std()], [0, 1], atol=1e-5)


def test_a_catalogue_of_one_text_has_a_finite_scale():
    layer = encoders.TextTokens(DIM)
    layer.adapt(np.ones((3, 11), np.float32))
    assert np.isfinite(layer.project(tf.ones((1, 11)))).all()


def test_text_tokens_are_the_projected_rest():
    layer, _ = adapted()
    hidden = np.random.default_rng(2).normal(3, 1, (2, 3, 11)).astype(np.float32)
    mask = tf.constant([[True, True, False], [True, False, False]])
    tokens, kept = layer((hidden, mask))
    rest = (hidden - layer.centre.numpy()) * layer.scale.numpy()
    np.testing.assert_allclose(
        tokens, rest @ layer.trainable_variables[0].numpy(), rtol=1e-4, atol=1e-4
    )
    assert kept is mask


def test_the_mean_of_tokens_is_the_token_of_the_mean():
    layer, _ = adapted()
    hidden = np.random.default_rng(3).normal(3, 1, (2, 7, 11)).astype(np.float32)
    tokens, _ = layer((hidden, tf.ones((2, 7), bool)))
    np.testing.assert_allclose(
        tf.reduce_mean(tokens, 1), layer.project(hidden.mean(1)), atol=1e-4
    )


def test_text_is_dropped_in_training_only():
    layer, means = adapted(dropout=0.5)
    inputs = (tf.constant(means)[None], tf.ones((1, 13), bool))
    dropped = layer(inputs, training=True)[0].numpy() == 0
    assert 0 < dropped.sum() < dropped.size
    assert not (layer(inputs)[0].numpy() == 0).any()
    once, again = (layer.project(means, training=True).numpy() for _ in range(2))
    assert (once != again).any()
    np.testing.assert_array_equal(layer.project(means), layer.project(means))
