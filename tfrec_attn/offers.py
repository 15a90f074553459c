"""What a version offers: which items, and the attributes by which requests choose them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tfrec_attn.data import catalog, tables
from tfrec_attn.run.prepared import Prepared
from tfrec_attn.settings import config as config_lib

logger = logging.getLogger(__name__)


def attributes(prepared: Prepared, paths: Sequence[Path]) -> catalog.Catalog | None:
    """The columns of `index.filters`, by row of the items; None where there are none.

    Args:
      prepared: Of a trained run.
      paths: Items tables that have these columns; where two tell of an item, the later one
        is right. The table of the run by default.

    Raises:
      ValueError: When a table is not as it must be.
    """
    kinds = prepared.config.index.filters
    if not kinds:
        if paths:
            raise ValueError(
                "--attributes is for the columns of index.filters, and there are none. "
                'Name them: --set index.filters={price="number"}'
            )
        return None
    schema = prepared.tables.schema
    separators = {
        name: separator
        for name, separator in schema.items.separators.items()
        if kinds.get(name) == "categories"
    }
    items = {"text": "", "columns": kinds, "separators": separators}
    schema = schema.model_copy(update={"items": schema.items.model_copy(update=items)})
    paths = paths or [config_lib.paths(prepared.config)[0]]
    read = [
        tables.read_items(path, schema, prepared.config.data.bad_rows) for path in paths
    ]
    told = pl.concat(read).unique("id", keep="last")
    found = pl.DataFrame({"id": prepared.items.ids.astype(str)}).join(
        told, on="id", how="left", maintain_order="left"
    )
    silent = set(prepared.items.ids) - set(told["id"])
    if silent:
        logger.warning(
            "%d items, as %r, are not in %s: no condition on %s holds for them",
            len(silent),
            min(silent),
            ", ".join(map(str, paths)),
            ", ".join(kinds),
        )
    return catalog.make(found.with_columns(pl.col("text").fill_null("")), kinds)


def offered(
    prepared: Prepared, remove: Path | None, part: tuple[int, int] | None
) -> np.ndarray:
    """`[I]` bool: the items that may be recommended.

    Args:
      prepared: Of a trained run.
      remove: A file with one id a line, of items that are not.
      part: `(n, N)`: every N-th item from the n-th on.

    Raises:
      ValueError: When nothing is left.
    """
    left = np.ones(len(prepared.items), bool)
    if part:
        left &= np.arange(len(left)) % part[1] == part[0] - 1
    if remove:
        gone = {line for line in remove.read_text("utf-8").splitlines() if line}
        unknown = gone - set(prepared.items.ids)
        if unknown:
            logger.warning(
                "%s: %d ids, as %r, are no items", remove, len(unknown), min(unknown)
            )
        left &= ~np.isin(prepared.items.ids.astype(str), list(gone))
    if not left.any():
        raise ValueError(f"Of {len(left)} items none is left: change --remove or --part.")
    if not left.all():
        logger.info("%d of %d items are recommended", left.sum(), len(left))
    return left


def write_vectors(path: Path, prepared: Prepared, first, left: np.ndarray) -> None:
    """Ids and pooled vectors `[d]` of the items that are recommended, as Parquet.

    Args:
      path: The file.
      prepared: Of a trained run.
      first: The first stage of the index.
      left: Of `offered`.
    """
    rows = np.flatnonzero(left)
    vectors = first.rows(rows).numpy()
    table = {"id": prepared.items.ids[rows].astype(str), "vector": vectors}
    pl.DataFrame(table).write_parquet(path)
    logger.info("%s: %d vectors of width %d", path, *vectors.shape)
