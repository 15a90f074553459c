"""Files to raw columns, with the line each row stands on; no meaning is given here yet.

A text file's columns are strings; JSON and Parquet keep their types. Empty strings are
null, "\\r\\n" is read as "\\n", blank lines are skipped. A row that cannot be read (too few
or too many fields, a quote that is not closed, bytes of another encoding, no JSON) becomes
a reject that names its line.
"""

import dataclasses
import gzip
import logging
import re
import zlib
from pathlib import Path

import polars as pl

from tfrec_attn import paths
from tfrec_attn.data import columns, delimited, jsonlines, rejects
from tfrec_attn.data.schema import FileFormat

COMMA, JSON, PARQUET = {".csv"}, {".jsonl", ".ndjson", ".json"}, {".parquet", ".pq"}
# RecBole's "atomic files" and the tables of older collections.
_TAB = {".tsv", ".tab", ".txt", ".dat", ".data", ".inter", ".item", ".user"}
_KNOWN = COMMA | _TAB | JSON | PARQUET
_ENDINGS = f"one of {', '.join(sorted(_KNOWN))}, with or without .gz"
_TYPED = re.compile(r"(.+):(token|token_seq|float|float_seq)")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RawTable:
    """A table as its files have it.

    Attributes:
      name: The file or folder, for messages.
      frame: The columns, rows in file order.
      place: `file` and `line` of each row of `frame`. The first line of a file is 1 and its
        header counts; in Parquet it is the number of the row, from 1.
      rejects: Rows that could not be read.
      hints: Types that the header gives its columns (`name:token_seq`), where it does.
    """

    name: str
    frame: pl.DataFrame
    place: pl.DataFrame
    rejects: pl.DataFrame
    hints: dict[str, str]


def read(path: str | Path, file_format: FileFormat | None = None) -> RawTable:
    """Reads a file, or all shards of a folder in natural order of their names."""
    path = Path(path)
    file_format = file_format or FileFormat()
    shards = files(path)
    tables = [read_shard(shard, file_format) for shard in shards]
    _check_same_columns(shards, tables)
    names = pl.Enum([str(shard) for shard in shards])
    return RawTable(
        name=str(path),
        frame=_concat(shards, [table.frame for table in tables]),
        place=pl.concat([t.place.with_columns(pl.col("file").cast(names)) for t in tables]),
        rejects=pl.concat([table.rejects for table in tables]),
        hints={name: hint for table in tables for name, hint in table.hints.items()},
    )


def files(path: Path) -> list[Path]:
    """A file, or the shards of a folder in natural order of their names."""
    require(path)
    return _shards(path) if path.is_dir() else [path]


