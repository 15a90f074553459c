"""What is done after each epoch: validation, checkpoints, early stopping."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn import metrics, optimizers
from tfrec_attn.checkpoints import generators, weights
from tfrec_attn.model import tuning

logger = logging.getLogger(__name__)

# Of the scorer's score in the ranking logit; see `Keeper.settle`.
SHARES = (2.0, 1.0, 0.5, 0.25, 0.0)


class Keeper(tf_keras.callbacks.Callback):
    """Validates after each epoch, keeps the last and the best state, stops early.

    Args:
      model: Of `validate`.
      validate: See `fit`.
      out: The run's folder.
      settings: See `config.Train`.
      stage: What is trained now.
      history: A line for each epoch of the stages before; this one's are appended.
    """

    def __init__(self, model, validate, out: Path, settings, stage: str, history: list):
        super().__init__()
        self.validate, self.out, self.settings = validate, out, settings
        self.monitor, self.patience = settings.monitor, settings.patience
        self.stage, self.history = stage, history
        self.before = len(history)
        self.recommender = model
        self.place = out / "checkpoints"

    def begin(self) -> None:
        """Readies the model for the stage: the ranking goes on from the best retrieval."""
        model = self.recommender
        model.stage = self.stage
        if self.stage == "ranking":
            weights(model).read(str(self.place / "best-retrieval")).assert_consumed()
            model.refresh()
        # Until there is a ranking the retrieval is measured alone.
        model.share.assign(float(self.stage != "retrieval" and model.settings.ranking > 0))

    def watch(self, resume: bool) -> None:
        """Takes the compiled model, and with `resume` goes on after the stage's last
        complete epoch, where there is one."""
        model = self.recommender
        self.state = tf.train.Checkpoint(
            model=model,
            bert=model.learned.get("bert", []),
            optimizer=model.optimizer,
            dropout=generators(model),
        )
        self.last = tf.train.CheckpointManager(
            self.state, self.place / self.stage, 1, checkpoint_name="last"
        )
        if not resume or not self.last.latest_checkpoint:
            return
        done = int(Path(self.last.latest_checkpoint).name.split("-")[-1])
        lines = (self.out / "history.jsonl").read_text("utf-8").splitlines()
        self.history += [json.loads(line) for line in lines[self.before : done]]
        self.state.restore(self.last.latest_checkpoint).assert_consumed()
        with optimizers.averaged(model):
            model.refresh()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of this stage."""
        return self.history[self.before :]

    @property
    def done(self) -> int:
        return len(self.lines)

    @property
    def stopped(self) -> bool:
        return bool(self.lines) and self.done - 1 - self._best_epoch() >= self.patience

    def _best_epoch(self) -> int:
        """Where an AdaLoRA is cut, of the epochs with the fewest directions."""
        directions = [line.get("directions", 0) for line in self.lines]
        figures = [line[self.monitor] for line in self.lines]
        return int(np.argmax(np.where(directions > np.min(directions), -np.inf, figures)))

    def on_epoch_end(self, epoch, logs=None):
        # The meters are of the epoch; `logs` may be one replica's.
        line = {"epoch": len(self.history) + 1, "stage": self.stage}
        line |= {f"train_{k}": float(v) for k, v in logs.items()}
        live = self.recommender.trained_bert
        if live and (ranked := tuning.ranked(live.bert)):
            line["directions"] = tuning.directions(ranked)
        with optimizers.averaged(self.recommender):
            if self.stage != "ranking":
                self.recommender.refresh()
            found = metrics.summary(self.validate())
            if self.monitor not in found:
                raise ValueError(
                    f"train.monitor={self.monitor!r} is none of the validation's "
                    f"metrics: {', '.join(found)}."
                )
            logs.update({f"val_{name}": value for name, value in found.items()})
            self.history.append({**line, **found})
            if self._best_epoch() == self.done - 1:
                weights(self.recommender).write(str(self.place / f"best-{self.stage}"))
                weights(self.recommender).write(str(self.place / "best"))
        # The line first: a checkpoint without its line could not be resumed from.
        text = "".join(json.dumps(entry) + "\n" for entry in self.history)
        partial = self.out / "history.jsonl.partial"
        partial.write_text(text, "utf-8")
        partial.replace(self.out / "history.jsonl")
        self.last.save(checkpoint_number=len(self.history))
        self.model.stop_training = self.stopped

    def settle(self) -> None:
        """Takes the best epoch's weights, and chooses how much the scorer's score counts:
        what is best on the validation fold, where it gains more than its standard error
        over the retrieval's order, and else nothing.

        References:
          - The rule of one standard error: Breiman et al., 1984, Classification and
            Regression Trees, section 3.4.3.
        """
        model, found = self.recommender, {}
        kept = weights(model)
        kept.read(str(self.place / f"best-{self.stage}")).assert_consumed()
        model.refresh()
        for share in SHARES if model.settings.ranking else ():
            model.share.assign(share)
            found[share] = np.atleast_1d(self.validate()[self.monitor])
        gains = {share: values - found[0.0] for share, values in found.items()}
        sure = [s for s, g in gains.items() if g.mean() > g.std() / len(g) ** 0.5]
        share = max(sure, key=lambda s: gains[s].mean(), default=0.0)
        model.share.assign(share)
        kept.write(str(self.place / "best"))
        tried = ", ".join(f"{s:g}: {values.mean():.4f}" for s, values in found.items())
        logger.info("share of the scorer: %g (%s)", share, tried or "not trained")
