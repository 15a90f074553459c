"""Maximal marginal relevance, against loops."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.serve.graph.diversity import reordered


def reference(scores, vectors, share, k):
    """One user, one choice at a time."""
    real = np.isfinite(scores)
    span = scores[real].max() - scores[real].min()
    chosen = []
    while len(chosen) < k:
        worth = {}
        for place in np.flatnonzero(real):
            near = max((vectors[place] @ vectors[c] for c in chosen), default=0)
            relevance = (scores[place] - scores[real].min()) / span
            worth[place] = (1 - share) * relevance - share * near
        left = [place for place in worth if place not in chosen]
        if not left:
            left = [p for p in range(len(scores)) if p not in chosen]
            worth = dict.fromkeys(left, 0.0)
        chosen.append(max(left, key=lambda place: worth[place]))
    return chosen


@pytest.mark.parametrize("k", [1, 4, 9])
def test_matches_the_loops(k):
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(3, 9, 2)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    scores = -np.sort(-draw.normal(size=(3, 9)).astype(np.float32) * 5, 1)
    scores[1, 6:] = -np.inf
    shares = np.float32([0.0, 0.4, 0.9])
    found = tf.function(reordered)(scores, vectors, tf.constant(shares), tf.constant(k))
    want = [
        reference(*row, k) if row[2] else list(range(k))
        for row in zip(scores, vectors, shares, strict=True)
    ]
    assert found.numpy().tolist() == want
    if k > 1:
        assert want[2] != list(range(k))


def test_equal_scores_and_one_item():
    vectors = tf.constant([[[1.0, 0], [1, 0], [0, 1]]])
    scores = tf.constant([[2.0, 2, 2]])
    assert reordered(scores, vectors, tf.constant([0.5]), 2).numpy().tolist() == [[0, 2]]
    one = reordered(scores[:, :1], vectors[:, :1], tf.constant([1.0]), 1)
    assert one.numpy().tolist() == [[0]]
