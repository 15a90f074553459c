"""What is kept while a model is trained, and where a training goes on.

A state is one checkpoint: weights, optimizer, dropout, meters, the lines of the history.
Whatever else is written follows from it: what a state names is written before it, what can
be made of it after it. So there is no moment at which a kill leaves files that disagree.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn import atomic, metrics
from tfrec_attn.model import tuning
from tfrec_attn.training import checkpoints, optimizers
from tfrec_attn.training.agreement import Ending
from tfrec_attn.training.checkpoints import weights
from tfrec_attn.training.preemption import Preempted, Preemption

logger = logging.getLogger(__name__)


class Keeper(tf_keras.callbacks.Callback):
    """Validates after each epoch, keeps the last states and the best weights, stops early.

    Args:
      model: Of `validate`.
      validate: See `fit.fit`.
      out: The run's folder.
      settings: See `sections.Train`.
      stage: What is trained now.
      history: A line for each epoch of the stages before; this one's are appended.
      preemption: What asks for an early end.
    """

    def __init__(
        self,
        model,
        validate,
        out: Path,
        settings,
        stage: str,
        history: list,
        preemption: Preemption | None = None,
    ):
        super().__init__()
        self.validate, self.out, self.settings = validate, out, settings
        self.monitor, self.patience = settings.monitor, settings.patience
        self.stage, self.history = stage, history
        self.before = len(history)
        self.recommender = model
        self.place = out / "checkpoints"
        self.preemption = preemption or Preemption()
        self.ending = Ending(model.distribute_strategy, self.preemption)
        self.told: Path | None = None

    def begin(self) -> None:
        """Readies the model for the stage: the ranking goes on from the best retrieval."""
        model = self.recommender
        model.stage = self.stage
        if self.stage == "ranking":
            best = self.place / "best-retrieval"
            checkpoints.read(weights(model), best).assert_consumed()
            model.refresh()
        # Until there is a ranking the retrieval is measured alone.
        model.share.assign(float(self.stage != "retrieval" and model.settings.ranking > 0))

    def watch(self, steps: int, resume: bool, divided: int = 1) -> None:
        """Takes the compiled model, and with `resume` goes on from the stage's last state,
        where there is one.

        Args:
          steps: Of an epoch.
          resume: Whether to go on.
          divided: See `checkpoints.Position`.

        Raises:
          ValueError: When no state can be read that is there, or it is within an epoch that
            was divided otherwise.
        """
        model = self.recommender
        self.steps, self.position = steps, checkpoints.Position(self.history)
        bert = model.learned.get("bert", [])
        dropout = checkpoints.generators(model)
        self.own = checkpoints.of_replicas(model, dropout)
        # BERT as it was when it last encoded the texts: within an epoch it has moved on.
        with tf.device("CPU:0"):
            self.encoder = [(v, tf.Variable(v, trainable=False)) for v in bert]
        everything = tf.train.Checkpoint(
            model=model,
            bert=bert,
            encoder=[copy for _, copy in self.encoder],
            optimizer=model.optimizer,
            dropout=dropout,
            position=self.position,
        )
        if not resume:
            shutil.rmtree(self.place / self.stage, ignore_errors=True)
        self.states = checkpoints.States(everything, self.place / self.stage)
        self.position.divided = divided
        if resume and self.states.restore():
            self._restored()
            self._divide(divided)
            after = f"epoch {self.done}, step {self.position.step} of the next"
            logger.info("%s: going on after %s", self.stage, after)

    def _restored(self) -> None:
        self._put("dropout")
        stages = [line["stage"] for line in self.history]
        self.before = (
            stages.index(self.stage) if self.stage in stages else len(self.history)
        )
        model = self.recommender
        # Keras empties the meters as an epoch begins.
        self.meters = [(v, v.numpy()) for m in model.metrics for v in m.variables]
        if self.encoder and self.history:
            moved = [(variable, variable.numpy()) for variable, _ in self.encoder]
            for variable, copy in self.encoder:
                variable.assign(copy)
            model.refresh()
            for variable, value in moved:
                variable.assign(value)

    def _divide(self, divided: int) -> None:
        """Goes on with examples that may be divided otherwise."""
        was, self.position.divided = self.position.divided, divided
        if was == divided:
            return
        if self.position.step:
            raise ValueError(
                f"The state in {self.states.folder} is within an epoch, whose shards were "
                f"divided among {was} worker(s) (train.own_shards). Received: {divided}. "
                "Start as many workers as before, several on one machine if need be; after "
                "an epoch there may be others."
            )
        # Of which an epoch may have other steps, which states and the schedule go by.
        steps = self.done * self.steps
        optimizers.adam(self.recommender).iterations.assign(steps)
        self.states.restart(steps)

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

    def _best_epoch(self, done: int | None = None) -> int:
        """Of the first epochs of the stage, all by default. Where an AdaLoRA is cut, of
        those with the fewest directions."""
        directions = [line.get("directions", 0) for line in self.lines[:done]]
        figures = [line[self.monitor] for line in self.lines[:done]]
        return int(np.argmax(np.where(directions > np.min(directions), -np.inf, figures)))

    def maybe_load_initial_counters_from_ckpt(self, steps, epoch, mode):
        """Tells Keras, which asks by this name, at which epoch and step to go on."""
        self.model._training_state = None
        return epoch, self.position.step

    def on_train_begin(self, logs=None):
        self.model._training_state = self
        # What is kept already is all that there is.
        self._end_if(self.ending.now())

    def on_epoch_begin(self, epoch, logs=None):
        if self.position.step:
            for variable, value in self.meters:
                variable.assign(value)
            self._put("meters")

    def _put(self, name: str) -> None:
        self.own[name].put(self.position.own.get(name, []))

    def on_train_batch_end(self, batch, logs=None):
        step, every = batch + 1, self.settings.checkpoint_steps
        if step == self.steps:
            return
        ends = self.ending.after_step()
        if ends or (every and step % every == 0):
            self._require_finite(step)
            self._save(step)
        self._end_if(ends)

    def on_epoch_end(self, epoch, logs=None):
        self._require_finite(self.steps)
        # The meters are of the epoch; `logs` may be one replica's.
        line = {"epoch": len(self.history) + 1, "stage": self.stage}
        line |= {f"train_{k}": float(v) for k, v in logs.items()}
        live = self.recommender.trained_bert
        if live and (ranked := tuning.ranked(live.bert)):
            line["directions"] = tuning.directions(ranked)
        with optimizers.averaged(self.recommender):
            if self.stage != "ranking":
                self.recommender.refresh()
                for variable, copy in self.encoder:
                    copy.assign(variable)
            found = metrics.summary(self.validate())
            if self.monitor not in found:
                raise ValueError(
                    f"train.monitor={self.monitor!r} is none of the validation's "
                    f"metrics: {', '.join(found)}."
                )
            logs.update({f"val_{name}": value for name, value in found.items()})
            self.history.append({**line, **found})
            if self._best_epoch() == self.done - 1:
                checkpoints.write(weights(self.recommender), self._best())
        self._save(0)
        self._end_if(self.ending.now())
        self.model.stop_training = self.stopped

    def _best(self) -> Path:
        """The best weights of the stage. Their name has the epoch, as a state before the
        last may have had another best one."""
        return self.place / self.stage / f"best-{self._best_epoch() + 1}"

    def _forget(self) -> None:
        """Removes best weights that neither of the states has as its best."""
        if oldest := self.states.numbers[0] // self.steps:
            for number in range(1, self._best_epoch(oldest) + 1):
                checkpoints.remove(self.place / self.stage / f"best-{number}")

    def _require_finite(self, step: int) -> None:
        """A loss is that of the weights before the step: theirs is looked for here."""
        for variable in self.model.trainable_variables:
            if not np.isfinite(tf.reduce_sum(variable)):
                raise FloatingPointError(
                    f"{variable.name} is not finite after epoch {self.done + 1}, batch "
                    f"{step}: lower train.learning_rate. What was kept before is good."
                )

    def _save(self, step: int) -> None:
        """Keeps the state after a step of the epoch, 0 for the end of the one before."""
        self.position.step = step
        self.position.own = {name: own.read() for name, own in self.own.items()}
        self.states.save(self.done * self.steps + step)
        self._tell()
        self._forget()

    def _end_if(self, ends: bool) -> None:
        if ends:
            raise Preempted

    def _tell(self) -> None:
        """Writes what follows from the state."""
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        atomic.write(self.out / "history.jsonl", lines)
        if self.lines and self.told != (best := self._best()):
            checkpoints.copy(best, self.place / "best")
            self.told = best

    def end(self) -> None:
        """Gives the stage's best weights the name by which others take them."""
        checkpoints.copy(self._best(), self.place / f"best-{self.stage}")

    def settle(self, weigh: Callable[[], float]) -> None:
        """Takes the best epoch's weights, and the share at which the scorer counts.

        Args:
          weigh: See `fit.fit`; not called where there is no ranking.
        """
        model, kept = self.recommender, weights(self.recommender)
        checkpoints.read(kept, self.place / f"best-{self.stage}").assert_consumed()
        model.refresh()
        model.share.assign(weigh() if model.settings.ranking else 0.0)
        self._tell()
        checkpoints.write(kept, self.place / "best")
