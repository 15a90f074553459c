"""The rows of the evaluation's table: baselines, and the model before and after training.

Letters: Q queries, I items, G categories.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from tfrec_attn import baselines, metrics, ranking, runs
from tfrec_attn.data import catalog
from tfrec_attn.data.examples import Examples
from tfrec_attn.pipeline import Prepared

logger = logging.getLogger(__name__)
TUNED_BY = "ndcg@10"


@dataclasses.dataclass(frozen=True)
class Row:
    """What one method of the table reached.

    Attributes:
      name: As the table shows it.
      answers: To each query.
      per_query: Metrics by name, `[Q]` each.
      settings: Chosen on the validation fold.
      validation: `TUNED_BY` on it; None where there was nothing to choose.
    """

    name: str
    answers: ranking.Answers
    per_query: dict[str, np.ndarray]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    validation: float | None = None


def targets(prepared: Prepared, fold: str) -> Examples:
    """The queries of a fold.

    Raises:
      ValueError: When it has none.
    """
    queries = prepared.held_out(fold)
    if not len(queries):
        raise ValueError(
            f"The {fold} fold has no event with a label of examples.positives="
            f"{list(prepared.config.examples.positives)} that does not repeat a known "
            "item. Widen the setting, or choose another split."
        )
    return queries


def training_events(prepared: Prepared, fold: str) -> baselines.Events:
    """What a baseline is fitted to: all events known before the fold that are positive."""
    past = prepared.events(prepared.split.known(fold))
    past = past.take(np.flatnonzero(prepared.label_is_positive[past.feedback]))
    categories = _categories(prepared.items)
    return baselines.Events(
        past.user, past.item, len(prepared.users), len(prepared.items), categories
    )


def _categories(items: catalog.Catalog) -> sparse.csr_array | None:
    """`[I, G]`: the values of all category columns, side by side; None without any."""
    parts = []
    for name, column in items.columns.items():
        if column.kind in ("category", "categories") and column.vocabulary:
            values = items.features[name].reshape(len(items), -1)
            row, place = np.nonzero(values)
            ones = np.ones(len(row))
            shape = len(items), len(column.vocabulary)
            parts.append(
                sparse.csr_array((ones, (row, values[row, place] - 1)), shape=shape)
            )
    return sparse.csr_array(sparse.hstack(parts)) if parts else None


def by_user(per_query: dict[str, np.ndarray], queries) -> dict[str, np.ndarray]:
    """The mean over each user's queries, of the users who have one, in order of row."""
    count = np.bincount(queries.user)
    return {
        name: (np.bincount(queries.user, values) / np.maximum(count, 1))[count > 0]
        for name, values in per_query.items()
    }


def ask(
    name: str, score: ranking.Score, queries, n_items: int, ks, k: int = 0, **more
) -> Row:
    """One method's row.

    Args:
      name: Of the row.
      score: The method.
      queries: Held-out events.
      n_items: I.
      ks: Lengths of the list at which metrics are measured.
      k: Length of the lists that are kept.
      **more: Other fields of the row.
    """
    begin = time.perf_counter()
    found = ranking.answers(score, queries, n_items, k=k)
    per_query = metrics.ranked_metrics(found.rank, list(queries.targets.item[:, None]), ks)
    if k:
        mean, took = per_query[f"ndcg@{k}"].mean(), time.perf_counter() - begin
        logger.info("%s: NDCG@%d %.4f in %.1f s", name, k, mean, took)
    return Row(name, found, per_query, **more)


def baseline_rows(
    prepared: Prepared, fold: str, ks, k: int, left_out: dict[str, str]
) -> Iterator[Row]:
    """The baselines, each tuned on the validation fold and fitted to what precedes `fold`.

    Args:
      prepared: The run's data.
      fold: `validation` or `test`.
      ks, k: See `ask`.
      left_out: Gets the reason of each baseline that cannot be had, by name.
    """
    queries, events = targets(prepared, fold), training_events(prepared, fold)
    for name, method in baselines.METHODS.items():
        try:
            settings, reached = tune(method, prepared)
            score = ranking.of_baseline(
                method.fit(events, **settings), prepared.label_is_positive
            )
        except baselines.UnavailableError as error:
            left_out[name] = str(error)
            continue
        yield ask(
            name,
            score,
            queries,
            events.n_items,
            ks,
            k,
            settings=settings,
            validation=reached,
        )


