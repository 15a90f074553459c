"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib


def learning_curves(history: Sequence[dict], path: Path) -> None:
    """Training losses above, validation metrics below, over epochs."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = [line["epoch"] for line in history]
    figure, (losses, found) = plt.subplots(2, 1, sharex=True, figsize=(7, 7))
    for name in history[0]:
        if name.startswith("train_"):
            losses.plot(epochs, [line[name] for line in history], label=name[6:])
        elif name in ("ndcg@10", "hit@10", "mrr"):
            found.plot(epochs, [line[name] for line in history], label=name)
    losses.set(ylabel="training loss")
    found.set(xlabel="epoch", ylabel="validation")
    for axis in (losses, found):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
