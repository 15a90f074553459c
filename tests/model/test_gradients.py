"""The gradient of a step: parts of a batch, two passes, the adversary."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model.test_recommender import RETRIEVAL, STRATEGY, TARGETS, batch, build
from tfrec_attn.model import gradients, tasks

# One group of targets an example, so that a part holds whole groups.
GROUPED = {**RETRIEVAL, "group": TARGETS}
WHOLE = [0, 1, 2, 3, 4, 5]


def gradient(model, index=WHOLE, **changes):
    """As a train step takes it."""
    given = batch(index, **changes)
    variables = model.trainable_variables
    graph = tf.function(lambda part: gradients.of(model, part, variables))
    total, found = graph(given)
    dense = [
        np.zeros(v.shape) if g is None else tf.convert_to_tensor(g).numpy()
        for g, v in zip(found, variables, strict=True)
    ]
    return float(total), dense


def same(one, other, atol=1e-6):
    assert one[0] == pytest.approx(other[0], abs=atol)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_that_pass_in_turn_add_up_to_the_batch(parts):
    weight = np.random.default_rng(5).random((len(WHOLE), TARGETS)).astype(np.float32)
    weight[0] = 0
    whole = gradient(build(**GROUPED), weight=weight)
    same(gradient(build(accumulate=parts, **GROUPED), weight=weight), whole)
    assert max(np.abs(g).max() for g in whole[1]) > 1e-3


def test_parts_without_targets_are_no_division_by_nothing():
    nothing = np.zeros((len(WHOLE), TARGETS), np.float32)
    total, found = gradient(build(accumulate=2, **GROUPED), weight=nothing)
    assert total == 0
    assert all((g == 0).all() for g in found)


def test_parts_of_replicas_count_by_the_targets_of_all():
    with STRATEGY.scope():
        model = build(accumulate=3, **GROUPED)
    given = batch(WHOLE)
    share = len(WHOLE) // STRATEGY.num_replicas_in_sync
    variables = model.trainable_variables

    def one(context):
        start = context.replica_id_in_sync_group * share
        return {name: value[start : start + share] for name, value in given.items()}

    @tf.function
    def step(part):
        found = gradients.of(model, part, variables)[1]
        return [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(found, variables, strict=True)
        ]

    values = STRATEGY.experimental_distribute_values_from_function(one)
    found = [
        STRATEGY.reduce("SUM", g, axis=None).numpy()
        for g in STRATEGY.run(step, args=(values,))
    ]
    for a, b in zip(found, gradient(build(**GROUPED))[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_adversary_moves_each_vector_by_a_part_of_its_length_uphill():
    vectors = tf.constant([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    felt = tf.constant([[0.0, -7.0], [3.0, 4.0], [0.0, 0.0]])
    found = gradients._worst(vectors, felt, 0.1)
    np.testing.assert_allclose(found, [[0, -0.5], [0.12, 0.16], [0, 0]], atol=1e-6)


def test_the_adversary_is_half_of_the_gradient():
    """Computed by hand: the loss moved along its own gradient, and the one that was not."""
    model = build(**RETRIEVAL)
    variables, given = model.trainable_variables, batch(WHOLE)
    with tf.GradientTape() as tape:
        plain, vectors = model.objective(given)
    *first, felt = tape.gradient(plain, [*variables, vectors])
    direction = felt / tf.maximum(tf.norm(felt, axis=-1, keepdims=True), 1e-12)
    shift = 0.2 * tf.norm(vectors, axis=-1, keepdims=True) * direction
    with tf.GradientTape() as tape:
        moved, _ = model.objective(given, tf.stop_gradient(shift))
    second = tape.gradient(moved, variables)
    half = [
        sum(tf.convert_to_tensor(g).numpy() for g in pair if g is not None) / 2
        for pair in zip(first, second, strict=True)
    ]
    assert float(moved) > float(plain) + 1e-3
    total, found = gradient(build({"adversarial": 0.2}, **RETRIEVAL))
    same(
        (total, found),
        (
            float(plain + moved) / 2,
            [h + np.zeros(f.shape) for h, f in zip(half, found, strict=True)],
        ),
        1e-5,
    )


def test_two_passes_are_one_where_nothing_is_dropped():
    """Their divergence is 0 then, and so is its gradient."""
    same(
        gradient(build({"consistency": 3.0}, **RETRIEVAL)),
        gradient(build(**RETRIEVAL)),
        1e-5,
    )


def test_half_of_the_weight_counts_as_the_losses_of_two_passes_are_halved():
    model = build({"consistency": 3.0}, **RETRIEVAL)
    plain = float(model.compute_loss(batch(WHOLE), training=True))
    model._consistency = lambda one, other: 2.0
    total, _ = model.objective(batch(WHOLE))
    assert float(total) == pytest.approx(plain + 3.0 / 2 * 2.0, abs=1e-5)


def test_the_divergence_of_two_passes_by_hand():
    model = build({"consistency": 1.0}, **RETRIEVAL)
    for layer in model.submodules:
        if hasattr(layer, "rate"):
            layer.rate = 0.5
    one, other = (model._step(batch(WHOLE), True) for _ in range(2))
    found = float(model._consistency(one, other))
    scale = np.exp(model.retrieval.log_scale.numpy())
    total = weights = 0.0
    for b in range(len(WHOLE)):
        for t in range(one.at["target"].shape[1]):
            logs = []
            for step in (one, other):
                rows = [step.at["target"][b, t]] + [
                    k for k in step.at["negatives"].numpy() if not step.taken[b, k]
                ]
                logit = scale * (step.pooled.numpy()[rows] @ step.query.numpy()[b, t])
                logs.append(logit - np.log(np.exp(logit).sum()))
            p, q = logs
            both = (np.exp(p) * (p - q)).sum() + (np.exp(q) * (q - p)).sum()
            total += float(one.positive[b, t]) * both / 2
            weights += float(one.positive[b, t])
    assert found == pytest.approx(total / weights, rel=1e-4)
    assert found > 1e-3


def test_divergence_leaves_out_what_is_no_candidate():
    logits = tf.constant([[1.0, 2.0, 50.0]]), tf.constant([[0.5, 3.0, -50.0]])
    mask = tf.constant([[True, True, False]])
    p, q = (np.exp(x[0, :2]) / np.exp(x[0, :2]).sum() for x in logits)
    found = tasks.divergence(*logits, mask)
    np.testing.assert_allclose(found, [(p * np.log(p / q)).sum()], rtol=1e-5)
