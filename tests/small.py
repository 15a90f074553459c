"""A small shop of categories and prices, without texts: its tables, what a small training
of it is told, what that writes, and how its export is asked."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

ITEMS, USERS = 31, 23


def write(folder: Path) -> None:
    """The three tables."""
    draw = np.random.default_rng(0)
    items = ["item_id,kind,price", *(f"i{i},{'ab'[i % 2]},{i}.5" for i in range(ITEMS))]
    users = ["user_id,age", *(f"u{u},{20 + u}" for u in range(USERS))]
    events = ["user_id,item_id,timestamp"]
    for u in range(USERS):
        events += [
            f"u{u},i{i},{1000000000 + 60 * t + u}"
            for t, i in enumerate(draw.permutation(ITEMS)[:9])
        ]
    for name, lines in (("items", items), ("users", users), ("interactions", events)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


SMALL = [
    "text.backbone=",
    "model.dim=8",
    "split.name=leave-last-out",
    "examples.history=4",
    "examples.targets=3",
    "train.batch_size=8",
    "train.epochs=2",
    "train.ranking_epochs=2",
    "index.shortlist=11",
    "loss.hard_negatives=5",
    "loss.negatives=13",
    "loss.group=12",
]


def arguments(tables, out, *more, sets=()):
    """Of `train`, on the tables of a folder; `sets` change what is small."""
    paths = [x for file in tables.glob("*.csv") for x in (f"--{file.stem}", str(file))]
    given = [x for s in (*SMALL, *sets) for x in ("--set", s)]
    # One device: a run that is killed inside this process would leave collectives hanging.
    given += ["--strategy", "one"]
    return [*paths, "--out", str(out), *given, *more]


def history(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def ask(served, **given):
    call = served.signatures["serving_default"]
    batch = len(given["user_id"])
    inputs = {}
    for name, spec in call.structured_input_signature[1].items():
        shape = [batch, *[1] * (spec.shape.rank - 1)]
        inputs[name] = (
            tf.constant(given[name], spec.dtype)
            if name in given
            else (tf.fill([batch], 5) if name == "k" else tf.zeros(shape, spec.dtype))
        )
    return {name: value.numpy() for name, value in call(**inputs).items()}
