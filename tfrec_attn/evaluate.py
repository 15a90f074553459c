"""`python -m tfrec_attn.evaluate`: metrics of a trained run, beside baselines; or of
several runs, beside each other."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tfrec_attn import metrics
from tfrec_attn.data import examples
from tfrec_attn.evaluation import baselines, comparison, ranking, weighing
from tfrec_attn.run.prepared import Prepared

logger = logging.getLogger(__name__)

KS = (5, 10, 20)


def evaluate(
    model,
    prepared: Prepared,
    fold: str,
    *,
    shortlist: int | None = None,
    most: int | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of each user over the whole catalogue, items known of the user left out.

    Each held-out event is a query of its own, with the history strictly before it; a
    user's figure is the mean over the user's events.

    Args:
      model: Trained.
      prepared: The run's data.
      fold: `validation` or `test`.
      shortlist: Items to re-rank; 0 is the retrieval alone; the config's by default.
      most: Queries to draw where there are more; all by default.

    Returns:
      `ndcg@k`, `hit@k`, `mrr`, … each `[users with a target]`.

    Raises:
      ValueError: When the fold has no event with a label of `examples.positives`.
    """
    asked = comparison.fold(prepared, fold, most)
    settings = prepared.config.index
    shortlist = settings.shortlist if shortlist is None else shortlist
    score = ranking.of_model(model, model.encode_items(settings.tokens), shortlist)
    return asked.by_user(asked.ask("", score, KS))


def weigh(model, prepared: Prepared, *, most: int | None = None) -> float:
    """How much the scorer's score counts, as the validation fold says; see `weighing`.

    Args:
      model: Trained.
      prepared: The run's data.
      most: Queries to draw where there are more; all by default.
    """
    index = prepared.config.index
    if not index.shortlist:
        return 0.0
    queries = comparison.fold(prepared, "validation", most).queries
    lists = weighing.shortlists(
        model, queries, len(prepared.items), index.shortlist, index.tokens
    )
    found = weighing.weigh(lists)
    logger.info(
        "share of the scorer: %.3g (it makes the validation's targets likelier by %.4f "
        "nats, standard error %.4f)",
        *found,
    )
    return found.share


def means(model, prepared: Prepared, fold: str) -> dict[str, dict[str, float]]:
    """Mean metrics of the rows that cost little: chance, popularity, and the model."""
    settings = prepared.config.index
    matrices = model.encode_items(settings.tokens)
    scores = {"retrieval": ranking.of_model(model, matrices, 0)}
    if settings.shortlist:
        both = ranking.of_model(model, matrices, settings.shortlist)
        scores["retrieval + ranking"] = both
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for asked in comparison.folds(prepared, fold):
        if not found:
            plain = {
                name: asked.baseline(baselines.METHODS[name], {})
                for name in ("random", "popularity")
            }
            scores = plain | scores
        for name, score in scores.items():
            values = asked.by_user(asked.ask(name, score, KS))
            found.setdefault(name, []).append(values)
    return {
        name: metrics.summary(
            {m: np.concatenate([part[m] for part in parts]) for m in parts[0]}
        )
        for name, parts in found.items()
    }


def show(table: dict[str, dict[str, float]]) -> str:
    """Means as text, a row a method."""
    from tfrec_attn.evaluation import report

    columns = ("ndcg@10", "hit@10", "mrr", "ndcg@20", "hit@20")
    return report.table(
        [
            {"method": name, **{column: f"{row[column]:.4f}" for column in columns}}
            for name, row in table.items()
        ]
    )


def run(folder: Path, fold: str = "test", ks=KS) -> dict[str, Any]:
    """Measures all rows and writes `evaluation.json`, `ranks.csv` and the report.

    Args:
      folder: That `tfrec_attn.train` wrote.
      fold: `validation` or `test`.
      ks: Lengths of the list; the one in the middle is that of the main table.

    Returns:
      What `evaluation.json` holds.

    Raises:
      ValueError: When the folder holds no trained model, or the fold no target.
    """
    from tfrec_attn.evaluation import feedback_head, report
    from tfrec_attn.run import runs

    ks = sorted(set(ks))
    k = ks[len(ks) // 2]
    model, prepared = runs.untrained(folder)
    asked = comparison.fold(prepared, fold)
    validation = comparison.fold(prepared, "validation", comparison.TUNING_QUERIES)
    queries, events = asked.queries, asked.events
    left_out: dict[str, str] = {}
    rows = list(comparison.baseline_rows(validation, asked, ks, k, left_out))
    rows += comparison.model_rows(model, folder, asked, prepared.config.index, ks, k)
    counts = np.bincount(events.item, minlength=events.n_items)
    percentile = stats.rankdata(counts) / len(counts)
    seen = queries.stop - examples.begins(queries.history, queries.user)
    result = {
        "run": folder.resolve().name,
        "fold": fold,
        "split": prepared.split.name,
        "digest": prepared.split.digest,
        "weights": runs.weights_digest(folder),
        "ks": ks,
        "k": k,
        "users": len(np.unique(queries.user)),
        "queries": len(queries),
        "items": events.n_items,
        "protocol": report.protocol(prepared, fold, queries),
        "rows": {
            row.name: comparison.figures(row, rows[-1], asked, percentile, k)
            for row in rows
        },
        "left_out": left_out,
        "groups": {
            "events of the user before the target": comparison.groups(
                rows, seen, f"ndcg@{k}"
            ),
            "known events of the target item": comparison.groups(
                rows, counts[queries.targets.item], f"ndcg@{k}"
            ),
        },
        "feedback": feedback_head.measure(model, prepared, fold),
    }
    runs.write_json(folder / "evaluation.json", result)
    comparison.write_ranks(rows, queries, prepared, folder / "ranks.csv")
    report.write(result, folder)
    return result


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = argparse.ArgumentParser(prog="tfrec_attn.evaluate", description=__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="folder that tfrec_attn.train wrote")
    what.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="several folders: what the others gain over the first, user by user",
    )
    p.add_argument("--json", action="store_true", help="of --compare: print it as JSON")
    p.add_argument("--fold", default="test", choices=("validation", "test"))
    p.add_argument(
        "--k", type=int, nargs="+", default=list(KS), help="lengths of the list [5 10 20]"
    )
    return p


def main(argv=None) -> int:
    """Prints the table and where the report is; 2 with the reason where there is none."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        if min(args.k) < 1:
            raise ValueError(f"--k takes lengths of 1 or more. Received: {min(args.k)}.")
        print(_compared(args) if args.compare else _reported(args))
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _reported(args: argparse.Namespace) -> str:
    from tfrec_attn.evaluation import report

    folder = Path(args.run)
    result = run(folder, args.fold, args.k)
    files = ", ".join(str(folder / name) for name in report.FILES)
    return f"{report.terminal(result)}\n\nWritten: {files}"


def _compared(args: argparse.Namespace) -> str:
    from tfrec_attn.evaluation import run_comparison

    result = run_comparison.compare(args.compare, args.fold, sorted(set(args.k)))
    return json.dumps(result) if args.json else run_comparison.text(result)


if __name__ == "__main__":
    sys.exit(main())
