r"""What item tokens in fewer bytes cost: NDCG@10 on the test fold, and their size.

    python benchmarks/stored.py runs/seed-0 runs/seed-1 runs/seed-2

Each run is ranked with its items' token matrices kept as `index.tokens` would keep them.
Prints a row a dtype: bytes, the metric as a mean over the runs, and its change against
float32 with a 95 % bootstrap interval over users, a user's change averaged over the runs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

NAME, METRIC = "benchmarks/stored.py", "ndcg@10"
DTYPES = ("float32", "float16", "int8")


def measure(run: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Bytes of the token matrices and the metric of each user, by dtype.

    Raises:
      ValueError, OSError: When `run` is no training.
    """
    from tfrec_attn import comparison, ranking, runs
    from tfrec_attn.model import stored

    model, prepared = runs.load(run)
    asked = comparison.fold(prepared, "test")
    tokens, size = model.encode_items().tokens, prepared.config.index.shortlist
    found = {}
    for dtype in DTYPES:
        packed = stored.pack(tokens, dtype)
        kept = packed if dtype == "int8" else packed[:1]
        answers = asked.ask(dtype, ranking.of_model(model, size, dtype), (10,))
        found[dtype] = (
            sum(part.dtype.size * int(np.prod(part.shape)) for part in kept),
            asked.by_user(answers)[METRIC],
        )
    return found


def main(argv=None) -> int:
    """Prints the table; 2 with the reason where there is none."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of tfrec_attn.train")
    args = parser.parse_args(argv)
    from tfrec_attn import metrics, report

    try:
        found = [measure(run) for run in args.runs]
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    users = {dtype: np.mean([one[dtype][1] for one in found], 0) for dtype in DTYPES}
    full, full_bytes = users["float32"], found[0]["float32"][0]
    rows = []
    for dtype, values in users.items():
        change = [100 * part / full.mean() for part in metrics.bootstrap(values, full)]
        size = found[0][dtype][0]
        rows.append(
            {
                "tokens": dtype,
                "MB": f"{size / 1e6:.2f}",
                "smaller": f"{full_bytes / size:.2f}",
                METRIC: f"{values.mean():.4f}",
                "change, %": "{:+.2f} [{:+.2f}, {:+.2f}]".format(*change),
            }
        )
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
