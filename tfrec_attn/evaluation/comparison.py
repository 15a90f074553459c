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

from tfrec_attn import metrics
from tfrec_attn.data import catalog, examples
from tfrec_attn.evaluation import baselines, ranking
from tfrec_attn.run import runs
from tfrec_attn.run.prepared import Prepared
from tfrec_attn.run.streamed import Streamed

logger = logging.getLogger(__name__)
TUNED_BY = "ndcg@10"
TUNING_QUERIES = 2000


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


@dataclasses.dataclass(frozen=True)
class Fold:
    """A fold, as every method is asked.

    Attributes:
      queries: Its events of a positive label that repeat no known item.
      events: What a baseline is fitted to: all positive events known before it.
      positive: `[labels]` bool.
    """

    queries: examples.Examples
    events: baselines.Events
    positive: np.ndarray

    def baseline(self, method: baselines.Method, settings: dict[str, Any]) -> ranking.Score:
        """A baseline fitted to what is known before the fold."""
        return ranking.of_baseline(method.fit(self.events, **settings), self.positive)

    def ask(self, name: str, score: ranking.Score, ks, k: int = 0, **more) -> Row:
        """One method's row.

        Args:
          name: Of the row.
          score: The method.
          ks: Lengths of the list at which metrics are measured.
          k: Length of the lists that are kept.
          **more: Other fields of the row.
        """
        begin, targets = time.perf_counter(), self.queries.targets.item
        found = ranking.answers(score, self.queries, self.events.n_items, k=k)
        per_query = metrics.ranked_metrics(found.rank, list(targets[:, None]), ks)
        row = Row(name, found, per_query, **more)
        if k:
            mean, took = self.by_user(row)[f"ndcg@{k}"].mean(), time.perf_counter() - begin
            logger.info("%s: NDCG@%d %.4f in %.1f s", name, k, mean, took)
        return row

    def by_user(self, row: Row) -> dict[str, np.ndarray]:
        """Metrics by name, `[users]`: the mean over a user's queries, in order of row."""
        user = self.queries.user
        count = np.bincount(user)
        return {
            name: (np.bincount(user, values) / np.maximum(count, 1))[count > 0]
            for name, values in row.per_query.items()
        }


def fold(prepared: Prepared, name: str, most: int | None = None) -> Fold:
    """A fold of a run.

    Args:
      prepared: The run's data.
      name: `validation` or `test`.
      most: Queries to draw where there are more, always the same; all by default.

    Raises:
      ValueError: When it has no query.
    """
    queries = prepared.held_out(name, most)
    if not len(queries):
        raise ValueError(
            f"The {name} fold has no event with a label of examples.positives="
            f"{list(prepared.config.examples.positives)} that does not repeat a known "
            "item. Widen the setting, or choose another split."
        )
    return _fold(prepared, queries)


def folds(prepared: Prepared, name: str) -> Iterator[Fold]:
    """A fold of a run, in parts where the run has its events in parts; `events` then has
    counts of all of them. See `fold` for what is raised.
    """
    if not isinstance(prepared, Streamed):
        yield fold(prepared, name)
        return
    for queries in prepared.parts_of(name):
        found = _fold(prepared, queries)
        counts = prepared.counts_before(name)
        yield dataclasses.replace(found, events=found.events._replace(counts=counts))


def _fold(prepared: Prepared, queries: examples.Examples) -> Fold:
    positive = prepared.label_is_positive
    past = queries.history.take(np.flatnonzero(positive[queries.history.feedback]))
    sizes = len(prepared.users), len(prepared.items)
    events = baselines.Events(past.user, past.item, *sizes, _categories(prepared.items))
    return Fold(queries, events, positive)


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


def baseline_rows(
    validation: Fold, asked: Fold, ks, k: int, left_out: dict[str, str]
) -> Iterator[Row]:
    """The baselines, tuned on one fold and asked another.

    Args:
      validation, asked: The two; they may be one.
      ks, k: See `Fold.ask`.
      left_out: Gets the reason of each baseline that cannot be had, by name.
    """
    for name, method in baselines.METHODS.items():
        try:
            settings, reached = tune(method, validation)
            score = asked.baseline(method, settings)
        except baselines.UnavailableError as error:
            left_out[name] = str(error)
            continue
        yield asked.ask(name, score, ks, k, settings=settings, validation=reached)


def tune(method: baselines.Method, validation: Fold) -> tuple[dict[str, Any], float | None]:
    """The settings of the best `TUNED_BY`, and that figure where there was a choice."""
    tried = list(method.settings())
    if len(tried) == 1:
        return tried[0], None
    rows = (validation.ask("", validation.baseline(method, s), (10,)) for s in tried)
    reached = [float(validation.by_user(row)[TUNED_BY].mean()) for row in rows]
    best = int(np.argmax(reached))
    return tried[best], reached[best]


def model_rows(model, run: Path, asked: Fold, index, ks, k: int) -> Iterator[Row]:
    """The model before training, its retrieval alone, and both stages.

    Args:
      model: Untrained; has the weights of `run` at the end.
      run: The run's folder.
      asked: The fold.
      index: See `sections.Index`.
      ks, k: See `Fold.ask`.
    """
    matrices = model.encode_items(index.tokens)
    score = ranking.of_model(model, matrices, index.shortlist)
    yield asked.ask("untrained", score, ks, k)
    runs.restore(model, run)
    matrices = model.encode_items(index.tokens)
    yield asked.ask("retrieval", ranking.of_model(model, matrices, 0), ks, k)
    if index.shortlist:
        score = ranking.of_model(model, matrices, index.shortlist)
        yield asked.ask("retrieval + ranking", score, ks, k)


def figures(
    row: Row, best: Row, asked: Fold, percentile: np.ndarray, k: int
) -> dict[str, Any]:
    """A row as plain values: means over users with their intervals, and what is listed.

    Args:
      row, best: The row, and the one it is compared with, user by user.
      asked: The fold that both answered.
      percentile: `[I]` popularity of each item.
      k: Length of the lists.
    """
    values = asked.by_user(row)
    bounds = metrics.bootstrap(np.stack(list(values.values()), 1))
    gain = metrics.bootstrap(asked.by_user(best)[f"ndcg@{k}"], values[f"ndcg@{k}"])
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


def write_ranks(
    rows: list[Row], queries: examples.Examples, prepared: Prepared, path: Path
) -> None:
    """A CSV line a query: whose, of which item, and its rank by each method."""
    pl.DataFrame(
        {
            "user_id": prepared.users.ids[queries.user].astype(str),
            "item_id": prepared.items.ids[queries.targets.item].astype(str),
            **{row.name: row.answers.rank for row in rows},
        }
    ).write_csv(path)
