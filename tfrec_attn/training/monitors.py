"""What is seen of a training while it runs: TensorBoard, and others who ask."""

import abc
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfrec_attn.training import optimizers

EVERY = 10


class Steps(tf_keras.callbacks.Callback, abc.ABC):
    """Every few steps says what the last of them was like: the loss (the mean over the
    epoch so far), the learning rate, the norm of the gradient before it was clipped, and
    examples a second since it was said before.

    Args:
      examples: Of a step, on average.
      every: Steps.
    """

    def __init__(self, examples: float, every: int = EVERY):
        super().__init__()
        self.examples, self.every = examples, every

    @abc.abstractmethod
    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes what is said of a step, by its number in the stage."""

    def on_epoch_begin(self, epoch, logs=None):
        # The validation before took time, too.
        self.since, self.done = time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None):
        optimizer, self.done = optimizers.adam(self.model), self.done + 1
        step = int(optimizer.iterations.numpy())
        if step % self.every:
            return
        now = time.perf_counter()
        scalars = {
            "loss": float(logs["loss"]),
            "learning_rate": float(optimizer.learning_rate.numpy()),
            "gradient_norm": float(optimizer.gradient_norm().numpy()),
            "examples_per_second": self.done * self.examples / (now - self.since),
        }
        self.since, self.done = now, 0
        self.write(step, scalars)


class Board(Steps):
    """The steps in TensorBoard.

    Args:
      folder: Of its event files.
      examples: See `Steps`.
    """

    def __init__(self, folder: Path, examples: float):
        super().__init__(examples)
        self.folder = folder

    def on_train_begin(self, logs=None):
        self.writer = tf.summary.create_file_writer(str(self.folder))

    def write(self, step, scalars):
        with self.writer.as_default():
            for name, value in scalars.items():
                tf.summary.scalar(f"step/{name}", value, step)

    def on_epoch_end(self, epoch, logs=None):
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


class WandB(Steps):
    """Steps and epochs in a run of Weights & Biases.

    Args:
      run: Of `wandb.init`.
      stage: What is trained.
      examples: See `Steps`.
    """

    def __init__(self, run: Any, stage: str, examples: float):
        super().__init__(examples)
        self.run, self.stage = run, stage
        # Each stage counts anew, and a resumed run goes back to its last epoch.
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        run.define_metric(f"{stage}_epochs/*", step_metric=f"{stage}_epochs/epoch")

    def write(self, step, scalars):
        named = {f"{self.stage}/{name}": value for name, value in scalars.items()}
        self.run.log({**named, f"{self.stage}/step": step})

    def on_epoch_end(self, epoch, logs=None):
        named = {f"{self.stage}_epochs/{name}": value for name, value in logs.items()}
        self.run.log({**named, f"{self.stage}_epochs/epoch": epoch + 1})


Watcher = Callable[[str, float], tf_keras.callbacks.Callback]


@dataclasses.dataclass(frozen=True)
class Monitors:
    """What watches a run.

    Attributes:
      profile: First and last step of each stage that TensorFlow's profiler sees.
      others: Each makes a callback, of a stage and the examples of one of its steps.
    """

    profile: tuple[int, int] | None = None
    others: tuple[Watcher, ...] = ()

    def of(self, out: Path, stage: str, examples: float) -> list:
        """The callbacks of a stage, which come after the one that validates.

        Args:
          out: The run's folder.
          stage: What is trained.
          examples: Of a step, on average.
        """
        board = out / "tensorboard" / stage
        epochs = tf_keras.callbacks.TensorBoard(
            board, write_graph=False, profile_batch=self.profile or 0
        )
        others = [other(stage, examples) for other in self.others]
        return [epochs, Board(board / "steps", examples), *others]


def steps(text: str) -> tuple[int, int]:
    """Reads `10,20`, the first and the last step of a profile.

    Raises:
      ValueError: It is none.
    """
    first, comma, last = text.partition(",")
    if not (
        comma and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    ):
        raise ValueError(
            "--profile takes the first and the last step, such as 10,20: received "
            f"{text!r}."
        )
    return int(first), int(last)


@contextlib.contextmanager
def wandb_run(project: str, out: Path, settings: Mapping[str, Any]) -> Iterator[Any]:
    """A run of Weights & Biases, which is named like the run's folder and goes on where
    that does.

    Args:
      project: Where it is shown.
      out: The run's folder, which also holds what W&B writes.
      settings: Of the run.

    Raises:
      ValueError: W&B is not installed, or knows nobody to send to.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError("--wandb needs pip install 'tfrec-attn[wandb]'.") from error
    mark = out / "wandb_run.txt"
    if not mark.exists():
        mark.write_text(secrets.token_hex(4))
    try:
        run = wandb.init(
            project=project,
            dir=out,
            name=out.resolve().name,
            id=mark.read_text(),
            resume="allow",
            config=dict(settings),
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"--wandb: {error} Without an account or a network, WANDB_MODE=offline keeps "
            "the curves in the run folder, for `wandb sync` later."
        ) from error
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
