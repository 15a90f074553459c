r"""A run under the protocol of the Recommenders project's comparison on MovieLens-100K.

    for seed in 0 1 2; do
        python -m tfrec_attn.train --config configs/movielens-100k-random.toml \
            --out runs/random-$seed --set train.seed=$seed --set split.seed=$seed
    done
    python benchmarks/recommenders.py runs/random-0 runs/random-1 runs/random-2

There a quarter of each user's ratings, drawn without regard to time, is the test; every
rating is relevant; each user is asked once, with all other ratings as the history; items
of the history are left out, and ten are listed. The validation fold, a fiftieth, is taken
out of the training part, so the model learns from 73 % and not from 75 %.

Prints NDCG@10, precision@10, recall@10 and MAP@10 of each run by the formulas of
`tfrec_attn.metrics`. NDCG is that of the project's `ndcg_at_k` with binary relevance,
precision and recall too; its MAP divides by the number of a user's test items.

References:
  - https://github.com/recommenders-team/recommenders, README, "Algorithms comparison".
"""

import sys
from pathlib import Path

import numpy as np
import of_runs
import seeds

METRICS = ("ndcg@10", "precision@10", "recall@10", "map@10")


def once_a_user(prepared):
    """One query a user, after all that is known of them.

    Returns:
      The queries, of the users with a test event, and their `metrics.Lists` of test items.
    """
    from tfrec_attn import metrics
    from tfrec_attn.data import examples

    past = prepared.events(prepared.split.known("test"))
    goal = prepared.events(prepared.split.test)
    wanted = metrics.item_lists(goal.user, goal.item, len(prepared.users))
    asked = metrics.answered(wanted).astype(np.int32)
    later = np.full(len(asked), prepared.tables.interactions["time"].max() + 1)
    zeros = np.zeros(len(asked), np.int64)
    moment = examples.sort(asked, zeros, later, zeros, zeros)
    length = prepared.config.examples.history
    return examples.make(past, moment, length=length), wanted


def measure(run: Path) -> dict:
    """The mean metrics of a run, in the form of its `evaluation.json`."""
    from tfrec_attn import metrics
    from tfrec_attn.evaluation import ranking
    from tfrec_attn.run import runs

    model, prepared = runs.load(run)
    queries, wanted = once_a_user(prepared)
    past, n_items = queries.history, len(prepared.items)
    seen = metrics.item_lists(past.user, past.item, len(prepared.users))
    index = prepared.config.index
    matrices, stages = model.encode_items(index.tokens), {"retrieval": 0}
    if index.shortlist:
        stages["retrieval + ranking"] = index.shortlist
    rows = {}
    for name, shortlist in stages.items():
        score = ranking.of_model(model, matrices, shortlist)
        scores = np.zeros((len(prepared.users), n_items), np.float32)
        for asked in ranking.chunks(len(queries), ranking.LARGEST_BATCH):
            users = queries.user[asked]
            left_out = [seen.indices[slice(*seen.indptr[u : u + 2])] for u in users]
            scores[users] = score(queries, asked, ranking.mask_of(left_out, n_items))
        ranks = metrics.ranks(scores, wanted, exclude=seen)
        found = metrics.summary(metrics.ranked_metrics(ranks, wanted, ks=(10,)))
        rows[name] = {"metrics": {key: {"mean": value} for key, value in found.items()}}
    return {"rows": rows}


def rows(runs: list[Path]):
    """A row a stage."""
    return seeds.rows({str(run): measure(run) for run in runs}, METRICS)


if __name__ == "__main__":
    sys.exit(of_runs.main(__doc__, rows))
