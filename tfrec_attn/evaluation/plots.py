"""Pictures of a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from tfrec_attn import atomic


def learning_curves(history: Sequence[dict], path: Path) -> None:
    """Training losses above, validation metrics below, over epochs."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [line["epoch"] for line in history]
    values = lambda name: [line.get(name, math.nan) for line in history]
    figure, (losses, found) = plt.subplots(2, 1, sharex=True, figsize=(7, 7))
    for name in dict.fromkeys(name for line in history for name in line):
        if name.startswith("train_"):
            losses.plot(epochs, values(name), label=name[6:])
        elif name in ("ndcg@10", "hit@10", "mrr"):
            found.plot(epochs, values(name), label=name)
    losses.set(ylabel="training loss")
    found.set(xlabel="epoch", ylabel="validation")
    for axis in (losses, found):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with atomic.replacing(path) as partial:
        figure.savefig(partial, dpi=120)
    plt.close(figure)


def methods(rows: Mapping[str, Any], names: Mapping[str, str], path: Path) -> None:
    """Each method's mean and interval, a panel a metric.

    Args:
      rows: By method; `metrics` of each holds `mean`, `low` and `high` by metric.
      names: Metrics to show, and how they are called.
      path: PNG to write.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = 1.2 + 0.35 * len(rows)
    figure, axes = plt.subplots(1, len(names), sharey=True, figsize=(10, height))
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for place, row in enumerate(rows.values()):
            value = row["metrics"][name]
            axis.plot([value["low"], value["high"]], [place] * 2, color="tab:blue")
            axis.plot(value["mean"], place, "o", color="tab:blue")
        axis.set(xlabel=title, xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def groups(
    parts: Sequence[Mapping[str, Any]], title: str, metric: str, path: Path, most: int = 6
) -> None:
    """Methods side by side within groups of queries.

    Args:
      parts: `group`, its name; `queries`, its size; `rows`, mean, low and high by method.
      title: What the groups are by.
      metric: Its name.
      path: PNG to write.
      most: Methods shown: those of the highest mean.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    total = lambda name: sum(part["queries"] * part["rows"][name][0] for part in parts)
    best = sorted(parts[0]["rows"], key=total)[-most:]
    shown = [name for name in parts[0]["rows"] if name in best]
    figure, axis = plt.subplots(figsize=(10, 4.5))
    for number, name in enumerate(shown):
        at = [p + 0.8 * ((number + 0.5) / len(shown) - 0.5) for p in range(len(parts))]
        mean, low, high = zip(*(part["rows"][name] for part in parts), strict=True)
        mark = axis.plot(at, mean, "o", label=name)
        axis.vlines(at, low, high, color=mark[0].get_color())
    labels = [f"{part['group']}\n{part['queries']} queries" for part in parts]
    axis.set_xticks(range(len(parts)), labels)
    axis.set(xlabel=title, ylabel=metric, ylim=(0, None))
    axis.grid(alpha=0.3, axis="y")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
