r"""The scorer against others in its place, and its training with and without its parts.

    python benchmarks/rankers.py runs/seed-0 runs/seed-1 runs/seed-2 --out runs/rankers

Each run's retrieval is taken as it is. In the scorer's place each ranker is trained by the
same stage: same targets, candidates, tokens, epochs and seed; with `--set` all by other
settings than the run's. How much it counts is chosen on the validation fold, and the test
fold is asked once. What `--out` holds is not trained again, so that a comparison can be
taken up and widened with `--only`; other settings need another folder.

Prints a Markdown table: what the ranker gains on the validation fold (as many of its
queries as in training) where its score counts fully, over the runs' retrieval and over the
table's first line; and on the test fold of each run the share and NDCG@10, and the gain
over the retrieval. Gains have 95 % bootstrap intervals over users, a user's gain averaged
over the runs.

Letters: B users, C candidates, n user tokens, m item tokens, d width; x is B, or 1 where
all users share the candidates.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn import evaluate, metrics
from tfrec_attn.evaluation import report
from tfrec_attn.model.towers import masked_mean
from tfrec_attn.run import building, pipeline, runs
from tfrec_attn.settings import config as config_lib
from tfrec_attn.training import checkpoints, fit
from tfrec_attn.training.keeper import Keeper

NAME, METRIC = "benchmarks/rankers.py", "ndcg@10"


class Peer(tf_keras.layers.Layer):
    """A ranker of two projections and a learned scale; see `AttentionWeightedCosine`."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.of_user, self.of_item = (
            tf_keras.layers.Dense(dim, use_bias=False) for _ in "ui"
        )
        self.drop = tf_keras.layers.Dropout(dropout)

    def build(self, input_shape):
        start = tf_keras.initializers.Constant(np.log(10.0))
        self.log_scale = self.add_weight("log_scale", (), initializer=start)
        super().build(input_shape)

    def call(self, inputs, training=None):
        user = self.user_side(inputs["user"], inputs["user_mask"])
        item = self.item_side(inputs["item"], inputs["item_mask"])
        return self.compare(user, item, training)

    def user_side(self, tokens, mask):
        return self.of_user(tokens), mask

    def item_side(self, tokens, mask):
        if tokens.shape.rank == 3:
            tokens, mask = tokens[None], mask[None]
        return self.of_item(tokens), mask

    def compare(self, user, item, training=None):
        """`[B, C]` of `[B, n, d]` and `[x, C, m, d]` with their masks."""
        return tf.exp(self.log_scale) * self.match(*user, *item, training)


class PooledCosine(Peer):
    """The cosine of the mean tokens of both sides."""

    def match(self, user, user_mask, item, item_mask, training):
        user = tf.math.l2_normalize(masked_mean(user, user_mask), -1)
        item = tf.math.l2_normalize(masked_mean(item, item_mask), -1)
        user = self.drop(user, training=training)
        return tf.matmul(user[:, None], item, transpose_b=True)[:, 0]


class MaxSim(Peer):
    """The mean over the tokens of one side of the best cosine on the other.

    Args:
      asks: The side whose every token looks for its best match: `user` or `item`.

    References:
      - Khattab and Zaharia, 2020, arXiv:2004.12832 (ColBERT), where the query asks.
    """

    def __init__(self, dim: int, dropout: float, asks: str):
        super().__init__(dim, dropout)
        self.axis = {"user": -2, "item": -1}[asks]

    def match(self, user, user_mask, item, item_mask, training):
        user, item = (tf.math.l2_normalize(side, -1) for side in (user, item))
        user = self.drop(user, training=training)
        shared, count, width = (tf.shape(item)[axis] for axis in range(3))
        flat = tf.reshape(item, [shared, -1, item.shape[-1]])
        cosine = tf.matmul(flat, user, transpose_b=True)
        users, length = tf.shape(user)[0], tf.shape(user)[1]
        cosine = tf.reshape(cosine, [users, count, width, length])
        both = item_mask[..., None] & user_mask[:, None, None]
        best = tf.reduce_max(tf.where(both, cosine, -1.0), self.axis)
        real = tf.cast(tf.reduce_any(both, self.axis), best.dtype)
        return tf.math.divide_no_nan(
            tf.reduce_sum(best * real, -1), tf.reduce_sum(real, -1)
        )


