"""Tables to arrays by row: what is learned, missing or unknown, and how it is kept."""

import json

import numpy as np
import polars as pl
import pytest

from tfrec_attn.data import catalog

KINDS = {
    "colour": "category",
    "genres": "categories",
    "year": "number",
    "made": "time",
    "vector": "embedding",
    "note": "text",
    "poster": "image",
}


def table(**changes):
    columns = {
        "id": ["x", "y", "z"],
        "text": ["red shoe", "", "hat"],
        "colour": ["red", None, "blue"],
        "genres": [["b", "a"], [], ["c"]],
        "year": [1995.0, None, 2001.0],
        "made": [0, 31_557_600_000, None],  # one Julian year, in ms
        "vector": pl.Series([[0.5, 1.0], None, [-1.0, 0.0]], dtype=pl.Array(pl.Float32, 2)),
        "note": ["n", "n", "n"],
        "poster": ["p", "p", "p"],
    }
    return pl.DataFrame(columns | changes)


def test_every_kind_is_an_array_by_row():
    made = catalog.make(table(), KINDS)
    assert list(made.ids) == ["x", "y", "z"]
    assert list(made.texts) == ["red shoe", "", "hat"]
    assert len(made) == 3
    want = {
        "colour": np.array([2, 0, 1], np.int32),
        "genres": np.array([[2, 1], [0, 0], [3, 0]], np.int32),
        "year": np.array([1995, np.nan, 2001], np.float32),
        "made": np.array([0, 1, np.nan], np.float32),
        "vector": np.array([[0.5, 1], [0, 0], [-1, 0]], np.float32),
    }
    assert set(made.features) == set(made.columns) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(made.features[name], value)
        assert made.features[name].dtype == value.dtype


def test_a_vocabulary_is_sorted_and_does_not_depend_on_the_order_of_rows():
    made = catalog.make(table(), KINDS)
    again = catalog.make(table()[::-1], KINDS)
    assert made.columns["colour"].vocabulary == ("blue", "red")
    assert made.columns["genres"].vocabulary == ("a", "b", "c")
    assert again.columns == made.columns


def test_an_empty_string_is_no_value():
    made = catalog.make(table(colour=["", "red", None]), {"colour": "category"})
    assert made.columns["colour"].vocabulary == ("red",)
    assert made.features["colour"].tolist() == [0, 1, 0]


def test_knots_are_quantiles_and_increase():
    draw = np.random.default_rng(0)
    values = np.sort(draw.normal(size=1001))
    frame = pl.DataFrame({"id": [*map(str, values)], "text": "", "price": values})
    knots = catalog.make(frame, {"price": "number"}).columns["price"].knots
    assert len(knots) == catalog.KNOTS
    # 1001 values: the quantiles at k/15 fall on value 1000 k / 15, between two of them.
    at = 1000 * np.arange(catalog.KNOTS) / (catalog.KNOTS - 1)
    np.testing.assert_allclose(knots, np.interp(at, np.arange(1001), values), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([7.0, 7.0, 7.0], 7.0),
        ([None, None, None], 0.0),
        ([1e30, None, 1e30], 1e30),
        ([1.0, 1.0, 2.0], 1.0),
    ],
)
def test_few_values_make_two_knots_that_increase(values, first):
    made = catalog.make(table(year=pl.Series(values, dtype=pl.Float64)), {"year": "number"})
    knots = np.float32(made.columns["year"].knots)
    assert knots[0] == np.float32(first)
    assert len(knots) >= 2
    assert (np.diff(knots) > 0).all()


def test_another_table_is_read_the_way_the_first_was():
    learned = catalog.make(table(), KINDS).columns
    other = table(
        colour=["green", "blue", "red"],
        genres=[["new", "c"], [], []],
        year=[9999.0, 0.0, None],
    )
    made = catalog.make(other, KINDS, learned)
    assert made.columns is learned
    assert made.features["colour"].tolist() == [0, 1, 2]
    assert made.features["genres"].tolist() == [[3], [0], [0]]
    np.testing.assert_array_equal(made.features["year"], np.float32([9999, 0, np.nan]))


def test_columns_survive_json():
    columns = catalog.make(table(), KINDS).columns
    plain = json.loads(json.dumps(catalog.to_json(columns)))
    assert catalog.from_json(plain) == columns


def test_another_width_than_in_training_is_named():
    learned = catalog.make(table(), KINDS).columns
    wide = table(vector=pl.Series([[1.0] * 3] * 3, dtype=pl.Array(pl.Float32, 3)))
    with pytest.raises(ValueError, match=r"Column vector: vectors of 2 .*Received: 3"):
        catalog.make(wide, KINDS, learned)


def test_a_table_without_rows_is_named():
    with pytest.raises(ValueError, match="The table has no rows"):
        catalog.make(table()[:0], KINDS)
