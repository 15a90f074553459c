"""How the model learns, on a made-up shop: losses over replicas and padding, candidates."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.data import batches, examples
from tfrec_attn.data.catalog import Column
from tfrec_attn.labels import LABELS
from tfrec_attn.model import assembly, sampling, tasks
from tfrec_attn.settings import config as config_lib
from tfrec_attn.training import distribution

ITEMS, USERS, LENGTH, TARGETS = 13, 7, 3, 4
# No dropout; all targets rank all items, so that nothing depends on a draw.
SETTINGS = {
    "examples": {"history": LENGTH, "targets": TARGETS, "positives": LABELS[:3]},
    "model": {"dim": 8, "dropout": 0.0, "id_dropout": 0.0},
    "scorer": {"dropout": 0.0, "dim": 6},
    "train": {"ranking_epochs": 0},
    "loss": {
        "group": TARGETS,
        "negatives": ITEMS,
        "hard_negatives": ITEMS,
        "rejected": 2,
        "easy_negatives": 0,
        "ranked_targets": 100,
        "labelled_targets": 100,
    },
}
# Only the retrieval, with fewer negatives than items.
RETRIEVAL = {"ranking": 0.0, "feedback": 0.0, "negatives": 5}
STRATEGY = distribution.strategy("mirrored")


def events():
    """Six different items a user; every label; some times are equal."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), 6)
    item = np.concatenate([draw.permutation(ITEMS)[:6] for _ in range(USERS)])
    time = draw.integers(1, 5, len(user)) * 86_400_000
    label, weight = draw.integers(0, len(LABELS), len(user)), draw.random(len(user)) + 0.5
    return examples.sort(user, item, time, label, weight)


def shop():
    """All training examples, and the positives of each user."""
    past = events()
    liked = past.take(np.flatnonzero(past.feedback < 3))
    made = examples.make(past, past, length=LENGTH, count=TARGETS)
    sizes = np.bincount(liked.user, minlength=USERS)
    return made, tf.RaggedTensor.from_row_lengths(liked.item, sizes)


def build(regularization=None, accumulate=1, **loss):
    """The same weights each time, away from where training starts."""
    draw, (_, positives) = np.random.default_rng(1), shop()
    settings = config_lib.validate(
        {
            **SETTINGS,
            "loss": {**SETTINGS["loss"], **loss},
            "regularization": regularization or {},
            "train": {**SETTINGS["train"], "accumulate": accumulate},
        }
    )
    frequency = np.bincount(positives.values, minlength=ITEMS) / len(positives.values)
    model = assembly.build(
        settings,
        items={
            "id": np.where(frequency > 0, np.arange(1, ITEMS + 1), 0).astype(np.int32),
            "kind": draw.integers(0, 4, ITEMS).astype(np.int32),
        },
        users={"age": np.append(draw.random(USERS - 1), np.nan).astype(np.float32)},
        item_columns={"kind": Column("category", vocabulary=("a", "b", "c"))},
        user_columns={"age": Column("number", knots=(0.0, 0.5, 1.0))},
        frequency=frequency,
        positives_of=positives,
    )
    model.warm_up()
    for variable in model.trainable_variables:
        variable.assign(draw.normal(0, 0.5, variable.shape).astype(np.float32))
    return model


def batch(index, **changes):
    gathered = batches.gather(shop()[0], np.array(index))
    return {name: tf.constant(value) for name, value in {**gathered, **changes}.items()}


@functools.cache
def model_and_step(mirrored=False, retrieval=False):
    with (STRATEGY if mirrored else tf.distribute.get_strategy()).scope():
        model = build(**RETRIEVAL if retrieval else {})

    @tf.function
    def step(part):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(part, training=True)
        found = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        return loss, [tf.convert_to_tensor(g) for g in found]

    return model, step


