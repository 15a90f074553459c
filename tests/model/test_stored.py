"""Token matrices in fewer bytes: what comes back, and how many there are."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.layers import AttentionWeightedCosine
from tfrec_attn.model import stored

DRAW = np.random.default_rng(0)
# Tokens of very different lengths beside each other, and an empty one.
LENGTHS = np.array([1.0, 1e-6, 1e3, 0.0])[:, None]
TOKENS = (DRAW.normal(size=(50, 4, 128)) * LENGTHS).astype(np.float32)


def size(packed):
    return sum(np.asarray(part).nbytes for part in packed)


@pytest.mark.parametrize(
    ("dtype", "smaller"), [("float32", 1), ("float16", 2), ("int8", 512 / 130)]
)
def test_the_bytes_that_are_kept(dtype, smaller):
    assert TOKENS.nbytes / size(stored.pack(TOKENS, dtype)) == pytest.approx(smaller)


def test_int8_is_at_most_half_a_level_and_a_rounded_step_off():
    back = stored.unpack(stored.pack(TOKENS, "int8")).numpy()
    largest = np.abs(TOKENS).max(-1, keepdims=True)
    # bfloat16 has 8 bits: a step that was rounded down cuts the largest component.
    bound = largest * (0.5 / 127 * (1 + 2**-8) + 2**-8 * (np.abs(TOKENS) > 0.99 * largest))
    assert (np.abs(back - TOKENS) <= bound).all()
    assert (back[:, 3] == 0).all()
    long, short = (np.linalg.norm(x[:, :3], axis=-1) for x in (TOKENS, back))
    cosine = (back * TOKENS)[:, :3].sum(-1) / (long * short)
    assert np.degrees(np.arccos(cosine.min())) < 0.7


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_are_those_of_all(dtype):
    packed, at = stored.pack(TOKENS, dtype), np.array([[3, 0], [49, 3]])
    want = stored.unpack(packed).numpy()[at]
    np.testing.assert_array_equal(stored.rows(packed, at), want)


def test_full_tokens_come_back_as_they_are():
    np.testing.assert_array_equal(stored.unpack(stored.pack(TOKENS, "float32")), TOKENS)


@pytest.mark.parametrize(("dtype", "apart"), [("float16", 1e-2), ("int8", 5e-2)])
def test_scores_of_what_is_kept_are_near_those_of_the_tokens(dtype, apart):
    tokens = TOKENS[:, [0, 2]]
    layer = AttentionWeightedCosine()
    score = lambda item: layer(
        {
            "user": tf.constant(DRAW.normal(size=(3, 7, 128)), tf.float32),
            "user_mask": tf.ones((3, 7), bool),
            "item": item,
            "item_mask": tf.ones(item.shape[:2], bool),
        }
    ).numpy()
    state = DRAW.bit_generator.state
    full = score(tf.constant(tokens))
    DRAW.bit_generator.state = state
    kept = score(stored.unpack(stored.pack(tokens, dtype)))
    assert 0 < np.abs(full - kept).max() < apart
