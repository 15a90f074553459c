"""CSV, TSV and their like: fields, and the line on which each record begins.

polars parses, but it fills short rows with nulls without a word and knows no line numbers.
So the file's structure is read off its bytes first, in NumPy: where records end and how
many fields each has. A file with a fault in its structure takes a second, careful way,
record by record, that names the faulty lines and keeps the others.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
import polars as pl

Fault = tuple[int, str, str]  # line, text, rule
Parsed = tuple[pl.DataFrame, pl.Series, list[Fault]]  # frame, line of each row, faults

NOT_UTF8 = (
    'is not UTF-8; if the whole file is not, set encoding (as "latin-1") in the table\'s '
    "[schema.….file]"
)
BAD_QUOTE = (
    "has a quoted field that does not end, or text beside the quotes; if quotes are "
    "ordinary characters in this file, set quoting = false in the table's [schema.….file]"
)


def parse(
    data: bytes,
    foreign: dict[int, str],
    *,
    separator: str,
    header: tuple[str, ...],
    quoting: bool,
    name: str,
) -> Parsed:
    """Parses a text file with one record a line, but for line ends inside quotes.

    Args:
      data: UTF-8 that ends in "\\n".
      foreign: Text of the lines that were not UTF-8, by line number.
      separator: Between fields; may be longer than one character, as in `1::Toy Story`,
        which switches quoting off.
      header: The names of the columns if the file has no header line.
      quoting: Whether "…" encloses a field.
      name: Of the file, for errors.
    """
    if len(separator.encode()) > 1:
        data, separator = data.replace(separator.encode(), b"\x1f"), "\x1f"
        quoting = False
    start = 0
    if not header:
        header, start = _header(data, foreign, separator, quoting, name)
    names = _checked_names(header, name)
    first_line = data.count(b"\n", 0, start) + 1
    lines = None
    if not foreign:
        lines = record_lines(data[start:], separator, len(names), quoting)
    if lines is None:
        return _careful(data, start, foreign, separator, names, quoting)
    frame = _polars(data[start:], separator, names, quoting)
    if frame is None or frame.height != len(lines):
        return _careful(data, start, foreign, separator, names, quoting)
    return frame, pl.Series("line", lines + first_line), []


def record_lines(
    data: bytes, separator: str, fields: int, quoting: bool
) -> np.ndarray | None:
    """The line, from 0, on which each record begins; None if there is a fault.

    Faults are a record with another number of fields, a blank line, and a quote that does
    not enclose a whole field.
    """
    if not data:
        return np.zeros(0, np.int64)
    buffer = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(buffer == ord("\n"))
    separators = np.flatnonzero(buffer == ord(separator))
    ends = newlines
    quotes = np.flatnonzero(buffer == ord('"')) if quoting else newlines[:0]
    if quotes.size:
        if not _quotes_enclose_fields(buffer, quotes, separator):
            return None
        # An even number of quotes before it: outside of quotes.
        ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    if not ends.size or ends[-1] != len(data) - 1:
        return None
    counts = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (counts != fields).any() or (starts == ends).any():
        return None
    return np.searchsorted(newlines, starts)


def _quotes_enclose_fields(buffer: np.ndarray, quotes: np.ndarray, separator: str) -> bool:
    # One quote too many leaves the end of the file inside quotes, which the caller sees.
    opening, closing = quotes[0::2], quotes[1::2]
    # A doubled quote looks like a field that closes and opens again at once.
    border = np.array([ord("\n"), ord(separator), ord('"')], np.uint8)
    before = buffer[opening[opening > 0] - 1]
    after = buffer[closing[closing < len(buffer) - 1] + 1]
    return bool(np.isin(before, border).all() and np.isin(after, border).all())


def _polars(
    data: bytes, separator: str, names: list[str], quoting: bool
) -> pl.DataFrame | None:
    if not data:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            separator=separator,
            quote_char='"' if quoting else None,
        )
    except pl.exceptions.PolarsError:
        return None
    return frame.with_columns(pl.all().replace("", None))


def names(data: bytes, separator: str, quoting: bool, name: str) -> tuple[str, ...]:
    """The fields of the first record, the header; arguments as of `parse`."""
    if len(separator.encode()) > 1:
        data, separator = data.replace(separator.encode(), b"\x1f"), "\x1f"
        quoting = False
    return _header(data, {}, separator, quoting, name)[0]


def _header(
    data: bytes, foreign: dict[int, str], separator: str, quoting: bool, name: str
) -> tuple[tuple[str, ...], int]:
    text = data.decode()
    _, end, fields = next(_records(text, 0, separator, quoting))
    lines = text.count("\n", 0, end)
    if fields is None or any(line <= lines for line in foreign):
        rule = BAD_QUOTE if fields is None else NOT_UTF8
        raise ValueError(f"{name}:1: the header {rule}.")
    return tuple(fields), len(text[:end].encode())


def _checked_names(header: tuple[str, ...], name: str) -> list[str]:
    # pandas writes its index as a column without a name.
    names = [field.strip() or f"column_{i}" for i, field in enumerate(header, 1)]
    twice = sorted({field for field in names if names.count(field) > 1})
    if twice:
        raise ValueError(
            f"{name}: two columns are called {twice[0]!r}; give each its own name, or if "
            'the file has no header line, set header = ["…"] in the table\'s '
            f"[schema.….file]. Columns: {', '.join(names)}."
        )
    return names


def _careful(
    data: bytes,
    start: int,
    foreign: dict[int, str],
    separator: str,
    names: list[str],
    quoting: bool,
) -> Parsed:
    text = data.decode()
    body = len(data[:start].decode())
    line = text.count("\n", 0, body) + 1
    rows: list[list[str]] = []
    lines: list[int] = []
    faults: list[Fault] = []
    for begin, end, fields in _records(text, body, separator, quoting):
        spanned = text.count("\n", begin, end)
        record = text[begin : end - 1]
        alien = [foreign[n] for n in range(line, line + spanned) if n in foreign]
        if alien:
            faults.append((line, "\n".join(alien), NOT_UTF8))
        elif fields is None:
            faults.append((line, record, BAD_QUOTE))
        elif record and len(fields) != len(names):
            rule = f"has {len(fields)} field(s) where the header has {len(names)}"
            faults.append((line, record, rule))
        elif record:
            rows.append(fields)
            lines.append(line)
        line += spanned
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return (
        frame.with_columns(pl.all().replace("", None)),
        pl.Series("line", lines, dtype=pl.Int64),
        faults,
    )


def _records(
    text: str, position: int, separator: str, quoting: bool
) -> Iterator[tuple[int, int, list[str] | None]]:
    """Yields (begin, end, fields); the fields of a faulty record are None.

    After a fault reading goes on with the next line, so that one open quote does not take
    the rest of the file with it.
    """
    mark = re.escape(separator)
    quoted = r'"((?:[^"]++|"")*+)"|(?!")' if quoting else r"(\Zx)?"
    field = re.compile(rf"(?:{quoted}([^\n{mark}]*+))({mark}|\n)")
    while position < len(text):
        begin, fields = position, []
        while True:
            match = field.match(text, position)
            if match is None or (match[1] is not None and match[2]):
                position = text.index("\n", begin) + 1
                yield begin, position, None
                break
            fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
            position = match.end()
            if match[3] == "\n":
                yield begin, position, fields
                break
