"""How well the labels are told apart, by counting pairs."""

import itertools

import numpy as np
import pytest

from tfrec_attn.evaluation import feedback_head


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 3], size=23)
    probability = rng.dirichlet(np.ones(5), size=23)

    def pairs(own, score):
        return np.mean([a > b for a, b in itertools.product(score[own], score[~own])])

    found = feedback_head.auc(label, probability)
    each = {
        f"{name} against the rest": pairs(label == i, probability[:, i])
        for i, name in ((0, "buy"), (1, "like"), (3, "dislike"))
    }
    want = each | {
        "mean of these": np.mean(list(each.values())),
        "buy or like against the rest": pairs(
            label < 2, probability[:, 0] + probability[:, 1]
        ),
    }
    assert found == pytest.approx(want)
