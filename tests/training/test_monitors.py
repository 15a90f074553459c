"""What is seen of a training, read back from what it wrote."""

import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.model.test_recommender import RETRIEVAL, build, shop
from tests.training.test_fit import Validation, settings, values
from tests.training.test_fit import train as fit_some
from tfrec_attn import train
from tfrec_attn.training import distribution, fit, monitors, optimizers


def scalars(folder):
    """`tag` to `{step: value}` of all event files of a folder."""
    found = {}
    for file in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                # A profile has texts of its own.
                if value.tensor.dtype == tf.float32.as_datatype_enum:
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, {})[event.step] = number
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Three epochs of the toy, each step said and steps 2 to 3 profiled."""
    out, model = tmp_path_factory.mktemp("run"), build(**RETRIEVAL)
    said = []

    class Said(monitors.Steps):
        def write(self, step, scalars):
            said.append((step, scalars))

    watch = monitors.Monitors((2, 3), (lambda stage, examples: Said(examples, 1),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitors.Board.__init__, "__defaults__", None)
        patch.setattr(monitors.Steps.__init__, "__defaults__", (1,))
        validate = Validation(model, 0.1, 0.3, 0.2)
        history = fit.fit(
            model,
            shop()[0],
            validate,
            None,
            settings=settings(epochs=3, clip=0.01),
            out=out,
            monitors=watch,
        )
    return out, history, said, values(model)


def test_every_step_is_in_the_event_files(watched):
    out, history, said, _ = watched
    board = out / "tensorboard" / "both"
    found = scalars(board / "steps")
    assert set(found) == {
        f"step/{name}"
        for name in ("loss", "learning_rate", "gradient_norm", "examples_per_second")
    }
    steps = len(said)
    assert [step for step, _ in said] == list(range(1, steps + 1))
    for name, of_steps in found.items():
        want = {step: values[name.removeprefix("step/")] for step, values in said}
        if name != "step/examples_per_second":
            assert of_steps == pytest.approx(want)
    assert all(value > 0 for value in found["step/examples_per_second"].values())
    assert found["step/loss"][steps] == pytest.approx(history[-1]["train_loss"])
    rate = optimizers.schedule(steps, settings(epochs=3))
    assert found["step/learning_rate"] == pytest.approx(
        {step: float(rate(step - 1)) for step in range(1, steps + 1)}, rel=1e-5
    )


def test_every_epoch_is_there_with_its_validation(watched):
    out, history, *_ = watched
    board = out / "tensorboard" / "both"
    trained, validated = scalars(board / "train"), scalars(board / "validation")
    assert list(trained["epoch_loss"].values()) == pytest.approx(
        [line["train_loss"] for line in history]
    )
    figures = list(validated["epoch_ndcg@10"].values())
    assert figures == pytest.approx([line["ndcg@10"] for line in history])
    assert "epoch_learning_rate" in trained


def test_the_profile_is_there(watched):
    assert list(watched[0].glob("tensorboard/both/plugins/profile/*/*.xplane.pb"))


def test_the_norm_is_of_the_gradient_before_it_is_clipped():
    """By hand: |(3, 0), (4)| = 5, and what is applied is a fifth of it."""
    weights = [tf.Variable([1.0, 1.0]), tf.Variable([1.0])]
    optimizer = optimizers.AdamW(0.1, global_clipnorm=1.0, weight_decay=0.0)
    optimizer.build(weights)
    found = [tf.constant([3.0, 0.0]), tf.constant([4.0])]
    clipped = optimizer._clip_gradients(found)
    assert float(optimizer.gradient_norm()) == 5.0
    np.testing.assert_allclose(np.concatenate(clipped), [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(
        np.concatenate(clipped), np.concatenate(tf.clip_by_global_norm(found, 1.0)[0])
    )


def test_replicas_say_the_norm_of_the_whole_batch():
    """Each of two replicas has a half of the gradient (6, 8)."""
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        weight = tf.Variable([1.0, 1.0])
        optimizer = optimizers.AdamW(0.1, global_clipnorm=1.0)
        optimizer.build([weight])

    @tf.function
    def step():
        strategy.run(lambda: optimizer.apply_gradients([(tf.constant([3.0, 4.0]), weight)]))

    step()
    assert optimizer.gradient_norm().numpy() == pytest.approx(10)


def test_watching_changes_no_weight(tmp_path, watched):
    """A run that nothing else watched ends with the same bits."""
    model = build(**RETRIEVAL)
    fit_some(model, Validation(model, 0.1, 0.3, 0.2), tmp_path, epochs=3, clip=0.01)
    for one, other in zip(values(model), watched[3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_norm_is_in_no_checkpoint(tmp_path):
    """Those of earlier runs, which have none, could not be read."""
    optimizer = optimizers.AdamW(0.1, global_clipnorm=1.0)
    optimizer.build([tf.Variable([1.0])])
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "kept"))
    names = [name for name, _ in tf.train.list_variables(path)]
    assert any("optimizer/_variables" in name for name in names)
    assert not any("norm" in name for name in names)


@pytest.mark.parametrize("text", ["10", "0,5", "20,10", "a,b", "1,"])
def test_a_profile_that_is_no_pair_of_steps_is_named(text, tmp_path, capsys):
    assert train.main(["--out", str(tmp_path), "--profile", text]) == 2
    assert f"such as 10,20: received {text!r}" in capsys.readouterr().err


class Curves:
    """A run of W&B that keeps what it is told."""

    def __init__(self):
        self.lines, self.metrics, self.ends = [], {}, []

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, line):
        self.lines.append(line)

    def finish(self, exit_code=0):
        self.ends.append(exit_code)


@pytest.fixture
def recorded(monkeypatch):
    """`wandb` with a recorder in its place; keeps what `init` was given."""
    given = []
    stand_in = types.ModuleType("wandb")
    stand_in.errors = types.SimpleNamespace(Error=RuntimeError)

    def init(**kwargs):
        given.append(kwargs)
        return Curves()

    stand_in.init = init
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return given


def test_wandb_is_told_of_steps_and_epochs(recorded, tmp_path):
    model = build(**RETRIEVAL)
    with monitors.wandb_run("mine", tmp_path, {"train.epochs": 2}) as curves:
        one = lambda stage, examples: monitors.WandB(curves, stage, examples)
        fit.fit(
            model,
            shop()[0],
            Validation(model, 0.1, 0.3),
            None,
            settings=settings(epochs=2, batch_size=2),
            out=tmp_path,
            monitors=monitors.Monitors(others=(one,)),
        )
    assert curves.metrics == {
        "both/*": "both/step",
        "both_epochs/*": "both_epochs/epoch",
    }
    steps = [line for line in curves.lines if "both/step" in line]
    assert [line["both/step"] for line in steps] == [10]
    assert steps[0]["both/gradient_norm"] > 0
    epochs = [line for line in curves.lines if "both_epochs/epoch" in line]
    assert [line["both_epochs/val_ndcg@10"] for line in epochs] == [0.1, 0.3]
    assert [line["both_epochs/epoch"] for line in epochs] == [1, 2]
    assert curves.ends == [0]
    (first,) = recorded
    assert (first["project"], first["config"]) == ("mine", {"train.epochs": 2})
    with monitors.wandb_run("mine", tmp_path, {}):
        pass
    assert recorded[1]["id"] == first["id"]


def test_a_run_that_failed_is_told_so(recorded, tmp_path):
    with pytest.raises(KeyError), monitors.wandb_run("mine", tmp_path, {}) as curves:
        raise KeyError
    assert curves.ends == [1]


def test_wandb_is_asked_for_or_not_imported(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train.main(["--out", str(tmp_path), "--wandb", "mine"]) == 2
    assert "--wandb needs pip install 'tfrec-attn[wandb]'." in capsys.readouterr().err
