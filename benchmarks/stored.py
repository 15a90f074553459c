r"""What item tokens in fewer bytes cost: NDCG@10 on the test fold, and their size.

    python benchmarks/stored.py runs/seed-0 runs/seed-1 runs/seed-2

Each run is ranked with its items' token matrices kept as `index.tokens` would keep them.
Prints a row a dtype: bytes, the share of the ten best that are float32's ten best too, the
metric as a mean over the runs, and its change against float32 with a 95 % bootstrap
interval over users, a user's change averaged over the runs.
"""

import sys
from pathlib import Path

import numpy as np
import of_runs

K, METRIC = 10, "ndcg@10"
DTYPES = ("float32", "float16", "int8")


def measure(run: Path) -> dict[str, tuple[int, np.ndarray, np.ndarray]]:
    """Bytes of the token matrices, the metric of each user and the lists, by dtype.

    Raises:
      ValueError, OSError: When `run` is no training.
    """
    from tfrec_attn.evaluation import comparison, ranking
    from tfrec_attn.run import runs

    model, prepared = runs.load(run)
    asked = comparison.fold(prepared, "test")
    size = prepared.config.index.shortlist
    found = {}
    for dtype in DTYPES:
        matrices = model.encode_items(dtype)
        row = asked.ask(dtype, ranking.of_model(model, matrices, size), (K,), K)
        found[dtype] = (
            sum(part.dtype.size * int(np.prod(part.shape)) for part in matrices.tokens),
            asked.by_user(row)[METRIC],
            row.answers.listed,
        )
    return found


def rows(runs: list[Path]):
    """A row a dtype."""
    from tfrec_attn import metrics

    found = [measure(run) for run in runs]
    users = {dtype: np.mean([one[dtype][1] for one in found], 0) for dtype in DTYPES}
    full, full_bytes = users["float32"], found[0]["float32"][0]
    among = lambda one, other: (one[:, :, None] == other[:, None]).any(2).mean()
    same = lambda dtype: np.mean([among(one[dtype][2], one["float32"][2]) for one in found])
    for dtype, values in users.items():
        change = [100 * part / full.mean() for part in metrics.bootstrap(values, full)]
        size = found[0][dtype][0]
        yield {
            "tokens": dtype,
            "MB": f"{size / 1e6:.2f}",
            "smaller": f"{full_bytes / size:.2f}",
            "same ten": f"{same(dtype):.4f}",
            METRIC: f"{values.mean():.4f}",
            "change, %": "{:+.2f} [{:+.2f}, {:+.2f}]".format(*change),
        }


if __name__ == "__main__":
    sys.exit(of_runs.main(__doc__, rows))
