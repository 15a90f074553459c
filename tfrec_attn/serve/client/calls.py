"""Every call of a client as steps: what is asked, and what is made of the answers.

A call is a generator that yields requests and is sent their answers, or the error that
came in place of one. It neither blocks nor awaits: `client` runs it either way.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

from tfrec_attn.serve import tensors
from tfrec_attn.serve.client import answers, inputs
from tfrec_attn.serve.client.inputs import Users
from tfrec_attn.serve.client.messages import Arrays, Outputs
from tfrec_attn.serve.client.retries import ServerError
from tfrec_attn.serve.signatures import Metadata

RECOMMEND = "serving_default"
T = TypeVar("T")
Steps = Generator[Any, Any, T]
Batch = list[str] | list[int] | tuple[str | int, ...]
Item = Mapping[str, Any]


class Messages(Protocol):
    """What `messages.GrpcMessages` and `messages.RestMessages` have in common."""

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Any: ...
    def outputs(self, answer: Any, specs: Outputs) -> Arrays | None: ...
    def metadata(self) -> Any: ...
    def described(self, answer: Any) -> Metadata: ...


@dataclasses.dataclass(frozen=True)
class Call(Generic[T]):
    """A call that has not been made.

    Attributes:
      steps: Yields requests, returns the result.
      timeout: Seconds that all of them may take together; None takes the client's.
    """

    steps: Steps[T]
    timeout: float | None


class Calls:
    """The calls to one model; arguments are checked before anything is sent.

    All but `metadata` and `predict` take one user or item, or a list or tuple of them with
    one entry for each in every other argument (an empty argument means none for all), and
    answer with one result or a list. What the model reads and the caller does not give is
    filled with "unknown", by the metadata that the server is asked for once.
    """

    def __init__(self, messages: Messages):
        self._messages = messages
        self._known: Metadata | None = None

    def metadata(
        self, *, refresh: bool = False, timeout: float | None = None
    ) -> Call[Metadata]:
        """The model's version and signatures, asked once or when `refresh` says so."""
        return Call(self._described(refresh), timeout)

    def predict(
        self, signature: str, inputs: Mapping[str, Any], *, timeout: float | None = None
    ) -> Call[Arrays]:
        """Calls any signature; strings come back as bytes.

        Args:
          signature: Its name, for example "embed_item".
          inputs: Arrays or nested lists by input. What is left out is filled with
            "unknown" (empty, 0), for as many rows as the first of `inputs` has.
          timeout: Seconds, instead of the client's.
        """
        arrays = {name: tensors.as_array(values) for name, values in inputs.items()}
        return Call(self._filled(signature, arrays), timeout)

    @overload
    def recommend(
        self, user_id: str | int, *args: Any, **kwargs: Any
    ) -> Call[answers.Recommendations]: ...
    @overload
    def recommend(
        self, user_id: Batch, *args: Any, **kwargs: Any
    ) -> Call[list[answers.Recommendations]]: ...
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
        *,
        require=(),
        forbid=(),
        boost=(),
        diversity=0.0,
        timeout=None,
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
          require: Conditions that items must meet, such as "genres=Drama|Comedy" or
            "price<=20", where the version was exported with `index.filters`.
          forbid: Conditions that they must not meet.
          boost: What is added to the score of items that meet a condition, by condition.
          diversity: From 0 to 1: how much an item is to be unlike those before it, where
            the version was exported with `index.diversity`.
          timeout: Seconds, instead of the client's.
        """
        users = Users.of(user_id)
        limits = inputs.limits(users, k)
        given = {
            "k": np.array(limits, np.int32),
            **users.lists("exclude", exclude),
            **users.lists("candidates", candidates),
            **users.lists("require", require),
            **users.lists("forbid", forbid),
            **users.boosts(boost),
            **users.shares("diversity", diversity),
            **users.inputs(history, profile, time, history_feedback, history_time),
        }
        read = lambda outputs: answers.recommendations(outputs, limits)
        return self._of_rows(RECOMMEND, given, read, users.single, timeout)

    @overload
    def score(
        self, user_id: str | int, *args: Any, **kwargs: Any
    ) -> Call[answers.Scores]: ...
    @overload
    def score(
        self, user_id: Batch, *args: Any, **kwargs: Any
    ) -> Call[list[answers.Scores]]: ...
    def score(
        self,
        user_id,
        candidates,
        history=(),
        profile=(),
        time=None,
        history_feedback=(),
        history_time=(),
        *,
        timeout=None,
    ):
        """How well each candidate fits a user; arguments as in `recommend`."""
        users = Users.of(user_id)
        asked = users.rows(candidates)
        given = {
            **users.lists("candidates", candidates),
            **users.inputs(history, profile, time, history_feedback, history_time),
        }
        read = lambda outputs: answers.scores(outputs, asked)
        return self._of_rows("score", given, read, users.single, timeout)

    @overload
    def embed_user(
        self, user_id: str | int, *args: Any, **kwargs: Any
    ) -> Call[answers.UserEmbedding]: ...
    @overload
    def embed_user(
        self, user_id: Batch, *args: Any, **kwargs: Any
    ) -> Call[list[answers.UserEmbedding]]: ...
    def embed_user(
        self,
        user_id,
        history=(),
        profile=(),
        time=None,
        history_feedback=(),
        history_time=(),
        *,
        timeout=None,
    ):
        """A user's vector, to search an index of one's own; arguments as in `recommend`."""
        users = Users.of(user_id)
        given = users.inputs(history, profile, time, history_feedback, history_time)
        return self._of_rows(
            "embed_user", given, answers.user_embeddings, users.single, timeout
        )

    @overload
    def embed_item(
        self, item: Item, *, timeout: float | None = None
    ) -> Call[answers.ItemEmbedding]: ...
    @overload
    def embed_item(
        self, item: Sequence[Item], *, timeout: float | None = None
    ) -> Call[list[answers.ItemEmbedding]]: ...
    def embed_item(self, item, *, timeout=None):
        """The vector of an item that the model need not know.

        Args:
          item: `text` and the item's columns, for example `{"text": "A film (1998)",
            "genres": ["Comedy"]}`; or a sequence of such items.
          timeout: Seconds, instead of the client's.
        """
        single = isinstance(item, Mapping)
        given = inputs.items([item] if single else item)
        return self._of_rows("embed_item", given, answers.item_embeddings, single, timeout)

    @overload
    def explain(
        self, user_id: str | int, item: str | int, *args: Any, **kwargs: Any
    ) -> Call[answers.Contributions]: ...
    @overload
    def explain(
        self, user_id: Batch, item: Batch, *args: Any, **kwargs: Any
    ) -> Call[list[answers.Contributions]]: ...
    def explain(
        self,
        user_id,
        item,
        history=(),
        profile=(),
        time=None,
        history_feedback=(),
        history_time=(),
        *,
        timeout=None,
    ):
        """What each token adds to the score of one item for a user.

        Args:
          user_id: One id, or a sequence of them for a batch.
          item: An item id; in a batch one for each user.
          history, profile, time, history_feedback, history_time, timeout: As in
            `recommend`.
        """
        users = Users.of(user_id)
        given = {
            "item": tensors.as_array([str(one) for one in users.rows(item)]),
            **users.inputs(history, profile, time, history_feedback, history_time),
        }
        return self._of_rows("explain", given, answers.contributions, users.single, timeout)

    def _of_rows(
        self,
        signature: str,
        given: Mapping[str, np.ndarray],
        read: Callable[[Arrays], list],
        single: bool,
        timeout: float | None,
    ) -> Call[Any]:
        def steps() -> Steps[Any]:
            rows = read((yield from self._filled(signature, given)))
            return rows[0] if single else rows

        return Call(steps(), timeout)

    def _described(self, refresh: bool = False) -> Steps[Metadata]:
        if self._known is None or refresh:
            self._known = self._messages.described((yield self._messages.metadata()))
        return self._known

    def _filled(self, signature: str, given: Mapping[str, np.ndarray]) -> Steps[Arrays]:
        known = yield from self._described()
        try:
            return (yield from self._outputs(known, signature, given))
        except (ServerError, ValueError) as error:
            if isinstance(error, ServerError) and error.code != "INVALID_ARGUMENT":
                raise
            # A newer version may read other columns than the one that was asked about.
            fresh = yield from self._described(refresh=True)
            if fresh.signatures == known.signatures:
                raise
            return (yield from self._outputs(fresh, signature, given))

    def _outputs(
        self, known: Metadata, signature: str, given: Mapping[str, np.ndarray]
    ) -> Steps[Arrays]:
        filled = inputs.fill(known.signatures, signature, given)
        answer = yield self._messages.predict(signature, filled)
        found = self._messages.outputs(answer, known.signatures[signature].outputs)
        if found is None:
            # A newer version answers other outputs than the one that was asked about.
            known = yield from self._described(refresh=True)
            found = self._messages.outputs(answer, known.signatures[signature].outputs)
        if found is None:
            raise ServerError(
                "UNKNOWN", f"the outputs of {signature!r} are not those of its metadata"
            )
        return found
