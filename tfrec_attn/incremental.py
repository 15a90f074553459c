"""Going on from a trained model with today's tables: what it knew, and how that grows."""

import dataclasses
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfrec_attn import atomic, checkpoints
from tfrec_attn import config as config_lib
from tfrec_attn.data import catalog
from tfrec_attn.data.catalog import Column
from tfrec_attn.data.tables import Tables

# Of a run: ids by row, and its events. Of a run that went on: the events before it, the
# weights it began with, and which of them are not of its own.
ROWS, EVENTS, OLD = "rows.json", "events.parquet", "old_events.parquet"
START, KNOWN = "start", "start-known"
# In a version folder, where a server does not look.
KEPT = Path("assets.extra") / "run"
# What a model is, which cannot change while its weights are kept.
SHAPE = ("model.", "scorer.", "text.", "schema.", "bert.tuning", "bert.size", "examples.h")


@dataclasses.dataclass(frozen=True)
class Past:
    """What an earlier training knew, by which later tables are read.

    Attributes:
      columns: Of items and of users, as they were learned.
      ids: Of items and of users, by row.
      old: `user`, `item` ids and `time` of events that are never held out; None where all
        may be.
      grows: Whether new values of categories are added to the vocabularies.
      until: The last moment that it knows, by which old events are told where they were not
        kept one by one; None where there is no clock, or nothing grows.
    """

    columns: tuple[Mapping[str, Column], Mapping[str, Column]]
    ids: tuple[list[str], list[str]]
    old: pl.DataFrame | None
    grows: bool
    until: int | None = None

    @classmethod
    def of(cls, run: Path, *, grows: bool = False) -> "Past":
        """Of a run: to read its own tables, or with `grows` those of the next."""
        columns = json.loads((run / "columns.json").read_text("utf-8"))
        rows: dict[str, Any] = {"items": [], "users": []}
        if (run / ROWS).exists():
            rows = json.loads((run / ROWS).read_text("utf-8"))
        kept = run / (EVENTS if grows else OLD)
        old = pl.read_parquet(kept) if kept.exists() else None
        until = rows.get("until")
        if old is not None:
            until = int(old["time"].to_numpy().max()) or None
        return cls(
            columns=(
                catalog.from_json(columns["items"]),
                catalog.from_json(columns["users"]),
            ),
            ids=(rows["items"], rows["users"]),
            old=old,
            grows=grows,
            until=until if grows else None,
        )

    @property
    def mark(self) -> dict[str, Any]:
        """What tells it from another: a folder that was prepared for one is not for it."""
        ids = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()
        return {"until": self.until, "ids": ids}

    def require(self, name: str, ids: pl.Series) -> None:
        """Checks that `items` or `users` with weights are all there.

        Raises:
          ValueError: When one is missing from tables that are to be gone on with.
        """
        missing = sorted(set(self._of(name)) - set(ids))
        if missing and self.grows:
            raise ValueError(
                f"The tables lack {len(missing)} of the {name} that the model knows, "
                f"as {missing[0]!r}: its weights belong to them. Put them back, though "
                "they are offered no more (a request's `exclude` leaves items out), or "
                "train anew."
            )

    def order(self, name: str, ids: pl.Series) -> np.ndarray:
        """Of `items` or `users` of a table the rows, old ones first and where they were."""
        place = {value: row for row, value in enumerate(self._of(name))}
        return np.argsort([place.get(value, len(place)) for value in ids], kind="stable")

    def numbers(self, name: str, ids) -> np.ndarray:
        """Which weights, from 1 on, those of a table have; new ones have the next."""
        place = {value: row for row, value in enumerate(self._of(name), 1)}
        new = itertools.count(len(place) + 1)
        return np.array([place.get(one) or next(new) for one in ids], np.int32)

    def _of(self, name: str) -> list[str]:
        return self.ids[("items", "users").index(name)]

    def ordered(self, tables: Tables, *, user_id: bool) -> Tables:
        """Tables with the rows of old items and users where they were, new ones behind.

        Args:
          tables: As they were read.
          user_id: Whether users have weights of their own, and items always.

        Raises:
          ValueError: When one with weights is missing from tables that are to be gone on
            with.
        """
        weighted = {"items": True, "users": user_id}
        found: dict[str, Any] = {}
        events = tables.interactions
        for name in ("items", "users"):
            table = getattr(tables, name)
            if weighted[name]:
                self.require(name, table["id"])
            order = self.order(name, table["id"])
            row = np.empty(len(order), np.int32)
            row[order] = np.arange(len(order))
            found[name] = table[order]
            column = name.removesuffix("s")
            events = events.with_columns(pl.Series(column, row[events[column].to_numpy()]))
        return dataclasses.replace(tables, interactions=events, **found)

    def is_old(self, tables: Tables) -> np.ndarray | None:
        """`[interactions]` bool, None where none is.

        Raises:
          ValueError: When all are.
        """
        events = identified(tables).with_row_index("row")
        if (found := self.had(events)) is None:
            return None
        old = np.zeros(len(events), bool)
        old[found["row"].to_numpy()] = True
        if old.all():
            raise ValueError(
                f"None of the {len(old)} interactions is new to the model: there is "
                "nothing to go on with. Name tables that have later events too."
            )
        return old

    def had(self, events: pl.DataFrame) -> pl.DataFrame | None:
        """Of events as `identified` those that it had; None where it had none."""
        if self.old is not None:
            on = ["user", "item", "time"]
            return events.join(self.old.unique(), on=on, how="semi", nulls_equal=True)
        if self.until is not None:
            return events.filter(pl.col("time") <= self.until)
        return None

    def read(self, place: int, table: pl.DataFrame, kinds: Mapping[str, str]):
        """The catalog of items (0) or users (1).

        Raises:
          ValueError: When the columns are others.
        """
        learned = self.columns[place]
        if not self.grows:
            return catalog.make(table, kinds, learned)
        fresh = catalog.make(table, kinds).columns
        name = ("items", "users")[place]
        for column in sorted(fresh.keys() ^ learned.keys()):
            here, there = ("lack", "has") if column in learned else ("have", "lacks")
            raise ValueError(
                f"The {name} {here} the column {column!r}, which the model {there}: its "
                "weights belong to its columns. Name the same ones, or train anew."
            )
        return catalog.make(
            table, kinds, {name: _grown(learned[name], fresh[name]) for name in learned}
        )