def loss_and_gradients(given, **which):
    """Summed over replicas, each of which has its share of the batch."""
    model, step = model_and_step(**which)
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    share = len(given["user"]) // replicas
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: {
            name: value[context.replica_id_in_sync_group * share :][:share]
            for name, value in given.items()
        }
    )
    loss, found = strategy.run(step, args=(parts if replicas > 1 else given,))
    total = lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
    loss, gradients = total(loss).numpy(), [total(g).numpy() for g in found]
    assert all(np.isfinite(value).all() for value in (loss, *gradients))
    return loss, gradients


@pytest.mark.parametrize("retrieval", [True, False], ids=["retrieval", "all losses"])
@pytest.mark.parametrize("index", [[0, 1, 2, 3], [4, 5, 6, -1], [0, 1, -1, -1]])
def test_two_replicas_are_one(retrieval, index):
    """Also where the targets are shared unequally, or one replica has none."""
    given = batch(index)
    want, wanted = loss_and_gradients(given, retrieval=retrieval)
    found, gradients = loss_and_gradients(given, retrieval=retrieval, mirrored=True)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    model, _ = model_and_step(mirrored=True, retrieval=retrieval)
    for variable, one, two in zip(
        model.trainable_variables, wanted, gradients, strict=True
    ):
        scale = np.abs(one).max()
        np.testing.assert_allclose(
            two, one, rtol=1e-3, atol=1e-4 * scale + 1e-7, err_msg=variable.name
        )
    if not retrieval:
        assert np.mean([np.abs(one).max() > 1e-6 for one in wanted]) > 0.9


def test_the_loss_that_is_shown_is_that_of_the_whole_batch():
    given, shown = batch([0, 1, 2, -1]), []
    data = tf.data.Dataset.from_tensors(given).unbatch().batch(4, drop_remainder=True)
    options = tf.data.Options()
    off = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = off
    for scope in (tf.distribute.get_strategy(), STRATEGY):
        with scope.scope():
            model = build(**RETRIEVAL)
            model.compile(optimizer="sgd")
        found = model.fit(data.with_options(options), verbose=0).history
        shown.append({name: value[0] for name, value in found.items()})
    assert shown[0]["loss"] == pytest.approx(shown[0]["retrieval"], rel=1e-5)
    assert shown[1] == pytest.approx(shown[0], rel=1e-4)


def test_padding_changes_nothing():
    want, wanted = loss_and_gradients(batch([0, 1, 2]))
    found, gradients = loss_and_gradients(batch([0, -1, 1, 2, -1, -1]))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    for one, two in zip(wanted, gradients, strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4 * scale + 1e-7)


def test_what_stands_in_a_padded_target_changes_nothing():
    model, given = build(**RETRIEVAL | {"group": 100}), batch([0, 1, 2, 3, 4])
    real = given["weight"] > 0
    assert not real.numpy().all()
    other = {**given, "target": tf.where(real, given["target"], 5)}
    other["target_seen"] = tf.where(real, given["target_seen"], 1)
    other["target_feedback"] = tf.where(real, given["target_feedback"], 3)
    np.testing.assert_allclose(
        model.compute_loss(other), model.compute_loss(given), rtol=1e-6
    )


def test_a_weight_is_a_share_of_the_mean():
    model, given = build(**RETRIEVAL), batch([0, 1, 2])
    real = model._step(given, training=False).positive.numpy() > 0
    spot = [tuple(at) for at in np.argwhere(real)]
    value = lambda weight: float(
        model.compute_loss({**given, "weight": tf.constant(weight, tf.float32)})
    )

    def alone(at):
        weight = np.where(real, 1e-7, 0.0)
        weight[at] = 1.0
        return value(weight)

    weight = np.zeros(real.shape)
    for n, at in enumerate(spot):
        weight[at] = n + 1.0
    want = sum(weight[at] * alone(at) for at in spot) / weight.sum()
    assert len(spot) > 2
    np.testing.assert_allclose(value(weight), want, rtol=1e-4)
    np.testing.assert_allclose(value(7 * weight), want, rtol=1e-4)


