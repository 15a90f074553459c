"""BERT trained with the retrieval: the main line with each way, on small tables."""

import json

import numpy as np
import pytest
import tensorflow as tf
from safetensors import numpy as safetensors

from tests import killing, small
from tests.worded import arguments
from tfrec_attn import evaluate, export, train
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import tuning
from tfrec_attn.run import building, runs
from tfrec_attn.training.keeper import Keeper


def hidden(bert):
    return bert(tf.constant([[2, 5, 9, 3], [2, 7, 3, 0]])).numpy()


@pytest.mark.parametrize("method", ["last:1", "lora", "adalora", "adapter", "prefix"])
def test_bert_is_trained_kept_and_served(worded, tmp_path, method):
    """`export` holds the reloaded model's answers against the trained one's."""
    assert train.main(arguments(worded, tmp_path / "run", f"bert.tuning={method}")) == 0
    model, prepared = runs.load(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "metrics.json").read_text())
    want = about["test"]
    found = {k: v.mean() for k, v in evaluate.evaluate(model, prepared, "test").items()}
    assert found == pytest.approx(want["retrieval + ranking"], abs=1e-6)
    kept = evaluate.evaluate(model, prepared, "validation")["ndcg@10"].mean()
    assert about["best_validation"] == pytest.approx(kept, abs=1e-6)
    trained = hidden(model.live.bert)
    again = building.tuned(prepared.config)
    tuning.apply(again, safetensors.load_file(tmp_path / "run" / "bert-delta.safetensors"))
    np.testing.assert_allclose(hidden(again), trained, atol=1e-6)
    whole = tmp_path / "run" / "bert"
    assert whole.exists() == (method not in ("adapter", "prefix"))
    if whole.exists():
        np.testing.assert_allclose(hidden(bert_lib.load(whole)), trained, atol=1e-5)
        assert (whole / "vocab.txt").read_text() == (worded / "bert/vocab.txt").read_text()
    if method not in ("lora", "prefix"):
        return
    base = tmp_path / "shop"
    assert export.main(["--run", str(tmp_path / "run"), "--to", str(base)]) == 0
    served = tf.saved_model.load(str(base / "1"))
    texts = [prepared.items.texts[3], prepared.items.texts[8]]
    answer = served.signatures["embed_item"](text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(answer, vectors(model, model.items.tensors), atol=2e-2)
    before = vectors(model, prepared.item_features)
    assert np.abs(answer - before).max() > 0.05


def vectors(model, features):
    """Of two items by their texts alone."""
    rows = {name: tf.gather(features[name], [3, 8]) for name in features if "text" in name}
    tower = model.item_tower
    return tower.pool(tower.vector({"id": tf.zeros(2, tf.int32)} | rows)).numpy()


ALL = [
    "regularization.adversarial=0.1",
    "regularization.consistency=0.5",
    "regularization.token_dropout=0.1",
    "regularization.event_dropout=0.1",
    "regularization.event_crop=0.2",
    "regularization.average=0.9",
]


SPARING = ["bert.unfreeze=1", "bert.chunk=2", "bert.recompute=true"]
SPARING += ["train.accumulate=2", "train.batch_size=4"]
COMPILED = ["bert.xla=true", "train.precision=bfloat16"]


@pytest.mark.parametrize(
    ("sets", "step"),
    [
        (["bert.tuning=adalora"], 4),
        (["bert.tuning=prefix"], 2),
        (["bert.tuning=lora"], 5),
        (["bert.tuning=lora", "loss.ranking=0", *ALL], 4),
        (["bert.tuning=adalora", "loss.ranking=0", "train.precision=float16"], 4),
        (["bert.tuning=all", "loss.ranking=0", *SPARING], 5),
        (["bert.tuning=prefix", "loss.ranking=0", *COMPILED], 4),
    ],
    ids=[
        "adalora",
        "at first",
        "ranking",
        "against overfitting",
        "float16",
        "memory",
        "compiled",
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(worded, tmp_path, sets, step):
    """Within an epoch of two steps, or three of smaller batches. BERT has moved since
    it encoded the texts that the epoch sees."""
    assert train.main(arguments(worded, tmp_path / "whole", *sets)) == 0
    out = tmp_path / "run"
    sets = [*sets, "train.checkpoint_steps=1"]
    with killing.dying(Keeper, "on_train_batch_end", step) as died:
        train.main(arguments(worded, out, *sets))
    assert died
    assert train.main([*arguments(worded, out, *sets), "--resume"]) == 0
    assert small.history(out) == small.history(tmp_path / "whole")
    killing.require_same_weights(out, tmp_path / "whole")


def test_in_the_first_epoch_of_gradual_unfreezing_only_the_last_block_moves(
    worded, tmp_path
):
    sets = "bert.tuning=all", "bert.unfreeze=1", "train.epochs=1", "loss.ranking=0"
    assert train.main(arguments(worded, tmp_path, *sets)) == 0
    kept = safetensors.load_file(tmp_path / "bert-delta.safetensors")
    start = tuning.delta(building.tuned(runs.config_lib.load(tmp_path / "config.toml")))
    moved = {name for name, value in kept.items() if (value != start[name]).any()}
    assert moved
    assert {name for name in kept if "layer_._1/" in name} >= moved
    # A key's bias moves nothing.
    assert len([name for name in kept if "layer_._1/" in name]) - len(moved) <= 1


def test_two_replicas_train_one_bert_whose_ranks_are_cut(worded, tmp_path):
    """To 2 a map on average, of the 3 that were begun with, of 12 maps."""
    sets = arguments(worded, tmp_path, "bert.tuning=adalora", "train.epochs=3")
    assert train.main([*sets, "--strategy", "mirrored"]) == 0
    lines = small.history(tmp_path)
    assert np.isfinite([line["train_loss"] for line in lines]).all()
    assert [line.get("directions") for line in lines[1:]] == [24, 24, None]
    assert 24 < lines[0]["directions"] <= 36
    kept = safetensors.load_file(tmp_path / "bert-delta.safetensors")
    values = [value for name, value in kept.items() if name.endswith("adalora_values")]
    assert [value.size for value in values] == [3] * 12
    assert sum(np.count_nonzero(value) for value in values) == 24


def test_without_texts_there_is_nothing_to_train(worded, tmp_path, capsys):
    assert train.main(arguments(worded, tmp_path, "bert.tuning=all", "text.backbone=")) == 2
    assert (
        "there are none: set schema.items.text and text.backbone" in capsys.readouterr().err
    )
