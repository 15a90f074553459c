"""The run folder: what a training wrote, read back as a model and its data."""

import hashlib
import json
import logging
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors import numpy as safetensors

from tfrec_attn import atomic, backbones, claims
from tfrec_attn.data import catalog
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import tuning
from tfrec_attn.run import building, incremental, knowledge, pipeline
from tfrec_attn.run.prepared import Prepared
from tfrec_attn.settings import config as config_lib
from tfrec_attn.training import checkpoints, fit

PACKAGES = (
    "tensorflow",
    "tf-keras",
    "tensorflow-text",
    "tensorflow-recommenders",
    "transformers",
    "polars",
    "numpy",
    "tfrec-attn",
)

logger = logging.getLogger(__name__)


def claim(out: Path, *, resume: bool) -> bool:
    """Makes the run folder; True where it holds a training that is to go on.

    Raises:
      ValueError: When it holds a training and `resume` is False, holds one without its
        settings, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out names a folder: {out} is a file.")
    trained = (out / "history.jsonl").exists() or any(out.glob("checkpoints/*/last-*"))
    if trained and not resume:
        raise ValueError(
            f"{out} holds a training already. Go on with it by --resume, name another "
            "folder by --out, or remove this one."
        )
    # Of what `begin` writes, the last.
    whole = (out / "config.toml").exists()
    if trained and not whole:
        raise ValueError(
            f"{out} holds a training whose config.toml is missing: put it back, or name "
            "another folder by --out."
        )
    begun = whole and resume
    if resume and not begun:
        logger.info("%s: nothing to go on with, the training begins", out)
    out.mkdir(parents=True, exist_ok=True)
    return begun


def require_same(out: Path, prepared: Prepared) -> None:
    """Checks that a run goes on with the settings and the tables it was begun with.

    Raises:
      ValueError: Names each setting that differs, or says that the tables do.
    """
    was = config_lib.flat(
        config_lib.load(out / "config.toml").model_dump(mode="json", by_alias=True)
    )
    now = config_lib.flat(prepared.config.model_dump(mode="json", by_alias=True))
    claims.require_same(
        was,
        now,
        f"{out} was begun with other settings",
        "A run goes on as it was begun: leave the settings out (--resume and --out "
        "alone read the run's own config), or name another folder by --out.",
    )
    _require_same_tables(out, prepared)


def _require_same_tables(out: Path, prepared: Prepared) -> None:
    was = json.loads((out / "columns.json").read_text("utf-8")).get("tables")
    if was and was != fingerprint(prepared):
        raise ValueError(
            f"The tables are not those that {out} was trained on: ids, features or "
            "interactions have changed since, and what was learned belongs to the old "
            "rows. Restore the tables, or train anew with another --out."
        )


def fingerprint(prepared: Prepared) -> str:
    """sha256 over what a run has read from its tables."""
    total = hashlib.sha256()
    for table in (prepared.items, prepared.users):
        for strings in (table.ids, table.texts):
            total.update(json.dumps(list(strings)).encode())
        for name, values in sorted(table.features.items()):
            total.update(name.encode() + np.ascontiguousarray(values).tobytes())
    if prepared.kept:
        total.update(prepared.kept.made["digest"].encode())
        return total.hexdigest()
    for column in prepared.tables.interactions:
        total.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return total.hexdigest()


def begin(out: Path, prepared: Prepared) -> None:
    """Writes what the run stands on: schema, learned columns, rows, environment, and at
    the end the config, by which the run is one."""
    (out / "config.toml").unlink(missing_ok=True)
    (out / "metrics.json").unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    if prepared.kept:
        knowledge.keep_rows(prepared, out)
    else:
        knowledge.keep(prepared.tables, prepared.past, out)
    plain = prepared.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    atomic.write(out / "schema.toml", prepared.tables.schema.to_toml())
    write_json(
        out / "columns.json",
        {
            "items": catalog.to_json(prepared.items.columns),
            "users": catalog.to_json(prepared.users.columns),
            "tables": fingerprint(prepared),
        },
    )
    write_json(
        out / "environment.json",
        {
            "python": sys.version,
            "platform": platform.platform(),
            "packages": {name: metadata.version(name) for name in PACKAGES},
        },
    )
    atomic.write(out / "config.toml", tomli_w.dumps(plain))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, of which a reader never sees half."""
    atomic.write(path, json.dumps(value, indent=2) + "\n")


