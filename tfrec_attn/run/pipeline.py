"""From a configuration to what a model is made of and trained on; the commands share it.

Tables, split, catalogs and encoded texts: all of it is a function of the config and of the
files that it names, so that `evaluate` and `export` see what `train` saw.
"""

import dataclasses
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tfrec_attn import atomic, backbones
from tfrec_attn.arrays import stacked
from tfrec_attn.data import catalog, folder, splits, tables
from tfrec_attn.labels import LABELS
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import texts
from tfrec_attn.run import knowledge
from tfrec_attn.run.prepared import InMemory, Prepared, learned
from tfrec_attn.settings.config import Config, flat, load, paths

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Prepared)

# Targets that stand for none, of an item that can be a negative.
RARE = 1e-3


def read(config: Config, out: Path | None = None) -> tuple[Config, tables.Tables]:
    """The tables that the config names, and the config with their schema."""
    data, schema = config.data, config.schema_
    items, users, interactions = paths(config)
    if items is None:
        raise ValueError("No tables: give --items and --interactions, or set data.source.")
    found = tables.read_tables(
        items,
        users,
        interactions,
        schema=schema,
        bad_rows=data.bad_rows,
        rejects_path=out / "rejects.csv" if out else None,
    )
    return _with_schema(config, found.schema), found


def _with_schema(config: Config, schema) -> Config:
    changes: dict[str, Any] = {"schema_": schema}
    if config.model.time and not schema.interactions.time:
        logger.info("no time column: model.time is off, file order is no clock")
        changes["model"] = config.model.model_copy(update={"time": False})
    return config.model_copy(update=changes)


def prepare(
    config: Config, out: Path | None = None, past: knowledge.Past | None = None
) -> InMemory:
    """Reads, splits and encodes.

    Args:
      config: All settings.
      out: The run's folder, which keeps the encoded texts and the rejects.
      past: What a training knew, to read the tables its way.
    """
    if config.data.prepared:
        return stored(config, InMemory, out, past)
    config, found = read(config, out)
    found = past.ordered(found, user_id=config.model.user_id) if past else found
    _require_several(found)
    events = found.interactions
    old = past.is_old(found) if past else None
    timed = bool(found.schema.interactions.time)
    split = _split(config, events, old, timed=timed)
    positive = np.isin(LABELS, config.examples.positives)

    def counted(rows):
        some = events[rows]
        goal = some["item"].to_numpy()[positive[some["feedback"].to_numpy()]]
        return np.bincount(goal, minlength=len(found.items))

    counts = counted(split.train)
    targets = counted(learned(config, split, old)) if old is not None else counts
    trained = events["user"].to_numpy()[split.train]
    return _made(
        InMemory,
        config,
        found,
        split,
        counts,
        targets,
        learned_users=np.bincount(trained, minlength=len(found.users)) > 0,
        out=out,
        past=past,
        old=old,
    )


def stored(
    config: Config,
    kind: type[Kind],
    out: Path | None = None,
    past: knowledge.Past | None = None,
) -> Kind:
    """Of the folder that `data.prepared` names; arguments and errors as of `prepare`.

    Args:
      kind: `InMemory`, or what reads the interactions as they are needed.
    """
    kept = folder.Folder.of(Path(config.data.prepared or ""))
    _require_same(config, kept)
    _require_from(kept, past)
    whole = kind is InMemory
    found = kept.tables(with_events=whole)
    _require_several(found)
    config = _with_schema(config, found.schema)
    split = kept.split(with_rows=whole)
    counts, targets = kept.counts["train"], kept.counts["learned"]
    if past and config.model.user_id:
        past.require("users", found.users["id"])
    return _made(
        kind,
        config,
        found,
        split,
        counts,
        targets,
        learned_users=kept.learned_users(len(found.users)),
        out=out,
        past=past,
        kept=kept,
    )


def _require_several(found: tables.Tables) -> None:
    if len(found.items) == 1:
        raise ValueError(
            f"The items table has one item, {found.items['id'][0]!r}: a recommender "
            "chooses among several. Look whether schema.items.id is the right column."
        )


