r"""Whether the tokens that an explanation credits most are those that carry the score.

    python benchmarks/faithfulness.py --run runs/movielens-100k

For each user of the test fold some unseen items of the shortlist are explained. Then
tokens are masked in the scorer, as many of the most credited, of random and of the least
credited ones, and the score is taken again: of the item's tokens, and of the history's
events. If credit means anything, the score falls most where the most credited are
missing. Where tokens are masked the weights of the rest grow, so this is not so by
construction: what matters is how far a token's cosine lies above the item's mean, and
credit is its size.

The retrieval's share sees no tokens and stays out of this. Changes are means over pairs of
a user, then over users; intervals are 95 % bootstraps over users.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

NAME = "benchmarks/faithfulness.py"
MASKED = (1, 2, 4)
DRAWS = 5


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder that tfrec_attn.train wrote")
    add("--items", type=int, default=8, help="explained for each user (default: 8)")
    add("--users", type=int, default=1000, help="at most (default: 1000)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints a row a side and number of masked tokens; 2 if there is no run."""
    args = parser().parse_args(argv)
    from tfrec_attn.run import runs

    try:
        model, prepared = runs.load(args.run)
        print(table(measure(model, prepared, items=args.items, users=args.users)))
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    return 0


def measure(model, prepared, *, items: int, users: int) -> dict:
    """The changes of the score that deletions make.

    Args:
      model, prepared: From `runs.load`.
      items: Explained for each user: drawn from the shortlist.
      users: At most so many queries of the test fold, drawn.

    Returns:
      By `(side, masked)` a dict: `most`, `random` and `least`, the changes `[users]` where
      those tokens are masked, and `pairs`, how many have more than so many tokens.
    """
    from tfrec_attn.evaluation import ranking

    draw = np.random.default_rng(0)
    queries = prepared.held_out("test")
    index = np.sort(draw.permutation(len(queries))[:users])
    matrices = model.encode_items()
    score = Changes(model.scorer, model.user_tokens.length, draw)
    for rows in ranking.chunks(len(index), 32):
        state = ranking.users(model, matrices, queries, index[rows])
        cosine = state.query.numpy() @ matrices.pooled.numpy().T
        for row, user in zip(cosine, queries.user[index[rows]], strict=True):
            row[queries.history.item[queries.history.user == user]] = -np.inf
        size = max(prepared.config.index.shortlist, items)
        score.add(state, matrices, shortlisted(cosine, size, items, draw))
    return score.means()


def shortlisted(cosine: np.ndarray, size: int, items: int, draw) -> np.ndarray:
    """`[B, items]` rows drawn out of the `size` best of each user `[B, I]`."""
    best = np.argsort(-cosine, 1, kind="stable")[:, :size]
    return np.take_along_axis(best, draw.random(best.shape).argsort(1)[:, :items], 1)


class Changes:
    """Collects, pair by pair, what the score loses without some of its tokens.

    Args:
      scorer: `layers.AttentionWeightedCosine`.
      length: Events that the ranking sees, the last of the user's tokens.
      draw: NumPy generator.
    """

    def __init__(self, scorer, length: int, draw):
        import tensorflow as tf

        graph = functools.partial(tf.function, autograph=False, reduce_retracing=True)
        self.score = graph(scorer)
        self.explained = graph(functools.partial(scorer, return_attention=True))
        self.length, self.draw = length, draw
        self.found: dict = {}

    def add(self, state, matrices, rows: np.ndarray) -> None:
        """Each user of `state` with each of the items of its row."""
        users, count = rows.shape
        spread = lambda value: np.repeat(value.numpy(), count, 0)
        _, tokens, mask = matrices.candidates(rows.ravel())
        inputs = {
            "user": spread(state.tokens),
            "user_mask": spread(state.mask),
            "item": tokens.numpy()[:, None],
            "item_mask": mask.numpy()[:, None],
        }
        before, parts = self.explained(inputs)
        pairs = parts["pair_contributions"].numpy()[:, 0]
        events = inputs["user_mask"].copy()
        events[:, : -self.length] = False
        sides = {
            "item tokens": ("item_mask", inputs["item_mask"][:, 0], pairs.sum(1)),
            "events": ("user_mask", events, pairs.sum(2)),
        }
        for side, (mask, real, credit) in sides.items():
            for masked in MASKED:
                enough = (real.sum(1) > masked).reshape(users, count)
                change = lambda order, masked=masked, real=real, mask=mask: (
                    self._without(inputs, mask, first(order, real, masked))
                    - before.numpy()[:, 0]
                ).reshape(users, count)
                noise = [change(self.draw.random(real.shape)) for _ in range(DRAWS)]
                changes = {
                    "most": change(credit),
                    "random": np.mean(noise, 0),
                    "least": change(-credit),
                }
                self._keep((side, masked), enough, changes)

    def _without(self, inputs, mask, left_out):
        fits = left_out.reshape(inputs[mask].shape)
        return self.score(inputs | {mask: inputs[mask] & ~fits}).numpy()[:, 0]

    def _keep(self, key, enough, changes) -> None:
        some = enough.any(1)
        row = self.found.setdefault(key, {name: [] for name in (*changes, "pairs")})
        row["pairs"].append(enough.sum())
        for name, change in changes.items():
            row[name].append((change * enough).sum(1)[some] / enough.sum(1)[some])

    def means(self) -> dict:
        """See `measure`; no row where no item has more than so many tokens."""
        return {
            key: {
                name: sum(part) if name == "pairs" else np.concatenate(part)
                for name, part in row.items()
            }
            for key, row in self.found.items()
            if sum(row["pairs"])
        }


def first(order: np.ndarray, real: np.ndarray, count: int) -> np.ndarray:
    """`[P, t]` bool: the real tokens that `order` `[P, t]` has highest, `count` a row."""
    place = np.argsort(np.argsort(-np.where(real, order, -np.inf), 1), 1)
    return real & (place < count)


def table(found: dict) -> str:
    """A Markdown table of `measure`."""
    from tfrec_attn import metrics

    lines = [
        "| of | masked | pairs | most credited | random | least credited "
        "| most − random [95 %] | most < random |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (side, masked), row in found.items():
        gap = metrics.bootstrap(row["most"], row["random"])
        most, random, least = (f"{row[n].mean():+.4f}" for n in ("most", "random", "least"))
        lines.append(
            f"| {side} | {masked} | {row['pairs']} | {most} | {random} | {least} "
            f"| {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] "
            f"| {(row['most'] < row['random']).mean():.0%} of users |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
