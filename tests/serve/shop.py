"""A small shop with texts and an untrained model of it: every path of the served graph."""

import pathlib

import numpy as np
import transformers

from tfrec_attn.run import building, pipeline
from tfrec_attn.settings import config
from tfrec_attn.training import fit

ITEMS, USERS, EVENTS = 31, 23, 9
# Shops are not all English.
WORDS = ("red", "green", "wool", "silk", "hat", "носки")
KINDS = ("a|b", "b", "ç", "")


def write_bert(folder: pathlib.Path) -> pathlib.Path:
    """A BERT of random weights that knows `WORDS`."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    fit.deterministic(5)
    settings = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=6,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=11,
        max_position_embeddings=13,
        initializer_range=0.7,
    )
    bert = transformers.TFBertModel(settings, add_pooling_layer=False)
    bert.build_in_name_scope()
    bert.save_pretrained(folder, safe_serialization=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def write_tables(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Three tables; returns the (user, item) pairs of the interactions."""
    draw = np.random.default_rng(0)
    items = ["item_id,title,kinds,price"]
    for i in range(ITEMS):
        title = " ".join(draw.choice(WORDS, 1 + i % 3))
        items.append(f"i{i},{title},{KINDS[i % 4]},{i}.5")
    users = ["user_id,age,town", *(f"u{u},{20 + u},{'žy'[u % 2]}" for u in range(USERS))]
    pairs = [
        (f"u{u}", f"i{i}")
        for u in range(USERS)
        for i in draw.permutation(ITEMS)[: EVENTS + u % 3]
    ]
    events = ["user_id,item_id,rating,timestamp"]
    events += [
        f"{user},{item},{1 + n % 5},{1000000000 + 60 * n}"
        for n, (user, item) in enumerate(pairs)
    ]
    for name, lines in (("items", items), ("users", users), ("interactions", events)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return pairs


def untrained(folder: pathlib.Path, split: str = "global-time", **index):
    """A model with the weights it starts from, and its data.

    Args:
      folder: Where tables and BERT are written.
      split: How the interactions are split.
      index: Settings of the section `index`.
    """
    write_tables(folder)
    names = ("items", "users", "interactions")
    settings = {
        "data": {name: str(folder / f"{name}.csv") for name in names},
        "schema": {
            "items": {
                "id": "item_id",
                "text": "{title}",
                "columns": {"kinds": "categories", "price": "number"},
            },
            "users": {"id": "user_id", "columns": {"age": "number", "town": "category"}},
            "interactions": {
                "user": "user_id",
                "item": "item_id",
                "time": "timestamp",
                "feedback": {
                    "column": "rating",
                    "labels": {"buy": ">=4", "ignore": "==3", "not_buy": "<3"},
                },
            },
        },
        "text": {"backbone": str(write_bert(folder / "bert")), "max_length": 8},
        "model": {"dim": 8, "user_id": True},
        "examples": {"history": 5},
        "split": {"name": split},
        "index": index,
    }
    prepared = pipeline.prepare(config.validate(settings))
    fit.deterministic(7)
    model = building.build(prepared)
    model.warm_up()
    return model, prepared