class Perceptron(Peer):
    """Two hidden layers on both mean tokens and their product, the usual ranker of TFRS."""

    def __init__(self, dim: int, dropout: float):
        super().__init__(dim, dropout)
        self.layers = [
            tf_keras.layers.Dense(width, activation="relu") for width in (dim, dim // 2)
        ]
        self.last = tf_keras.layers.Dense(1)

    def match(self, user, user_mask, item, item_mask, training):
        user = masked_mean(user, user_mask)[:, None]
        item = masked_mean(item, item_mask)
        product = user * item
        same = [value + tf.zeros_like(product) for value in (user, item)]
        hidden = self.drop(tf.concat([*same, product], -1), training=training)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last(hidden)[..., 0]


class Variant(NamedTuple):
    """Attributes:
    overrides: Of the run's config.
    make: A layer in the scorer's place, of width and dropout; None is the scorer.
    """

    overrides: tuple[str, ...] = ()
    make: Callable[[int, float], Peer] | None = None


VARIANTS = {
    "attention-weighted cosine": Variant(),
    "pooled cosine": Variant((), PooledCosine),
    "MaxSim, the user asks": Variant((), functools.partial(MaxSim, asks="user")),
    "MaxSim, the item asks": Variant((), functools.partial(MaxSim, asks="item")),
    "MLP on the pooled pair": Variant((), Perceptron),
    "bidirectional": Variant(("scorer.bidirectional=true",)),
    "four heads": Variant(("scorer.heads=4",)),
    "mode article": Variant(("scorer.mode=article",)),
    "pairwise": Variant(("loss.order=pairwise",)),
    "pointwise": Variant(("loss.order=pointwise",)),
    "label smoothing 0.1": Variant(("loss.label_smoothing=0.1",)),
    "1 hard and 47 easy negatives": Variant(
        ("loss.hard_negatives=1", "loss.easy_negatives=47")
    ),
    "48 hard negatives": Variant(("loss.hard_negatives=48", "loss.easy_negatives=0")),
    "rejected items": Variant(("loss.rejected=4",)),
    "without feedback": Variant(("loss.feedback=0",)),
}


class Found(NamedTuple):
    """Attributes:
    share: Of the ranker's score in the logit, chosen on the validation fold.
    before, full: `[users]`, the metric on the validation fold at the shares 0 and 1.
    retrieval, ranking: `[users]`, the metric on the test fold at 0 and at the chosen share.
    """

    share: float
    before: np.ndarray
    full: np.ndarray
    retrieval: np.ndarray
    ranking: np.ndarray


def measure(run: Path, variant: Variant, out: Path) -> Found:
    """The test fold's answer of a ranker on a run's retrieval; `out` keeps it.

    Raises:
      ValueError, OSError: When `run` is no training with a ranking stage.
    """
    if (kept := out / "users.npz").exists():
        with np.load(kept) as found:
            return Found(*(found[name] for name in Found._fields))
    # The scorer as it is: the run has trained it already.
    own = variant == Variant()
    model, prepared = runs.load(run) if own else train(run, variant, out)
    share, answers = float(model.share), []
    most = {"validation": prepared.config.train.validation_queries, "test": None}
    for fold, at in (("validation", 0), ("validation", 1), ("test", 0), ("test", share)):
        model.share.assign(at)
        by_user = evaluate.evaluate(model, prepared, fold, most=most[fold])
        answers.append(by_user[METRIC])
    found = Found(share, *answers)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(kept, **found._asdict())
    return found


def train(run: Path, variant: Variant, out: Path):
    """The model of a run with a ranker that was trained anew, and the data."""
    retrieval = run / "checkpoints" / "best-retrieval"
    if not retrieval.with_suffix(".index").exists():
        raise ValueError(f"{run} has no stage of retrieval: train it with ranking_epochs.")
    config = config_lib.load(run / "config.toml", variant.overrides)
    fit.deterministic(config.train.seed)
    prepared = pipeline.prepare(config, run)
    model = building.build(prepared)
    if variant.make:
        model.scorer = variant.make(config.scorer.dim, config.scorer.dropout)
    model.warm_up()
    towers = ("item_tower", "user_tower", "retrieval")
    taken = tf.train.Checkpoint(**{part: model.learned[part] for part in towers})
    taken.read(str(retrieval)).expect_partial()
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoints.weights(model).write(str(out / "checkpoints" / "best-retrieval"))
    most = config.train.validation_queries
    validate = lambda: evaluate.evaluate(model, prepared, "validation", most=most)
    keeper = Keeper(model, validate, out, config.train, "ranking", [])
    fit.run_stage(keeper, prepared.training(), config.train.ranking_epochs)
    keeper.end()
    keeper.settle(lambda: evaluate.weigh(model, prepared, most=most))
    return model, prepared


def row(name: str, found: list[Found], first: list[Found]) -> dict[str, str]:
    """One line of the table, from a ranker's runs and those of the first line."""
    of = lambda field, some=found: [getattr(one, field) for one in some]
    return {
        "ranker": name,
        "gain on validation": gain(of("before"), of("full")),
        "over the first line": gain(of("full", first), of("full")),
        "share": " ".join(f"{one.share:.2g}" for one in found),
        METRIC: f"{np.mean([one.ranking.mean() for one in found]):.4f}",
        "each": " ".join(f"{one.ranking.mean():.4f}" for one in found),
        "gain": gain(of("retrieval"), of("ranking")),
    }


def gain(before: list[np.ndarray], after: list[np.ndarray]) -> str:
    """From one metric to another, runs times `[users]` each, in percent of the first, with
    its interval."""
    first, second = np.mean(before, 0), np.mean(after, 0)
    gained, base = metrics.bootstrap(second, first), first.mean()
    return (
        f"{gained.mean / base:+.1%} [{gained.low / base:+.1%}, {gained.high / base:+.1%}]"
    )


def main(argv=None) -> int:
    """Prints the table; 2 with the reason where there is none."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of tfrec_attn.train")
    parser.add_argument("--out", type=Path, required=True, help="keeps what was trained")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="RANKER"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.field=value",
        help="changes one setting of all rankers; may be repeated",
    )  # fmt: skip
    args = parser.parse_args(argv)
    rows, first = [], []
    try:
        for name in args.only:
            place = args.out / "-".join(name.replace(",", "").split())
            overrides = *args.set, *VARIANTS[name].overrides
            variant = VARIANTS[name]._replace(overrides=overrides)
            found = [measure(run, variant, place / run.name) for run in args.runs]
            first = first or found
            rows.append(row(name, found, first))
            print(report.table(rows), file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
