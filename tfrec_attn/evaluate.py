"""`python -m tfrec_attn.evaluate`: metrics of a trained run, beside baselines."""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np

from tfrec_attn import baselines, metrics
from tfrec_attn.pipeline import Prepared


def evaluate(
    model,
    prepared: Prepared,
    fold: str,
    *,
    shortlist: int | None = None,
    batch_size: int = 256,
) -> dict[str, np.ndarray]:
    """Metrics of each user over the whole catalogue, items known of the user left out.

    Each held-out event is a query of its own, with the history strictly before it; a
    user's figure is the mean over the user's events.

    Args:
      model: Trained.
      prepared: The run's data.
      fold: `validation` or `test`.
      shortlist: Items to re-rank; 0 is the retrieval alone; the config's by default.
      batch_size: Queries a step.

    Returns:
      `ndcg@k`, `hit@k`, `mrr`, … each `[users with a target]`.
    """
    import tensorflow as tf

    from tfrec_attn.data import batches

    queries = prepared.held_out(fold)
    if not len(queries):
        raise ValueError(
            f"The {fold} fold has no event with a label of examples.positives."
        )
    shortlist = prepared.config.index.shortlist if shortlist is None else shortlist
    known = metrics.item_lists(
        queries.history.user, queries.history.item, len(prepared.users)
    )
    matrices = model.encode_items()
    ranks = []
    for batch in batches.in_order(queries, batch_size):
        user, target = batch["user"].numpy(), batch["target"].numpy()
        left_out = [known.indices[slice(*known.indptr[u : u + 2])] for u in user]
        blocked = np.zeros((len(user), len(prepared.items)), bool)
        for row, items in zip(blocked, left_out, strict=True):
            row[items] = True
        state = _users(model, matrices, batch)
        scores = np.where(blocked, -np.inf, _retrieve(state, matrices).numpy())
        if shortlist:
            best = np.argsort(-scores, 1, kind="stable")[:, :shortlist]
            logits = _rank(model, state, matrices, tf.constant(best)).numpy()
            # Above every cosine: what is re-ranked stays ahead of what is not.
            logits = 1e6 + logits.astype(np.float64)
            usable = np.isfinite(np.take_along_axis(scores, best, 1))
            scores = scores.astype(np.float64)
            np.put_along_axis(scores, best, np.where(usable, logits, -np.inf), 1)
        ranks.append(metrics.ranks(scores, list(target), left_out))
    found = metrics.ranked_metrics(
        np.concatenate(ranks), list(queries.targets.item[:, None]), ks=(5, 10, 20)
    )
    return {name: _by_user(values, queries.user) for name, values in found.items()}


def _by_user(values: np.ndarray, user: np.ndarray) -> np.ndarray:
    count = np.bincount(user)
    return (np.bincount(user, values) / np.maximum(count, 1))[count > 0]


def _users(model, matrices, batch):
    import tensorflow as tf

    profile = model.users.rows(batch["user"])
    return model.users_at(
        profile,
        matrices.vector,
        {
            **{
                name: batch[name]
                for name in ("history", "history_feedback", "history_time")
            },
            "seen": tf.squeeze(batch["target_seen"], 1),
            "time": tf.squeeze(batch["target_time"], 1),
        },
    )


def _retrieve(state, matrices):
    import tensorflow as tf

    return tf.matmul(state.query, matrices.pooled, transpose_b=True)


def _rank(model, state, matrices, rows):
    import tensorflow as tf

    take = lambda value: tf.gather(value, rows)
    return model.rank_at(
        state, take(matrices.pooled), take(matrices.tokens), take(matrices.mask)
    )


def reference(prepared: Prepared, fold: str) -> dict[str, dict[str, float]]:
    """The same metrics of chance and of popularity, so that a figure can be judged."""
    queries = prepared.held_out(fold)
    users, items = len(prepared.users), len(prepared.items)
    train = prepared.events(prepared.split.train)
    known = metrics.item_lists(queries.history.user, queries.history.item, users)
    scores = {
        "random": baselines.random(users, items),
        "popularity": baselines.popularity(train.item, users, items),
    }
    left_out = [known.indices[slice(*known.indptr[u : u + 2])] for u in queries.user]
    targets = list(queries.targets.item[:, None])
    table = {}
    for name, matrix in scores.items():
        found = metrics.ranked_metrics(
            metrics.ranks(matrix[queries.user], targets, left_out), targets, ks=(5, 10, 20)
        )
        table[name] = metrics.summary(
            {k: _by_user(v, queries.user) for k, v in found.items()}
        )
    return table


def report(model, prepared: Prepared, fold: str) -> dict[str, dict[str, float]]:
    """Metrics by row of the table: baselines, retrieval alone, retrieval and ranking."""
    table = reference(prepared, fold)
    table["retrieval"] = metrics.summary(evaluate(model, prepared, fold, shortlist=0))
    if prepared.config.index.shortlist:
        table["retrieval + ranking"] = metrics.summary(evaluate(model, prepared, fold))
    return table


def show(table: dict[str, dict[str, float]]) -> str:
    """The table as text, a row a method."""
    columns = ("ndcg@10", "hit@10", "mrr", "ndcg@20", "hit@20")
    lines = [f"{'':20}" + "".join(f"{c:>9}" for c in columns)]
    lines += [
        f"{name:20}" + "".join(f"{row[c]:9.4f}" for c in columns)
        for name, row in table.items()
    ]
    return "\n".join(lines)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="tfrec_attn.evaluate", description=__doc__)
    parser.add_argument("--run", required=True, help="folder that tfrec_attn.train wrote")
    parser.add_argument("--fold", default="test", choices=("validation", "test"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    from tfrec_attn import runs

    try:
        model, prepared = runs.load(Path(args.run))
        table = report(model, prepared, args.fold)
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.evaluate: {error}", file=sys.stderr)
        return 2
    print(show(table), file=sys.stderr)
    print(json.dumps({"fold": args.fold, "split": prepared.split.name, "metrics": table}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
