"""The rankers that benchmarks/rankers.py puts into the scorer's place, by NumPy."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model import scoring
from tfrec_attn.training import fit

ROOT = Path(__file__).parent.parent
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "rankers.py"))
VARIANTS = BENCHMARK["VARIANTS"]
USERS, ITEMS, DIM = 3, 5, 8
DRAW = np.random.default_rng(0)
USER, ITEM = (DRAW.normal(size=(USERS, 4, DIM)), DRAW.normal(size=(ITEMS, 2, DIM)))
USER_MASK, ITEM_MASK = DRAW.random((USERS, 4)) > 0.4, DRAW.random((ITEMS, 2)) > 0.4
USER_MASK[:, 0] = ITEM_MASK[:, 0] = True

unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
MATCH = {
    "pooled cosine": lambda u, i: unit(u.mean(0)) @ unit(i.mean(0)),
    "MaxSim, the user asks": lambda u, i: (unit(u) @ unit(i).T).max(1).mean(),
    "MaxSim, the item asks": lambda u, i: (unit(u) @ unit(i).T).max(0).mean(),
}


def scored(name):
    """A layer, its scores of items that all users share, and of each user's own."""
    fit.deterministic(0)
    layer = VARIANTS[name].make(DIM, 0.0)
    user, item = tf.constant(USER, tf.float32), tf.constant(ITEM, tf.float32)
    inputs = {"user": user, "user_mask": USER_MASK, "item": item, "item_mask": ITEM_MASK}
    layer(inputs)
    shared = tf.function(layer)(inputs).numpy()  # as it is trained
    some = scoring.some(layer.item_side(item, tf.constant(ITEM_MASK)), OWN)
    own = layer.compare(layer.user_side(user, tf.constant(USER_MASK)), some).numpy()
    return layer, shared, own


OWN = np.array([[0, 4], [3, 3], [2, 1]])


@pytest.mark.parametrize("name", [*MATCH, "MLP on the pooled pair"])
def test_own_candidates_score_as_shared_ones(name):
    layer, shared, own = scored(name)
    np.testing.assert_allclose(own, np.take_along_axis(shared, OWN, 1), atol=1e-5)
    assert layer.trainable_variables
    assert np.abs(np.diff(shared)).min() > 1e-6


@pytest.mark.parametrize("name", MATCH)
def test_rankers_are_their_formulas(name):
    layer, shared, _ = scored(name)
    user, item = USER @ layer.of_user.kernel.numpy(), ITEM @ layer.of_item.kernel.numpy()
    for u in range(USERS):
        for i in range(ITEMS):
            want = 10 * MATCH[name](user[u][USER_MASK[u]], item[i][ITEM_MASK[i]])
            assert shared[u, i] == pytest.approx(want, abs=1e-4)


def test_a_row_averages_runs_before_users():
    """Of two runs and two users; all gain a quarter on validation, so without a spread."""
    found = BENCHMARK["Found"]
    one = found(1.0, *map(np.array, ([0.2, 0.4], [0.3, 0.4], [0.1, 0.1], [0.2, 0.1])))
    two = found(0.5, *map(np.array, ([0.2, 0.0], [0.2, 0.1], [0.3, 0.3], [0.3, 0.2])))
    row = BENCHMARK["row"]("a ranker", [one, two], [two, one._replace(full=two.before)])
    assert row["gain on validation"] == "+25.0% [+25.0%, +25.0%]"
    # From 0.2 and 0.05 of the two users to 0.25 and 0.25.
    assert row["over the first line"].startswith("+100.0% [")
    assert row["share"] == "1 0.5"
    assert (row["ndcg@10"], row["each"]) == ("0.2000", "0.1500 0.2500")
    assert row["gain"].startswith("+0.0% [")
