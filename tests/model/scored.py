"""Tokens to be scored, and the scorer in every mode, as pure functions of tensors."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model import scoring

B, C, N, M, D = 2, 3, 7, 5, 6
TWO_SIDED = {"bidirectional": True}


def tokens(seed=0, n=N, m=M, pairs=False, scale=1.0):
    """Tokens of random lengths, some of them padding; the first sets are whole."""
    draw = np.random.default_rng(seed)
    lead = (B, C) if pairs else (C,)
    user, item = draw.normal(size=(B, n, D)), draw.normal(size=(*lead, m, D))
    user, item = (x * draw.uniform(0.3, 3, x[..., :1].shape) for x in (user, item))
    user_mask, item_mask = draw.random((B, n)) < 0.7, draw.random((*lead, m)) < 0.7
    user_mask[:, 0], item_mask[..., 0] = True, True
    user_mask[0], item_mask[0] = True, True
    return user * scale, item * scale, user_mask, item_mask


def random_weights(heads=1, dim=D):
    draw = np.random.default_rng(7)
    kernels = ("user_query", "item_key", "user_value", "item_value")
    biases = ("user_importance", "item_importance")
    biases += ("user_importance_back", "item_importance_back")
    return {name: draw.normal(size=(D, dim)) for name in kernels} | {
        name: draw.normal(size=(D, heads)) for name in biases
    }


def softmax_score(user, item, user_mask, item_mask, *, weights=None, heads=1, **options):
    """As the layer calls it, in the dtype of the tokens."""
    item, item_mask = tf.convert_to_tensor(item), tf.convert_to_tensor(item_mask)
    if item.shape.rank == 3:
        item, item_mask = item[None], item_mask[None]
    get = (weights or {}).get
    user_side = scoring.side(
        tf.convert_to_tensor(user),
        tf.convert_to_tensor(user_mask),
        key=get("user_query"),
        value=get("user_value"),
        attend=get("user_importance"),
        weigh=get("user_importance_back"),
        heads=heads,
    )
    item_side = scoring.side(
        item,
        item_mask,
        key=get("item_key"),
        value=get("item_value"),
        attend=get("item_importance_back"),
        weigh=get("item_importance"),
        heads=heads,
    )
    return scoring.softmax_score(user_side, item_side, **{"focus": 5.0, **options})


def article_score(user, item, user_mask, item_mask, **options):
    inputs = map(tf.convert_to_tensor, (user, item, user_mask, item_mask))
    return scoring.article_score(*inputs, **options)


MODES = {
    "softmax": softmax_score,
    "norm-in-one": functools.partial(softmax_score, xla=False),
    "all": functools.partial(
        softmax_score, weights=random_weights(2), heads=2, bidirectional=True, scale=3.0
    ),
    "article": article_score,
    "article-softmax": functools.partial(article_score, normalizer="softmax"),
}
SOFTMAX = [pytest.param(MODES[name], id=name) for name in ("softmax", "norm-in-one", "all")]
EVERY = [pytest.param(score, id=name) for name, score in MODES.items()]


def cosines(user, item):
    units = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (user, item))
    return np.einsum("bnd,cmd->bcnm", *units)
