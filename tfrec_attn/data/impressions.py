"""What was shown and not taken, as feedback; pure functions of tables.

Events and impressions have `user`, `item` (ids) and `time` (ms); events a `label` too.
"""

import polars as pl

_PAIR = ["user", "item"]


def events_told(told: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The events of histories that requests brought and the shop's table lacks.

    Args:
      told: See `request_logs.Requests`.
      events: The shop's.

    Returns:
      `user`, `item`, `label`, `time`. An event that came without a time is kept where no
      other is known of the same user and item, once, at the first request that told it.
    """
    dated = (
        told.filter(pl.col("time").is_not_null())
        .unique([*_PAIR, "time"], keep="first", maintain_order=True)
        .join(events, [*_PAIR, "time"], "anti")
    )
    undated = (
        told.filter(pl.col("time").is_null())
        .with_columns(time="before")
        .sort("time", maintain_order=True)
        .unique(_PAIR, keep="first", maintain_order=True)
        .join(events, _PAIR, "anti")
        .join(dated, _PAIR, "anti")
    )
    return pl.concat([dated, undated]).select("user", "item", "label", "time")


def showings(
    shown: pl.DataFrame, events: pl.DataFrame, window: int, until: int
) -> pl.DataFrame:
    """Impressions of one item to one user, those less than `window` apart as one.

    Args:
      shown: Impressions.
      events: All that are known.
      window: Milliseconds in which an event is a consequence of an impression.
      until: The time up to which all events are known.

    Returns:
      `user`, `item`, `time` (of the first impression), `settled` (the time at which the
      window of the last one ends), `outcome`: `taken` where any event of the user and the
      item follows an impression within the window, else `open` where that time is not
      over, else `ignored`.
    """
    follows = events.select(*_PAIR, event="time").sort("event")
    ordered = shown.unique().sort("time", maintain_order=True)
    found = ordered.join_asof(
        follows, left_on="time", right_on="event", by=_PAIR, strategy="forward"
    ).with_columns(
        taken=(pl.col("event") - pl.col("time") <= window).fill_null(False),
        begins=(pl.col("time").diff().over(_PAIR) >= window).fill_null(True),
    )
    return (
        found.with_columns(run=pl.col("begins").cum_sum().over(_PAIR))
        .group_by(*_PAIR, "run", maintain_order=True)
        .agg(
            pl.col("time").min(),
            settled=pl.col("time").max() + window,
            taken=pl.col("taken").any(),
        )
        .with_columns(
            outcome=pl.when("taken")
            .then(pl.lit("taken"))
            .when(pl.col("settled") > until)
            .then(pl.lit("open"))
            .otherwise(pl.lit("ignored"))
        )
        .select(*_PAIR, "time", "settled", "outcome")
    )
