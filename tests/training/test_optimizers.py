"""Rates by step and by variable, what a weight is felt, and AdaLoRA's budget."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfrec_attn.training import optimizers


def test_the_rate_rises_to_its_peak_and_falls():
    """A tenth of 400 steps to warm up."""
    settings = types.SimpleNamespace(warmup=0.1, learning_rate=0.5)
    rate = optimizers.schedule(400, settings)
    found = [float(rate(step)) for step in range(401)]
    assert int(np.argmax(found)) == 40
    np.testing.assert_allclose(found[:41], 0.5 * np.arange(41) / 40, rtol=1e-5)
    assert (np.diff(found[40:]) < 0).all()
    np.testing.assert_allclose(found[-1], 0.05 * 0.5, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 3.0])
def test_a_variable_moves_by_its_share_of_the_rate(share):
    """Adam's first step is the rate, whatever the gradient."""
    one, other = tf.Variable(1.0), tf.Variable(1.0)
    adam = optimizers.AdamW(0.01, shares=[(one, share, 0)], weight_decay=0.0)
    adam.apply_gradients([(tf.constant(7.0), one), (tf.constant(-2.0), other)])
    np.testing.assert_allclose([one, other], [1 - 0.01 * share, 1.01], atol=1e-6)
    assert isinstance(adam, tf_keras.optimizers.AdamW)
    assert float(adam.learning_rate) == pytest.approx(0.01)


def test_a_variable_stays_until_it_begins():
    one, other = tf.Variable(1.0), tf.Variable(1.0)
    adam = optimizers.AdamW(0.01, shares=[(one, 2.0, 3)], weight_decay=0.0)
    found = []
    for _ in range(5):
        adam.apply_gradients([(tf.constant(7.0), one), (tf.constant(7.0), other)])
        found.append((float(one), float(other)))
    steps = np.arange(1, 6)
    np.testing.assert_allclose([f[1] for f in found], 1 - 0.01 * steps, atol=1e-5)
    late = np.maximum(steps - 3, 0)
    np.testing.assert_allclose([f[0] for f in found], 1 - 0.02 * late, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_is_that_of_keras(sparse):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.1, 7)
    options = {"weight_decay": 0.02, "global_clipnorm": 2.0}
    kinds = optimizers.AdamW, tf_keras.optimizers.AdamW
    made = [(kind(schedule, **options), tf.Variable(start)) for kind in kinds]
    for _ in range(7):
        values, rows = tf.constant(rng.normal(size=(2, 3)), tf.float32), tf.constant([3, 1])
        gradient = tf.IndexedSlices(values, rows, tf.constant([5, 3]))
        if not sparse:
            gradient = tf.convert_to_tensor(gradient)
        for adam, variable in made:
            adam.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(made[0][1], made[1][1], rtol=1e-5, atol=1e-6)
    assert np.abs(made[0][1] - start).max() > 0.1


def test_averages_stand_in_for_weights_and_hand_them_back():
    """Computed by hand; the first steps count for more."""
    weight = tf.Variable([1.0, -2.0])
    adam = optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.7)
    oracle = weight.numpy()
    model = types.SimpleNamespace(optimizer=adam, trainable_variables=[weight])
    adam.build([weight])
    for step in range(20):
        adam.apply_gradients([(tf.constant([1.0, 0.5 - step]), weight)])
        decay = min(0.7, (1 + step) / (10 + step))
        oracle = decay * oracle + (1 - decay) * weight.numpy()
    before = weight.numpy()
    with optimizers.averaged(model):
        np.testing.assert_allclose(weight, oracle, rtol=1e-5)
    np.testing.assert_array_equal(weight, before)
    assert np.abs(before - oracle).max() > 0.05


def test_weights_without_averages_stay():
    weight = tf.Variable([1.0, -2.0])
    model = types.SimpleNamespace(
        optimizer=optimizers.AdamW(0.1), trainable_variables=[weight]
    )
    with optimizers.averaged(model):
        np.testing.assert_array_equal(weight, [1.0, -2.0])


def test_what_a_weight_is_felt_is_smoothed_and_times_its_uncertainty():
    weight, other = tf.Variable([2.0, -1.0, 0.5]), tf.Variable([1.0])
    adam = optimizers.AdamW(0.05, felt=[weight], weight_decay=0.0)
    adam.build([weight, other])
    mean = spread = np.zeros(3)
    for gradient in ([1.0, -3.0, 0.0], [0.5, 2.0, 0.0], [-4.0, 0.1, 0.0]):
        felt = np.abs(weight.numpy() * gradient)
        mean = 0.85 * mean + 0.15 * felt
        spread = 0.85 * spread + 0.15 * np.abs(felt - mean)
        adam.apply_gradients([(tf.constant(gradient), weight), (tf.constant([1.0]), other)])
    np.testing.assert_allclose(adam.sensitivity(weight), mean * spread, rtol=1e-5)


def test_what_was_felt_is_in_the_checkpoint(tmp_path):
    def made():
        weight, other = tf.Variable([2.0, -1.0]), tf.Variable([1.0])
        adam = optimizers.AdamW(0.05, felt=[weight])
        adam.build([weight, other])
        return adam, weight, other

    adam, weight, other = made()
    for gradient in ([1.0, -3.0], [0.5, 2.0]):
        pairs = (tf.constant(gradient), weight), (tf.constant([1.0]), other)
        adam.apply_gradients(pairs)
    saved = tf.train.Checkpoint(optimizer=adam).write(str(tmp_path / "state"))
    again, same, _ = made()
    tf.train.Checkpoint(optimizer=again).read(saved).assert_consumed()
    assert np.all(again.sensitivity(same) > 0)
    np.testing.assert_array_equal(again.sensitivity(same), adam.sensitivity(weight))


def layers():
    return [types.SimpleNamespace(size=6, aim=4), types.SimpleNamespace(size=6, aim=4)]


def test_the_budget_falls_as_a_cube_from_all_to_what_was_asked_for():
    budget = optimizers.Budget(layers(), 100)
    found = [budget.at(step) for step in range(101)]
    assert set(found[:11]) == {12}
    assert set(found[60:]) == {8}
    assert found[35] == 8 + round(4 * 0.5**3)
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_training_ends_with_its_budget_too(steps):
    assert optimizers.Budget(layers(), steps).at(steps) == 8
