"""What `evaluate` found, in words, tables and pictures: terminal, Markdown and HTML."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markdown_it import MarkdownIt

from tfrec_attn.data import examples
from tfrec_attn.evaluation import comparison, plots
from tfrec_attn.run.prepared import InMemory

FILES = ("report.md", "report.html", "evaluation.json", "ranks.csv")
NAMES = {"hit": "HR", "recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}
STYLE = """<style>
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: 0.2em 0.8em; text-align: left }
img { max-width: 100% }
</style>"""


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Rows as a Markdown table that is also readable as it is."""
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=-1,
        fmt_str_lengths=1000,
    ):
        return str(pl.DataFrame(list(rows)))


def protocol(prepared: InMemory, fold: str, queries: examples.Examples) -> list[str]:
    """How the figures came about, and what they can therefore not be compared with.

    Args:
      prepared: The run's data.
      fold: `validation` or `test`.
      queries: Of the fold.
    """
    split, past = prepared.split, queries.history
    user, time = queries.user, queries.targets.time
    later = examples.before(past, user, time + 1)
    same = later - queries.stop
    after = np.searchsorted(past.user, user, side="right") - later
    every = prepared.events(np.arange(len(prepared.tables.interactions)))
    tied = np.zeros(len(every), bool)
    tied[1:] = (np.diff(every.user) == 0) & (np.diff(every.time) == 0)
    asked = prepared.events(getattr(split, fold))
    positives = prepared.label_is_positive[asked.feedback]
    share = lambda part: f"{part.sum()} of {len(part)}"
    return [
        f"Split {split.name}, digest {split.digest[:12]}. {split.promise}",
        f"{split.users_only_in_training} users have no target, "
        f"{split.users_not_in_training} users with targets and "
        f"{split.items_not_in_training} items that are targets have no training event "
        "(validation and test together).",
        f"Each event of the fold is a query of its own with one target: so Recall = HR and "
        f"MAP = MRR at every k. A user's figure is the mean over the user's queries, a "
        f"row's the mean over users. Left out as targets: {share(~positives)} events for "
        f"their label, {positives.sum() - len(queries)} that repeat a known item.",
        f"All {len(prepared.items)} items are ranked, none is sampled; what the user is "
        "known to have met, whenever, is left out. The user's other targets are in the "
        "list, as wrong answers.",
        "Ties go against the target: an item of the same score comes before it, so a "
        "constant score ranks it last.",
        "The model's history is strictly before the target's time. "
        f"{share(tied)} events have the time of the user's event before them; in "
        f"{share(same > 0)} queries the model is not shown known events of the target's "
        f"own time ({same.sum()} in all), in {share(after > 0)} not those of later times "
        f"({after.sum()} in all). A protocol that orders such events by their place in the "
        "file shows them, and its figures are higher.",
        "The baselines are fitted to all known positive events, those of the validation "
        "fold among them when the test fold is asked, and asked with the positive events "
        "strictly before the target's time, however many. The model's weights come from "
        "the training fold alone, and it sees the last "
        f"{prepared.config.examples.history} events. Settings are chosen on the validation "
        f"fold, on {comparison.TUNING_QUERIES} queries drawn from it where it has more.",
        "Intervals are 95 % percentile bootstraps over users (1000 draws, one seed): they "
        "hold what another set of users would change, not what another training would.",
        "The untrained model is built from the run's seed.",
    ]


