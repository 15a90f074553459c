"""Splits of the interactions: row numbers, and what each fold promises.

`N` interactions in file order, as three arrays: the row of the user, the row of the item,
the time in milliseconds. A split names rows; it copies and drops nothing.

What a fold may be used for is the same for every split:

- `train` is learned from, and counts and weights are of it alone. Vocabularies and
  quantiles are of the tables of items and users, which are known as a whole.
- `validation` chooses settings and the epoch to stop at; `test` is looked at once.
- The history of a target is its user's events strictly before the target's time: of
  `train` and `context` for a validation target, of `train`, `validation` and `context`
  for a test target. Never of the fold the target is in.
- Left out of the ranking are all items of those same folds, whatever their time: the
  user knows them.

Rows whose feedback makes them no targets are the caller's to leave out of a fold.
"""

import dataclasses
import hashlib
import inspect

import numpy as np

# Of the two that `data.partitions` makes too.
PROMISES = {
    "leave_last_out": "Within a user, nothing later than a target is trained on. Other "
    "users' later events are: what became popular after a target's time leaks into "
    "training.",
    "global_time": "No training event is at or later than the first validation event, and "
    "no validation event at or later than the first test event, over all users. Targets "
    "may be of users and items that training has never seen.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Sorted row numbers of each fold: disjoint, and together all rows.

    Attributes:
      name: The function that made it.
      train: `[n]` int64 rows to learn from.
      validation: `[n]` int64 rows to choose settings by.
      test: `[n]` int64 rows for the figures that are reported.
      context: `[n]` int64 rows that serve as history only: neither learned from nor
        asked for. Empty but for `cold_users(given=...)`.
      promise: Which leakage the split prevents and which it does not, for the report.
      users_only_in_training: Users with no target, such as those with too few events.
      users_not_in_training: Users with targets and not one event in `train`.
      items_not_in_training: Items that are targets and have no event in `train`.
      digest: sha256 of `train`, `validation` and `test`. Two results are of one split
        exactly when their digests agree.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    context: np.ndarray
    promise: str
    users_only_in_training: int
    users_not_in_training: int
    items_not_in_training: int
    digest: str

    def known(self, fold):
        """Rows that are history of, and left out for, a "validation" or "test" target."""
        _require(
            fold in ("validation", "test"), 'fold must be "validation" or "test"', fold
        )
        before = (self.train, self.context, *([self.validation] if fold == "test" else []))
        return np.sort(np.concatenate(before))


def leave_last_out(user, item, time, *, min_events=3):
    """Each user's last event is test, the one before it validation, the rest training.

    Events of one time are in file order. Users with fewer than `min_events` events stay
    in training only.
    """
    user, item, time = _events(user, item, time)
    _require(
        min_events >= 3, "min_events must be at least 3, one for each fold", min_events
    )
    from_end = _place_in_user(user, _by_time(time)[::-1])
    asked = np.bincount(user)[user] >= min_events
    return _split(
        "leave_last_out",
        user,
        item,
        validation=asked & (from_end == 1),
        test=asked & (from_end == 0),
        promise=PROMISES["leave_last_out"],
    )


def global_time(user, item, time, *, validation=0.1, test=0.1):
    """Two cuts in time: the last `test` of the events, and the `validation` before them.

    Events of the time at a cut go together, into the later fold; so a fold may be
    larger than asked, and the ones before it smaller.
    """
    user, item, time = _events(user, item, time)
    first_validation, first_test = np.sort(time)[
        list(first_places(len(time), validation, test))
    ]
    return _split(
        "global_time",
        user,
        item,
        validation=(time >= first_validation) & (time < first_test),
        test=time >= first_test,
        promise=PROMISES["global_time"],
    )


def first_places(n, validation, test):
    """Where validation and test of `global_time` begin among n events in order of time."""
    _shares(validation, test)
    n_test, n_validation = round(test * n), round(validation * n)
    return min(n - n_test - n_validation, n - 1), min(n - n_test, n - 1)


def last_of_each(user, *, min_events=3):
    """The folds of `leave_last_out`, for events in order of user, time and row.

    Args:
      user: `[N]` rows in order.
      min_events: As of `leave_last_out`.

    Returns:
      `[N]` int: 0 training, 1 validation, 2 test.
    """
    sizes = np.bincount(user) if len(user) else np.zeros(0, np.int64)
    from_end = np.cumsum(sizes)[user] - 1 - np.arange(len(user))
    fold = np.where(from_end < 2, 2 - from_end, 0)
    return np.where(sizes[user] >= min_events, fold, 0)


def cold_items(user, item, time, *, share=0.1, seed=0):
    """All events of `share` of the items are test, of as many others validation.

    Other items for validation, so that tuning sees no test item.
    """
    user, item, time = _events(user, item, time)
    tuned, tested = _drawn("items", item, share, seed)
    return _split(
        "cold_items",
        user,
        item,
        validation=np.isin(item, tuned),
        test=np.isin(item, tested),
        promise="No event of a test or validation item is trained on, and no test item is "
        "a validation item. Time is not kept: other items' later events are trained on.",
    )


def cold_users(user, item, time, *, share=0.1, seed=0, given=0):
    """All events of `share` of the users are test, of as many others validation.

    The first `given` events of each of those users are context: the history that a user
    brings who is new to the model. With 0 they come with their profile alone. A chosen
    user with no more than `given` events is all context and has no target.
    """
    user, item, time = _events(user, item, time)
    _require(given >= 0, "given must be 0 or more", given)
    tuned, tested = _drawn("users", user, share, seed)
    brought = _place_in_user(user, _by_time(time)) < given
    return _split(
        "cold_users",
        user,
        item,
        validation=np.isin(user, tuned) & ~brought,
        test=np.isin(user, tested) & ~brought,
        context=(np.isin(user, tuned) | np.isin(user, tested)) & brought,
        promise="No event of a test or validation user is trained on. Time is not kept: "
        "other users' later events are trained on.",
    )


def random(user, item, time, *, validation=0.1, test=0.1, seed=0, by_user=False):
    """Rows drawn without regard to time.

    Args:
      user, item, time: `[N]` interactions in file order.
      validation: Share of the rows.
      test: Share of the rows.
      seed: Of the draw.
      by_user: Draws the shares within each user, rounded down, so that every user keeps
        an event in training. `test=0.25` is the stratified split of the Recommenders
        project, with validation taken out of its training part.
    """
    user, item, time = _events(user, item, time)
    _shares(validation, test)
    drawn = np.random.default_rng(seed).permutation(len(user))
    place = _place_in_user(user, drawn) if by_user else np.argsort(drawn)
    size = np.bincount(user)[user] if by_user else np.full(len(user), len(user))
    n_test, n_validation = np.floor(test * size), np.floor(validation * size)
    return _split(
        "random",
        user,
        item,
        validation=(place >= n_test) & (place < n_test + n_validation),
        test=place < n_test,
        promise="No row is in two folds. Nothing else: training sees events of the same "
        "users later than their targets, so figures are higher than in use.",
    )


def split(name, user, item, time, **options):
    """Calls the split of that name; the names are those of this module's functions."""
    known = {
        f.__name__: f for f in (leave_last_out, global_time, cold_items, cold_users, random)
    }
    if name not in known:
        raise ValueError(f"Unknown split {name!r}; known: {', '.join(known)}.")
    allowed = list(inspect.signature(known[name]).parameters)[3:]
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"Split {name!r} has no option {option!r}; known: {', '.join(allowed)}."
            )
    return known[name](user, item, time, **options)


