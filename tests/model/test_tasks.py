"""The losses against plain NumPy, and against TFRS where the two must agree."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs
from scipy import special, stats

from tfrec_attn.labels import LABELS
from tfrec_attn.model import tasks

# Sizes that nothing else has: a swapped axis does not fit.
B, EACH, U, K, ITEMS, D = 3, 2, 11, 5, 17, 4
N = B * EACH
TEMPERATURE = 0.1


def step(seed=0):
    """A step in which users share targets and negatives repeat them."""
    draw = np.random.default_rng(seed)
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
    # Items 2 and 7 are targets of two users; two negatives are targets.
    target = np.array([2, 7, 2, 4, 7, 9])
    negatives = np.array([0, 2, 10, 4, 6])
    taken = draw.random((B, U)) < 0.2
    taken[np.repeat(np.arange(B), EACH), target] = True
    frequency = draw.random(ITEMS)
    frequency[3] = 0.0
    return {
        "query": unit(draw.normal(size=(N, D))).astype(np.float32),
        "items": draw.permutation(ITEMS)[:U].astype(np.int32),
        "pooled": unit(draw.normal(size=(U, D))).astype(np.float32),
        "target": target.astype(np.int32),
        "negatives": negatives.astype(np.int32),
        "taken": taken,
        "real": np.array([True, True, True, False, True, True]),
        "frequency": (frequency / frequency.sum()).astype(np.float32),
    }


def loss(given, **settings):
    layer = tasks.Retrieval(**{"temperature": TEMPERATURE, "group": N, **settings})
    return layer(
        given["query"], **{k: tf.constant(v) for k, v in given.items() if k != "query"}
    ).numpy()


def reference(given, *, group=N, logq=True, temperature=TEMPERATURE):
    """One target at a time, over a list of the candidates that count for it."""
    losses = []
    for i in range(N):
        first = i // group * group
        mates = range(first, min(first + group, N))
        real = sum(given["real"][j] for j in mates)
        drawn = len(given["negatives"])

        def score(place, i=i, real=real, drawn=drawn):
            value = given["query"][i] @ given["pooled"][place] / temperature
            share = given["frequency"][given["items"][place]]
            chance = (real * share + drawn / (ITEMS - 1)) / (real + drawn)
            return value - logq * np.log(max(chance, 1e-6))

        own = given["target"][i]
        others = [given["target"][j] for j in mates if j != i and given["real"][j]]
        others += list(given["negatives"])
        counts = [p for p in others if p != own and not given["taken"][i // EACH, p]]
        scores = np.array([score(own), *map(score, counts)])
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
    return np.array(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("logq", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4, 5, N, 100])
def test_retrieval_matches_numpy(group, logq, temperature):
    given = step()
    settings = {"group": group, "logq": logq, "temperature": temperature}
    real = given["real"]
    np.testing.assert_allclose(
        loss(given, **settings)[real],
        reference(given, **settings)[real],
        rtol=1e-4,
        atol=1e-5,
    )


def test_retrieval_is_tfrs_where_nothing_else_is_masked():
    """TFRS as it is, with its own temperature, logQ and removal of accidental hits."""
    given = step()
    given["real"][:] = True
    given["taken"][:] = False
    ids = given["items"][np.append(given["target"], given["negatives"])]
    task = tfrs.tasks.Retrieval(temperature=TEMPERATURE, remove_accidental_hits=True)
    chance = (N * given["frequency"][ids] + K / (ITEMS - 1)) / (N + K)
    want = task(
        tf.constant(given["query"]),
        tf.constant(given["pooled"][np.append(given["target"], given["negatives"])]),
        candidate_ids=tf.constant(ids),
        candidate_sampling_probability=tf.constant(chance, tf.float32),
        compute_metrics=False,
        compute_batch_metrics=False,
    )
    np.testing.assert_allclose(loss(given).sum(), want, rtol=1e-5)


def test_a_users_other_positive_is_no_negative_and_anothers_is():
    given = step()
    # Item 10 is a negative only; now the first user likes it.
    given["taken"][:, 10] = False
    plain = loss(given)
    given["taken"][0, 10] = True
    changed = loss(given) != plain
    assert changed.tolist() == [True] * EACH + [False] * (N - EACH)


def test_padding_is_no_candidate():
    given = step()
    plain = loss(given)
    given["target"][3] = 8  # row 3 is padding
    other = loss(given)
    np.testing.assert_array_equal(plain[given["real"]], other[given["real"]])


@pytest.mark.parametrize("logq", [True, False])
def test_a_group_of_padding_alone_has_finite_gradients(logq):
    """Without drawn negatives it has no candidate at all."""
    given = step()
    given["negatives"] = np.zeros(0, np.int32)
    given["real"] = np.arange(N) < N - 2
    layer = tasks.Retrieval(temperature=TEMPERATURE, group=2, logq=logq)
    query = tf.constant(given.pop("query"))
    with tf.GradientTape() as tape:
        tape.watch(query)
        losses = layer(query, **{k: tf.constant(v) for k, v in given.items()})
        total = tf.reduce_sum(losses[: N - 2])
    assert np.isfinite(losses[: N - 2]).all()
    assert np.isfinite(tape.gradient(total, query)).all()
    assert np.isfinite(losses).all()


def test_a_target_alone_costs_nothing():
    given = step()
    given["taken"][:, given["negatives"]] = True
    np.testing.assert_allclose(loss(given, group=1), 0, atol=1e-6)


def test_groups_that_hold_all_targets_are_one_group():
    given = step()
    np.testing.assert_array_equal(loss(given, group=N), loss(given, group=1000))


def test_the_loss_pulls_a_target_and_pushes_a_negative():
    given = step()
    pooled = tf.constant(given["pooled"])
    with tf.GradientTape() as tape:
        tape.watch(pooled)
        first = tasks.Retrieval(group=N)(
            given["query"],
            **{k: tf.constant(v) for k, v in given.items() if k not in ("query", "pooled")},
            pooled=pooled,
        )[0]
    along = tf.convert_to_tensor(tape.gradient(first, pooled)).numpy() @ given["query"][0]
    negative = [p for p in given["negatives"] if not given["taken"][0, p]]
    assert along[given["target"][0]] < 0
    assert (along[negative] > 0).all()


def test_the_temperature_is_trained_and_starts_as_asked():
    layer = tasks.Retrieval(temperature=0.05)
    layer.build(None)
    np.testing.assert_allclose(np.exp(layer.log_scale), 20, rtol=1e-5)
    assert len(layer.trainable_variables) == 1


def by_hand(name, row, real, smoothing):
    """A loss of one target in float64, one candidate at a time."""
    others = [value for value, there in zip(row[1:], real[1:], strict=True) if there]
    cross = lambda logit, label: np.logaddexp(0, logit) - label * logit
    soft = lambda label: label * (1 - smoothing) + smoothing / 2
    if name == "listwise":
        chance = lambda value: value - np.logaddexp.reduce([row[0], *others])
        spread = np.mean([chance(value) for value in [row[0], *others]])
        return -(1 - smoothing) * chance(row[0]) - smoothing * spread
    if name == "pairwise":
        losses = [cross(row[0] - value, soft(1)) for value in others]
        return np.mean(losses) if losses else 0.0
    losses = [cross(value, soft(0)) for value in others]
    return (cross(row[0], soft(1)) + (np.mean(losses) if losses else 0.0)) / 2


ORDERS = ("listwise", "pairwise", "pointwise")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("scale", [1.0, 500.0])
@pytest.mark.parametrize("name", ORDERS)
def test_an_order_matches_numpy(name, scale, smoothing):
    draw = np.random.default_rng(4)
    scores = (scale * draw.normal(size=(5, 7))).astype(np.float32)
    mask = draw.random((5, 7)) < 0.6
    mask[:, 0], mask[4, 1:] = True, False
    found = getattr(tasks, name)(tf.constant(scores), tf.constant(mask), smoothing).numpy()
    for row, real, got in zip(scores.astype(np.float64), mask, found, strict=True):
        want = by_hand(name, row, real, smoothing)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_masked_has_no_gradient(name):
    scores = tf.constant([[0.5, 9.0, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        total = getattr(tasks, name)(scores, tf.constant([[True, False, True]]))
    gradient = tape.gradient(total, scores).numpy()[0]
    assert gradient[1] == 0
    assert gradient[0] < 0 < gradient[2]


def test_distillation_is_a_divergence_that_moves_the_student_alone():
    draw = np.random.default_rng(5)
    student, teacher = (draw.normal(size=(3, 6)).astype(np.float32) for _ in range(2))
    mask = draw.random((3, 6)) < 0.7
    mask[:, 0] = True
    pair = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch(pair)
        found = tasks.distilled(*pair, tf.constant(mask))
    moved, still = tape.gradient(found, pair)
    assert still is None
    for row in range(3):
        p, q = (
            special.softmax(v[row][mask[row]].astype(float)) for v in (teacher, student)
        )
        np.testing.assert_allclose(found[row], stats.entropy(p, q), rtol=1e-4)
        np.testing.assert_allclose(moved[row].numpy()[mask[row]], q - p, atol=1e-6)
        assert not moved[row].numpy()[~mask[row]].any()


def test_feedback_gives_a_logit_a_label_and_reads_all_three():
    layer = tasks.Feedback()
    user, item, score = tf.ones((3, D)), 2 * tf.ones((3, D)), tf.constant([0.0, 1.0, 2.0])
    logits = layer(user, item, score)
    assert logits.shape == (3, len(LABELS))
    kernel, bias = (w.numpy() for w in layer.weights)
    assert kernel.shape == (3 * D + 1, len(LABELS))
    read = np.concatenate([user * item, user, item, score[:, None]], 1)
    np.testing.assert_allclose(logits, read @ kernel + bias, rtol=1e-5)
