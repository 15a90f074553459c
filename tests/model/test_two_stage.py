"""What answers: items in blocks, and how much the scorer's score counts."""

import numpy as np
import tensorflow as tf

from tests.model.test_recommender import ITEMS, build
from tfrec_attn.model import states


def test_blocks_of_items_are_one_block():
    model = build()
    whole = model.encode_items()
    for block in (1, 5, ITEMS):
        parts = model.encode_items(block=block)
        for part, want in zip(tf.nest.flatten(parts), tf.nest.flatten(whole), strict=True):
            np.testing.assert_allclose(part, want, atol=1e-6)
    assert whole.vector.shape == whole.pooled.shape == (ITEMS, 8)
    assert whole.event.shape == (ITEMS, 6)
    assert whole.tokens.values.shape == (ITEMS, 3, 6)


def test_the_share_of_the_scorer_is_what_it_adds_to_the_cosine():
    model = build()
    items, draw = model.encode_items(), np.random.default_rng(5)
    user = states.UserState(
        items.pooled[:2],
        tf.constant(draw.normal(size=(2, 5, 6)), tf.float32),
        tf.ones((2, 5), bool),
    )
    first = items.candidates(tf.tile(tf.range(4)[None], [2, 1]))
    rank = lambda: model.rank(user, *first).numpy()
    whole = rank()
    model.share.assign(0.0)
    cosine = rank()
    scale = tf.exp(model.retrieval.log_scale)
    want = scale * tf.matmul(items.pooled[:2], items.pooled[:4], transpose_b=True)
    np.testing.assert_allclose(cosine, want, atol=1e-5)
    model.share.assign(0.5)
    np.testing.assert_allclose(rank(), (whole + cosine) / 2, atol=1e-5)
    assert np.abs(whole - cosine).max() > 1e-3
