"""Training: strategy, checkpoints, early stopping, progress."""

import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tqdm import tqdm

from tfrec_attn import metrics, optimizers
from tfrec_attn.data import batches
from tfrec_attn.data.examples import Examples, make
from tfrec_attn.model import tuning
from tfrec_attn.model.recommender import Recommender

logger = logging.getLogger(__name__)

# Of the scorer's score in the ranking logit; see `Keeper.settle`.
SHARES = (2.0, 1.0, 0.5, 0.25, 0.0)


def strategy(name: str) -> tf.distribute.Strategy:
    """`auto` and `mirrored` use all visible devices, `one` the first of them."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "one":
        return tf.distribute.OneDeviceStrategy(devices[0].name)
    return _mirrored(tuple(device.name for device in devices))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One a process: a second one would give its collectives the keys of the first."""
    return tf.distribute.MirroredStrategy(devices)


def deterministic(seed: int) -> None:
    """Makes a run a function of its seed: weights, order, dropout and sums."""
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    tf_keras.backend.experimental.enable_tf_random_generator()


def fit(
    model: Recommender,
    examples: Examples,
    validate: Callable[[], dict[str, Any]],
    *,
    settings: Any,
    out: Path,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Trains until the epochs are over or the validation metric no longer rises.

    Args:
      model: Built inside its strategy's scope.
      examples: Of training.
      validate: Gives the metrics of the validation fold by name, of each user.
      settings: See `config.Train`.
      out: Run folder: `checkpoints/` holds the last and the best state, `history.jsonl` a
        line an epoch.
      resume: Whether to go on from the last state in `out`, where there is one.

    Returns:
      The metrics of each epoch; the model then has the weights of the best one.

    Raises:
      ValueError: When `settings.monitor` is no metric of `validate`, or the examples of a
        step do not fall into `settings.accumulate` equal parts.
      FloatingPointError: When a loss is not finite; names epoch and batch.
      MemoryError: When a step does not fit into a device's memory; names what to lower.
    """
    history: list[dict[str, Any]] = []
    turns = stages(settings, model.settings)
    for stage in turns:
        _check_parts(model, _step_size(model, settings, stage))
    for stage, epochs in turns.items():
        keeper = Keeper(model, validate, out, settings, stage, history)
        run_stage(keeper, examples, epochs, resume=resume)
    keeper.settle()
    return history


def stages(settings: Any, loss: Any) -> dict[str, int]:
    """What is trained in turn, and for how many epochs at most."""
    if not (settings.ranking_epochs and loss.ranking):
        return {"both": settings.epochs}
    return {"retrieval": settings.epochs, "ranking": settings.ranking_epochs}


def run_stage(
    keeper: "Keeper", examples: Examples, epochs: int, *, resume: bool = False
) -> None:
    """One stage, from its start or from its last state. See `fit` for what is raised.

    Args:
      keeper: Of the model and the stage.
      examples: Of training; the ranking gives each of their targets an example of its own.
      epochs: At most.
      resume: Whether to go on from the stage's last state, where there is one.
    """
    model, settings = keeper.recommender, keeper.settings
    size = _step_size(model, settings, keeper.stage)
    if keeper.stage == "ranking":
        # Targets that share a window are of one user: a step learns more from as many of
        # different users.
        examples = make(examples.history, examples.targets, length=examples.length)
    per_epoch = batches.steps(examples, size)
    keeper.begin()
    live = model.trained_bert
    steps = per_epoch * epochs
    with model.distribute_strategy.scope():
        optimizer = optimizers.make(
            settings,
            steps,
            live,
            average=model.regularization.average,
            every=live.unfreeze * per_epoch if live else 0,
        )
        if settings.precision == "float16" and live:
            optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
        model.compile(optimizer=optimizer)
        # Its variables must be there to be restored.
        model.optimizer.build(model.trainable_variables)
    keeper.watch(resume)
    if keeper.stopped or keeper.done >= epochs:
        return
    stream = batches.training(examples, size, seed=settings.seed, epoch=len(keeper.history))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    targets = len(examples.targets)
    with advice_of_memory(keeper.stage, tuned=live is not None):
        model.fit(
            stream.with_options(options),
            epochs=epochs,
            initial_epoch=keeper.done,
            steps_per_epoch=per_epoch,
            verbose=0,
            callbacks=[
                StopAtNaN(),
                *([optimizers.Budget(tuning.ranked(live.bert), steps)] if live else []),
                keeper,
                Progress(per_epoch, targets / per_epoch, keeper.stage),
                tf_keras.callbacks.TensorBoard(
                    keeper.out / "tensorboard" / keeper.stage, write_graph=False
                ),
            ],
        )


def _step_size(model: Recommender, settings: Any, stage: str) -> int:
    """Examples of a step, over all replicas."""
    if stage != "ranking":
        return settings.batch_size
    return model.settings.ranked_targets * model.distribute_strategy.num_replicas_in_sync


def _check_parts(model: Recommender, size: int) -> None:
    replicas = model.distribute_strategy.num_replicas_in_sync
    if model.parts > 1 and size % (model.parts * replicas):
        raise ValueError(
            f"train.accumulate must divide a step's examples on each replica into equal "
            f"parts. Received: {model.parts} for {size} examples on {replicas} replica(s): "
            "take a divisor of train.batch_size and of loss.ranked_targets."
        )


@contextlib.contextmanager
def advice_of_memory(stage: str, *, tuned: bool) -> Iterator[None]:
    """Says what to lower where a device has no memory left.

    Args:
      stage: What is trained.
      tuned: Whether a BERT is.

    Raises:
      MemoryError: Instead of TensorFlow's ResourceExhaustedError.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        retrieval = ["train.batch_size", "examples.targets", "loss.negatives"]
        ranking = ["loss.ranked_targets", "loss.easy_negatives", "loss.hard_negatives"]
        lower = {"retrieval": retrieval, "ranking": ranking}.get(stage, retrieval + ranking)
        if tuned:
            lower = ["bert.live", "text.max_length", *lower]
        raise MemoryError(
            f"A step of the {stage if stage != 'both' else 'training'} does not fit into "
            f"memory: lower {', '.join(lower)}, the first first. TensorFlow: "
            f"{error.message.splitlines()[0]}"
        ) from error


class StopAtNaN(tf_keras.callbacks.Callback):
    """Stops at the first loss that is not finite."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss of epoch {self.epoch + 1}, batch {batch + 1} is {logs['loss']}: "
                "lower train.learning_rate, or look for values out of range in the tables."
            )


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


def generators(model: Recommender) -> list:
    """Where dropout draws from, which Keras leaves out of a model's checkpoint."""
    kind = tf_keras.__internal__.layers.BaseRandomLayer
    roots = [model, *([model.live.bert] if model.live else [])]
    layers = [x for root in roots for x in root.submodules if isinstance(x, kind)]
    with model.distribute_strategy.scope():
        for layer in layers:
            layer._random_generator._maybe_init()
    return [layer._random_generator for layer in layers]


def weights(model: Recommender) -> tf.train.Checkpoint:
    """What a trained model is: what it learned, without optimizer and counters."""
    return tf.train.Checkpoint(**model.learned)


class Progress(tf_keras.callbacks.Callback):
    """A bar for each epoch: loss, targets a second, time left; then the validation."""

    def __init__(self, steps: int, targets: float, stage: str):
        super().__init__()
        self.steps, self.targets, self.stage = steps, targets, stage

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = tqdm(
            total=round(self.steps * self.targets),
            unit="example",
            desc=f"{self.stage} epoch {epoch + 1}/{self.params['epochs']}".removeprefix(
                "both "
            ),
        )

    def on_train_batch_end(self, batch, logs=None):
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self.bar.update(round((batch + 1) * self.targets) - self.bar.n)

    def on_epoch_end(self, epoch, logs=None):
        shown = {
            k: f"{v:.4f}" for k, v in logs.items() if k.startswith("val_") and "@10" in k
        }
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", **shown)
        self.bar.close()
