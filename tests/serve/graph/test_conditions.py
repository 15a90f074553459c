"""Conditions on items, against the same conditions in Python."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.data.catalog import Catalog, Column
from tfrec_attn.serve.graph.conditions import Attributes, Rules

KINDS = [("a",), ("a", "b"), ("b",), (), ("c", "a")]
PRICES = [2.5, 10.0, np.nan, 7.0, 19.99]
STOCK = ["yes", "no", "yes", "", "yes"]


def attributes():
    words = {"kinds": ("a", "b", "c"), "stock": ("no", "yes")}
    kinds = np.zeros((5, 2), np.int32)
    for row, named in enumerate(KINDS):
        kinds[row, : len(named)] = [words["kinds"].index(one) + 1 for one in named]
    stock = [(words["stock"].index(one) + 1) if one else 0 for one in STOCK]
    return Attributes(
        Catalog(
            ids=np.array(["i"] * 5, object),
            texts=np.array([""] * 5, object),
            columns={
                "kinds": Column("categories", vocabulary=words["kinds"]),
                "price": Column("number", knots=(0.0, 1.0)),
                "stock": Column("category", vocabulary=words["stock"]),
            },
            features={
                "kinds": kinds,
                "price": np.float32(PRICES),
                "stock": np.int32(stock),
            },
        )
    )


@pytest.fixture(scope="module")
def shop():
    return attributes()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("kinds=a", [0, 1, 4]),
        ("kinds=b|c", [1, 2, 4]),
        (" kinds = b | zoo ", [1, 2]),
        ("kinds=zoo", []),
        # The values of one column are no values of another.
        ("stock=a", []),
        ("stock=yes", [0, 2, 4]),
        ("price<=10", [0, 1, 3]),
        ("price >= 7.0", [1, 3, 4]),
        ("price=19.99", [4]),
        ("price>=1e1", [1, 4]),
        ("", []),
    ],
)
def test_a_condition_holds_for(shop, condition, rows):
    read = shop.read("require", tf.constant([[condition]]))
    want = np.isin(np.arange(5), rows)
    np.testing.assert_array_equal(shop.hold(read, tf.range(5))[0, 0], want)
    own = tf.constant([[4, 3, 0]])
    np.testing.assert_array_equal(shop.hold(read, own)[0, 0], want[[4, 3, 0]])


@pytest.mark.parametrize(
    "wrong",
    [
        "colour=red",
        "kinds",
        "kinds<=a",
        "price<=cheap",
        "price<5",
        "=a",
        "kinds>=3",
        "price=",
    ],
)
def test_what_is_no_condition_is_refused(shop, wrong):
    form = "forbid must be conditions such as kinds=value or price<=5 or price>=5, of the "
    form += "columns "
    with pytest.raises(tf.errors.InvalidArgumentError, match=form) as caught:
        tf.function(shop.read)("forbid", tf.constant([["kinds=a", wrong]]))
    assert "kinds, stock, price: received" in str(caught.value)
    assert wrong in str(caught.value)


def rules(shop, allowed, require, forbid, boost, by):
    read = lambda name, rows: shop.read(name, tf.constant(rows))
    return Rules(
        tf.constant(allowed),
        shop,
        read("require", require),
        read("forbid", forbid),
        read("boost", boost),
        tf.constant(by),
    )


def test_all_that_is_required_and_nothing_that_is_forbidden(shop):
    found = rules(
        shop,
        [[True] * 5, [True, True, False, True, True]],
        [["kinds=a", "price<=10"], ["", ""]],
        [["stock=no", "price>=19"], ["", ""]],
        [["kinds=a", "stock=yes"], ["price>=7", ""]],
        [[1.0, 0.5], [-2.0, 9.0]],
    )
    keep = [[True, False, False, False, False], [True, True, False, True, True]]
    bonus = [[1.5, 1, 0.5, 0, 1.5], [0, -2, 0, -2, -2]]
    np.testing.assert_array_equal(found.keep(tf.range(5)), keep)
    np.testing.assert_allclose(found.bonus(tf.range(5)), bonus)
    rows = tf.constant([[4, 0], [2, 1]])
    np.testing.assert_array_equal(found.keep(rows), [[False, True], [False, True]])
    np.testing.assert_allclose(found.bonus(rows), [[1.5, 1.5], [0, -2]])


def test_without_attributes_what_is_allowed_is_kept():
    found = Rules(tf.constant([[True, False, True]]))
    assert found.keep(tf.constant([2, 1])).numpy().tolist() == [[True, False]]
    assert found.bonus(tf.constant([2, 1])) == 0


def test_a_value_with_the_separator_is_refused(shop):
    odd = Catalog(
        np.array(["i"], object),
        np.array([""], object),
        {"kind": Column("category", vocabulary=("a|b",))},
        {"kind": np.int32([1])},
    )
    with pytest.raises(ValueError, match=r"index.filters: 'kind=a\|b' holds \|"):
        Attributes(odd)
