"""Training: stages, steps, progress."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras
from tqdm import tqdm

from tfrec_attn.data import batches, service
from tfrec_attn.data.examples import Examples
from tfrec_attn.data.shards import Shards
from tfrec_attn.model import tuning
from tfrec_attn.model.recommender import Recommender
from tfrec_attn.training import distribution, optimizers
from tfrec_attn.training.keeper import Keeper
from tfrec_attn.training.monitors import Monitors
from tfrec_attn.training.preemption import Preemption


def deterministic(seed: int) -> None:
    """Makes a run a function of its seed: weights, order, dropout and sums."""
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    tf_keras.backend.experimental.enable_tf_random_generator()


def fit(
    model: Recommender,
    examples: Examples | Shards,
    validate: Callable[[], dict[str, Any]],
    weigh: Callable[[], float],
    *,
    settings: Any,
    out: Path,
    resume: bool = False,
    preemption: Preemption | None = None,
    monitors: Monitors | None = None,
) -> list[dict[str, float]]:
    """Trains until the epochs are over or the validation metric no longer rises.

    Args:
      model: Built inside its strategy's scope.
      examples: Of training, in memory or on disk.
      validate: Gives the metrics of the validation fold by name, of each user.
      weigh: Gives how much of the scorer's score counts, once it is trained.
      settings: See `sections.Train`.
      out: Run folder: `checkpoints/` holds the last states and the best weights,
        `history.jsonl` a line an epoch.
      resume: Whether to go on from the last state in `out`, where there is one.
      preemption: What asks for an early end.
      monitors: What else watches.

    Returns:
      The metrics of each epoch; the model then has the weights of the best one.

    Raises:
      ValueError: When `settings.monitor` is no metric of `validate`, the examples of a
        step do not fall into `settings.accumulate` equal parts or, with
        `settings.own_shards`, into equal batches of all workers, there are fewer shards
        than workers, or no state can be read or gone on from.
      FloatingPointError: When a loss or a weight is not finite; names epoch and batch.
      OSError: When what is kept cannot be written, or a shard cannot be read.
      Preempted: When `preemption` asked, once the state was kept.
      MemoryError: When a step does not fit into a device's memory; names what to lower.
    """
    history: list[dict[str, Any]] = []
    turns = stages(settings, model.settings)
    for stage in turns:
        _check_size(model, settings, _step_size(model, settings, stage))
    for stage, epochs in turns.items():
        keeper = Keeper(model, validate, out, settings, stage, history, preemption)
        run_stage(keeper, examples, epochs, resume=resume, monitors=monitors)
        keeper.end()
    keeper.settle(weigh)
    return history


def stages(settings: Any, loss: Any) -> dict[str, int]:
    """What is trained in turn, and for how many epochs at most."""
    if not (settings.ranking_epochs and loss.ranking):
        return {"both": settings.epochs}
    return {"retrieval": settings.epochs, "ranking": settings.ranking_epochs}


def run_stage(
    keeper: Keeper,
    examples: Examples | Shards,
    epochs: int,
    *,
    resume: bool = False,
    monitors: Monitors | None = None,
) -> None:
    """One stage, from its start or from its last state. See `fit` for what is raised.

    Args:
      keeper: Of the model and the stage.
      examples: Of training; the ranking gives each of their targets an example of its own.
      epochs: At most.
      resume: Whether to go on from the stage's last state, where there is one.
      monitors: What else watches.
    """
    model, settings = keeper.recommender, keeper.settings
    size = _step_size(model, settings, keeper.stage)
    if keeper.stage == "ranking":
        # Targets that share a window are of one user: a step learns more from as many of
        # different users.
        examples = examples.singly()
    targets, workers = examples.n_targets, 1
    if settings.own_shards and isinstance(examples, Shards):
        worker, workers = distribution.worker(model.distribute_strategy)
        examples, size = examples.own(worker, workers), size // workers
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
    keeper.watch(per_epoch, resume, divided=workers)
    if keeper.stopped or keeper.done >= epochs:
        return
    make: Callable = functools.partial(batches.training, examples)
    if settings.data_service and isinstance(examples, Examples):
        make = functools.partial(service.training, examples, address=settings.data_service)
    make = functools.partial(
        make,
        size,
        seed=settings.seed,
        epoch=len(keeper.history),
        step=keeper.position.step,
    )
    stream = distribution.distributed(
        model.distribute_strategy, make, size, model.parts, own=workers > 1
    )
    watching = monitors or Monitors()
    advice = advice_of_memory(keeper.stage, tuned=live is not None)
    with advice, batches.naming(examples), keeper.preemption.waiting():
        model.fit(
            stream,
            epochs=epochs,
            initial_epoch=keeper.done,
            steps_per_epoch=per_epoch,
            verbose=0,
            callbacks=[
                StopAtNaN(),
                *([optimizers.Budget(tuning.ranked(live.bert), steps)] if live else []),
                keeper,
                Progress(per_epoch, targets / per_epoch, keeper.stage),
                *watching.of(keeper.out, keeper.stage, targets / per_epoch),
            ],
        )


def _step_size(model: Recommender, settings: Any, stage: str) -> int:
    """Examples of a step, over all replicas."""
    if stage != "ranking":
        return settings.batch_size
    return model.settings.ranked_targets


def _check_size(model: Recommender, settings: Any, size: int) -> None:
    workers = distribution.worker(model.distribute_strategy)[1]
    if settings.own_shards and size % workers:
        raise ValueError(
            "With train.own_shards a step has as many examples of each worker. Received: "
            f"{size} examples for {workers} workers: take a multiple of {workers} for "
            "train.batch_size and for loss.ranked_targets."
        )
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
      OSError: Where that is of a disk.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if "No space left" in error.message:
            raise OSError(f"{error.message}: free space, and go on by --resume.") from error
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
                "lower train.learning_rate, or look for values out of range in the tables. "
                "What was kept before is good."
            )


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
