"""Interactions by parts of the users: divided, ordered and cut one part at a time.

A user's events are all in one part, so that whatever is a function of a user's events is
one of a part. Letters: N events of a part, E examples, U users of it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn.data import examples, splits

FOLDS = ("train", "validation", "test")
# Of these two folds is a function of a user's events and of two points in time.
SPLITS = ("leave-last-out", "global-time")
# Events of a record, at least where there are as many: a few hundred kilobytes.
RECORD = 4096
# Of time, among which cuts are looked for.
SPANS = 2**16


def scattered(frame: pl.DataFrame, parts: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows by part, in order within each, and where each part begins and the last ends.

    Args:
      frame: With `user`, ids.
      parts: How many.
    """
    part = (frame["user"].hash(0) % parts).cast(pl.UInt32)
    frame = frame.with_columns(part=part).sort("part", maintain_order=True)
    bounds = np.searchsorted(frame["part"].to_numpy(), np.arange(parts + 1))
    return frame.drop("part"), bounds


@dataclasses.dataclass(frozen=True)
class Part:
    """Attributes:
    users: `[U]` ids, by row in this part.
    events: All N events; `user` are rows in this part.
    fold: `[N]` uint8, index into `FOLDS`.
    """

    users: pl.Series
    events: examples.Events
    fold: np.ndarray

    def of(self, *names: str) -> examples.Events:
        """The events of some folds."""
        wanted = np.isin(self.fold, [FOLDS.index(name) for name in names])
        return self.events.take(np.flatnonzero(wanted))


def ordered(
    frame: pl.DataFrame, cuts: tuple[int, int] | None, until: int | None = None
) -> Part:
    """A part out of its rows in file order.

    Args:
      frame: `user` (ids, or numbers), `item`, `time`, `feedback`, `weight`, `row`.
      cuts: The first times of validation and test; None leaves each user's last out.
      until: Events until then are training, and the others alone are divided.
    """
    users = None
    if not frame["user"].dtype.is_integer():
        users = frame["user"].unique(maintain_order=True)
        code = pl.DataFrame({"user": users}).with_row_index("code")
        frame = frame.join(code, on="user", how="left", maintain_order="left")
        frame = frame.with_columns(user=pl.col("code").cast(pl.Int64))
    frame = _by_user_and_time(frame)
    number = frame["user"].to_numpy()
    begins = np.ones(len(number), bool)
    begins[1:] = np.diff(number) != 0
    if users is None:
        users = frame["user"].filter(pl.Series(begins)).cast(pl.String)
    column = lambda name, dtype: frame[name].to_numpy().astype(dtype, copy=False)
    events = examples.Events(
        (np.cumsum(begins) - 1).astype(np.int32),
        column("item", np.int32),
        column("time", np.int64),
        column("feedback", np.int8),
        column("weight", np.float32),
        column("row", np.int64),
    )
    new = np.flatnonzero(is_new(events.time, until))
    fold = np.zeros(len(events), np.int64)
    if cuts is None:
        fold[new] = splits.last_of_each(events.user[new])
    else:
        fold[new] = np.searchsorted(cuts, events.time[new], side="right")
    return Part(users.alias("user"), events, fold.astype(np.uint8))


def is_new(time: np.ndarray, until: int | None) -> np.ndarray:
    """`[N]` bool, of times: which are later; all where there is no `until`."""
    return np.ones(len(time), bool) if until is None else np.asarray(time > until)


def learned(
    past: examples.Events, until: int | None, replay: float, seed: tuple[int, int]
) -> np.ndarray:
    """`[N]` bool: which events of training are targets. All new ones, and of the old ones
    the share `replay`, by chance."""
    again = np.random.default_rng(seed).random(len(past)) < replay
    return is_new(past.time, until) | again


def _by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """In order; rows of one user and time stay in that in which they are."""
    ends = frame.select(
        pl.min("user", "time").name.suffix(" low"), pl.max("user", "time")
    ).row(0, named=True)
    users, times = (ends[n] - ends[f"{n} low"] + 1 for n in ("user", "time"))
    if users * times >= 2**63:
        return frame.sort("user", "time", maintain_order=True)
    # One number is sorted faster than two.
    user, time = (pl.col(name) - ends[f"{name} low"] for name in ("user", "time"))
    return frame.sort(user * times + time, maintain_order=True)


