"""Ids that come twice."""

import logging

import pytest

from tfrec_attn.data import tables


def read(place, items, bad_rows):
    (place / "items.csv").write_text("item_id,title,price\n" + "\n".join(items) + "\n")
    (place / "events.csv").write_text("user_id,item_id\nu1,i1\n")
    return tables.read_tables(
        place / "items.csv", None, place / "events.csv", bad_rows=bad_rows
    )


def test_the_columns_that_differ_are_named(tmp_path):
    items = ["i1,A,1", "i2,B,2", "i1,A,3", "i2,C,2", "i1,A,1"]
    rejects = read(tmp_path, items, "set-aside").rejects
    assert rejects.select("line", "value", "rule").rows() == [
        (4, "i1", "is an id that an earlier row has with another price"),
        (5, "i2", "is an id that an earlier row has with another text"),
    ]


def test_the_same_row_again_is_left_out_and_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    found = read(tmp_path, ["i1,A,1", "i2,B,2", "i1,A,1"], "stop")
    assert found.items["id"].to_list() == ["i1", "i2"]
    assert "1 row(s) repeat an earlier row" in caplog.text


def test_a_value_that_is_missing_once_differs(tmp_path):
    with pytest.raises(ValueError, match="another text, price"):
        read(tmp_path, ["i1,A,1", "i2,B,2", "i1,,"], "stop")
