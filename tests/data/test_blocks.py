"""Blocks of a table, read alone, are the table."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tfrec_attn.data import blocks, readers
from tfrec_attn.data.schema import FileFormat

FIELDS = ["a", '"two\nlines"', '"a ""quote"""', "too,many", "", "ü"]


def text_of(name, draw):
    """Rows of a format, some of them bad or blank."""
    if name.startswith("csv"):
        rows = [f"{i},{draw.choice(FIELDS)}" for i in range(211)]
    else:
        rows = [f'{{"id": {i}, "v": "{"xy"[i % 2]}"}}' for i in range(211)]
        rows[7], rows[100] = "{", "[1]"
    for place in draw.integers(0, 200, 9):
        rows.insert(place, "")
    return "\n".join(["id,v", *rows] if name.startswith("csv") else rows)


def joined(path, file_format, **sizes):
    cut = blocks.of_file(path, 0, file_format, **sizes)
    assert cut == sorted(cut)
    read = [blocks.read(block, file_format) for block in cut]
    frames = (
        pl.concat([getattr(part, name) for part in read if len(getattr(part, name))])
        for name in ("frame", "place", "rejects")
    )
    return (len(cut), *frames)


@pytest.mark.parametrize("size", [1, 50, 333, 1000, 10**6])
@pytest.mark.parametrize("name", ["csv", "csv without quotes", "csv headless", "jsonl"])
def test_blocks_of_text_are_the_file(tmp_path, name, size):
    path = tmp_path / f"table.{name.split()[0]}"
    text = text_of(name, np.random.default_rng(0)) + "\n" * (size % 2)
    file_format = FileFormat()
    if name == "csv without quotes":
        file_format = FileFormat(quoting=False)
    if name == "csv headless":
        text = text.partition("\n")[2]
        file_format = FileFormat(header=("id", "v"))
    path.write_text("\ufeff" + text, newline="\r\n" if size == 333 else "\n")
    count, frame, place, rejects = joined(path, file_format, size=size)
    want = readers.read(path, file_format)
    assert (count > 3) == (size < 10**6)
    assert len(rejects) > 1
    assert_frame_equal(frame, want.frame)
    assert_frame_equal(place, want.place.with_columns(pl.col("file").cast(pl.String)))
    assert_frame_equal(rejects, want.rejects)


def test_blocks_of_parquet_are_the_file(tmp_path):
    path = tmp_path / "table.parquet"
    pl.DataFrame({"id": range(11), "v": ["", "x"] * 5 + ["y"]}).write_parquet(path)
    count, frame, place, _ = (*joined_without_rejects(path, rows=4),)
    want = readers.read(path)
    assert count == 3
    assert_frame_equal(frame, want.frame)
    assert place["line"].to_list() == list(range(1, 12))


def joined_without_rejects(path, **sizes):
    cut = blocks.of_file(path, 0, FileFormat(), **sizes)
    read = [blocks.read(block, FileFormat()) for block in cut]
    yield len(cut)
    yield pl.concat([part.frame for part in read])
    yield pl.concat([part.place for part in read])
    yield [part.rejects for part in read]


def test_what_cannot_be_divided_is_one_block(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,v\n" + "1,ü\n" * 50, "utf-16")
    file_format = FileFormat(encoding="utf-16")
    assert [b.last for b in blocks.of_file(path, 3, file_format, size=10)] == [None]
