"""A run that is killed, whenever it is, ends as one that is not: bit for bit."""

import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import small
from tests.killing import dying, require_same_weights
from tests.model import test_recommender
from tests.model.test_recommender import RETRIEVAL, shop
from tests.training.test_fit import settings, values
from tfrec_attn import atomic
from tfrec_attn.training import checkpoints, distribution, fit, keeper, preemption

KEEP, STATES = keeper.Keeper, checkpoints.States
BATCH, REPLACE = "on_train_batch_end", (Path, "replace")


def weighed(model):
    """A validation whose figure any bit of any weight changes, so that resumed runs agree
    about the best epoch only if they agree about all weights."""

    def validate():
        total = 0
        for value in [*values(model), model.share.numpy()]:
            total = zlib.crc32(value.tobytes(), total)
        return {"ndcg@10": np.random.default_rng(total).random(9)}

    return validate


def trained(out, model, *, resume=False, **changes):
    given = {"batch_size": 4, "epochs": 2, "checkpoint_steps": 2, **changes}
    return fit.fit(
        model,
        shop()[0],
        weighed(model),
        lambda: float(weighed(model)()["ndcg@10"][0]),
        settings=settings(**given),
        out=out,
        resume=resume,
    )


# In turn: what a run is doing as it is killed; then it goes on, and is killed again.
IN_A_STAGE = {
    "a step after a state": (KEEP, BATCH, 3),
    "between the best weights and the state": (STATES, "save", 1),
    "between a state and the history": (atomic, "write", 1),
    "a step of a later epoch": (KEEP, BATCH, 3),
}
BETWEEN_STAGES = {
    "the best weights of the retrieval": (KEEP, "end", 1),
    "the choice of the share": (KEEP, "settle", 1),
    "the writing of what is served": (*REPLACE, 7),
}
TWO_STAGES = {"epochs": 1, "ranking_epochs": 1}


@pytest.mark.parametrize(
    ("moments", "loss", "given"),
    [
        (IN_A_STAGE, RETRIEVAL, {}),
        (BETWEEN_STAGES, {"ranked_targets": 8}, TWO_STAGES),
    ],
    ids=["in a stage", "between stages"],
)
def test_killed_again_and_again_it_ends_with_the_same_weights(
    tmp_path, monkeypatch, moments, loss, given
):
    monkeypatch.setattr(test_recommender, "STRATEGY", distribution.strategy("one"))
    make = lambda: test_recommender.build(**loss)
    whole, out = tmp_path / "whole", tmp_path / "run"
    wanted = trained(whole, make(), **given)
    came = []
    for name, moment in moments.items():
        with dying(*moment) as died:
            trained(out, make(), resume=True, **given)
        came += [name] if died else []
    assert trained(out, make(), resume=True, **given) == wanted
    assert came == list(moments)
    assert small.history(out) == small.history(whole) == wanted
    require_same_weights(out, whole)
    atomic.sweep(out)
    files = lambda one: {path.relative_to(one) for path in one.glob("checkpoints/**/*")}
    assert files(out) == files(whole)


@pytest.mark.parametrize(("step", "kept"), [(2, set()), (4, {"last-2"})])
def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch, step, kept):
    """A loss is of the weights before its step: that of the last one is finite still."""
    model = test_recommender.build(**RETRIEVAL)
    ended = KEEP.on_train_batch_end

    def poison(self, batch, logs=None):
        if batch + 1 == step:
            model.retrieval.log_scale.assign(np.nan)
        ended(self, batch, logs)

    monkeypatch.setattr(KEEP, "on_train_batch_end", poison)
    with pytest.raises(
        FloatingPointError,
        match=f"log_scale.* is not finite after epoch 1, batch {step}: lower",
    ):
        trained(tmp_path, model)
    assert {file.stem for file in tmp_path.rglob("*.index")} == kept


def test_a_full_disk_is_no_short_memory(tmp_path, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "file; No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", full)
    with pytest.raises(OSError, match="best-1 could not be written: No space left on dev"):
        trained(tmp_path, test_recommender.build(**RETRIEVAL), checkpoint_steps=0, epochs=1)
    for error in (OSError, MemoryError):
        text = {OSError: "No space left on device", MemoryError: "allocating"}[error]
        raised = tf.errors.ResourceExhaustedError(None, None, text)
        with pytest.raises(error), fit.advice_of_memory("both", tuned=False):
            raise raised


def test_sigterm_ends_at_once_or_waits_for_a_state():
    asking = lambda: os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Preemption() as asked:
        with pytest.raises(preemption.Preempted):
            asking()
        assert asked.asked
    with preemption.Preemption() as asked:
        with asked.waiting():
            with asked.waiting():
                asking()
            asking()
            assert asked.asked
        with pytest.raises(preemption.Preempted):
            asking()
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_is_taken_once_more_where_a_library_has_taken_it():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Preemption() as asked, asked.waiting():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        asked.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.asked
    assert signal.getsignal(signal.SIGTERM) == before
