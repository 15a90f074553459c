"""BERT trained with the retrieval: the main line with each way, on small tables."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model import test_bert as small
from tfrec_attn import evaluate, export, fit, runs, train
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import tuning

ITEMS, USERS = 17, 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tables, and a BERT that knows their words."""
    place, draw = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    words = [f"word{i}" for i in range(27)]
    title = lambda: " ".join(draw.choice(words, draw.integers(1, 4)))
    items = ["item_id,title", *(f"i{i},{title()}" for i in range(ITEMS))]
    events = ["user_id,item_id,timestamp"]
    for u in range(USERS):
        chosen = draw.permutation(ITEMS)[:7]
        events += [f"u{u},i{i},{1000000000 + 60 * t + u}" for t, i in enumerate(chosen)]
    for name, lines in (("items", items), ("interactions", events)):
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    bert = small.write_folder(place / "bert", small.random_weights())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    (bert / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return place


def arguments(place, out, *sets):
    small_settings = [
        f"text.backbone={place / 'bert'}",
        "text.max_length=6",
        "schema.items.text={title}",
        "model.dim=8",
        "split.name=leave-last-out",
        "examples.history=4",
        "examples.targets=3",
        "train.batch_size=8",
        "train.epochs=2",
        "train.ranking_epochs=1",
        "index.shortlist=5",
        "loss.hard_negatives=3",
        "loss.negatives=9",
        "bert.size=2",
        "bert.live=5",
        "bert.learning_rate=0.01",
        *sets,
    ]
    paths = [
        x for n in ("items", "interactions") for x in (f"--{n}", str(place / f"{n}.csv"))
    ]
    sets = [x for s in small_settings for x in ("--set", s)]
    return [*paths, "--out", str(out), "--strategy", "one", *sets]


def history(out):
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def checkpoint(place):
    return {tuning._name(v): v.numpy() for v in bert_lib.load(place / "bert").variables}


METHODS = ["last:1", "all", "bitfit", "lora", "adalora", "adapter", "prefix"]


@pytest.mark.parametrize("method", METHODS)
def test_bert_is_trained_reloaded_and_served(place, tmp_path, method):
    """`export` holds the reloaded model's answers against the trained one's."""
    assert train.main(arguments(place, tmp_path / "run", f"bert.tuning={method}")) == 0
    model, prepared = runs.load(tmp_path / "run")
    want = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    found = {k: v.mean() for k, v in evaluate.evaluate(model, prepared, "test").items()}
    assert found == pytest.approx(want["retrieval + ranking"], abs=1e-6)
    if model.live.bert.prefix == 0:
        start = checkpoint(place)
        moved = [
            (tuning._name(v) not in start) or (v.numpy() != start[tuning._name(v)]).any()
            for v in model.live.bert.trainable_weights
        ]
        assert sum(moved) > len(moved) / 2
    base = tmp_path / "shop"
    assert export.main(["--run", str(tmp_path / "run"), "--to", str(base)]) == 0
    served = tf.saved_model.load(str(base / "1"))
    texts = [prepared.items.texts[3], prepared.items.texts[8]]
    answer = served.signatures["embed_item"](text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(answer, vectors(model, model.items.tensors), atol=1e-2)
    before = vectors(model, prepared.item_features)
    assert np.abs(answer - before).max() > 0.05


def vectors(model, features):
    """Of two items by their texts alone."""
    rows = {name: tf.gather(features[name], [3, 8]) for name in features if "text" in name}
    tower = model.item_tower
    return tower.pool(tower.vector({"id": tf.zeros(2, tf.int32)} | rows)).numpy()


@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_run_goes_on_as_if_it_had_not_been(place, tmp_path, monkeypatch, done):
    sets = ("bert.tuning=lora",)
    assert train.main(arguments(place, tmp_path / "whole", *sets)) == 0
    keep = fit.Keeper.on_epoch_end

    def die(self, epoch, logs=None):
        if len(self.history) == done:
            raise KeyboardInterrupt
        keep(self, epoch, logs)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fit.Keeper, "on_epoch_end", die)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments(place, out, *sets))
    assert train.main([*arguments(place, out, *sets), "--resume"]) == 0
    for resumed, whole in zip(history(out), history(tmp_path / "whole"), strict=True):
        assert resumed.pop("stage") == whole.pop("stage")
        assert resumed == pytest.approx(whole, rel=1e-5)


def test_two_replicas_train_one_bert(place, tmp_path):
    sets = arguments(place, tmp_path, "bert.tuning=adalora")
    assert train.main([*sets, "--strategy", "mirrored"]) == 0
    assert np.isfinite([line["train_loss"] for line in history(tmp_path)]).all()


def test_without_texts_there_is_nothing_to_train(place, tmp_path, capsys):
    assert train.main(arguments(place, tmp_path, "bert.tuning=all", "text.backbone=")) == 2
    assert (
        "there are none: set schema.items.text and text.backbone" in capsys.readouterr().err
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 3.0])
def test_a_variable_moves_by_its_share_of_the_rate(share):
    """Adam's first step is the rate, whatever the gradient."""
    one, other = tf.Variable(1.0), tf.Variable(1.0)
    adam = fit.AdamW(0.01, shares=[(one, share)], weight_decay=0.0)
    adam.apply_gradients([(tf.constant(7.0), one), (tf.constant(-2.0), other)])
    np.testing.assert_allclose([one, other], [1 - 0.01 * share, 1.01], atol=1e-6)
    assert isinstance(adam, tf_keras.optimizers.AdamW)
    assert float(adam.learning_rate) == pytest.approx(0.01)
