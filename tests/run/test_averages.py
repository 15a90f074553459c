"""One model of several runs: the mean of their weights, served."""

import logging

import numpy as np
import pytest

from tests.worded import arguments
from tfrec_attn import export, train
from tfrec_attn.run import averages, runs


@pytest.fixture(scope="module")
def trained(worded, tmp_path_factory):
    """Two runs that differ in their seed, one with another width."""
    folder = tmp_path_factory.mktemp("runs")
    sets = {"a": [], "b": ["train.seed=1", "train.epochs=1"], "wide": ["model.dim=12"]}
    for name, more in sets.items():
        lora = ["bert.tuning=lora", *more]
        assert train.main(arguments(worded, folder / name, *lora)) == 0
    return folder


def weights(model):
    """By name, as a checkpoint of the run has them."""
    parts = model.learned.items()
    return {
        f"{name}/{i}": v.numpy()
        for name, part in parts
        for i, v in enumerate(
            part if isinstance(part, list) else getattr(part, "weights", [part])
        )
    }


def test_every_weight_is_the_mean(trained):
    each = [weights(runs.load(trained / name)[0]) for name in "ab"]
    model, _ = runs.load(trained / "a")
    before = model.items.tensors["text_mean"].numpy()
    averages.average(model, [trained / "a", trained / "b"], lambda: 0.0)
    found = weights(model)
    assert {name.partition("/")[0] for name in found} >= {"item_tower", "bert", "share"}
    for name, value in found.items():
        np.testing.assert_allclose(value, (each[0][name] + each[1][name]) / 2, atol=1e-6)
    assert np.abs(model.items.tensors["text_mean"].numpy() - before).max() > 1e-4


def test_the_mean_is_measured_and_served(trained, tmp_path, caplog):
    """`export` holds the reloaded model's answers against those of the mean."""
    caplog.set_level(logging.INFO)
    command = ["--run", str(trained / "a"), "--to", str(tmp_path / "shop")]
    assert export.main([*command, "--average", str(trained / "b")]) == 0
    assert (tmp_path / "shop" / "1" / "saved_model.pb").exists()
    told = [r.message for r in caplog.records if r.name == "tfrec_attn.run.averages"]
    assert [line.rpartition(":")[0] for line in told] == [
        str(trained / "a"), str(trained / "b"), "the mean of their weights",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [("wide", r"\[model\] differ. Average runs that"), ("none", "holds no trained model")],
)
def test_what_is_no_other_training_of_the_model_is_refused(
    trained, tmp_path, capsys, name, message
):
    command = ["--run", str(trained / "a"), "--to", str(tmp_path / "shop")]
    assert export.main([*command, "--average", str(trained / name)]) == 2
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert not (tmp_path / "shop").exists()
