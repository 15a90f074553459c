"""What a training step leaves out, so that nothing is relied on alone. No weights.

Every draw is a function of its seed, `[2]` int64, alone. Letters: R rows, t tokens of a
row, B examples, W events of a window.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

# Whose tokens have a dropout of their own, and what is 0 where its mask is.
KEPT = ("id", "text", "text_mean")


def without_tokens(features: Mapping[str, tf.Tensor], share: float, seed):
    """Features of some rows of which some values are missing.

    Args:
      features: See `towers.FeatureTokens`: a value is an entry of integers, of masks and of
        numbers `[R]`, and a row of ready-made vectors `[R, width]`.
      share: Chance of each value to be missing.
      seed: Of the first feature's draws; the next one's is one more.

    Returns:
      The same by name; of texts the mask has changed.
    """
    found = dict(features)
    for place, name in enumerate(sorted(features.keys() - set(KEPT))):
        value = features[name]
        vector = value.dtype.is_floating and value.shape.rank == 2
        shape = tf.shape(value)[:1] if vector else tf.shape(value)
        lost = _chosen(shape, share, seed + tf.constant([place, 0], tf.int64))
        if value.dtype.is_floating and not vector:
            missing = tf.constant(np.nan, value.dtype)
        else:
            missing = tf.zeros((), value.dtype)
        found[name] = tf.where(lost[:, None] if vector else lost, missing, value)
    return found


def without_pieces(ids, pad_id: int, share: float, seed):
    """`[R, t]` token ids of which some are `pad_id`, though not the first of a text."""
    lost = _chosen(tf.shape(ids), share, seed) & (tf.range(tf.shape(ids)[1]) > 0)
    return tf.where(lost, pad_id, ids)


def without_events(history, share: float, seed):
    """`[B, W]` item rows, -1 pads, of which some are -1.

    References:
      - Xie et al., 2022, arXiv:2010.14395 (CL4SRec), section 3.3.2, item mask.
    """
    return tf.where(_chosen(tf.shape(history), share, seed), -1, history)


def cropped(history, share: float, seed):
    """`[B, W]` item rows, -1 pads behind, of which some examples have lost what is before
    an event that is drawn among their own.

    References:
      - Xie et al., 2022, arXiv:2010.14395 (CL4SRec), section 3.3.1, item crop; of ours the
        end is never cut off, as the next item is what is learned.
    """
    length = tf.math.count_nonzero(history >= 0, 1, dtype=tf.int32)
    chance = tf.random.stateless_uniform([2, tf.shape(history)[0]], seed)
    first = tf.cast(chance[1] * tf.cast(length, tf.float32), tf.int32)
    first = tf.where(chance[0] < share, first, 0)
    return tf.where(tf.range(tf.shape(history)[1]) < first[:, None], -1, history)


def _chosen(shape, share: float, seed):
    return tf.random.stateless_uniform(shape, seed) < share
