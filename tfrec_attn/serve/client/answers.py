"""What the signatures answer, as values with names and types. No TensorFlow.

Letters: d width of a vector, n tokens of a user, m of an item.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfrec_attn.serve.client.messages import Arrays


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item; `text` is what the model read of it."""

    id: str
    score: float
    text: str


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """A user's list, best first, and what the model knew when it made it.

    Attributes:
      items: At most k; fewer where fewer items are left.
      known_user: Whether the model has seen this user id.
      unknown_history: How many ids of the history the model does not know.
      truncated_history: Whether the history was longer than the model reads.
    """

    items: tuple[Recommendation, ...]
    known_user: bool
    unknown_history: int
    truncated_history: bool


@dataclasses.dataclass(frozen=True)
class Score:
    """One scored candidate; an item the model does not know has `known` False."""

    id: str
    score: float
    known: bool


@dataclasses.dataclass(frozen=True)
class Scores:
    """A user's candidates, in the order they were given."""

    items: tuple[Score, ...]
    known_user: bool


@dataclasses.dataclass(frozen=True, eq=False)
class UserEmbedding:
    """A user's pooled vector, `[d]` float32 of length 1."""

    vector: np.ndarray
    known_user: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEmbedding:
    """An item's pooled vector, `[d]` float32 of length 1.

    Attributes:
      truncated: Whether the text was longer than the model reads.
    """

    vector: np.ndarray
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Token:
    """One token, by the name that the model gives it, and what it adds to the score."""

    name: str
    contribution: float


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """What carried the score of one item for one user; padding is left out.

    `retrieval` and either side's contributions sum to `score`.

    Attributes:
      score: As `score` gives it; 0 for an unknown item.
      retrieval: The pooled cosine's share of it.
      item_tokens: m of them; none for an unknown item.
      user_tokens: n of them.
      attention: `[n, m]` float32: how much each item token looks at each user token.
      known_item, known_user: Whether the model has seen them.
    """

    score: float
    retrieval: float
    item_tokens: tuple[Token, ...]
    user_tokens: tuple[Token, ...]
    attention: np.ndarray
    known_item: bool
    known_user: bool


def recommendations(outputs: Arrays, limits: Sequence[int]) -> list[Recommendations]:
    """Of `serving_default`, at most `limits` items a user."""
    return [_recommendations(outputs, row, k) for row, k in enumerate(limits)]


def _recommendations(outputs: Arrays, row: int, k: int) -> Recommendations:
    ids, scores = outputs["item_id"][row], outputs["score"][row]
    texts, valid = outputs["item_text"][row], outputs["valid"][row]
    return Recommendations(
        items=tuple(
            Recommendation(ids[i].decode(), float(scores[i]), texts[i].decode())
            for i in np.flatnonzero(valid)[:k]
        ),
        known_user=bool(outputs["known_user"][row]),
        unknown_history=int(outputs["unknown_history"][row]),
        truncated_history=bool(outputs["truncated_history"][row]),
    )


def scores(outputs: Arrays, asked: Sequence[Sequence]) -> list[Scores]:
    """Of `score`; `asked` are each user's candidates."""
    found = zip(outputs["score"], outputs["known_item"], strict=True)
    return [
        Scores(
            tuple(
                Score(str(item), float(score[i]), bool(known[i]))
                for i, item in enumerate(items)
            ),
            bool(known_user),
        )
        for items, (score, known), known_user in zip(
            asked, found, outputs["known_user"], strict=True
        )
    ]


def user_embeddings(outputs: Arrays) -> list[UserEmbedding]:
    """Of `embed_user`."""
    rows = zip(outputs["embedding"], outputs["known_user"], strict=True)
    return [UserEmbedding(vector, bool(known)) for vector, known in rows]


def item_embeddings(outputs: Arrays) -> list[ItemEmbedding]:
    """Of `embed_item`."""
    rows = zip(outputs["embedding"], outputs["truncated"], strict=True)
    return [ItemEmbedding(vector, bool(truncated)) for vector, truncated in rows]


def contributions(outputs: Arrays) -> list[Contributions]:
    """Of `explain`."""
    return [_contributions(outputs, row) for row in range(len(outputs["score"]))]


def _contributions(outputs: Arrays, row: int) -> Contributions:
    real, tokens = {}, {}
    for side in ("user", "item"):
        names = outputs[f"{side}_token"][row]
        values = outputs[f"{side}_contributions"][row]
        real[side] = np.flatnonzero(names != b"")
        tokens[side] = tuple(Token(names[i].decode(), float(values[i])) for i in real[side])
    return Contributions(
        score=float(outputs["score"][row]),
        retrieval=float(outputs["retrieval_contribution"][row]),
        item_tokens=tokens["item"],
        user_tokens=tokens["user"],
        attention=outputs["attention"][row][np.ix_(real["user"], real["item"])],
        known_item=bool(outputs["known_item"][row]),
        known_user=bool(outputs["known_user"][row]),
    )
