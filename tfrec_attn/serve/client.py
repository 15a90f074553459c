"""The Python client of a served model, over gRPC or REST. It imports no TensorFlow.

with Client("localhost:8500", model="movielens") as client:
    for item in client.recommend("42", history=["50", "172"], k=5).items:
        print(item.score, item.id, item.text)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from tfrec_attn.serve import tensors
from tfrec_attn.serve.inputs import Users, fill, limits
from tfrec_attn.serve.transports import (
    GrpcTransport,
    Metadata,
    RestTransport,
    ServerError,
    Signature,
    TensorSpec,
)

__all__ = [
    "Client",
    "Metadata",
    "Recommendation",
    "Recommendations",
    "Score",
    "Scores",
    "ServerError",
    "Signature",
    "TensorSpec",
]

RECOMMEND = "serving_default"
SCORE = "score"

Batch = list[str] | list[int] | tuple[str | int, ...]


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


class Client:
    """Calls one model of one server; threads may share it.

    `recommend` and `score` take one user, or a sequence of users with one entry for each
    of them in every other argument (an empty argument means none for all). What the
    model reads and the caller does not give is filled with "unknown", by the metadata
    that the server is asked for once.

    Args:
      target: "host:port", or "http://host:port" for REST.
      model: The name under which it is served.
      protocol: "grpc" or "rest"; by default what `target` looks like.
      timeout: Seconds until a call fails.
    """

    def __init__(
        self,
        target: str = "localhost:8500",
        model: str = "movielens",
        *,
        protocol: str | None = None,
        timeout: float = 10.0,
    ):
        protocol = protocol or ("rest" if "://" in target else "grpc")
        if protocol not in ("grpc", "rest"):
            raise ValueError(f'protocol must be "grpc" or "rest": received {protocol!r}.')
        if protocol == "grpc" and "://" in target:
            raise ValueError(
                f'target must be "host:port" for gRPC: received {target!r}. '
                'Drop the scheme, or say protocol="rest".'
            )
        transport = GrpcTransport if protocol == "grpc" else RestTransport
        self._transport = transport(target, model, timeout)
        self._metadata: Metadata | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def metadata(self, *, refresh: bool = False) -> Metadata:
        """The model's version and signatures, asked once or when `refresh` says so."""
        if self._metadata is None or refresh:
            self._metadata = self._transport.metadata()
        return self._metadata

    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls any signature; strings come back as bytes.

        Args:
          signature: Its name, for example "embed_item".
          inputs: Arrays or nested lists by input. What is left out is filled with
            "unknown" (empty, 0), for as many rows as the first of `inputs` has.
        """
        arrays = {name: tensors.as_array(values) for name, values in inputs.items()}
        return self._filled(signature, arrays)

    @overload
    def recommend(
        self, user_id: str | int, *args: Any, **kwargs: Any
    ) -> Recommendations: ...
    @overload
    def recommend(
        self, user_id: Batch, *args: Any, **kwargs: Any
    ) -> list[Recommendations]: ...
    def recommend(
        self,
        user_id,
        history=(),
        k=10,
        exclude=(),
        candidates=(),
        profile=(),
        time=None,
        history_feedback=(),
        history_time=(),
    ):
        """The best items for a user.

        Args:
          user_id: One id, or a sequence of them for a batch.
          history: Item ids, oldest first; empty means what is stored for the user.
          k: How many items; in a batch also one number for each user.
          exclude: Item ids to leave out, besides the history.
          candidates: Item ids to choose among; empty means the whole catalogue.
          profile: The user's columns, for example `{"age": 30}`; categories as a list.
          time: When the items are wanted: milliseconds since the epoch or a datetime.
          history_feedback: A label for each item of the history.
          history_time: A time for each item of the history.
        """
        users = Users.of(user_id)
        wanted = limits(users, k)
        given = {
            "k": np.array(wanted, np.int32),
            **users.lists("exclude", exclude),
            **users.lists("candidates", candidates),
            **users.inputs(history, profile, time, history_feedback, history_time),
        }
        outputs = self._filled(RECOMMEND, given)
        rows = [_recommendations(outputs, row, limit) for row, limit in enumerate(wanted)]
        return rows[0] if users.single else rows

    @overload
    def score(self, user_id: str | int, *args: Any, **kwargs: Any) -> Scores: ...
    @overload
    def score(self, user_id: Batch, *args: Any, **kwargs: Any) -> list[Scores]: ...
    def score(
        self,
        user_id,
        candidates,
        history=(),
        profile=(),
        time=None,
        history_feedback=(),
        history_time=(),
    ):
        """How well each candidate fits a user; arguments as in `recommend`.

        Returns:
          `Scores`, or a list of them for a batch of users.
        """
        users = Users.of(user_id)
        given = {
            **users.lists("candidates", candidates),
            **users.inputs(history, profile, time, history_feedback, history_time),
        }
        outputs = self._filled(SCORE, given)
        asked = enumerate(users.rows(candidates))
        rows = [_scores(outputs, row, items) for row, items in asked]
        return rows[0] if users.single else rows

    def _filled(self, signature: str, given: Mapping[str, np.ndarray]) -> dict:
        specs = self.metadata().signatures
        try:
            return self._transport.predict(signature, fill(specs, signature, given))
        except (ServerError, ValueError) as error:
            if isinstance(error, ServerError) and error.code != "INVALID_ARGUMENT":
                raise
            # A newer version may read other columns than the one that was asked about.
            fresh = self.metadata(refresh=True).signatures
            if fresh == specs:
                raise
            return self._transport.predict(signature, fill(fresh, signature, given))


def _recommendations(
    outputs: Mapping[str, np.ndarray], row: int, k: int
) -> Recommendations:
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


def _scores(outputs: Mapping[str, np.ndarray], row: int, asked: Sequence) -> Scores:
    scores, known = outputs["score"][row], outputs["known_item"][row]
    return Scores(
        items=tuple(
            Score(str(item), float(scores[i]), bool(known[i]))
            for i, item in enumerate(asked)
        ),
        known_user=bool(outputs["known_user"][row]),
    )
