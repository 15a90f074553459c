"""Runs on the same fold, side by side: figures, paired intervals, settings that differ.

Letters: Q queries, U users.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tfrec_attn import claims, metrics
from tfrec_attn.evaluation import comparison, ranking, report
from tfrec_attn.run import runs
from tfrec_attn.settings import config as config_lib

logger = logging.getLogger(__name__)
SHOWN = ("ndcg", "hit", "mrr")


class Measured(NamedTuple):
    """What a run reached on a fold.

    Attributes:
      name: Its folder, as it was named.
      settings: `section.field` to value.
      split, digest: Of its split.
      user, item: `[Q]` ids of its queries.
      rank: `[Q]` of the target by the method that is served.
    """

    name: str
    settings: dict[str, Any]
    split: str
    digest: str
    user: np.ndarray
    item: np.ndarray
    rank: np.ndarray

    def by_user(self, ks: Sequence[int]) -> dict[str, np.ndarray]:
        """Metrics by name, `[U]`: the mean over a user's queries, in order of id."""
        targets = list(np.zeros((len(self.rank), 1), np.int64))
        values = metrics.ranked_metrics(self.rank, targets, ks)
        _, owner, count = np.unique(self.user, return_inverse=True, return_counts=True)
        return {name: np.bincount(owner, one) / count for name, one in values.items()}


def measured(run: Path, fold: str) -> Measured:
    """By what `evaluate` kept of the fold, else by asking the model.

    Raises:
      ValueError: The folder holds no finished training.
    """
    path = run / "metrics.json"
    if not path.exists():
        raise ValueError(
            f"{run} holds no finished training: it has no metrics.json. Name folders of "
            "tfrec_attn.train; --resume ends one that was stopped."
        )
    about = json.loads(path.read_text("utf-8"))
    settings = config_lib.load(run / "config.toml").model_dump(mode="json", by_alias=True)
    queries = _kept(run, fold, about["digest"])
    if queries is None:
        queries = _asked(run, fold)
    return Measured(
        str(run), config_lib.flat(settings), about["split"], about["digest"], *queries
    )


def _kept(run: Path, fold: str, digest: str) -> tuple[np.ndarray, ...] | None:
    """User, item and rank of each query, where `evaluate` has asked this fold last, and the
    model that the run has now."""
    path = run / "evaluation.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))
    now = fold, digest, runs.weights_digest(run)
    if (found["fold"], found["digest"], found.get("weights")) != now:
        return None
    served = list(found["rows"])[-1]
    ids = {"user_id": pl.String, "item_id": pl.String}
    table = pl.read_csv(run / "ranks.csv", schema_overrides=ids)
    return tuple(table[name].to_numpy() for name in (*ids, served))


def _asked(run: Path, fold: str) -> tuple[np.ndarray, ...]:
    logger.info("%s: no evaluation of the %s fold, the model is asked", run, fold)
    model, prepared = runs.load(run)
    asked, index = comparison.fold(prepared, fold), prepared.config.index
    matrices = model.encode_items(index.tokens)
    row = asked.ask("", ranking.of_model(model, matrices, index.shortlist), (1,))
    queries = asked.queries
    user, item = prepared.users.ids[queries.user], prepared.items.ids[queries.targets.item]
    return user.astype(object), item.astype(object), row.answers.rank


def compare(folders: Sequence[Path], fold: str, ks: Sequence[int]) -> dict[str, Any]:
    """Every run, and what the others gain over the first, user by user.

    Args:
      folders: Of two runs or more.
      fold: `validation` or `test`.
      ks: Lengths of the list.

    Raises:
      ValueError: Fewer than two runs, one that is not finished, or runs of unlike folds.
    """
    if len(folders) < 2:
        raise ValueError(f"--compare takes two runs or more: received {len(folders)}.")
    found = [measured(folder, fold) for folder in folders]
    first = found[0]
    for other in found[1:]:
        _require_same(first, other, fold)
    values = [one.by_user(ks) for one in found]
    return {
        "fold": fold,
        "split": first.split,
        "digest": first.digest,
        "queries": len(first.rank),
        "users": len(np.unique(first.user)),
        "ks": list(ks),
        "runs": [
            {
                "run": one.name,
                "metrics": metrics.summary(own),
                "differences": _gains(own, values[0]) if one is not first else {},
                "settings": claims.differences(first.settings, one.settings),
            }
            for one, own in zip(found, values, strict=True)
        ],
    }


def _require_same(one: Measured, other: Measured, fold: str) -> None:
    if one.digest != other.digest:
        raise ValueError(
            f"{one.name} and {other.name} are of different splits, {one.split} "
            f"{one.digest[:12]} and {other.split} {other.digest[:12]}: their figures are "
            "not of the same events. Train both on the same tables with the same [split]."
        )
    same = lambda name: np.array_equal(getattr(one, name), getattr(other, name))
    if not (same("user") and same("item")):
        raise ValueError(
            f"{one.name} and {other.name} were asked for different events of the {fold} "
            f"fold, {len(one.rank)} and {len(other.rank)}: examples.positives decides "
            "which are queries. Train both with the same."
        )


def _gains(values: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Of all metrics over the same draws of users."""
    stack = lambda one: np.stack(list(one.values()), 1)
    found = metrics.bootstrap(stack(values), stack(first))
    return {
        name: dict(zip(("mean", "low", "high"), map(float, three), strict=True))
        for name, *three in zip(values, *found, strict=True)
    }


def text(result: Mapping[str, Any]) -> str:
    """The comparison as a table a run, and the settings that differ."""
    first, *others = result["runs"]
    names = [name for name in first["metrics"] if name.partition("@")[0] in SHOWN]
    rows = [
        {
            "metric": name,
            first["run"]: f"{first['metrics'][name]:.4f}",
            **{
                column: shown
                for one in others
                for column, shown in (
                    (one["run"], f"{one['metrics'][name]:.4f}"),
                    (f"{one['run']}, difference", _signed(one["differences"][name])),
                )
            },
        }
        for name in names
    ]
    head = (
        f"{result['fold']} fold of {result['split']}: {result['queries']} queries of "
        f"{result['users']} users. Differences are from {first['run']}, user by user, with "
        "95 % bootstrap intervals over users; without 0 in it, the runs differ."
    )
    return "\n\n".join([head, report.table(rows), *(_settings(one) for one in others)])


def _signed(value: Mapping[str, float]) -> str:
    sure = "" if value["low"] <= 0 <= value["high"] else " *"
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]{sure}"


def _settings(one: Mapping[str, Any]) -> str:
    lines = [f"  {name}: {was!r} → {now!r}" for name, (was, now) in one["settings"].items()]
    count = f"{len(lines)} setting{'s' * (len(lines) != 1)}"
    return "\n".join([f"{one['run']} has {count} of its own{':' * bool(lines)}", *lines])