def _grown(learned: Column, fresh: Column) -> Column:
    known = set(learned.vocabulary)
    new = tuple(value for value in fresh.vocabulary if value not in known)
    return dataclasses.replace(learned, vocabulary=learned.vocabulary + new)


def identified(tables: Tables) -> pl.DataFrame:
    """What tells the events of tables apart whatever their order: `user`, `item` ids and
    `time`; 0 where there is no clock."""
    events = tables.interactions
    ids = lambda table, rows: table["id"].gather(events[rows])
    clock = bool(tables.schema.interactions.time)
    return pl.DataFrame(
        {
            "user": ids(tables.users, "user"),
            "item": ids(tables.items, "item"),
            "time": events["time"]
            if clock
            else pl.zeros(len(events), pl.Int64, eager=True),
        }
    )


def keep(tables: Tables, past: Past | None, out: Path) -> None:
    """Writes what a later run needs to go on from this one, and what this one needs of the
    run before it."""
    (out / OLD).unlink(missing_ok=True)
    events = identified(tables)
    kept = {EVENTS: events}
    # Not of those who have left since.
    if past is not None and (old := past.had(events)) is not None:
        kept[OLD] = old
    for name, table in kept.items():
        with atomic.replacing(out / name) as partial:
            table.write_parquet(partial)
    rows = {name: getattr(tables, name)["id"].to_list() for name in ("items", "users")}
    atomic.write(out / ROWS, json.dumps(rows))


def keep_rows(prepared, out: Path) -> None:
    """As `keep`, of a run on a prepared folder: of its events the last moment.

    Args:
      prepared: What the run stands on.
      out: Its folder.
    """
    for name in (EVENTS, OLD):
        (out / name).unlink(missing_ok=True)
    order = np.argsort(prepared.user_features["id"], kind="stable")
    rows = {
        "items": prepared.items.ids.tolist(),
        "users": prepared.users.ids[order].tolist(),
        "until": prepared.kept.until,
    }
    atomic.write(out / ROWS, json.dumps(rows))


def base(path: Path) -> Path:
    """The folder of what `--from` names: a run, or a version that was exported.

    Raises:
      ValueError: When it is neither, or not whole.
    """
    # A run has its metrics last of all.
    whole = ["metrics.json", "checkpoints/best.index", ROWS, EVENTS]
    if (path / "saved_model.pb").exists():
        path = path / KEPT
        whole.remove("metrics.json")
    kept = path / "config.toml"
    prepared = kept.exists() and config_lib.load(kept).data.prepared
    if prepared:
        whole.remove(EVENTS)
    if missing := [name for name in whole if not (path / name).exists()]:
        raise ValueError(
            "--from names the folder of a finished run, or of a version that export wrote: "
            f"{path} lacks {missing[0]}. Train it to its end, with this version of the "
            "package."
        )
    if prepared and Past.of(path, grows=True).until is None:
        raise ValueError(
            f"{path} was trained on a prepared folder without a time column: which events "
            "it had is not known. Prepare and train anew."
        )
    return path


def settings(path: Path, overrides: Iterable[str]) -> config_lib.Config:
    """Of what `--from` names, changed by a command line."""
    kept = base(path) / "config.toml"
    data = config_lib.load(kept).data
    # Tables by name are the same every day; what was prepared was of its day.
    anew = data.source or data.prepared
    return config_lib.load(kept, overrides, without=["data"] if anew else [])


