"""Two replicas draw, choose and learn what one does, of groups that both have a part of."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model.test_recommender import RETRIEVAL, STRATEGY, batch, build
from tests.worded import arguments
from tfrec_attn import train
from tfrec_attn.data import batches, shares
from tfrec_attn.model import gradients
from tfrec_attn.run import building, pipeline

# Groups that lie across the replicas; less of everything than there is.
FEW = {
    "group": 20,
    "negatives": 5,
    "hard_negatives": 3,
    "easy_negatives": 2,
    "rejected": 0,
    "ranked_targets": 6,
    "labelled_targets": 5,
}
WHOLE = [0, 1, 2, 3, 4, 5, 6, -1]
ONE = tf.distribute.OneDeviceStrategy("CPU:0")
DRAWN = {
    "adversarial": 0.1,
    "consistency": 0.5,
    "token_dropout": 0.2,
    "event_dropout": 0.2,
    "event_crop": 0.4,
}


def learned(strategy, regularization=None, parts=1, rows=WHOLE, **loss):
    """See `summed`."""
    with strategy.scope():
        model = build(regularization, parts, **loss)
    return summed(model, batch(rows))


def summed(model, given):
    """The objective and the gradients of a step, summed over the replicas."""
    strategy, variables = model.distribute_strategy, model.trainable_variables
    replicas, size = strategy.num_replicas_in_sync, len(given["user"])
    at = shares.places(size, replicas=replicas, parts=model.parts)
    values = strategy.experimental_distribute_values_from_function(
        lambda context: {
            name: tf.gather(value, at[context.replica_id_in_sync_group])
            for name, value in given.items()
        }
    )

    @tf.function
    def step(part):
        total, found = gradients.of(model, part, variables)
        return total, [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(found, variables, strict=True)
        ]

    total, found = strategy.run(step, args=(values,))
    add = lambda value: strategy.reduce("SUM", value, axis=None).numpy()
    return add(total), [add(gradient) for gradient in found]


@pytest.mark.parametrize(
    "given",
    [
        {**RETRIEVAL, **FEW, "ranking": 0.0, "regularization": DRAWN},
        {**FEW, "distillation": 0.5},
        {**FEW, "parts": 2},
        {**FEW, "rows": [0, 1, 2, 3, *[-1] * 4]},
    ],
    ids=[
        "retrieval with all that is drawn",
        "all losses",
        "all losses in parts",
        "a replica without examples",
    ],
)
def test_a_step_on_two_replicas_is_that_on_one(given):
    want, found = (learned(strategy, **given) for strategy in (ONE, STRATEGY))
    require_same(want, found)
    if given.get("ranking", 1):
        assert felt(want) > 0.9


def require_same(one, two):
    (want, wanted), (found, gradients) = one, two
    assert found == pytest.approx(want, rel=1e-5)
    for one, two in zip(wanted, gradients, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5 * max(1.0, np.abs(one).max()))


def felt(found):
    """The share of variables that have a gradient."""
    return np.mean([np.abs(gradient).max() > 1e-6 for gradient in found[1]])


# All of the step but what each replica draws for itself.
LIVE = ["model.dropout=0", "model.id_dropout=0", "scorer.dropout=0"]
LIVE += [f"loss.{name}={value}" for name, value in FEW.items()]
WAYS = {
    "all losses": ["bert.tuning=all"],
    "in parts, with a penalty": ["bert.tuning=adalora", "train.accumulate=2"],
}


def live(folder, strategy, sets):
    """A model whose BERT is trained, and eight examples of which the last is empty."""
    given = arguments(folder, folder / "run", *LIVE, *sets)
    prepared = pipeline.prepare(train.settings(train.parser().parse_args(given)))
    tf_keras.utils.set_random_seed(0)
    with strategy.scope():
        model = building.build(prepared)
    model.warm_up()
    for layer in model.live.bert.submodules:
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    # Away from where training starts, where much is 0.
    draw = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + draw.normal(0, 0.1, variable.shape))
    found = batches.gather(prepared.training(), np.array(WHOLE))
    return model, {name: tf.constant(value) for name, value in found.items()}


@pytest.mark.parametrize("sets", WAYS.values(), ids=list(WAYS))
def test_a_step_of_a_trained_bert_on_two_replicas_is_that_on_one(worded, sets):
    """Of five live texts, so that one replica has less to do."""
    want, found = (summed(*live(worded, strategy, sets)) for strategy in (ONE, STRATEGY))
    require_same(want, found)
    assert felt(want) > 0.5
