"""Kinds of columns from table to catalog."""

import polars as pl

from tfrec_attn.data import catalog


def test_a_kind_that_no_encoder_reads_is_named(caplog):
    table = pl.DataFrame(
        {"id": ["1", "2"], "text": ["", ""], "poster": ["a.jpg", "b.jpg"], "n": [1.0, 2.0]}
    )
    made = catalog.make(table, {"poster": "image", "n": "number"})
    assert list(made.columns) == ["n"]
    assert "column 'poster' is not used: kind 'image' has no encoder yet" in caplog.text
