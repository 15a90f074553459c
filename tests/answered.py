"""An answer of the signature `explain` that was made up, and its explanation."""

import numpy as np

from tfrec_attn import explain
from tfrec_attn.serve.client import Recommendation, Recommendations, answers

ITEM = [
    b"item",
    b"id",
    b"kind=a",
    b"",
    b"text=the",
    b"text=hobbit",
    b"",
    b"age",
]
USER = [b"user", b"", b"user", b"", b"history=7", b"history=8"]


class Answered:
    """A client whose server said this: contributions by hand."""

    def explain(self, user_id, item, history, *_):
        assert (user_id, item, history) == ("42", "5", ["7", "lost", "8"])
        rng = np.random.default_rng(0)
        outputs = {
            "score": np.array([9.0]),
            "retrieval_contribution": np.array([4.0]),
            "item_contributions": np.arange(8.0)[None] / 9,
            "user_contributions": np.array([[1, 0, 0.5, 0, 5, -2]]),
            "attention": rng.random((1, 6, 8)),
            "item_token": np.array([ITEM], object),
            "user_token": np.array([USER], object),
            "known_item": np.array([True]),
            "known_user": np.array([True]),
        }
        return answers.contributions(outputs)[0]

    def recommend(self, user_id, *, candidates, k):
        assert (user_id, k) == ("", len(candidates))
        texts = {"5": "The <Hobbit>!", "7": "Emma", "8": "Ulysses"}
        # Two at most: the rest has to be asked for again.
        known = [one for one in candidates if one in texts][:2]
        items = tuple(Recommendation(one, 1.0, texts[one]) for one in known)
        return Recommendations(items, False, 0, False)


def explanation():
    return explain.explain(Answered(), "42", "5", history=["7", "lost", "8"])
