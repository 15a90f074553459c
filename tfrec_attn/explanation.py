"""What carried a score: the served signature `explain` in words. No TensorFlow.

    with Client("localhost:8500", "movielens") as client:
        for word in explain(client, "42", "56").item_parts:
            print(word.contribution, word.text)

Letters: n tokens of a user, m of an item.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tfrec_attn.serve.client import Client, Token

# What a reader calls tokens that stand for no value of the tables.
_WHOLES = {
    "item": "the item as a whole",
    "user": "the user as a whole",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One token.

    Attributes:
      kind: `whole`, `column`, `word` (of the item's text) or `event` (of the history).
      name: What the model calls it: `item`, `genres=Drama`, `history=56`, a word in the
        backbone's spelling.
      text: What a reader calls it: a word as the text has it, the text of an event's item.
      contribution: What it adds to the score.
      span: Where a word stands in `Explanation.item_text`; None for what has no place
        there (what the vocabulary lacks).
    """

    kind: str
    name: str
    text: str
    contribution: float
    span: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What carried the score of one item for one user.

    `retrieval` and the contributions of the item's parts sum to `score`; so do `retrieval`
    and those of the user's parts. They share out the same number from two sides.

    Attributes:
      user, item: Ids.
      item_text: What the model read of the item.
      score: As `Client.score` gives it.
      retrieval: The pooled cosine's share.
      item_parts: In the order of the tokens; padding is left out.
      user_parts: Profile, the user as a whole, then the events, the latest last.
      attention: For each of the user's parts a row: how much each of the item's parts
        looks at it, the mean over heads. With
        `model.mode = "softmax"` a column sums to 1; with `"article"` these are cosines.
      known_user: Whether the model has seen this user id.
      unknown_history: Ids of the history asked with that the model does not know.
    """

    user: str
    item: str
    item_text: str
    score: float
    retrieval: float
    item_parts: tuple[Part, ...]
    user_parts: tuple[Part, ...]
    attention: tuple[tuple[float, ...], ...]
    known_user: bool
    unknown_history: tuple[str, ...]


def explain(
    client: Client,
    user_id: str | int,
    item_id: str | int,
    history: Sequence[str | int] = (),
    profile: Mapping[str, Any] | Sequence = (),
    time: Any = None,
    history_feedback: Sequence[str] = (),
    history_time: Sequence[Any] = (),
) -> Explanation:
    """Asks a server what carried the score of one item for one user.

    Args:
      client: An open client.
      user_id: One id; others as in `Client.recommend`.
      item_id: An item of the catalogue, seen by the user or not.

    Raises:
      ValueError: When the model has no signature `explain`, does not know the item, or
        knows nothing of the user: an unknown id without history and profile.
      ServerError: When the server refuses or does not answer.
    """
    user, item = str(user_id), str(item_id)
    found = client.explain(
        user, item, history, profile, time, history_feedback, history_time
    )
    if not found.known_item:
        raise ValueError(
            f"The model does not know the item {item!r}: it explains items that were in "
            "the items table when it was exported."
        )
    if not (found.known_user or len(history) or profile):
        raise ValueError(
            f"The model does not know the user {user!r}, so there is nothing to "
            "explain. Name one that it knows, or give a history or a profile."
        )
    given = [str(one) for one in history if one != ""]
    events = found.user_tokens[_events_begin(found.user_tokens) :]
    seen = [token.name.removeprefix("history=") for token in events]
    texts = _texts(client, [item, *given, *seen])
    item_text = texts.get(item, "")
    return Explanation(
        user=user,
        item=item,
        item_text=item_text,
        score=found.score,
        retrieval=found.retrieval,
        item_parts=tuple(_item_parts(found.item_tokens, item_text)),
        user_parts=tuple(_user_parts(found.user_tokens, texts)),
        attention=tuple(map(tuple, found.attention.astype(float).tolist())),
        known_user=found.known_user,
        unknown_history=tuple(one for one in given if one not in texts),
    )


def _texts(client: Client, ids: Sequence[str]) -> dict[str, str]:
    """What the model read of each item, by id; unknown ids are left out."""
    found: dict[str, str] = {}
    wanted = sorted({one for one in ids if one})
    while wanted:
        # For nobody no item is left out as seen; a model may answer less than is asked.
        answer = client.recommend("", candidates=wanted, k=len(wanted)).items
        found |= {one.id: one.text for one in answer}
        wanted = [one for one in wanted if one not in found] if answer else []
    return found


def _events_begin(tokens: Sequence[Token]) -> int:
    """The events stand behind the last `user`: their names all begin with `history=`."""
    return len(tokens) - [token.name for token in reversed(tokens)].index("user")


def _item_parts(tokens: Sequence[Token], text: str) -> list[Part]:
    words = [i for i, token in enumerate(tokens) if token.name.startswith("text=")]
    names = [tokens[i].name.removeprefix("text=") for i in words]
    place = dict(zip(words, spans(text, names), strict=True))
    parts = []
    for i, token in enumerate(tokens):
        if i in place:
            name, span = token.name.removeprefix("text="), place[i]
            shown = text[slice(*span)] if span else name
            parts.append(Part("word", name, shown, token.contribution, span))
        else:
            kind = "column" if i else "whole"
            shown = _shown(kind, token.name)
            parts.append(Part(kind, token.name, shown, token.contribution))
    return parts


def _user_parts(tokens: Sequence[Token], texts: Mapping[str, str]) -> list[Part]:
    begin = _events_begin(tokens)
    kinds = ["column"] * (begin - 1) + ["whole"] + ["event"] * (len(tokens) - begin)

    def text(kind: str, name: str) -> str:
        id_ = name.removeprefix("history=")
        return texts.get(id_, id_) if kind == "event" else _shown(kind, name)

    return [
        Part(kind, token.name, text(kind, token.name), token.contribution)
        for kind, token in zip(kinds, tokens, strict=True)
    ]


def _shown(kind: str, name: str) -> str:
    return _WHOLES[name] if kind == "whole" else name


def spans(text: str, words: Sequence[str]) -> list[tuple[int, int] | None]:
    """Where WordPiece's words stand in the text that they were made of, one after another.

    Case, accents and control characters do not count: a checkpoint may leave them out. A
    word that is not found (`[UNK]`) is what stands between its neighbours, None where they
    are not found either.
    """
    letters = [(letter, i) for i, one in enumerate(text) for letter in _folded(one)]
    folded = "".join(letter for letter, _ in letters)
    begins = [i for _, i in letters] + [len(text)]
    found: list[tuple[int, int] | None] = [(0, 0)]
    at = 0
    for word in words:
        key = "".join(map(_folded, word))
        start = folded.find(key, at)
        if start < 0:
            found.append(None)
            continue
        at = start + len(key)
        # A mark that was left out behind a letter belongs to it.
        found.append((begins[start], max(begins[at], begins[at - 1] + 1)))
    found.append((len(text), len(text)))
    return [
        span or _between(text, found[i - 1], found[i + 1])
        for i, span in enumerate(found[1:-1], 1)
    ]


def _folded(letter: str) -> str:
    parts = unicodedata.normalize("NFD", letter.lower())
    return "".join(one for one in parts if unicodedata.category(one)[0] not in "MC")


def _between(text, before, after) -> tuple[int, int] | None:
    if not (before and after):
        return None
    match = re.compile(r"\S+").search(text, before[1], after[0])
    return match.span() if match else None
