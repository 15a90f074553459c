"""Items that a run has not seen: read its way, and recommended without training."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.worded import ITEMS, USERS, arguments
from tfrec_attn import arrays, export, train
from tfrec_attn.run import building, pipeline, runs

sys.path.insert(0, str(Path(__file__).parent / "serve"))
import shop

NEW = """item_id,title,kinds,price
n0,{title},{kinds},{price}
i4,something else,a,1
n1,red wool red silk hat носки,a|b|c,
n2,,,7.5
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The shop before and after items were added: the first is one that it has."""
    folder = tmp_path_factory.mktemp("shop")
    model, prepared = shop.untrained(folder)
    row = prepared.tables.items.row(7, named=True)
    kinds = "|".join(row["kinds"])
    path = folder / "new.csv"
    path.write_text(NEW.format(title=row["text"], kinds=kinds, price=row["price"]))
    more = pipeline.with_items(prepared, path)
    wider = building.build(more)
    wider.warm_up()
    for one, other in zip(wider.variables, model.variables, strict=True):
        one.assign(other)
    return model, prepared, wider, more


def test_new_items_come_behind_those_that_are_known(opened):
    _, prepared, _, more = opened
    assert more.items.ids.tolist() == [*prepared.items.ids, "n0", "n1", "n2"]
    assert more.item_features["id"][-3:].tolist() == [0, 0, 0]
    assert more.items.texts[-2] == "red wool red silk hat носки"
    known = ["red", "wool", "red", "silk", "hat", "носки"]
    assert [word for word in more.words[-2] if word] == known
    assert not more.item_features["text_mask"][-1].any()
    for name, values in prepared.item_features.items():
        old = more.item_features[name][: len(values)]
        np.testing.assert_array_equal(old[(..., *map(slice, values.shape[1:]))], values)
        assert not old[..., values.shape[-1] :].any() or values.ndim == 1


def test_values_that_training_did_not_know_are_told(opened, tmp_path, caplog):
    path = tmp_path / "new.csv"
    path.write_text("item_id,title,kinds,price\nn5,red,zoo|a|ant,1\nn6,red,,2\n")
    more = pipeline.with_items(opened[1], path)
    want = f"{path}: column 'kinds' has 2 value(s) that training did not know, as 'ant'"
    assert [r.getMessage() for r in caplog.records] == [f"{want}: read as missing"]
    assert np.count_nonzero(more.item_features["kinds"][-2:]) == 1


def real(matrices, row):
    """What an item is, without padding."""
    pooled, tokens, mask = (part.numpy() for part in matrices.candidates(row))
    return [matrices.vector[row], matrices.event[row], pooled, tokens[mask]]


def test_known_items_are_encoded_as_before(opened):
    model, _, wider, _ = opened
    before, after = model.encode_items(), wider.encode_items()
    for row in range(shop.ITEMS):
        for one, other in zip(real(before, row), real(after, row), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_a_new_item_is_a_known_one_without_its_id(opened):
    model, prepared, wider, _ = opened
    nameless = dict(prepared.item_features)
    nameless["id"] = np.where(np.arange(shop.ITEMS) == 7, 0, nameless["id"])
    other = building.build(dataclasses.replace(prepared, item_features=nameless))
    other.warm_up()
    for one, from_ in zip(other.variables, model.variables, strict=True):
        one.assign(from_)
    want, got = real(other.encode_items(), 7), real(wider.encode_items(), shop.ITEMS)
    for one, new in zip(want, got, strict=True):
        np.testing.assert_allclose(new, one, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("item_id,title,kinds,price\ni3,red,a,1\n", "the model knows all 1 items already"),
        ("item_id,title,kinds\nn3,red,a\n", "price"),
        ("item_id,title,kinds,price\nn3,red,a,cheap\n", "cheap"),
        ("item_id,title,kinds,price\n", "has no rows"),
    ],
)
def test_a_table_that_is_not_right_is_named(opened, tmp_path, rows, message):
    (tmp_path / "new.csv").write_text(rows)
    with pytest.raises(ValueError, match=message) as found:
        pipeline.with_items(opened[1], tmp_path / "new.csv")
    assert "new.csv" in str(found.value)


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_version_with_new_items_recommends_them(worded, tmp_path, tuning, capsys):
    run, base = tmp_path / "run", tmp_path / "shop"
    chosen = f"bert.tuning={tuning}"
    assert train.main(arguments(worded, run, chosen, "train.epochs=1")) == 0
    new = tmp_path / "new.csv"
    new.write_text("item_id,title\nn0,word3 word5\nn1,word1\ni2,word9 word9\n")
    command = ["--run", str(run), "--to", str(base)]
    assert export.main(command) == 0
    assert export.main([*command, "--items", str(new)]) == 0
    assert export.main([*command, "--items", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    users = [f"u{u}" for u in range(USERS)]
    old, now = (asked(tf.saved_model.load(str(base / v)), users, [""]) for v in "12")
    assert {"n0", "n1"} <= set().union(*map(set, now))
    for before, after in zip(old, now, strict=True):
        shared = [after[item] for item in before]
        np.testing.assert_allclose(shared, list(before.values()), atol=1e-4)
    only = asked(tf.saved_model.load(str(base / "2")), users, ["n1", "n0"])
    assert all(set(answer) == {"n0", "n1"} for answer in only)
    model, prepared = runs.load(run, new)
    assert len(prepared.items) == len(model.items) == ITEMS + 2


def asked(served, users, candidates):
    """Scores by item of each user's answer, long enough for all items."""
    count = len(users)
    empty = tf.fill([count, 1], "")
    answer = served.signatures["serving_default"](
        user_id=tf.constant(users),
        history=empty,
        history_feedback=empty,
        history_time=tf.zeros([count, 1], tf.int64),
        time=tf.zeros([count], tf.int64),
        k=tf.fill([count], 50),
        exclude=empty,
        candidates=tf.tile([candidates], [count, 1]),
    )
    rows = zip(*(answer[n].numpy() for n in ("item_id", "score", "valid")), strict=True)
    return [
        {item.decode(): score for item, score, real in zip(*row, strict=True) if real}
        for row in rows
    ]


@pytest.mark.parametrize(("dtype", "fill"), [(np.float32, 0), (np.int32, 9), (str, "")])
def test_stacked_arrays_are_filled_where_one_is_shorter(dtype, fill):
    one, other = np.ones((2, 3, 1)).astype(dtype), np.ones((1, 2, 2)).astype(dtype)
    both = arrays.stacked(one, other, fill)
    assert both.shape == (3, 3, 2)
    assert both.dtype == one.dtype
    np.testing.assert_array_equal(both[:2, :, :1], one)
    np.testing.assert_array_equal(both[2, :2], other[0])
    assert (both[:2, :, 1] == fill).all()
    assert (both[2, 2] == fill).all()
    flat = arrays.stacked(np.arange(3), np.arange(2))
    np.testing.assert_array_equal(flat, [0, 1, 2, 0, 1])