def records(
    cut: examples.Examples, size: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Examples whose targets are among their histories, in records of whole users.

    Args:
      cut: E examples, in order of user.
      size: Events of a record, but for what the last of its users has more; `RECORD` by
        default.

    Yields:
      `user` `[u]` rows and `events` `[u]` how many each has; `item`, `time`, `feedback`,
      `weight` `[n]` of these events; `goal` `[g]`, which of them are targets, empty where
      all are; `stop` `[g]` and `first`, `last`, `begin`, `end` `[e]` of
      `examples.Examples`, from the record's first event and target.
    """
    past, size = cut.history, size or RECORD
    whole = len(cut.targets) == len(past)
    goal = np.arange(len(past))
    if not whole:
        goal = np.flatnonzero(np.isin(past.row, cut.targets.row))
    if not len(past):
        return
    starts = np.flatnonzero(np.diff(past.user, prepend=-1))
    sizes = np.diff(starts, append=len(past))
    heads = np.flatnonzero(np.diff(starts // size, prepend=-1))
    owner = np.searchsorted(starts, goal[cut.begin], side="right") - 1
    for head, tail in zip(heads, [*heads[1:], len(starts)], strict=True):
        at = slice(starts[head], starts[tail] if tail < len(starts) else len(past))
        mine = slice(*np.searchsorted(owner, [head, tail]))
        asked = slice(*np.searchsorted(goal, [at.start, at.stop]))
        place = lambda value, at=at: (value - at.start).astype(np.int32)
        yield {
            "user": past.user[starts[head:tail]],
            "events": sizes[head:tail].astype(np.int32),
            **{n: getattr(past, n)[at] for n in ("item", "time", "feedback", "weight")},
            "goal": place(goal[asked])[: 0 if whole else None],
            "stop": place(cut.stop[asked]),
            **{n: place(getattr(cut, n)[mine]) for n in ("first", "last")},
            **{n: place(getattr(cut, n)[mine], asked) for n in ("begin", "end")},
        }


def known(fold: str) -> tuple[str, ...]:
    """The folds that are history of a fold."""
    return FOLDS[: FOLDS.index(fold)]


def fresh(part: Part, fold: str, n_items: int) -> np.ndarray:
    """`[n]` bool: which events of a fold are of items that are new to their users."""
    goal = part.fold == FOLDS.index(fold)
    past = part.fold < FOLDS.index(fold)
    pair = part.events.user.astype(np.int64) * n_items + part.events.item
    asked, before = pl.Series(pair[goal]), pl.Series(pair[past])
    # The goals are few, and of those few again are known.
    again = before.filter(before.is_in(asked.implode()))
    return ~asked.is_in(again.implode()).to_numpy()


def counted(part: Part, positive: np.ndarray, n_items: int) -> dict[str, Any]:
    """What a part adds to the figures of all: sums, and by item.

    Args:
      part: N events.
      positive: `[labels]` bool.
      n_items: I.

    Returns:
      `arrays` by item: of each fold the positive events, `seen`, `asked` whether any event
      is in training, or held out; and `sums`.
    """
    events, liked = part.events, positive[part.events.feedback]
    sums: dict[str, int] = {"users": len(part.users)}
    count = lambda rows, size: np.bincount(rows, minlength=size)
    arrays: dict[str, np.ndarray] = {}
    for number, fold in enumerate(FOLDS):
        mine = part.fold == number
        arrays[fold] = count(events.item[mine & liked], n_items).astype(np.int32)
        sums[fold] = int(mine.sum())
        if number:
            new = fresh(part, fold, n_items)
            sums[f"{fold} queries"] = int((new & liked[mine]).sum())
            sums[f"{fold} repeated"] = int((~new).sum())
    train = part.fold == 0
    arrays["seen"], arrays["asked"] = (
        count(events.item[mine], n_items) > 0 for mine in (train, ~train)
    )
    trained, held = (
        count(events.user[mine], len(part.users)) > 0 for mine in (train, ~train)
    )
    sums["users_only_in_training"] = int((trained & ~held).sum())
    sums["users_not_in_training"] = int((held & ~trained).sum())
    return {"arrays": arrays, "sums": sums}


def cuts(
    times: Callable[[], Iterable[np.ndarray]], n: int, validation: float, test: float
) -> tuple[int, int]:
    """The first times of validation and test; see `splits.global_time`.

    Two passes in the memory of a few: how many events fall into each of many equal spans,
    then those of the two spans that have the cuts.

    Args:
      times: Gives the times of all events, array by array, as often as it is called.
      n: How many there are.
      validation, test: Shares of the events.
    """
    ends = [(part.min(), part.max()) for part in times()]
    low, high = min(a for a, _ in ends), max(b for _, b in ends)
    step = max(1, -(-int(high - low + 1) // SPANS))
    spans = np.zeros(SPANS, np.int64)
    for part in times():
        spans += np.bincount((part - low) // step, minlength=SPANS)
    before = np.cumsum(spans)
    found = []
    for place in splits.first_places(n, validation, test):
        span = int(np.searchsorted(before, place, side="right"))
        mine = [part[(part - low) // step == span] for part in times()]
        rank = place - (before[span] - spans[span])
        found.append(int(np.partition(np.concatenate(mine), rank)[rank]))
    return found[0], found[1]