GOING_ON = " Of the new events; the old ones are trained on."


def going_on(old, name, user, item, time, **options):
    """The split of that name of new events; old ones, `[N]` bool, are training.

    Raises:
      ValueError: When an old event is later than a held-out one that it must not know.
    """
    user, item, time = _events(user, item, time)
    new = np.flatnonzero(~old)
    part = split(name, user[new], item[new], time[new], **options)
    fold = lambda rows: np.isin(np.arange(len(user)), new[rows])
    asked = fold(part.validation) | fold(part.test)
    late = np.zeros(len(user), bool)
    if part.name == "global_time":
        late = old & (time >= time[asked].min())
    elif part.name == "leave_last_out":
        place = _place_in_user(user, _by_time(time))
        first = np.full(user.max() + 1, len(user))
        np.minimum.at(first, user[asked], place[asked])
        late = old & (place > first[user])
    if late.any():
        raise ValueError(
            f"{late.sum()} old events are later than new ones that split.name="
            f"{name.replace('_', '-')!r} holds out: the model knows what came after them. "
            "Leave out new events that are older than the old ones, or train anew."
        )
    return _split(
        part.name,
        user,
        item,
        validation=fold(part.validation),
        test=fold(part.test),
        context=fold(part.context),
        promise=part.promise + GOING_ON,
    )


