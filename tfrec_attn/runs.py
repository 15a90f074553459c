"""The run folder: what a training wrote, read back as a model and its data."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from tfrec_attn import config as config_lib
from tfrec_attn import fit, pipeline
from tfrec_attn.data import catalog

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


def begin(out: Path, prepared: pipeline.Prepared) -> None:
    """Writes what the run stands on: config, schema, learned columns, environment."""
    out.mkdir(parents=True, exist_ok=True)
    plain = prepared.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    (out / "config.toml").write_text(tomli_w.dumps(plain), "utf-8")
    (out / "schema.toml").write_text(prepared.tables.schema.to_toml(), "utf-8")
    write_json(
        out / "columns.json",
        {
            "items": catalog.to_json(prepared.items.columns),
            "users": catalog.to_json(prepared.users.columns),
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


def write_json(path: Path, value: Any) -> None:
    """Writes a temporary file and renames it: a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    partial.replace(path)


def load(run: Path):
    """The trained model and its data; see `untrained` for what is raised."""
    model, prepared = untrained(run)
    restore(model, run)
    return model, prepared


def untrained(run: Path):
    """The model of a run as its seed makes it, without the trained weights, and the data.

    Raises:
      ValueError: When the folder is not that of a finished training.
    """
    if not (run / "checkpoints" / "best.index").exists():
        raise ValueError(
            f"{run} holds no trained model. Run tfrec_attn.train --out {run} first."
        )
    config = config_lib.load(run / "config.toml")
    columns = json.loads((run / "columns.json").read_text("utf-8"))
    learned = catalog.from_json(columns["items"]), catalog.from_json(columns["users"])
    prepared = pipeline.prepare(config, run, learned)
    fit.deterministic(config.train.seed)
    model = pipeline.build(prepared)
    model.warm_up()
    return model, prepared


def restore(model, run: Path) -> None:
    """Gives a model of the run the weights that training kept."""
    fit.weights(model).read(str(run / "checkpoints" / "best")).expect_partial()
