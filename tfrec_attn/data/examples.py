"""History windows and targets, as integers; nothing at or after a target is in its history.

Letters: N events, U users, E examples, T targets of an example, L events of history.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Events:
    """Interactions sorted by user, then time, then row: where histories are cut from.

    Attributes:
      user, item: `[N]` int32 rows.
      time: `[N]` int64 milliseconds.
      feedback: `[N]` int8, index into `LABELS`.
      weight: `[N]` float32.
      row: `[N]` int64, row of the interactions table.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    feedback: np.ndarray
    weight: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> "Events":
        """The events at `index`, which must keep their order."""
        return Events(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def sort(user, item, time, feedback, weight, rows=None) -> Events:
    """Sorts the chosen rows of an interactions table, all of them by default.

    Args:
      user, item, time, feedback, weight: `[N]` columns in file order.
      rows: `[n]` rows to keep.
    """
    rows = np.arange(len(user)) if rows is None else np.asarray(rows, np.int64)
    user, item, time = (
        np.asarray(user)[rows],
        np.asarray(item)[rows],
        np.asarray(time)[rows],
    )
    order = np.lexsort((rows, time, user))
    return Events(
        user[order].astype(np.int32),
        item[order].astype(np.int32),
        time[order].astype(np.int64),
        np.asarray(feedback)[rows][order].astype(np.int8),
        np.asarray(weight)[rows][order].astype(np.float32),
        rows[order],
    )


def before(history: Events, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Where the history of a user ends at a time.

    Args:
      history: N events.
      user, time: `[n]` whose history, until when.

    Returns:
      `[n]` positions in `history`: the events of `user` strictly before `time` end there
      (and begin at `begins(history, user)`).
    """
    if user is history.user and time is history.time:
        # They are in order: the first event of its moment stands where its past ends.
        place = np.arange(len(user))
        fresh = np.ones(len(user), bool)
        fresh[1:] = (np.diff(user) != 0) | (np.diff(time) != 0)
        return np.maximum.accumulate(np.where(fresh, place, 0))
    moments = np.unique(np.concatenate([history.time, time]))
    key = lambda u, t: u.astype(np.int64) * len(moments) + np.searchsorted(moments, t)
    return np.searchsorted(key(history.user, history.time), key(user, time))


def begins(history: Events, user: np.ndarray) -> np.ndarray:
    """Position in `history` where each of `user [n]` begins."""
    return np.searchsorted(history.user, user)


@dataclasses.dataclass(frozen=True)
class Examples:
    """One example is a window of a user's history and up to T targets that follow parts
    of it: target i sees the window's events from `first` up to, not including, `stop[i]`.

    Attributes:
      history: The events that windows are cut from.
      targets: The target events, sorted like `history`.
      stop: `[len(targets)]` position in `history` where a target's past ends.
      user: `[E]` user row.
      first, last: `[E]` the window is `history[first:last]`.
      begin, end: `[E]` the example's targets are `targets[begin:end]`.
      width: Most events of a window.
      length: L, most events that one target sees.
      count: T, most targets of an example.
    """

    history: Events
    targets: Events
    stop: np.ndarray
    user: np.ndarray
    first: np.ndarray
    last: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    width: int
    length: int
    count: int

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_targets(self) -> int:
        """Of an epoch."""
        return len(self.targets)

    def singly(self) -> "Examples":
        """The same targets, each with a window of its own."""
        return make(self.history, self.targets, length=self.length)


def make(history: Events, targets: Events, *, length: int, count: int = 1) -> Examples:
    """Cuts one window around each run of up to `count` targets of one user.

    Args:
      history: Events that may be seen. May contain the targets: a target sees only
        what is strictly before it.
      targets: Events to be predicted.
      length: L, most events that a target sees, the latest ones.
      count: T, most targets that share a window.

    Returns:
      Examples in the order of `targets`, each target in exactly one of them.
    """
    stop = before(history, targets.user, targets.time)
    start = begins(history, targets.user)
    block = (stop - start) // count
    fresh = np.ones(len(targets), bool)
    fresh[1:] = (np.diff(targets.user) != 0) | (np.diff(block) != 0)
    position = np.arange(len(targets))
    place = position - np.maximum.accumulate(np.where(fresh, position, 0))
    begin = np.flatnonzero(fresh | (place % count == 0))
    end = np.append(begin[1:], len(targets))
    last = stop[end - 1] if len(begin) else stop
    return Examples(
        history=history,
        targets=targets,
        stop=stop,
        user=targets.user[begin],
        first=np.maximum(start[begin], stop[begin] - length),
        last=last,
        begin=begin,
        end=end,
        width=length + count - 1,
        length=length,
        count=count,
    )