def terminal(result: Mapping[str, Any]) -> str:
    """The main table, the feedback head's figures, and what was left out."""
    return "\n\n".join(
        [
            f"{result['run']}, {result['fold']} fold of {result['split']}: "
            f"{result['queries']} queries of {result['users']} users, "
            f"{result['items']} items",
            _main(result),
            *_left_out(result),
            *_feedback(result["feedback"]),
        ]
    )


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Writes `report.md`, `report.html` and their pictures to the run's folder."""
    k = result["k"]
    pictures = {"The methods": "methods.png"}
    shown = {f"{metric}@{k}": f"{NAMES[metric]}@{k}" for metric in ("ndcg", "hit")}
    plots.methods(result["rows"], shown, folder / "methods.png")
    for number, (title, groups) in enumerate(result["groups"].items()):
        if groups:
            name = f"groups_{number}.png"
            plots.groups(groups, title, f"NDCG@{k}", folder / name)
            pictures[f"By {title}"] = name
    if (folder / "learning_curves.png").exists():
        pictures["Learning curves"] = "learning_curves.png"
    text = markdown(result, pictures)
    (folder / "report.md").write_text(text, "utf-8")
    page = MarkdownIt("js-default").render(text)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>'
    (folder / "report.html").write_text(f"{head}{STYLE}{page}</html>\n", "utf-8")


def markdown(result: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The report; `pictures` are file names by title."""
    k = result["k"]
    parts = [
        f"# Evaluation: {result['run']}, {result['fold']} fold",
        f"{result['queries']} queries of {result['users']} users, {result['items']} items, "
        f"split {result['split']}.",
        _main(result),
        f"Means over users with 95 % intervals. coverage@{k}: share of the catalogue that "
        f"is in somebody's list. popularity@{k}: mean percentile of the listed items by "
        "training events, 0.5 for a random list. difference: of the last row from this "
        f"one in NDCG@{k}, user by user; where the interval is above 0 the last row is "
        "better.",
        *_left_out(result),
        *(f"## {title}\n\n![{title}]({name})" for title, name in pictures.items()),
        "## All metrics",
        *(_metrics(result, k) for k in result["ks"]),
        "## Settings chosen on the validation fold",
        _settings(result["rows"]),
        "## Feedback head",
        *_feedback(result["feedback"]),
        "## Protocol",
        "\n".join(f"- {line}" for line in result["protocol"]),
    ]
    return "\n\n".join(parts) + "\n"


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _main(result) -> str:
    k, last = result["k"], list(result["rows"])[-1]
    return table(
        {
            "method": name,
            **{
                f"{NAMES[metric]}@{k}": _interval(row["metrics"][f"{metric}@{k}"])
                for metric in ("ndcg", "hit", "mrr")
            },
            f"coverage@{k}": f"{row[f'coverage@{k}']:.3f}",
            f"popularity@{k}": f"{row[f'popularity@{k}']:.3f}",
            "difference": _interval(row[f"difference ndcg@{k}"]) if name != last else "",
        }
        for name, row in result["rows"].items()
    )


def _metrics(result, k: int) -> str:
    return table(
        {
            "method": name,
            **{
                f"{title}@{k}": _interval(row["metrics"][f"{metric}@{k}"])
                for metric, title in NAMES.items()
            },
        }
        for name, row in result["rows"].items()
    )


def _settings(rows) -> str:
    return table(
        {
            "method": name,
            "settings": ", ".join(f"{n}={v}" for n, v in row["settings"].items()),
            "validation NDCG@10": f"{row['validation ndcg@10']:.4f}",
        }
        for name, row in rows.items()
        if row["settings"]
    )


def _left_out(result) -> list[str]:
    return [f"No row for {name}: {why}" for name, why in result["left_out"].items()]


def _feedback(found: Mapping[str, Any]) -> list[str]:
    if "skipped" in found:
        return [f"Feedback head: {found['skipped']}"]
    report = dict(found["report"])
    accuracy = report.pop("accuracy")
    figures = ("precision", "recall", "f1-score")
    return [
        f"Feedback head, {found['events']} events of all labels: accuracy {accuracy:.4f} "
        f"(the most frequent label alone: {found['most_frequent']:.4f}).",
        table(
            {
                "label": name,
                **{figure: f"{row[figure]:.3f}" for figure in figures},
                "support": f"{row['support']:.0f}",
            }
            for name, row in report.items()
        ),
        table({"AUC": name, "": f"{value:.4f}"} for name, value in found["auc"].items()),
    ]