def lists(model, given):
    """The candidates of every target as `_ranking` makes them, by watching its scorer."""
    seen, real = {}, []
    scores, order = model._scores, model.order

    def spy(step, user, pairs, shared):
        everybody = tf.tile(shared[None], [len(pairs), 1])
        seen["items"] = tf.gather(step.items, tf.concat([pairs, everybody], 1)).numpy()
        seen["step"] = step
        return scores(step, user, pairs, shared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_scores", spy)
        patch.setattr(
            model, "order", lambda s, m, e: real.append(m.numpy()) or order(s, m, e)
        )
        model._ranking(model._step(given, training=False))
    count = model.settings.ranked_targets
    pick = sampling.targets(seen["step"].positive, count, model._seed(1)).numpy()
    target = given["target"].numpy()[tuple(pick.T)]
    user = given["user"].numpy()[pick[:, 0]]
    kept = seen["step"].positive.numpy()[tuple(pick.T)] > 0
    return [
        (int(u), int(t), row[0], set(row[1:][mask[1:]]), set(seen["step"].items.numpy()))
        for u, t, row, mask, k in zip(
            user, target, seen["items"], real[0], kept, strict=True
        )
        if k
    ]


@pytest.mark.parametrize("hard", [1, 4, ITEMS])
def test_a_shortlist_begins_with_its_target_and_has_no_positive_behind(hard):
    model, positives = build(hard_negatives=hard), shop()[1]
    found = lists(model, batch(range(len(shop()[0]))))
    assert len(found) == len(shop()[1].values)
    for user, target, first, others, items in found:
        liked = set(positives[user].numpy())
        assert first == target
        assert target in liked
        assert not others & liked
        assert others == items - liked or hard < ITEMS
        assert len(others) <= hard + 2


@pytest.mark.parametrize("easy", [2, ITEMS])
def test_easy_negatives_are_shared_and_no_positive_is_among_them(easy):
    model, positives = build(hard_negatives=1, rejected=0, easy_negatives=easy), shop()[1]
    found = lists(model, batch(range(len(shop()[0]))))
    known = set(np.flatnonzero(model.frequency))
    drawn = set().union(*(others for *_, others, _ in found))
    for user, _, _, others, _ in found:
        liked = set(positives[user].numpy())
        assert not others & liked
        assert others >= known - liked or easy < ITEMS
        # The hard one may be one of the easy ones.
        assert len(others) <= easy + 1
    assert len(drawn) <= easy + len(found)


def test_a_score_of_what_users_share_is_that_of_a_pair():
    """Pairs and shared candidates of a step, and what is served, are one scorer."""
    model, given = build(), batch([0, 1, 2, 3])
    step = model._step(given, training=False)
    pick = sampling.targets(step.positive, 5, model._seed(1))
    user = model._users_of(step, pick, tf.gather_nd(step.query, pick))
    shared = tf.constant([4, 0, 2])
    scores = model._scores(step, user, tf.tile(shared[None], [5, 1]), shared)
    np.testing.assert_allclose(scores[:, :3], scores[:, 3:], atol=1e-5)
    items = model.encode_items()
    rows = tf.gather(step.items, tf.tile(shared[None], [5, 1]))
    served = model._score(user, *items.candidates(rows)[1:])
    np.testing.assert_allclose(scores[:, :3], served, atol=1e-5)


def test_the_article_s_mode_is_trained_and_served_alike():
    settings = {**SETTINGS, "scorer": {"mode": "article", "dim": 6}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SETTINGS", settings)
        model = build()
    loss = model._ranking(model._step(batch([0, 1, 2]), training=True))
    assert 0 < loss < 100


@pytest.mark.parametrize("order", ["listwise", "pairwise", "pointwise"])
def test_the_order_and_its_smoothing_are_those_of_the_settings(order):
    found = []
    for smoothing in (0.0, 0.4):
        model = build(order=order, label_smoothing=smoothing, ranking=2.0)
        step = model._step(batch([0, 1, 2]), training=False)
        seen = []
        by_name = model.order
        model.order = lambda *args, by=by_name, seen=seen: seen.append(args) or by(*args)
        loss = model._ranking(step)
        ((scores, real, got),) = seen
        assert got == smoothing
        losses = getattr(tasks, order)(scores, real, smoothing)
        weight = step.positive.numpy()
        weight = weight[weight > 0]
        pick = sampling.targets(step.positive, 100, model._seed(1))
        weight = tf.gather_nd(step.positive, pick)
        want = 2 * tf.reduce_sum(losses * weight) / tf.reduce_sum(weight)
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        found.append(float(loss))
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_distillation_moves_the_towers_towards_what_is_served():
    """Its teacher is the retrieval's logit and the scorer's, of each candidate."""
    given, found = batch([0, 1, 2, 3]), {}
    for weight in (0.0, 3.0):
        model = build(distillation=weight, easy_negatives=4)
        with tf.GradientTape() as tape:
            loss = model._ranking(model._step(given, training=False))
        gradient = tape.gradient(loss, model.user_tower.anyone)
        found[weight] = float(loss), gradient
    assert found[0.0][1] is None
    assert np.abs(found[3.0][1]).max() > 1e-6
    assert found[3.0][0] > found[0.0][0]


def test_the_feedback_is_of_all_labels_and_the_rest_of_positives():
    """A label that is no positive moves the feedback's loss alone, and is no candidate."""
    model, given = build(), batch(range(len(shop()[0])))
    label = given["target_feedback"]
    assert set(label.numpy()[given["weight"].numpy() > 0]) == set(range(len(LABELS)))
    step = model._step(given, training=False)
    positive = (given["weight"].numpy() > 0) & (label.numpy() < 3)
    np.testing.assert_array_equal(step.positive.numpy() > 0, positive)
    other = {**given, "target_feedback": tf.where(label == 3, 4, label)}
    moved = model._step(other, training=False)
    assert model._ranking(step) == model._ranking(moved)
    assert model._feedback(step) != model._feedback(moved)


def test_the_ranking_moves_its_own_weights_and_no_tower():
    model, given = build(), batch([0, 1, 2, 3])
    with tf.GradientTape() as tape:
        loss = model._ranking(model._step(given, training=False))
    found = tape.gradient(loss, model.trainable_variables)
    moved = {
        variable.name
        for variable, gradient in zip(model.trainable_variables, found, strict=True)
        if gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 1e-7
    }
    tower = model.item_tower
    parts = (tower.candidate_id, tower.event_id, tower.widen, tower.widen_event)
    parts += (model.user_tokens, model.scorer)
    assert moved == {v.name for part in parts for v in part.trainable_variables}


def test_an_item_without_a_training_event_is_no_negative():
    model = build()
    step = model._step(batch([0, 1, 2, 3]), training=False)
    drawn = tf.gather(step.items, step.at["negatives"]).numpy()
    chosen = np.flatnonzero(model.frequency)
    assert 0 < len(chosen) < ITEMS
    assert sorted(drawn) == chosen.tolist()


def test_each_step_draws_other_negatives_and_every_replica_the_same():
    model, given = build(**RETRIEVAL), batch([0, 1, 2, 3])

    def drawn(part):
        step = model._step(part, training=False)
        return tuple(sorted(tf.gather(step.items, step.at["negatives"]).numpy()))

    steps = []
    for _ in range(3):
        steps.append(drawn(given))
        assert drawn({k: v[:2] for k, v in given.items()}) == steps[-1]
        model.steps.assign_add(1)
    assert len(set(steps)) == 3
    assert all(len(set(one)) == 5 for one in steps)