def tune(
    method: baselines.Method, prepared: Prepared
) -> tuple[dict[str, Any], float | None]:
    """The settings of the best `TUNED_BY` on the validation fold, and that figure."""
    tried = list(method.settings())
    if len(tried) == 1:
        return tried[0], None
    queries = targets(prepared, "validation")
    events = training_events(prepared, "validation")
    reached = []
    for settings in tried:
        score = ranking.of_baseline(
            method.fit(events, **settings), prepared.label_is_positive
        )
        row = ask(method.fit.__name__, score, queries, events.n_items, (10,))
        reached.append(metrics.summary(by_user(row.per_query, queries))[TUNED_BY])
    best = int(np.argmax(reached))
    return tried[best], reached[best]


def model_rows(
    model, run: Path, prepared: Prepared, fold: str, ks, k: int
) -> Iterator[Row]:
    """The model before training, its retrieval alone, and both stages.

    Args:
      model: Untrained; has the weights of `run` at the end.
      run: The run's folder.
      prepared: Its data.
      fold: `validation` or `test`.
      ks, k: See `ask`.
    """
    queries, shortlist = targets(prepared, fold), prepared.config.index.shortlist
    row = lambda name, size: ask(
        name, ranking.of_model(model, size), queries, len(prepared.items), ks, k
    )
    yield row("untrained", shortlist)
    runs.restore(model, run)
    yield row("retrieval", 0)
    if shortlist:
        yield row("retrieval + ranking", shortlist)


def figures(row: Row, best: Row, queries, percentile: np.ndarray, k: int) -> dict[str, Any]:
    """A row as plain values: means over users with their intervals, and what is listed.

    Args:
      row, best: The row, and the one it is compared with, user by user.
      queries: That both answered.
      percentile: `[I]` popularity of each item.
      k: Length of the lists.
    """
    values = by_user(row.per_query, queries)
    bounds = metrics.bootstrap(np.stack(list(values.values()), 1))
    gain = metrics.bootstrap(
        by_user(best.per_query, queries)[f"ndcg@{k}"], values[f"ndcg@{k}"]
    )
    return {
        "settings": row.settings,
        f"validation {TUNED_BY}": row.validation,
        "metrics": {
            name: dict(zip(("mean", "low", "high"), map(float, three), strict=True))
            for name, *three in zip(values, *bounds, strict=True)
        },
        f"difference ndcg@{k}": {n: float(v) for n, v in gain._asdict().items()},
        f"coverage@{k}": metrics.coverage(row.answers.listed, len(percentile)),
        f"popularity@{k}": float(
            np.nanmean(metrics.popularity(row.answers.listed, percentile))
        ),
    }


def groups(rows: list[Row], of: np.ndarray, name: str, parts: int = 4) -> list[dict]:
    """A metric within groups of queries of about equal size; none where all are alike.

    Args:
      rows: Of the table.
      of: `[Q]` integers to group by.
      name: Of the metric.
      parts: At most so many groups.
    """
    edges = np.unique(np.quantile(of, np.linspace(0, 1, parts + 1), method="lower"))
    if len(edges) < 2:
        return []
    place = np.searchsorted(edges[1:-1], of, side="right")
    found = []
    for part in np.unique(place):
        mine = place == part
        low, high = of[mine].min(), of[mine].max()
        found.append(
            {
                "group": f"{low}" if low == high else f"{low}–{high}",
                "queries": int(mine.sum()),
                "rows": {
                    row.name: [
                        float(v) for v in metrics.bootstrap(row.per_query[name][mine])
                    ]
                    for row in rows
                },
            }
        )
    return found


def write_ranks(rows: list[Row], queries: Examples, prepared: Prepared, path: Path) -> None:
    """A CSV line a query: whose, of which item, and its rank by each method."""
    pl.DataFrame(
        {
            "user_id": prepared.users.ids[queries.user].astype(str),
            "item_id": prepared.items.ids[queries.targets.item].astype(str),
            **{row.name: row.answers.rank for row in rows},
        }
    ).write_csv(path)
