"""A trial of a search: a training that sees no test fold, and the table of all of them."""

import gc
import os
from pathlib import Path

from tfrec_attn.settings import config as config_lib
from tfrec_attn.training.space import Space


def figure(trial, out: Path, space: Space) -> float:
    """Trains a trial's run; the validation metric of the model that it keeps."""
    import tf_keras

    from tfrec_attn import train
    from tfrec_attn.training.monitors import Monitors

    folder = folder_of(out, trial.number)
    folder.mkdir(parents=True)
    _lend_texts(out, folder)
    try:
        config = config_lib.load(out / "config.toml", space.suggest(trial))
        longest = space.most("train.epochs") or config.train.epochs
        watch = Monitors(others=(pruning(trial, config.train.monitor, longest),))
        result = train.run(config, folder, monitors=watch, tested=False)
        return result["best_validation"]
    finally:
        # The graphs of the trials before are not needed again.
        tf_keras.backend.clear_session()
        gc.collect()


def pruning(trial, monitor: str, longest: int):
    """Makes the callback that reports a stage's epochs, and ends a hopeless trial.

    Args:
      trial: Of Optuna.
      monitor: What is reported.
      longest: Epochs of the first stage that any trial may have.
    """
    import optuna
    import tf_keras

    class Pruning(tf_keras.callbacks.Callback):
        def __init__(self, stage: str, examples: float):
            super().__init__()
            # An epoch is compared with the same one of other trials, whenever that came.
            self.before = longest if stage == "ranking" else 0

        def on_epoch_end(self, epoch, logs=None):
            trial.report(logs[f"val_{monitor}"], self.before + epoch)
            if trial.should_prune():
                raise optuna.TrialPruned(f"after epoch {epoch + 1}")

    return Pruning


def _lend_texts(out: Path, folder: Path) -> None:
    """Texts that a trial has encoded serve the next; a run checks that they are its own."""
    for kept in sorted(out.glob("trials/*/*_texts.npz")):
        if not (folder / kept.name).exists():
            os.link(kept, folder / kept.name)


def folder_of(out: Path, number: int) -> Path:
    return out / "trials" / f"{number:04}"


def write(study, out: Path) -> None:
    """The trials as `trials.csv` and `trials.md`, the best first."""
    import polars as pl

    from tfrec_attn.evaluation import report

    rows = [
        {
            "trial": trial.number,
            "validation": trial.value if trial.state.name == "COMPLETE" else None,
            "state": trial.state.name.lower(),
            "epochs": len(trial.intermediate_values),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **{name: str(value) for name, value in trial.params.items()},
            "reason": trial.user_attrs.get("reason", ""),
        }
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
    ]
    table = pl.DataFrame(rows, infer_schema_length=None)
    table = table.sort("validation", descending=True, nulls_last=True)
    table.write_csv(out / "trials.csv")
    shown = table.with_columns(pl.col(pl.Float64).round(4)).cast(pl.String).fill_null("")
    (out / "trials.md").write_text(report.table(shown.to_dicts()) + "\n", "utf-8")
