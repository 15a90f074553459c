r"""One configuration in several variants, each with several seeds.

    python benchmarks/variants.py --out runs/variants --seeds 0 1 2 \
        --row plain --row averaged regularization.average=0.99 \
        -- --config configs/movielens-100k.toml --set loss.ranking=0

A row is a name and the settings that differ; what follows `--` goes to every training.
The seeds are those of weights and order, and of a random split too. What `--out` holds is
not trained again, so that a table can be taken up and widened, or its seeds trained side by
side. Prints a Markdown table: NDCG@10 of the best epoch on the validation fold, by which a
variant is chosen, and of the model as it is served on the test fold; means over the seeds
and each, and the median time of a training.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tfrec_attn.evaluation import report


def train(out: Path, seed: int, sets: list[str], arguments: list[str]) -> dict:
    """What a run found, trained in a process of its own where it is not there.

    Raises:
      subprocess.CalledProcessError: When the training fails; it says why.
    """
    found = out / "variant.json"
    if not found.exists():
        seeded = [*sets, f"train.seed={seed}", f"split.seed={seed}"]
        flags = [word for one in seeded for word in ("--set", one)]
        command = [sys.executable, "-m", "tfrec_attn.train", *arguments, *flags]
        begun = time.monotonic()
        resume = ["--resume"] if out.exists() else []
        subprocess.run(
            [*command, "--out", str(out), *resume], check=True, stdout=subprocess.DEVNULL
        )
        metrics = json.loads((out / "metrics.json").read_text("utf-8"))
        *_, served = metrics["test"].values()
        result = {
            "validation": metrics["best_validation"],
            "test": served["ndcg@10"],
            "minutes": (time.monotonic() - begun) / 60,
        }
        found.write_text(json.dumps(result), "utf-8")
    return json.loads(found.read_text("utf-8"))


def row(name: str, sets: list[str], args) -> dict[str, str]:
    """One variant over all seeds."""
    runs = [train(args.out / f"{name}-{s}", s, sets, args.train) for s in args.seeds]
    column = lambda key: [one[key] for one in runs]
    each = lambda key: " ".join(f"{value:.4f}" for value in column(key))
    return {
        "variant": name,
        "settings": " ".join(sets),
        "validation": f"{np.mean(column('validation')):.4f}",
        "each": each("validation"),
        "test": f"{np.mean(column('test')):.4f}",
        "each, test": each("test"),
        "minutes": f"{np.median(column('minutes')):.1f}",
    }


def main(argv=None) -> int:
    """Prints the table; 2 where a training failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the runs")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--row", nargs="+", action="append", required=True, metavar="NAME [SETTING ...]")
    add("train", nargs="+", help="arguments of every training, after --")
    args = parser.parse_args(argv)
    try:
        rows = [row(name, sets, args) for name, *sets in args.row]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks/variants.py: {error}", file=sys.stderr)
        return 2
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
