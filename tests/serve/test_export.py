"""Publishing a version: all of it or nothing, and the mistakes of the command."""

from unittest import mock

import pytest
import tensorflow as tf
import toys

from tfrec_attn import export as command
from tfrec_attn.serve import export


@pytest.fixture
def toy_module(monkeypatch):
    """Stands for `Served`: one signature instead of five."""
    double = lambda text: {"twice": tf.strings.join([text, text])}
    signatures = {"serving_default": toys.signature(double, text=toys.TEXTS)}
    monkeypatch.setattr(export, "signatures", lambda served, only: signatures)
    module = tf.Module()
    module.index = mock.Mock()
    return module


def test_a_version_appears_when_it_has_passed(toy_module, tmp_path):
    seen = []

    def check(reloaded):
        (answer,) = reloaded.signatures["serving_default"](text=tf.constant(["a"])).values()
        seen.append((answer.numpy().tolist(), (tmp_path / "toy/5").exists()))

    assert export.write(toy_module, tmp_path / "toy", 5, check=check) == tmp_path / "toy/5"
    assert seen == [([b"aa"], False)]
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["5"]
    assert (tmp_path / "toy/5/assets.extra/tf_serving_warmup_requests").stat().st_size
    assert (tmp_path / "toy/5").stat().st_mode & 0o777 == 0o755


def test_a_version_that_fails_leaves_nothing(toy_module, tmp_path):
    def refuse(reloaded):
        raise ValueError("it answers otherwise")

    with pytest.raises(ValueError, match="it answers otherwise"):
        export.write(toy_module, tmp_path, 1, check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_the_next_free_version(tmp_path):
    base = tmp_path / "shop"
    assert export.free_version(base) == 1
    for name in ("2", "9", "notes"):
        (base / name).mkdir(parents=True)
    assert export.free_version(base) == 10
    assert export.free_version(base, 4) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "new"], "run holds no trained model. Run tfrec_attn.train --out "),
        (["--to", "shop", "--version", "9"], "shop/9 exists: leave --version out for the"),
        (["--to", "shop", "--version", "0"], "A version is a number from 1: received 0."),
        (["--to", "shop/2"], "shop/2 is a version itself. Give its parent: "),
        (["--to", "file"], "A model is a folder of versions: "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "shop/2", "shop/9"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("shop/2/saved_model.pb", "file"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["--run", "run", *flags]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("tfrec_attn.export: ")
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before
