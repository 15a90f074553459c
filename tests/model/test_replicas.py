"""Two replicas draw, choose and learn what one does, of groups that both have a part of."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model.test_recommender import RETRIEVAL, STRATEGY, batch, build
from tfrec_attn.data import shares
from tfrec_attn.model import gradients

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
DRAWN = {
    "adversarial": 0.1,
    "consistency": 0.5,
    "token_dropout": 0.2,
    "event_dropout": 0.2,
    "event_crop": 0.4,
}


def learned(strategy, index=WHOLE, regularization=None, parts=1, **loss):
    """The objective and the gradients of a step, summed over the replicas."""
    with strategy.scope():
        model = build(regularization, parts, **loss)
    variables, given = model.trainable_variables, batch(index)
    at = shares.places(len(index), replicas=strategy.num_replicas_in_sync, parts=parts)
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
    ],
    ids=["retrieval with all that is drawn", "all losses", "all losses in parts"],
)
def test_a_step_on_two_replicas_is_that_on_one(given):
    want, wanted = learned(tf.distribute.OneDeviceStrategy("CPU:0"), **given)
    found, gradients = learned(STRATEGY, **given)
    assert found == pytest.approx(want, rel=1e-5)
    for one, two in zip(wanted, gradients, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5 * max(1.0, np.abs(one).max()))
    if given.get("ranking", 1):
        assert np.mean([np.abs(one).max() > 1e-6 for one in wanted]) > 0.9
