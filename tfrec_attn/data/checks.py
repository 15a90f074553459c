"""What every table's rows are checked with."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator

import polars as pl

from tfrec_attn.data import columns, rejects
from tfrec_attn.data.readers import RawTable

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checked:
    """Rows that keep the rules, and those that do not."""

    frame: pl.DataFrame
    rejects: pl.DataFrame


@contextlib.contextmanager
def naming(raw: RawTable) -> Iterator[None]:
    """Puts the file's name before an error about one of its columns."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{raw.name}: {error}") from error


def require(raw: RawTable, wanted: dict[str, str]) -> None:
    """Checks that columns exist; `wanted` says for each which setting names it."""
    for name, setting in wanted.items():
        if name not in raw.frame.columns:
            raise ValueError(
                f"{raw.name}: no column {name!r} (schema.{setting}). "
                f"Its columns are: {', '.join(raw.frame.columns)}."
            )


def check(
    raw: RawTable, converted: Iterable[tuple[str, columns.Column]]
) -> tuple[pl.Series, list[pl.DataFrame]]:
    """Which rows break a rule, and the rejects, those of the reader first."""
    bad = pl.repeat(False, raw.frame.height, eager=True)
    found = [raw.rejects]
    for name, column in converted:
        for note in column.notes:
            logger.warning("%s, column %r: %s", raw.name, name, note)
        for rule, broken in column.faults:
            bad |= broken
            found.append(rejects.reject(raw.place, broken, name, raw.frame[name], rule))
    return bad, found
