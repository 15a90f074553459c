r"""Full-catalogue evaluation beside `FactorizedTopK` of TensorFlow Recommenders.

    python benchmarks/evaluation.py --run runs/movielens-100k
    python benchmarks/evaluation.py --items 1682 10000 100000

Prints a Markdown table. All sides take turns in one process, on two cores; a ratio is the
median over turns, with quartiles. All are given the vectors of the queries. Nothing is
left out of the lists, which FactorizedTopK cannot, and it looks targets up by id: all
values have to agree, or there is no table.

- "as documented": the candidates are a dataset, `items.batch(128).map(item_tower)`, and a
  step of the evaluation has 4,096 queries, as in the tutorials of TFRS. With --run only.
- "vectors ready": the same dataset holds the vectors of the items.
- "brute force": the layer `BruteForce` in place of the dataset.

With --run our side encodes the items, too; with --items all vectors are drawn. What TFRS
traces is traced before.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import turns

from tfrec_attn import metrics
from tfrec_attn.evaluation import comparison, ranking
from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.run import runs

tf = turns.tensorflow()
tfrs = on_legacy_keras("tensorflow_recommenders")

KS = (1, 5, 10, 50, 100)
# Queries of a step, as `ranking` takes them, and as the tutorials of TFRS do.
OURS, DOCUMENTED_QUERIES = ranking.LARGEST_BATCH, 4096
DOCUMENTED_ITEMS = 128


def ours(users, pooled, target) -> np.ndarray:
    """HR at each of `KS`: the share of queries whose target is among the first k."""
    ranks = []
    for index in ranking.chunks(len(users), OURS):
        scores = tf.matmul(tf.gather(users, index), pooled, transpose_b=True).numpy()
        ranks.append(metrics.ranks(scores, list(target[index, None])))
    values = metrics.ranked_metrics(np.concatenate(ranks), list(target[:, None]), KS)
    return np.array([values[f"hit@{k}"].mean() for k in KS])


class Theirs:
    """The same by FactorizedTopK, which is traced once.

    Args:
      candidates: A dataset of ids and vectors, or a layer.
    """

    def __init__(self, candidates):
        self.metric = tfrs.metrics.FactorizedTopK(candidates, ks=KS)
        self.update = tf.function(self._update, reduce_retracing=True)

    def _update(self, query, vector, row):
        self.metric.update_state(query, vector, row)

    def __call__(self, users, pooled, target) -> np.ndarray:
        self.metric.reset_states()
        for index in ranking.chunks(len(users), DOCUMENTED_QUERIES):
            goal = tf.constant(target[index], tf.int32)
            self.update(tf.gather(users, index), tf.gather(pooled, goal), goal)
        return np.array([float(value) for value in self.metric.result()])


def candidates_of(pooled, encode=None) -> dict:
    """What FactorizedTopK can be given."""
    rows = tf.range(len(pooled))
    ready = tf.data.Dataset.from_tensor_slices((rows, pooled)).batch(DOCUMENTED_ITEMS)
    brute = tfrs.layers.factorized_top_k.BruteForce(k=max(KS)).index(pooled, rows)
    found = {"vectors ready": ready, "brute force": brute}
    if encode is not None:
        alone = tf.data.Dataset.from_tensor_slices(rows).batch(DOCUMENTED_ITEMS)
        found = {"as documented": alone.map(lambda at: (at, encode(at)))} | found
    return {name: Theirs(made) for name, made in found.items()}


def of_run(run: Path) -> tuple[dict, int, int]:
    """All sides on the test fold of a run."""
    model, prepared = runs.load(run)
    queries = comparison.fold(prepared, "test").queries
    target, tower, matrices = queries.targets.item, model.item_tower, model.encode_items()
    encode = tf.function(lambda rows: tower.pool(tower.vector(model.items.rows(rows))))
    every = tf.range(len(prepared.items))
    ask = lambda index: ranking.users(model, matrices, queries, index).query
    users = tf.concat([ask(index) for index in ranking.chunks(len(queries), OURS)], 0)
    sides = {"ours": lambda: ours(users, encode(every), target)} | {
        name: functools.partial(peer, users, matrices.pooled, target)
        for name, peer in candidates_of(matrices.pooled, encode).items()
    }
    return sides, len(queries), len(prepared.items)


def of_vectors(items: int, queries: int, dim: int) -> tuple[dict, int, int]:
    """All sides on vectors that are drawn."""
    draw = np.random.default_rng(0)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    pooled = unit(draw.normal(size=(items, dim)))
    target = draw.integers(items, size=queries)
    users = tf.constant(unit(pooled[target] + 0.3 * draw.normal(size=(queries, dim))))
    pooled = tf.constant(pooled)
    sides = {"ours": functools.partial(ours, users, pooled, target)} | {
        name: functools.partial(peer, users, pooled, target)
        for name, peer in candidates_of(pooled).items()
    }
    return sides, queries, items


def rows(what: str, sides: dict, queries: int, items: int, count: int):
    """Lines of the table, once the values agree."""
    values = {name: side() for name, side in sides.items()}
    for name, found in values.items():
        # float32 means of TFRS.
        np.testing.assert_allclose(found, values["ours"], atol=1e-6, err_msg=name)
    timed = {n: functools.partial(turns.milliseconds, s, 1, 0) for n, s in sides.items()}
    spent = turns.in_turns(timed, count)
    at = KS.index(10)
    for name, taken in spent.items():
        ratio = "" if name == "ours" else turns.spread(taken / spent["ours"], 1)
        figure = f"{values[name][at]:.6f}"
        yield (
            what,
            f"{queries:,}",
            f"{items:,}",
            name,
            figure,
            turns.spread(taken, 0),
            ratio,
        )


def main(argv=None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--items", type=int, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args(argv)
    if not (args.run or args.items):
        parser.error("name a run by --run, or numbers of items by --items")
    found = []
    if args.run:
        found += rows(args.run.name, *of_run(args.run), args.turns)
    for items in args.items:
        found += rows("vectors", *of_vectors(items, args.queries, args.dim), args.turns)
    head = "data", "queries", "items", "method", "HR@10", "ms", "× ours"
    turns.table(head, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
