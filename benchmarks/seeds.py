r"""Several seeds of one configuration side by side: mean and each run.

    for seed in 0 1 2; do
        python -m tfrec_attn.train --config configs/movielens-100k.toml \
            --out runs/seed-$seed --set train.seed=$seed
        python -m tfrec_attn.evaluate --run runs/seed-$seed
    done
    python benchmarks/seeds.py runs/seed-0 runs/seed-1 runs/seed-2

Reads `evaluation.json` of each run and prints a Markdown table, a row a method.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tfrec_attn.evaluation import report


def read(folders: list[Path]) -> dict[str, dict]:
    """What `evaluate` found in each run, by the run's name.

    Raises:
      OSError: When a run was not evaluated.
      ValueError: When the runs differ in fold or split.
    """
    found = {
        str(f): json.loads((f / "evaluation.json").read_text("utf-8")) for f in folders
    }
    same = {(one["fold"], one["digest"]) for one in found.values()}
    if len(same) > 1:
        raise ValueError(
            "The runs differ in fold or split: a mean over them means nothing. "
            f"Received: {', '.join(f'{fold} of {digest[:12]}' for fold, digest in same)}."
        )
    return found


def rows(found: dict[str, dict], metrics: list[str]):
    """A row a method: for each metric the mean, and the runs in their order."""
    for name in next(iter(found.values()))["rows"]:
        row = {"method": name}
        for metric in metrics:
            values = [
                one["rows"][name]["metrics"][metric]["mean"] for one in found.values()
            ]
            row[metric] = f"{np.mean(values):.4f}"
            row[f"{metric}, each"] = " ".join(f"{value:.4f}" for value in values)
        yield row


def main(argv=None) -> int:
    """Prints the table; 2 with the reason where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--metrics", nargs="+", default=["ndcg@10", "hit@10"])
    args = parser.parse_args(argv)
    try:
        print(report.table(rows(read(args.runs), args.metrics)))
    except (OSError, ValueError, KeyError) as error:
        print(f"benchmarks/seeds.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
