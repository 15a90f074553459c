"""The arguments of a client's call as the arrays that a signature reads. No TensorFlow."""

import dataclasses
import datetime
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrec_attn.serve import tensors
from tfrec_attn.serve.signatures import Signature

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SCALARS = (numbers.Real, datetime.datetime)
_LARGEST_K = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Users:
    """Whom a call is about.

    Attributes:
      ids: Their ids.
      single: Whether the call named one user, so that every argument is that user's.
    """

    ids: tuple[str, ...]
    single: bool

    @classmethod
    def of(cls, user_id: Any) -> "Users":
        """From one id, or a list or tuple of them."""
        if isinstance(user_id, str | numbers.Integral):
            return cls((str(user_id),), single=True)
        if not len(user_id):
            raise ValueError("user_id must name at least one user: received none.")
        return cls(tuple(str(one) for one in user_id), single=False)

    def rows(self, values: Any) -> list:
        """One entry for each user; what is empty or a number stands for all of them."""
        if self.single:
            return [values]
        if values is None or isinstance(values, _SCALARS) or not len(values):
            return [values] * len(self.ids)
        if isinstance(values, str | Mapping) or len(values) != len(self.ids):
            raise ValueError(
                f"A call for {len(self.ids)} users needs one entry for each of them in "
                f"every argument: received {values!r}."
            )
        return list(values)

    def lists(self, name: str, values: Any) -> dict[str, np.ndarray]:
        """Ids for each user as `[B, n]`; nothing where no user has any."""
        rows = [[str(item) for item in row] for row in self._sequences(name, values)]
        longest = max(map(len, rows))
        return {name: _padded(rows, "", longest)} if longest else {}

    def boosts(self, values: Any) -> dict[str, np.ndarray]:
        """Conditions and what they add, `[B, n]` each; nothing where no user has any."""
        rows = [dict(row or {}) for row in self.rows(values)]
        longest = max(map(len, rows))
        if not longest:
            return {}
        added = np.zeros((len(rows), longest), np.float32)
        for row, one in zip(added, rows, strict=True):
            row[: len(one)] = list(one.values())
        return {
            "boost": _padded([list(row) for row in rows], "", longest),
            "boost_by": added,
        }

    def shares(self, name: str, values: Any) -> dict[str, np.ndarray]:
        """A number from 0 to 1 for each user; nothing where all are 0."""
        rows = self.rows(values)
        if not all(0 <= one <= 1 for one in rows):
            raise ValueError(f"{name} must be from 0 to 1: received {values!r}.")
        return {name: np.array(rows, np.float32)} if any(rows) else {}

    def inputs(
        self, history: Any, profile: Any, time: Any, feedback: Any, history_time: Any
    ) -> dict[str, np.ndarray]:
        """What every signature about users reads, as far as it is given."""
        given = {"user_id": tensors.as_array(self.ids), **self.lists("history", history)}
        given |= self._profile(profile)
        lengths = [len(row) for row in self._sequences("history", history)]
        labels = self._sequences("history_feedback", feedback)
        if _belongs("history_feedback", labels, lengths):
            given["history_feedback"] = _padded(labels, "", max(lengths))
        times = [
            [milliseconds(one) for one in row]
            for row in self._sequences("history_time", history_time)
        ]
        if _belongs("history_time", times, lengths):
            given["history_time"] = _padded(times, 0, max(lengths))
        now = [milliseconds(one or 0) for one in self.rows(time)]
        if any(now):
            given["time"] = np.array(now, np.int64)
        return given

    def _sequences(self, name: str, values: Any) -> list[list]:
        rows = self.rows(values)
        if any(isinstance(row, str) for row in rows):
            raise ValueError(f"{name} must be a list of values: received {values!r}.")
        return [[] if row is None else list(row) for row in rows]

    def _profile(self, profile: Any) -> dict[str, np.ndarray]:
        rows = [row or {} for row in self.rows(profile)]
        columns = sorted({column for row in rows for column in row})
        return {
            f"user_{column}": tensors.as_array([_cell(row.get(column)) for row in rows])
            for column in columns
        }


