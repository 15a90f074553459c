r"""Going on from a trained model against training from zero, as events come in.

    python benchmarks/incremental.py --config configs/movielens-100k.toml --out runs/daily \
        --set loss.ranking=0 --set index.shortlist=0

The earliest 70 % of MovieLens-100K's ratings are what a first model is trained on. Then all
of them are there: of the others the last fifth is the test, the fifth before it the
validation fold, of every row of the table. `as it was` is the first model with today's
items and histories; the others go on from it, by the same settings, or are trained from
zero on all that is not held out; `the mean of three` has the mean of the weights of the
runs with replay 0.2. Prints a Markdown table: NDCG@10 on the validation fold,
by which a row is chosen, and on the test fold, of all users, of those that the first model
knew and of the others, and the minutes of the training. What `--out` holds is not trained
again.
"""

import argparse
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import tomli_w

from tfrec_attn import evaluate
from tfrec_attn.data import sources
from tfrec_attn.evaluation import comparison, report
from tfrec_attn.run import averages, runs

FIRST, HELD_OUT = 0.7, 0.2
GOING_ON = {
    "replay 0": ["train.replay=0"],
    "replay 0.2": ["train.replay=0.2"],
    "replay 0.2, pull 0.001": ["train.replay=0.2", "train.pull=0.001"],
    "replay 1": ["train.replay=1"],
    "replay 0.2, seed 101": ["train.replay=0.2", "train.seed=101"],
    "replay 0.2, seed 102": ["train.replay=0.2", "train.seed=102"],
}
# Of whose weights the mean is a row, too.
AVERAGED = "replay 0.2", "replay 0.2, seed 101", "replay 0.2, seed 102"


def write_days(folder: Path, out: Path) -> set[str]:
    """The interactions of the first day and of today; who is in the first."""
    events = pl.read_csv(folder / "interactions.csv").sort("timestamp", maintain_order=True)
    first = events[: round(FIRST * len(events))]
    for name, some in (("first", first), ("today", events)):
        some.write_csv(out / f"{name}.csv")
    return set(first["user_id"].cast(pl.String))


def train(out: Path, arguments: list[str]) -> float:
    """Minutes of a training in a process of its own, or of the one that is there."""
    took = out / "minutes.txt"
    if not took.exists():
        begun = time.monotonic()
        command = [sys.executable, "-m", "tfrec_attn.train", "--out", str(out)]
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
        took.write_text(str((time.monotonic() - begun) / 60))
    return float(took.read_text())


def row(name: str, loaded, known: set[str], minutes: float) -> dict[str, str]:
    """A line of the table."""
    model, prepared = loaded
    chosen_by, found = (
        evaluate.evaluate(model, prepared, fold)["ndcg@10"]
        for fold in ("validation", "test")
    )
    rows = np.unique(comparison.fold(prepared, "test").queries.user)
    old = np.isin(prepared.users.ids[rows].astype(str), list(known))
    parts = {"all": np.ones_like(old), "known": old, "new": ~old}
    mean = lambda mask: f"{found[mask].mean():.4f}" if mask.any() else ""
    cells = {f"{part}, {mask.sum()} users": mean(mask) for part, mask in parts.items()}
    validation = {"validation": f"{chosen_by.mean():.4f}"}
    return {"model": name, **validation, **cells, "minutes": f"{minutes:.1f}"}


def table(args) -> list[dict[str, str]]:
    """All rows."""
    folder, out = sources.movielens_100k(), args.out
    out.mkdir(parents=True, exist_ok=True)
    known = write_days(folder, out)
    settings = tomllib.loads(args.config.read_text("utf-8"))
    settings.pop("data", None)
    (out / "config.toml").write_text(tomli_w.dumps(settings), "utf-8")
    sets = [word for one in args.set for word in ("--set", one)]

    def tables(day):
        names = {"items": folder / "items.csv", "users": folder / "users.csv"}
        names["interactions"] = out / f"{day}.csv"
        return [word for name, path in names.items() for word in (f"--{name}", str(path))]

    def fresh(day, share):
        cuts = ["--set", "split.name=global-time", "--set", f"split.share={share}"]
        return ["--config", str(out / "config.toml"), *tables(day), *sets, *cuts]

    zero = train(out / "zero", fresh("today", HELD_OUT * (1 - FIRST)))
    first = train(out / "first", fresh("first", 0.1))
    made = {}
    for name, more in GOING_ON.items():
        given = [w for one in (*more, f"split.share={HELD_OUT}") for w in ("--set", one)]
        place = out / name.replace(" ", "-").replace(",", "")
        base = ["--from", str(out / "first"), *tables("today")]
        made[name] = place, train(place, [*base, *given])
    begun = runs.untrained(next(iter(made.values()))[0])
    rows = [row("as it was", begun, known, first)]
    for name, (place, minutes) in made.items():
        rows.append(row(name, runs.load(place), known, minutes))
    places, minutes = zip(*(made[name] for name in AVERAGED), strict=True)
    model, prepared = runs.load(places[0])
    worth = lambda: evaluate.evaluate(model, prepared, "validation")["ndcg@10"].mean()
    averages.average(model, places, worth)
    rows.append(row("the mean of three", (model, prepared), known, sum(minutes)))
    return [*rows, row("from zero", runs.load(out / "zero"), known, zero)]


def main(argv=None) -> int:
    """Prints the table; 2 where a training failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True)
    add("--out", type=Path, required=True, help="folder of the runs")
    add("--set", action="append", default=[], metavar="section.field=value")
    args = parser.parse_args(argv)
    try:
        rows = table(args)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"benchmarks/incremental.py: {error}", file=sys.stderr)
        return 2
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