def _require_same(config: Config, kept: folder.Folder) -> None:
    """Checks that a prepared folder was made by the settings of the run."""
    made = load(kept.root / "config.toml")
    plain = lambda section: flat(section.model_dump(mode="json", exclude_unset=True))
    for name in ("split", "examples", "schema_"):
        mine, its = getattr(config, name), getattr(made, name)
        if mine is None:
            continue
        theirs = flat(its.model_dump(mode="json"))
        for setting, value in plain(mine).items():
            _require_equal(kept, f"{name.removesuffix('_')}.{setting}", value, theirs)
    if kept.mark:
        theirs = made.train.model_dump()
        _require_equal(kept, "train.replay", config.train.replay, theirs)


def _require_equal(kept: folder.Folder, name: str, value: Any, theirs: Any) -> None:
    was = theirs.get(name.partition(".")[2])
    if was != value:
        raise ValueError(
            f"{name} is {value!r}, and {kept.root} was prepared with {was!r}: leave the "
            "setting out, or prepare anew."
        )


def _require_from(kept: folder.Folder, past: knowledge.Past | None) -> None:
    """Checks that a prepared folder was made for the training that reads it."""
    if past is None and kept.mark:
        raise ValueError(
            f"{kept.root} was prepared to go on from a trained model, and holds out events "
            "alone that are new to it: name the model by --from, or prepare without --from."
        )
    if past and past.grows and kept.mark != past.mark:
        raise ValueError(
            f"{kept.root} was not prepared to go on from this model, so that it may hold "
            "out what the model was trained on. Prepare with the same --from: python -m "
            "tfrec_attn.prepare --from RUN_OR_VERSION."
        )


def _made(
    make: type[Kind],
    config,
    found,
    split,
    counts,
    targets,
    *,
    learned_users,
    out,
    past,
    **more,
) -> Kind:
    """What a run stands on, out of its tables.

    Args:
      make: What is made.
      config, found, split: With their schema; tables; the split.
      counts: `[I]` positive events of training.
      targets: `[I]` of these, those that are learned.
      learned_users: `[users]` bool, who has an event in training.
      out, past: See `prepare`.
      **more: Other fields.
    """
    schema = found.schema
    if not schema.interactions.time:
        later = " There is no time column: later means further down in the file."
        split = dataclasses.replace(split, promise=split.promise + later)
    kinds = schema.items.columns or {}, (schema.users and schema.users.columns) or {}
    items, users = (
        past.read(place, table, kinds[place]) if past else catalog.make(table, kinds[place])
        for place, table in enumerate((found.items, found.users))
    )
    if not targets.sum():
        raise ValueError(
            f"No training event has a label of examples.positives="
            f"{list(config.examples.positives)}. Map feedback or widen the setting."
        )
    item_features, tokens = _features(config, items, out and out / "item_texts.npz")
    user_features, _ = _features(config, users, out and out / "user_texts.npz")
    rows = np.arange(1, len(items) + 1, dtype=np.int32)
    # Without a training event there is no id token: nothing was learned for it.
    item_features["id"] = np.where(counts > 0, rows, 0)
    numbers = np.arange(1, len(users) + 1, dtype=np.int32)
    if past and "kept" in more:
        # In a prepared folder users are in an order of its own.
        numbers = past.numbers("users", users.ids)
    user_features["id"] = np.where(learned_users, numbers, 0)
    prepared = make(
        config,
        found,
        split,
        items,
        users,
        item_features,
        user_features,
        tokens,
        # What is learned of, though no target now, can be a negative still.
        np.maximum(targets, np.minimum(counts, RARE)) / targets.sum(),
        past,
        **more,
    )
    for fold in ("validation", "test"):
        if repeated := prepared.repeated(fold):
            logger.info(
                "%s: %d events repeat a known item and are no targets", fold, repeated
            )
    return prepared