def _belongs(name: str, rows: list[list], lengths: list[int]) -> bool:
    """Whether a list about the history is given; it must be as long as the history."""
    if any(len(row) not in (0, n) for row, n in zip(rows, lengths, strict=True)):
        raise ValueError(
            f"{name} must have one entry for each item of history: received "
            f"{[len(row) for row in rows]} for {lengths}."
        )
    return any(rows)


def limits(users: Users, k: Any) -> list[int]:
    """How many items each user wants."""
    rows = users.rows(k)
    for one in rows:
        whole = isinstance(one, numbers.Integral) and not isinstance(one, bool)
        if not whole or not 1 <= one <= _LARGEST_K:
            raise ValueError(f"k must be a whole number of at least 1: received {one!r}.")
    return rows


def items(given: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Items by their text and columns, as `embed_item` reads them."""
    if isinstance(given, str) or not len(given):
        raise ValueError(
            "item must be a mapping of columns, or at least one of them: received "
            f"{given!r}."
        )
    columns = sorted({column for one in given for column in one})
    return {
        column if column == "text" else f"item_{column}": tensors.as_array(
            [_cell(one.get(column)) for one in given]
        )
        for column in columns
    }


def _padded(rows: Sequence[Sequence], fill: str | int, width: int) -> np.ndarray:
    full = [[*row, *[fill] * (width - len(row))] for row in rows]
    return tensors.as_array(np.array(full, np.int64 if fill == 0 else object))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple | set | frozenset):
        return "|".join(str(part) for part in value)
    return str(value)


def milliseconds(time: int | datetime.datetime) -> int:
    """Milliseconds since the epoch; a datetime without a zone is local time."""
    if isinstance(time, datetime.datetime):
        since = time.astimezone(datetime.UTC) - _EPOCH
        return since // datetime.timedelta(milliseconds=1)
    return int(time)


def fill(
    signatures: Mapping[str, Signature], name: str, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Every input of a signature: what is given, and "unknown" (empty, 0) for the rest.

    Args:
      signatures: What the model has.
      name: The signature to call.
      given: Arrays, one row a user or item. `k` is left out where the model does not
        read it.
    """
    if name not in signatures:
        # SavedModels carry one of their own with underscores, which nobody calls.
        known = ", ".join(sorted(one for one in signatures if not one.startswith("__")))
        raise ValueError(f'The model has no signature "{name}"; it has: {known}.')
    specs = signatures[name].inputs
    extra = sorted(set(given) - set(specs) - {"k"})
    if extra:
        known = ", ".join(sorted(specs))
        raise ValueError(f"The model does not read {', '.join(extra)}; it reads: {known}.")
    # The lists about the history are as long as the history itself.
    history = given["history"].shape[1] if "history" in given else 1
    filled = {}
    for key, spec in specs.items():
        if key in given:
            filled[key] = _cast(key, given[key], spec.dtype)
            continue
        free = history if key.startswith("history") else 1
        inner = [free if n < 0 else n for n in (spec.shape or ())[1:]]
        unknown = b"" if spec.dtype == object else 0
        filled[key] = np.full((_batch_size(given), *inner), unknown, spec.dtype)
    return filled


def _batch_size(given: Mapping[str, np.ndarray]) -> int:
    """Rows of the call; inputs that are left out are filled for as many."""
    return next((len(array) for array in given.values() if array.ndim), 1)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Narrows Python's wide numbers; text and fractions are not made whole numbers."""
    if array.dtype == dtype:
        return array
    if dtype.kind == "O":
        return tensors.as_array(array.astype(str))
    if array.dtype == object or not np.can_cast(array.dtype, dtype, "same_kind"):
        kind = "text" if array.dtype == object else array.dtype
        raise ValueError(f"{name} must be {dtype}: received {kind}.")
    return array.astype(dtype)
