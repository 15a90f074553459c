"""Events of a small shop in no order, some at one moment; prepared in small blocks."""

import json

import numpy as np
import polars as pl
import pytest

from tfrec_attn import prepare
from tfrec_attn.data import blocks, partitions
from tfrec_attn.settings import config as config_lib

ITEMS, USERS = 31, 23
LENGTH, TARGETS = 4, 3
CUT = ["examples.history=4", "examples.targets=3", "text.backbone="]
SPLITS = ["leave-last-out", "global-time"]


def rows():
    """Of users, items, ratings and seconds, in no order; a moment has about two events."""
    draw = np.random.default_rng(0)
    found = [
        (f"u{u}", f"i{i}", int(draw.integers(1, 6)), 1_000_000_000 + 60 * (t // 2) + u // 9)
        for u in range(USERS)
        for t, i in enumerate(draw.permutation(ITEMS)[: 3 + u % 9])
    ]
    return [found[place] for place in draw.permutation(len(found))]


def write(place, events, kind="csv"):
    """Tables, the interactions in two files; user 22 has nothing but its row."""
    items = ["item_id,kind,price", *(f"i{i},{'ab'[i % 2]},{i}.5" for i in range(ITEMS))]
    users = ["user_id,age", *(f"u{u},{20 + u}" for u in range(2, USERS)), "quiet,7"]
    (place / "items.csv").write_text("\n".join(items) + "\n")
    (place / "users.csv").write_text("\n".join(users) + "\n")
    names = ("user_id", "item_id", "rating", "timestamp")
    folder = place / "interactions"
    folder.mkdir()
    for number, some in enumerate((events[:70], events[70:])):
        path = folder / f"{number}.{kind}"
        if kind == "csv":
            lines = [",".join(map(str, row)) for row in some]
            path.write_text("\n".join([",".join(names), *lines]) + "\n")
        elif kind == "jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in some]
            path.write_text("\n".join(lines) + "\n")
        else:
            pl.DataFrame(some, schema=names, orient="row").write_parquet(path)
    return place


def settings(tables, *more):
    names = ("items", "users", "interactions")
    files = {name: next(tables.glob(f"{name}*")) for name in names}
    paths = [f"data.{name}={json.dumps(str(path))}" for name, path in files.items()]
    return config_lib.load(overrides=[*paths, *CUT, *more])


def prepared(tables, out, *more):
    """Prepares, in blocks and records of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BYTES", 900)
        patch.setattr(blocks, "ROWS", 40)
        patch.setattr(partitions, "RECORD", 7)
        return prepare.run(settings(tables, *more), out, [])