def require(path: Path) -> None:
    """Looks whether a table is there.

    Raises:
      FileNotFoundError: It is not; says where a relative path was looked for.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder{paths.looked_in(path)}.")


def kind_of(path: Path) -> str:
    """The suffix that tells the format, without `.gz`."""
    return (
        path.with_suffix("").suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    )


def _shards(folder: Path) -> list[Path]:
    # Names that begin with "_" or "." are the bookkeeping of what wrote the folder.
    files = [p for p in folder.iterdir() if p.is_file() and p.name[0] not in "._"]
    shards = [p for p in files if kind_of(p) in _KNOWN]
    others = sorted({p.name for p in folder.iterdir()} - {p.name for p in shards})
    if others:
        logger.warning("%s: not read: %s", folder, ", ".join(others))
    if not shards:
        raise ValueError(
            f"{folder}: no table in this folder; shards end in {_ENDINGS}. "
            f"Found: {', '.join(others) or 'nothing'}."
        )
    kinds = sorted({kind_of(p) for p in shards})
    if len(kinds) > 1:
        raise ValueError(f"{folder}: shards must have one format: got {', '.join(kinds)}.")
    digits = lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)]
    return sorted(shards, key=digits)


def read_shard(path: Path, file_format: FileFormat) -> RawTable:
    """Reads one file."""
    kind = kind_of(path)
    if kind in PARQUET:
        return parquet(path)
    if kind not in _KNOWN:
        raise ValueError(
            f"{path}: the name must end in {_ENDINGS}: got {path.suffix or 'no ending'}."
        )
    return parse(path, _bytes(path), file_format)


def parse(
    path: Path, data: bytes, file_format: FileFormat, *, part: bool = False
) -> RawTable:
    """The table of a text file, or of some of its lines.

    Args:
      path: Of the file; its name tells the format.
      data: Its bytes, or those of some whole rows, which then need `file_format.header`
        where the format has a header.
      file_format: How it is written.
      part: Whether there may be no row among them.
    """
    kind = kind_of(path)
    text, foreign = _utf8(data, path, file_format.encoding)
    if not text.strip() and not part:
        raise ValueError(f"{path}: the file is empty.")
    if kind in JSON:
        frame, lines, faults = jsonlines.parse(text, foreign)
        return _table(path, frame, lines, faults, {})
    separator = file_format.separator or ("," if kind in COMMA else "\t")
    frame, lines, faults = delimited.parse(
        text,
        foreign,
        separator=separator,
        header=file_format.header,
        quoting=file_format.quoting,
        name=str(path),
    )
    frame, hints = _typed_header(frame)
    return _table(path, frame, lines, faults, hints)


def _table(
    path: Path,
    frame: pl.DataFrame,
    lines: pl.Series,
    faults: list[tuple[int, str, str]],
    hints: dict[str, str],
) -> RawTable:
    place = pl.DataFrame({"line": lines}).select(pl.lit(str(path)).alias("file"), "line")
    return RawTable(str(path), frame, place, rejects.from_lines(path, faults), hints)


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}.") from error


def _utf8(data: bytes, path: Path, encoding: str) -> tuple[bytes, dict[int, str]]:
    """UTF-8 bytes without BOM that end in a newline, and the lines that were not UTF-8."""
    if encoding.lower().replace("_", "-") not in {"utf-8", "utf8", "utf-8-sig"}:
        try:
            data = data.decode(encoding).encode()
        except UnicodeError as error:
            raise ValueError(f"{path}: is not {encoding}: {error}.") from error
    elif data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ValueError(
            f'{path}: is UTF-16, not UTF-8; set encoding = "utf-16" in the table\'s '
            "[schema.….file]."
        )
    data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
    data = data.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    foreign: dict[int, str] = {}
    try:
        data.decode()
    except UnicodeDecodeError:
        for number, line in enumerate(data.split(b"\n"), 1):
            text = line.decode(errors="backslashreplace")
            if text != line.decode(errors="replace"):
                foreign[number] = text
        data = data.decode(errors="replace").encode()
    return data, foreign


def parquet(path: Path, first: int = 0, count: int | None = None) -> RawTable:
    """Reads `count` rows of a Parquet file from row `first` on, all by default."""
    try:
        frame = pl.scan_parquet(path).slice(first, count).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}.") from error
    strings = pl.col(pl.String).replace("", None)
    places = pl.int_range(first + 1, first + frame.height + 1, dtype=pl.Int64, eager=True)
    lines = places.alias("line")
    return _table(path, frame.with_columns(strings), lines, [], {})


def _typed_header(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """Takes `:token` and the like off the names if all of them have it."""
    typed = [_TYPED.fullmatch(name) for name in frame.columns]
    if not all(typed):
        return frame, {}
    hints = {match[1]: match[2] for match in typed if match}
    return frame.rename({f"{name}:{hint}": name for name, hint in hints.items()}), hints


def _check_same_columns(shards: list[Path], tables: list[RawTable]) -> None:
    if kind_of(shards[0]) in JSON:
        return  # A key that a JSON object lacks is a missing value, also of a whole shard.
    first = set(tables[0].frame.columns)
    for shard, table in zip(shards, tables, strict=True):
        differ = sorted(first ^ set(table.frame.columns))
        if differ:
            raise ValueError(
                f"{shard}: all shards must have the columns of {shards[0].name}: "
                f"{', '.join(differ)} is in one of the two only."
            )


def _concat(shards: list[Path], frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Stacks shards; a column whose types differ becomes canonical strings."""
    for name in frames[0].columns:
        types = {frame.schema[name] for frame in frames if name in frame.columns}
        types.discard(pl.Null())
        if len(types) > 1 and not any(kind.is_nested() for kind in types):
            frames = [_with_text(frame, name) for frame in frames]
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{shards[0].parent}: the shards have types that do not go together: {error}."
        ) from error


def _with_text(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    if name not in frame.columns:
        return frame
    return frame.with_columns(columns.as_text(frame[name]).alias(name))
