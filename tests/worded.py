"""A small shop whose titles a BERT of random weights reads."""

from pathlib import Path

import numpy as np

from tests import small
from tests.model import test_bert

ITEMS, USERS = 17, 11


def write(folder: Path) -> None:
    """Tables, and the BERT that knows their words, in `bert`."""
    draw = np.random.default_rng(0)
    words = [f"word{i}" for i in range(27)]
    title = lambda: " ".join(draw.choice(words, draw.integers(1, 4)))
    items = ["item_id,title", *(f"i{i},{title()}" for i in range(ITEMS))]
    events = ["user_id,item_id,timestamp"]
    for u in range(USERS):
        chosen = draw.permutation(ITEMS)[:7]
        events += [f"u{u},i{i},{1000000000 + 60 * t + u}" for t, i in enumerate(chosen)]
    for name, lines in (("items", items), ("interactions", events)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    bert = test_bert.write_folder(folder / "bert", test_bert.random_weights())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    (bert / "vocab.txt").write_text("\n".join(pieces) + "\n")


def arguments(folder: Path, out: Path, *sets: str) -> list[str]:
    """Of `train`, on the shop in a folder."""
    tuned = [
        f"text.backbone={folder / 'bert'}",
        "text.max_length=6",
        "schema.items.text={title}",
        "train.ranking_epochs=1",
        "bert.size=2",
        "bert.live=5",
        "bert.learning_rate=0.01",
    ]
    return small.arguments(folder, out, sets=[*tuned, *sets])
