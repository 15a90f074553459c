"""A model of the columns of MovieLens-100K, small and untrained, for the calls in docs/."""

import pathlib

import numpy as np
import shop

from tfrec_attn import export
from tfrec_attn.run import building, pipeline
from tfrec_attn.serve.export import write
from tfrec_attn.settings import config
from tfrec_attn.training import fit

ROOT = pathlib.Path(__file__).parents[2]
ITEMS, USERS, EVENTS = 211, 43, 7
GENRES = ("Comedy|Romance", "Drama", "Crime|Drama", "")


def write_tables(folder: pathlib.Path) -> None:
    """Users 1 to 43 and items 1 to 211, as MovieLens numbers them."""
    draw = np.random.default_rng(0)
    items = ["item_id,title,year,genres"]
    items += [
        f"{i},{' '.join(draw.choice(shop.WORDS, 2))},{1990 + i % 9},{GENRES[i % 4]}"
        for i in range(1, ITEMS + 1)
    ]
    users = ["user_id,age,gender,occupation"]
    users += [f"{u},{20 + u},{'FM'[u % 2]},writer" for u in range(1, USERS + 1)]
    events = ["user_id,item_id,rating,timestamp"]
    events += [
        f"{u},{item},{1 + n % 5},{10**9 + 60 * n + u}"
        for u in range(1, USERS + 1)
        for n, item in enumerate(draw.permutation(ITEMS)[:EVENTS] + 1)
    ]
    for name, lines in (("items", items), ("users", users), ("interactions", events)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def save(folder: pathlib.Path, base: pathlib.Path) -> None:
    """Writes version 1 below `base`; tables and a random BERT go into `folder`.

    A history of user 42 is longer than the model reads, as on the real tables.
    """
    write_tables(folder)
    backbone = shop.write_bert(folder / "bert")
    sets = [f"data.{n}={folder / n}.csv" for n in ("items", "users", "interactions")]
    sets += [f"text.backbone={backbone}", "text.max_length=8", "model.dim=8"]
    sets += ["scorer.dim=8", "scorer.heads=2", "examples.history=3", "index.shortlist=11"]
    path = ROOT / "configs" / "movielens-100k.toml"
    prepared = pipeline.prepare(config.load(path, sets, without=["data"]))
    fit.deterministic(7)
    model = building.build(prepared)
    model.warm_up()
    write(export.served(model, prepared), base, 1)
