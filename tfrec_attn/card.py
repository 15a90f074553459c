"""The model card of a version: what it was made of, how good it is, what it is not for.

After Mitchell et al., 2019, Model cards for model reporting.
"""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from tfrec_attn import __version__, backbones
from tfrec_attn.evaluation import report
from tfrec_attn.run.prepared import Prepared

FILE = "assets.extra/model_card.md"
SHOWN = ("ndcg@10", "hit@10", "recall@20", "mrr")


def text(name: str, prepared: Prepared, run: Path, offered: int) -> str:
    """The card in Markdown.

    Args:
      name: Of the model, and its version.
      prepared: The run's data, with the settings of this version.
      run: The run's folder, for its metrics.
      offered: Items that may be recommended.
    """
    config = prepared.config
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    return "\n\n".join(
        [
            f"# {name}",
            "A recommender of items to users, both sets of feature tokens compared by an "
            f"attention-weighted cosine. Made by tfrec_attn {__version__} on "
            f"{datetime.date.today()}.",
            "## Data",
            _data(prepared, metrics),
            "## How it was tested",
            prepared.split.promise + " Every item of the catalogue is ranked, what a user "
            "had before is left out.",
            _metrics(metrics, config.train.monitor),
            "## How it answers",
            _answers(config, offered),
            "## Terms",
            _terms(config),
            "## For what, and for what not",
            "For ranking the items of this catalogue for its users, by what they did and "
            "what is known of both. It repeats what the interactions say, preferences and "
            "popularity; no fairness among users or items was measured. A score orders the "
            "items for one user: it is no probability, and cannot be compared between "
            "users. A user of whom nothing is known gets what everybody like that gets. "
            "Nothing after the last interaction is known: train anew, or go on from this "
            "model (`tfrec_attn.train --from`), as the shop changes.",
        ]
    )


def _data(prepared: Prepared, metrics: dict[str, Any]) -> str:
    events = prepared.tables.interactions
    times = events["time"].to_numpy()
    lines = [
        f"- {len(prepared.users):,} users, {len(prepared.items):,} items, "
        f"{len(events):,} interactions",
        f"- items: {_columns(prepared.items)}",
        f"- users: {_columns(prepared.users)}",
        f"- labels: {', '.join(prepared.config.examples.positives)} count as wanted",
        f"- {metrics['rejected_rows']:,} further rows broke a rule; "
        f"{metrics['truncated_texts']:.2%} of the texts were cut",
    ]
    if prepared.tables.schema.interactions.time:
        ends = times.min(), times.max()
        first, last = (np.datetime64(int(time), "ms").astype("M8[D]") for time in ends)
        lines.insert(1, f"- from {first} to {last}")
    return "\n".join(lines)


def _columns(table) -> str:
    texts = ["text"] if any(table.texts) else []
    named = [f"{name} ({column.kind})" for name, column in table.columns.items()]
    return ", ".join([*texts, *named]) or "ids alone"


def _metrics(metrics: dict[str, Any], monitor: str) -> str:
    if not metrics.get("test"):
        return "There were no test events."
    rows = [
        {"": name, **{one: f"{values[one]:.4f}" for one in SHOWN if one in values}}
        for name, values in metrics["test"].items()
    ]
    best = f"{monitor} {metrics['best_validation']:.4f} on the validation fold"
    one = "One seed: another one gives other numbers."
    return f"{report.table(rows)}\n\nTest fold; {best}. {one}"


def _answers(config, offered: int) -> str:
    index = config.index
    found = f"the nearest of {index.clusters} lists" if index.clusters else "all items"
    ranked = f"{index.shortlist} of them are ranked by the scorer"
    lines = [
        f"- {offered:,} items are offered; {found} are searched by cosine; "
        + (ranked if index.shortlist else "the cosine alone ranks"),
        f"- item tokens in {index.tokens}; at most {index.max_k} answers",
    ]
    if index.filters:
        lines.append(f"- requests may choose by {', '.join(index.filters)}")
    return "\n".join(lines)


def _terms(config) -> str:
    data = config.data.source or "the tables that were given: their owner's terms hold"
    if config.data.source == "movielens-100k":
        data = "MovieLens-100K, for research only, under GroupLens's terms"
    if not config.text.backbone:
        return f"- data: {data}"
    return f"- data: {data}\n- text backbone: {backbones.terms(config.text.backbone)}"