def _split(config: Config, events, old, *, timed: bool) -> splits.Split:
    settings = config.split
    if settings.name == "global-time" and not timed:
        raise ValueError(
            'split.name="global-time" cuts at points in time, and there is no time column: '
            "the order of a file is no clock over all users. Set "
            "schema.interactions.time, or split.name=leave-last-out (each user's rows in "
            "file order) or another split."
        )
    options: dict[str, Any] = {}
    if settings.name in ("global-time", "random"):
        part = settings.validation or settings.share
        options = {"validation": part, "test": settings.share}
    elif settings.name in ("cold-items", "cold-users"):
        options = {"share": settings.share}
    if settings.name in ("cold-items", "cold-users", "random"):
        options["seed"] = settings.seed
    if settings.name == "random":
        options["by_user"] = settings.by_user
    columns = (events[column].to_numpy() for column in ("user", "item", "time"))
    name = settings.name.replace("-", "_")
    if old is not None:
        return splits.going_on(old, name, *columns, **options)
    return splits.split(name, *columns, **options)


def _features(config: Config, table: catalog.Catalog, cache: Path | None):
    """The catalog's arrays with encoded texts, and the texts, where there are any."""
    arrays = dict(table.features)
    if not config.text.backbone or not any(table.texts):
        return arrays, None
    folder = backbones.backbone(config.text.backbone)
    tokens = texts.tokenize(folder, table.texts, config.text.max_length)
    if not tokens.words.size:
        return arrays, None
    hidden = _encoded(folder, tokens.ids, cache)
    return arrays | texts.features(hidden, tokens), tokens


def _encoded(folder: Path, ids: np.ndarray, cache: Path | None) -> np.ndarray:
    """The hidden states of a BERT folder as it is, `[N, m, width]` float16.

    `cache` keeps them, and is believed while ids and weights are those it was made of.
    """
    weights = backbones.fingerprint(folder)
    if cache is not None and cache.exists():
        try:
            with np.load(cache) as kept:
                if str(kept.get("weights")) == weights and np.array_equal(kept["ids"], ids):
                    return kept["hidden"]
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s cannot be read (%s): encoding anew", cache, error)
    hidden = texts.states(bert_lib.load(folder), ids)
    if cache is not None:
        with atomic.replacing(cache) as partial:
            np.savez(partial, ids=ids, hidden=hidden, weights=weights)
    return hidden


def with_items(prepared: InMemory, path: Path) -> InMemory:
    """The same with the items of a table that the run has not seen: they have no id token
    and no event, and are what their text and columns say. Items it knows stay as they were.

    Args:
      prepared: Of a trained run.
      path: An items table with the columns of the run's own.

    Raises:
      ValueError: When the table is not as it must be, or all its items are known.
    """
    config, items = prepared.config, prepared.items
    table = tables.read_items(path, prepared.tables.schema, config.data.bad_rows)
    new = table.filter(~table["id"].is_in(items.ids.tolist()))
    if new.is_empty():
        raise ValueError(
            f"{path}: the model knows all {len(table)} items already, and keeps what they "
            "were in training. Name new items, or train anew to change these."
        )
    known = len(table) - len(new)
    logger.info("%s: %d new items; %d known ones stay as they were", path, len(new), known)
    for name, values in catalog.unknown(new, items.columns).items():
        logger.warning(
            "%s: column %r has %d value(s) that training did not know, as %r: "
            "read as missing",
            path,
            name,
            len(values),
            values[0],
        )
    more = catalog.make(new, prepared.tables.schema.items.columns or {}, items.columns)
    features, tokens = _features(config, more, None)
    nothing = {
        name: np.zeros((len(new), *value.shape[1:]), value.dtype)
        for name, value in prepared.item_features.items()
    }
    # What none of the new items has is missing; what no known item has is not read.
    features = nothing | {name: features[name] for name in features if name in nothing}
    join = lambda one, other: {name: stacked(one[name], other[name]) for name in one}
    return dataclasses.replace(
        prepared,
        items=catalog.Catalog(
            ids=np.append(items.ids, more.ids),
            texts=np.append(items.texts, more.texts),
            columns=items.columns,
            features=join(items.features, more.features),
        ),
        item_features=join(prepared.item_features, features),
        texts=prepared.texts and prepared.texts.followed_by(tokens, len(new)),
    )
