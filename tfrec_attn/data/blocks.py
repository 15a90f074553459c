"""A large table as blocks of whole rows, each read alone.

What a reader decides by a whole column is asked of the first block; see
`interactions.Whole`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from tfrec_attn.data import delimited, readers
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import FileFormat

# Rows of a Parquet block, bytes of one of text: about as much memory.
ROWS, BYTES = 2**20, 2**26
# Bytes of a header.
LONGEST = 2**16


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """Some rows of one file.

    Attributes:
      file: Number of the file in the table.
      number: Of the block in the file.
      path: The file.
      first, last: Rows of Parquet, bytes of text. A file that cannot be divided (gzip, an
        encoding that is not UTF-8) is one block, from 0 to None.
      lines: Lines of the file before the block.
      header: Names of the columns, where the block has no header line.
    """

    file: int
    number: int
    path: str
    first: int
    last: int | None
    lines: int = 0
    header: tuple[str, ...] = ()


def tables(path: Path, file_format: FileFormat, rows: int) -> Iterator[RawTable]:
    """A table, a file or a folder of shards, block by block in order.

    Args:
      path: Its name.
      file_format: How it is written.
      rows: Of a Parquet block.
    """
    for number, file in enumerate(readers.files(path)):
        for block in of_file(file, number, file_format, rows=rows):
            yield read(block, file_format)


def of_file(
    path: Path,
    file: int,
    file_format: FileFormat,
    *,
    rows: int | None = None,
    size: int | None = None,
) -> list[Block]:
    """The blocks of one file, in order.

    Args:
      path: The file.
      file: Its number.
      file_format: How it is written.
      rows: Of a Parquet block, `ROWS` by default.
      size: Bytes of one of text, at least; `BYTES` by default.
    """
    rows, size = rows or ROWS, size or BYTES
    if readers.kind_of(path) in readers.PARQUET:
        try:
            count = pl.scan_parquet(path).select(pl.len()).collect().item()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as Parquet: {error}.") from error
        starts = range(0, count, rows)
        return [
            Block(file, i, str(path), at, min(at + rows, count), at)
            for i, at in enumerate(starts)
        ]
    with path.open("rb") as opened:
        zipped = opened.read(2) == b"\x1f\x8b"
    usual = file_format.encoding.lower().replace("_", "-") in {"utf-8", "utf8", "utf-8-sig"}
    if zipped or not usual or path.stat().st_size <= size:
        return [Block(file, 0, str(path), 0, None)]
    return list(_of_text(path, file, file_format, size))


def _of_text(path: Path, file: int, file_format: FileFormat, size: int) -> Iterator[Block]:
    delimits = readers.kind_of(path) not in readers.JSON
    quoting = delimits and file_format.quoting and len(file_format.separator or ",") == 1
    header: tuple[str, ...] = ()
    if delimits and not file_format.header:
        with path.open("rb") as opened:
            header = _header(opened.read(max(size, LONGEST)), path, file_format)
    number = begin = lines = 0
    for end, count in _ends(path, size, quoting):
        yield Block(file, number, str(path), begin, end, lines, header if number else ())
        number, begin, lines = number + 1, end, lines + count


def _header(data: bytes, path: Path, file_format: FileFormat) -> tuple[str, ...]:
    """The names in the first line, with the types that it may give them."""
    comma = readers.kind_of(path) in readers.COMMA
    separator = file_format.separator or ("," if comma else "\t")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    # Whether the header is UTF-8 is looked at where the first block is read.
    data = data.decode(errors="replace").encode()
    data = data[: data.rfind(b"\n") + 1] or data + b"\n"
    return delimited.names(data, separator, file_format.quoting, str(path))


def _ends(path: Path, size: int, quoting: bool) -> Iterator[tuple[int, int]]:
    """Where blocks end, and the lines in each: behind a line end outside of quotes."""
    at = lines = quotes = 0
    with path.open("rb") as opened:
        while data := opened.read(size):
            values = np.frombuffer(data, np.uint8)
            newlines = np.flatnonzero(values == ord("\n"))
            outside = newlines
            if quoting:
                marks = np.flatnonzero(values == ord('"'))
                inside = (quotes + np.searchsorted(marks, newlines)) % 2
                outside, quotes = newlines[inside == 0], quotes + len(marks)
            if len(outside):
                before = int(np.searchsorted(newlines, outside[-1], side="right"))
                yield at + int(outside[-1]) + 1, lines + before
                lines = len(newlines) - before
                left = len(data) - int(outside[-1]) - 1
            else:
                lines += len(newlines)
                left = None
            at += len(data)
        if left is None or left:
            yield at, lines + 1


def read(block: Block, file_format: FileFormat) -> RawTable:
    """The rows of a block, with their lines in the file."""
    path = Path(block.path)
    if readers.kind_of(path) in readers.PARQUET:
        return readers.parquet(path, block.first, (block.last or 0) - block.first)
    if block.last is None:
        return readers.read_shard(path, file_format)
    with path.open("rb") as opened:
        opened.seek(block.first)
        data = opened.read(block.last - block.first)
    if block.header:
        file_format = file_format.model_copy(update={"header": block.header})
    found = readers.parse(path, data, file_format, part=True)
    down = pl.col("line") + block.lines
    return dataclasses.replace(
        found,
        place=found.place.with_columns(down),
        rejects=found.rejects.with_columns(down),
    )