def _events(user, item, time):
    """The three columns as int64 arrays, checked."""
    columns = {"user": user, "item": item, "time": time}
    columns = {name: np.asarray(column) for name, column in columns.items()}
    for name, column in columns.items():
        _require(column.ndim == 1, f"{name} must be a vector", f"shape {column.shape}")
        _require(column.dtype.kind in "iu", f"{name} must be integers", column.dtype)
    sizes = {name: len(column) for name, column in columns.items()}
    _require(len(set(sizes.values())) == 1, "user, item, time must be equally long", sizes)
    _require(sizes["user"] > 0, "a split needs interactions", "none")
    lowest = min(columns["user"].min(), columns["item"].min())
    _require(lowest >= 0, "user and item must be row numbers from 0", lowest)
    return tuple(column.astype(np.int64) for column in columns.values())


def _require(right, rule, received):
    if not right:
        raise ValueError(f"{rule[0].upper()}{rule[1:]}. Received: {received}.")


def _shares(validation, test):
    _require(
        min(validation, test) > 0 and validation + test < 1,
        "validation and test must be shares above 0 that leave some for training",
        f"validation={validation}, test={test}",
    )


def _by_time(time):
    """Rows in time order; at the same time in file order."""
    return np.argsort(time, kind="stable")


def _place_in_user(user, order):
    """`[N]` the place of each row among its user's rows when all rows go in `order`."""
    grouped = order[np.argsort(user[order], kind="stable")]
    sizes = np.bincount(user)
    first = np.cumsum(sizes) - sizes
    place = np.empty(len(user), np.int64)
    place[grouped] = np.arange(len(user)) - first[user[grouped]]
    return place


def _drawn(what, column, share, seed):
    """Two disjoint draws of `share` of the distinct values, at least one value each."""
    _require(
        0 < share < 0.5, "share must be above 0 and below 0.5, it is taken twice", share
    )
    values = np.unique(column)
    _require(len(values) >= 3, f"{what} to draw: three folds need at least 3", len(values))
    n = max(1, round(share * len(values)))
    drawn = np.random.default_rng(seed).permutation(values)
    return drawn[n : 2 * n], drawn[:n]


def _split(name, user, item, *, validation, test, promise, context=None):
    """Turns `[N]` bool folds into a `Split`; what is in none of them is training."""
    context = np.zeros_like(test) if context is None else context
    asked = validation | test
    train = ~(asked | context)
    folds = {"train": train, "validation": validation, "test": test, "context": context}
    rows = {fold: np.flatnonzero(chosen).astype(np.int64) for fold, chosen in folds.items()}
    require_folds(
        name,
        {fold: len(rows[fold]) for fold in ("train", "validation", "test")},
        lambda: (len(np.unique(user)), len(np.unique(item))),
    )
    for chosen in rows.values():
        chosen.setflags(write=False)
    return Split(
        name=name,
        **rows,
        promise=promise,
        users_only_in_training=len(np.setdiff1d(user[train], user[asked])),
        users_not_in_training=len(np.setdiff1d(user[asked], user[train])),
        items_not_in_training=len(np.setdiff1d(item[asked], item[train])),
        digest=_digest(rows["train"], rows["validation"], rows["test"]),
    )


def require_folds(name, sizes, distinct):
    """Checks that each fold has a row.

    Args:
      name: Of the split.
      sizes: Rows of each fold.
      distinct: Gives how many users and items there are, for the message.
    """
    for fold, size in sizes.items():
        if not size:
            users, items = distinct()
            raise ValueError(
                f"Split {name.replace('_', '-')} leaves {fold} empty: too few of "
                f"{sum(sizes.values())} interactions, {users} users, {items} items, or too "
                "many of one time. Change split.name or split.share."
            )


def digest_of(fold):
    """The digest of a split by the fold of each row: 0 training, 1 validation, 2 test."""
    return _digest(*(np.flatnonzero(fold == number) for number in range(3)))


def _digest(*folds):
    """sha256 over each fold's length and rows, the same on every platform."""
    total = hashlib.sha256()
    for fold in folds:
        total.update(np.int64(len(fold)).astype("<i8").tobytes())
        total.update(np.ascontiguousarray(fold, "<i8"))
    return total.hexdigest()