def require_same_shape(run: Path, config: config_lib.Config) -> None:
    """Checks that the settings of a run that goes on leave the model what it was.

    Raises:
      ValueError: Names the first setting that does not.
    """
    was, now = (
        config_lib.flat(one.model_dump(mode="json", by_alias=True))
        for one in (config_lib.load(run / "config.toml"), config)
    )
    if was["bert.tuning"] == "frozen":
        # What is tuned from now on begins as it would anywhere.
        was |= {name: now[name] for name in ("bert.tuning", "bert.size")}
    for name in sorted(was.keys() | now.keys()):
        if name.startswith(SHAPE) and was.get(name) != now.get(name):
            raise ValueError(
                f"{name} was {was.get(name)!r} in {run} and is {now.get(name)!r}: a model "
                "that goes on stays what it is. Leave the setting out, or train anew."
            )
    if now["split.name"].startswith("cold"):
        raise ValueError(
            f"split.name={now['split.name']!r} holds out what training has not seen, and a "
            "model that goes on has seen it. Take global-time, leave-last-out or random."
        )


def grow(model, run: Path, out: Path) -> None:
    """Writes the weights that a model begins with: those of a run, and behind its rows of
    items, users and categories, as where it has no weights, the model's own.

    Args:
      model: Of the tables of today, as its seed makes it.
      run: The one to go on from.
      out: The new run's folder.

    Raises:
      ValueError: When a weight of the run has no place in the model.
    """
    kept, place = checkpoints.weights(model), out / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = tf.train.load_checkpoint(kept.write(f"{folder}/fresh"))
        old = tf.train.load_checkpoint(str(run / "checkpoints" / "best"))
        shapes = old.get_variable_to_shape_map()
        values, known = {}, {}
        for name in fresh.get_variable_to_shape_map():
            values[name] = fresh.get_tensor(name)
            if not name.endswith("VARIABLE_VALUE"):
                known[name] = values[name]
                continue
            mine, its = list(np.shape(values[name])), shapes.get(name, [0])
            known[name] = np.zeros_like(values[name])
            if name not in shapes:
                continue
            if mine[1:] != its[1:] or mine[:1] < its[:1]:
                raise ValueError(
                    f"{run}: {name} is {its}, and the model has room for {mine}."
                )
            rows = slice(its[0]) if its else ...
            values[name] = np.array(values[name])
            values[name][rows] = old.get_tensor(name)
            known[name][rows] = 1
        # What is looked for comes last.
        for name, tensors in ((KNOWN, known), (START, values)):
            with checkpoints.named(place / name):
                tf.raw_ops.SaveV2(
                    prefix=str(place / name),
                    tensor_names=list(tensors),
                    shape_and_slices=[""] * len(tensors),
                    tensors=list(tensors.values()),
                )


def grown(out: Path) -> bool:
    """Whether a run has the weights that it begins with."""
    return (out / "checkpoints" / f"{START}.index").exists()


def go_back(model, out: Path) -> None:
    """Makes the weights that a run began with those that are kept of it."""
    kept, place = checkpoints.weights(model), out / "checkpoints"
    checkpoints.read(kept, place / START).assert_consumed()
    model.refresh()
    checkpoints.copy(place / START, place / "best")


class Origin:
    """The weights that a training went on from. No list, in which Keras would find the
    variables once more.

    Args:
      variables: What trains.
      starts: Their values at first.
      known: 1 where a weight was there before, 0 where it is new, of the same shapes.
    """

    def __init__(self, variables, starts, known):
        # Tensors: of arrays a graph would hold copies, and a graph holds 2 GB at most.
        self._of = {
            variable.ref(): (tf.constant(start), tf.constant(there))
            for variable, start, there in zip(variables, starts, known, strict=True)
        }

    def way(self, variable):
        """From where a variable was to where it is; 0 of what is new."""
        start, known = self._of[variable.ref()]
        return (variable - start) * known

    def distance(self):
        """Squared, over all variables."""
        ways = (self.way(reference.deref()) for reference in self._of)
        return tf.add_n([tf.reduce_sum(tf.square(way)) for way in ways])

    def pulled(self, variables, gradients, factor: float):
        """Gradients of a loss, to which `factor` times the squared distance is added, of
        the variables that have one: what a stage leaves as it is has none.

        References:
          - L2-SP: Li et al., 2018, arXiv:1802.01483, equation 2; new weights are free.
        """
        return [
            g if g is None else tf.convert_to_tensor(g) + 2 * factor * self.way(v)
            for v, g in zip(variables, gradients, strict=True)
        ]


def begin(model, out: Path) -> None:
    """Gives a model the weights that its run began with.

    Raises:
      ValueError: When the run was stopped before it had them.
    """
    if not grown(out):
        raise ValueError(
            f"{out} was stopped before it had begun: say --from and the tables once more, "
            "and --resume."
        )
    kept = checkpoints.weights(model)
    place = out / "checkpoints"
    read = lambda name: checkpoints.read(kept, place / name).assert_consumed()
    variables = model.trainable_variables
    read(KNOWN)
    known = [variable.numpy() for variable in variables]
    read(START)
    model.refresh()
    model.origin = Origin(variables, [variable.numpy() for variable in variables], known)