def keep_bert(out: Path, prepared: Prepared, bert) -> None:
    """Writes a trained BERT in files of its own: `bert-delta.safetensors`, by which it
    differs from the backbone, and `bert/`, a whole BERT folder, where one can say the same.
    """
    delta = tuning.delta(bert)
    with atomic.replacing(out / "bert-delta.safetensors") as partial:
        safetensors.save_file(delta, partial)
    if not tuning.can_merge(bert):
        return
    merged = building.tuned(prepared.config)
    tuning.apply(merged, delta)
    tuning.merge(merged)
    like = backbones.backbone(prepared.config.text.backbone)
    with atomic.replacing(out / "bert") as partial:
        bert_lib.save(merged, partial, like=like)


def keep_for_later(model, run: Path, version: Path) -> None:
    """Puts into a version folder what `train --from` needs of its model and run, where the
    run has it: earlier versions of the package did not keep it."""
    if not (run / knowledge.ROWS).exists():
        return
    place = version / incremental.KEPT
    place.mkdir(parents=True)
    for name in ("config.toml", "columns.json", knowledge.ROWS, knowledge.EVENTS):
        if (run / name).exists():
            shutil.copyfile(run / name, place / name)
    checkpoints.weights(model).write(str(place / "checkpoints" / "best"))


def load(run: Path, items: Path | None = None, backbone: Path | None = None):
    """The trained model and its data.

    Args:
      run: Its folder.
      items: A table of further items; see `pipeline.with_items`.
      backbone: Encodes all texts, of items and users, in place of the run's BERT: a folder
        that `compress` has made of it.

    Raises:
      ValueError: When the folder is not that of a training, its tables have changed, or
        there is something wrong with `items` or `backbone`.
    """
    model, prepared = _made(run, items, backbone)
    restore(model, run, without_bert=backbone is not None)
    return model, prepared


def untrained(run: Path):
    """The model of a run as it began, without the trained weights, and its data."""
    model, prepared = _made(run)
    if prepared.goes_on:
        incremental.begin(model, run)
    return model, prepared


def _made(run: Path, items: Path | None = None, backbone: Path | None = None):
    """The model of a run as its seed makes it, and the data; see `load`."""
    if not (run / "checkpoints" / "best.index").exists():
        raise ValueError(
            f"{run} holds no trained model. Run tfrec_attn.train --out {run} first."
        )
    config = config_lib.load(run / "config.toml", _with_backbone(run, backbone))
    # The texts that the run keeps are encoded by its own BERT.
    place = None if backbone else run
    prepared = pipeline.prepare(config, place, knowledge.Past.of(run))
    _require_same_tables(run, prepared)
    if items is not None:
        prepared = pipeline.with_items(prepared, items)
    fit.deterministic(config.train.seed)
    model = building.build(prepared)
    model.warm_up()
    return model, prepared


def _with_backbone(run: Path, backbone: Path | None) -> list[str]:
    """The settings that another BERT changes."""
    if backbone is None:
        return []
    width, wanted = (
        backbones.width(backbones.backbone(b))
        for b in (backbone, _config(run).text.backbone)
    )
    if width != wanted:
        raise ValueError(
            f"A trained model reads hidden states {wanted} wide: those of {backbone} are "
            f"{width} wide. Train anew with text.backbone={backbone}."
        )
    return [f"text.backbone={json.dumps(str(backbone))}", "bert.tuning=frozen"]


def encoder(run: Path) -> Path:
    """The folder of a run's BERT, of the trained one where it was trained.

    Raises:
      ValueError: When there is none, or it is no BERT by itself.
    """
    config = _config(run)
    if config.bert.tuning == "frozen":
        return backbones.backbone(config.text.backbone)
    if not (run / "bert").is_dir():
        raise ValueError(
            f"{run}/bert is missing: what bert.tuning={config.bert.tuning} trains is no "
            "BERT by itself. Train with another bert.tuning."
        )
    return run / "bert"


def _config(run: Path) -> config_lib.Config:
    """Of a run with texts."""
    config = config_lib.load(run / "config.toml")
    if not config.text.backbone:
        raise ValueError(f"{run} was trained without a BERT: its text.backbone is empty.")
    return config


def weights_digest(run: Path) -> str:
    """sha256 of the index of a run's weights, which has a checksum of each."""
    return hashlib.sha256((run / "checkpoints" / "best.index").read_bytes()).hexdigest()


def restore(model, run: Path, *, without_bert: bool = False) -> None:
    """Gives a model of the run the weights that training kept.

    Args:
      model: Of the run.
      run: Its folder.
      without_bert: Whether another BERT stands in for the one that was trained.
    """
    read = checkpoints.read(checkpoints.weights(model), run / "checkpoints" / "best")
    read.assert_existing_objects_matched() if without_bert else read.assert_consumed()
    model.refresh()
