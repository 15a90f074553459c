"""The baselines on one split, ranked by `tfrec_attn.metrics`: a Markdown table.

    .venv-baselines/bin/python benchmarks/baselines.py --split leave_last_out

The whole catalogue is ranked, items the user is known to have met left out. Every
interaction counts as one event, whatever its rating. Settings are those with the best
NDCG@10 on the validation fold after training on the training fold; the model is then
trained on both and asked for the test fold once. Models with chance in them show the
mean over the seeds.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfrec_attn import baselines, metrics
from tfrec_attn.data import splits

log = logging.getLogger("baselines")


@dataclasses.dataclass(frozen=True)
class Data:
    """Interactions as `[N]` rows of users and items, and `[I, G]` bool genres."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    genres: np.ndarray
    n_users: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A baseline.

    Attributes:
      scores: From data, training rows and settings to `[U, I]`.
      grid: Values to try of each setting.
      chance: Whether `scores` takes a seed.
    """

    scores: Callable
    grid: dict = dataclasses.field(default_factory=dict)
    chance: bool = False


def random(data, rows, seed):
    return baselines.random(data.n_users, len(data.genres), seed)


def popularity(data, rows):
    return baselines.popularity(data.item[rows], data.n_users, len(data.genres))


def genre_popularity(data, rows, seed, **settings):
    return baselines.category_popularity(
        *_pairs(data, rows), data.genres, data.n_users, seed=seed, **settings
    )


def item_knn(data, rows, **settings):
    return baselines.item_knn(*_pairs(data, rows), *_sizes(data), **settings)


def ease(data, rows, **settings):
    return baselines.ease(*_pairs(data, rows), *_sizes(data), **settings)


def als(data, rows, seed, **settings):
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        return _factors(
            data,
            rows,
            AlternatingLeastSquares(random_state=seed, iterations=15, **settings),
        )


def bpr(data, rows, seed, **settings):
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    # With more than one thread a seed would not give the same result twice.
    return _factors(
        data,
        rows,
        BayesianPersonalizedRanking(random_state=seed, num_threads=1, **settings),
    )


MODELS = {
    "random": Model(random, chance=True),
    "popularity": Model(popularity),
    "genre popularity": Model(genre_popularity, {"prior": [0.1, 1, 10]}, chance=True),
    "item kNN": Model(
        item_knn, {"neighbours": [50, 100, 200, 400], "shrink": [0, 20, 100]}
    ),
    "EASE": Model(ease, {"l2": [50, 100, 200, 400, 800, 1600]}),
    "implicit ALS": Model(
        als,
        {"factors": [16, 32, 64], "regularization": [0.1, 1, 10], "alpha": [1, 4, 16]},
        chance=True,
    ),
    "implicit BPR": Model(
        bpr,
        {
            "factors": [32, 64],
            "learning_rate": [0.01, 0.03],
            "regularization": [0.003, 0.03],
            "iterations": [100, 300],
        },
        chance=True,
    ),
}


def main(argv=None):
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        result = run(
            read(args.data), args.split, dict(args.option), args.models, args.seeds
        )
    except (OSError, ValueError) as error:
        print(f"baselines: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder of the three tables [MovieLens-100K]"
    )
    parser.add_argument("--split", default="leave_last_out")
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="NAME=VALUE"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser


def read(folder=None):
    """Reads `items.csv`, `users.csv` and `interactions.csv` of the MovieLens form."""
    if folder is None:
        from tfrec_attn.data import sources

        folder = sources.movielens_100k()
    items, users, events = (
        _rows(Path(folder) / f"{name}.csv") for name in ("items", "users", "interactions")
    )
    item_row = {row["item_id"]: i for i, row in enumerate(items)}
    user_row = {row["user_id"]: i for i, row in enumerate(users)}
    genres = [set(row["genres"].split("|")) - {""} for row in items]
    names = sorted(set().union(*genres))
    return Data(
        user=np.array([user_row[row["user_id"]] for row in events]),
        item=np.array([item_row[row["item_id"]] for row in events]),
        time=np.array([1000 * int(row["timestamp"]) for row in events]),
        genres=np.array([[name in own for name in names] for own in genres]),
        n_users=len(users),
    )


def run(data, split_name, options, models, seeds):
    """Tunes, trains and tests each model; returns what is printed, ready for JSON."""
    split = splits.split(split_name, data.user, data.item, data.time, **options)
    log.info("%s, digest %s", split.name, split.digest)
    return {
        "split": split.name,
        "options": options,
        "promise": split.promise,
        "digest": split.digest,
        "interactions": {
            fold: len(getattr(split, fold)) for fold in ("train", "validation", "test")
        },
        "models": [
            _row(name, MODELS[name], data, split, seeds if MODELS[name].chance else [None])
            for name in models
        ],
    }


def table(result):
    """The result in Markdown."""
    columns = [
        ("NDCG@10", "ndcg@10"),
        ("HR@10", "hit@10"),
        ("MRR", "mrr"),
        ("coverage@10", "coverage@10"),
        ("validation NDCG@10", "validation ndcg@10"),
    ]
    lines = [
        f"{result['split']} {result['options'] or ''}: {result['interactions']}, "
        f"digest {result['digest'][:12]}",
        "",
        "| model | " + " | ".join(title for title, _ in columns) + " | settings |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in result["models"]:
        figures = " | ".join(f"{row[key]:.4f}" for _, key in columns)
        settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
        lines.append(f"| {row['model']} | {figures} | {settings} |")
    return "\n".join(lines)


def _row(name, model, data, split, seeds):
    begin = time.perf_counter()
    tried = [
        dict(zip(model.grid, values, strict=True))
        for values in itertools.product(*model.grid.values())
    ]
    scored = [
        _measure(model, data, split, "validation", seeds[0], settings)["ndcg@10"]
        for settings in tried
    ]
    best = tried[int(np.argmax(scored))]
    tested = [_measure(model, data, split, "test", seed, best) for seed in seeds]
    row = {
        "model": name,
        "settings": best,
        "seeds": seeds,
        "validation ndcg@10": max(scored),
    }
    for key in tested[0]:
        row[key] = float(np.mean([values[key] for values in tested]))
    row["seconds"] = time.perf_counter() - begin
    log.info("%s: NDCG@10 %.4f in %.0f s", name, row["ndcg@10"], row["seconds"])
    return row


def _measure(model, data, split, fold, seed, settings):
    known, asked = split.known(fold), getattr(split, fold)
    chance = {} if seed is None else {"seed": seed}
    scores = model.scores(data, known, **chance, **settings)
    seen = metrics.item_lists(*_pairs(data, known), data.n_users)
    targets = metrics.without(metrics.item_lists(*_pairs(data, asked), data.n_users), seen)
    ranks = metrics.ranks(scores, targets, seen)
    values = metrics.summary(metrics.ranked_metrics(ranks, targets))
    listed = metrics.top_k(scores, 10, seen)[metrics.answered(targets)]
    return {**values, "coverage@10": metrics.coverage(listed, scores.shape[1])}


def _factors(data, rows, model):
    chosen = _sparse(data, rows)
    model.fit(chosen, show_progress=False)
    return model.user_factors @ model.item_factors.T


def _sparse(data, rows):
    from scipy.sparse import csr_matrix

    return csr_matrix(baselines.interactions(*_pairs(data, rows), *_sizes(data)))


def _pairs(data, rows):
    return data.user[rows], data.item[rows]


def _sizes(data):
    return data.n_users, len(data.genres)


def _rows(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _option(text):
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"NAME=VALUE, the value a number or true: {text}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
