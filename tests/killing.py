"""Kills at a moment that is known, and what is asked of a run after them.

    python -m tests.killing SIGKILL 14 --out runs/a …

trains by the arguments behind, and has a signal as step 14 ends, 0 for none; see `telling`,
too. Of several workers all are asked after each step whether one had the signal.
"""

import contextlib
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Killed(BaseException):
    """No `Exception`."""


@contextlib.contextmanager
def dying(owner: Any, name: str, at: int = 1, *, after: bool = False) -> Iterator[list]:
    """Within, the call number `at` of a function kills, before it or after it.

    Yields:
      A list that holds something once it has.
    """
    function, calls, died = getattr(owner, name), [], []

    def deadly(*args, **options):
        calls.append(name)
        if died or (len(calls) == at and not after):
            died.append(at)
            raise Killed
        result = function(*args, **options)
        if len(calls) == at:
            died.append(at)
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with contextlib.suppress(Killed):
            yield died


@contextlib.contextmanager
def signalled(name: str, step: int) -> Iterator[None]:
    """Within, a training has a signal as a step ends, counted over the epochs."""
    from tfrec_attn.training.keeper import Keeper

    ended, steps = Keeper.on_train_batch_end, []

    def end(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == step:
            os.kill(os.getpid(), getattr(signal, name))
        ended(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", end)
        yield


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Within, a training says as a stage ends a number that is of its weights, and how many
    targets of weight 1 it had in the last epoch, over all workers."""
    from tfrec_attn.training.keeper import Keeper

    def end(self):
        model = self.recommender
        values = [variable.numpy().tobytes() for variable in model.trainable_variables]
        total = zlib.crc32(b"".join(values))
        targets = max(meter.count.numpy() for meter in model.meters.values())
        print(f"weights: {total}, targets: {targets:.0f}", file=sys.stderr)
        ended(self)

    ended = Keeper.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "end", end)
        yield


def require_same_weights(run: Path, other: Path) -> None:
    """Of what two runs have kept as the best, bit for bit."""
    names = [
        {file.stem for file in (out / "checkpoints").glob("best*.index")}
        for out in (run, other)
    ]
    assert names[0] == names[1] > set()
    for name in names[0]:
        one, two = (_content(out / "checkpoints" / name) for out in (run, other))
        assert one.keys() == two.keys()
        for tensor, value in one.items():
            np.testing.assert_array_equal(value, two[tensor])


def _content(prefix: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    names = reader.get_variable_to_shape_map()
    # The graph of the objects lists them in an order of its own.
    return {name: reader.get_tensor(name) for name in names if "OBJECT" not in name}


if __name__ == "__main__":
    from tfrec_attn import train
    from tfrec_attn.training import agreement

    agreement.SECONDS = 0
    with signalled(sys.argv[1], int(sys.argv[2])), telling():
        sys.exit(train.main(sys.argv[3:]))
