"""Pruned heads: by a BERT of NumPy whose heads are silenced, through files, and tuned."""

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tests.model import test_bert
from tests.model.test_bert import IDS, random_weights, reference, write_folder
from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import pruning, tuning

D, HEADS, WIDTH = 6, 3, 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A BERT of two blocks with three heads, for the reference too."""
    monkeypatch.setitem(test_bert.CONFIG, "num_attention_heads", HEADS)
    return write_folder(tmp_path / "bert", random_weights())


def pruned(folder, count):
    bert = bert_lib.load(folder)
    pruning.prune(bert, count)
    return bert


def heads(bert):
    every = bert.model.bert.encoder.layer
    return [block.attention.self_attention.num_attention_heads for block in every]


def weakest(weights, layer):
    """Heads by the norm of all their weights, one head at a time."""
    at = f"encoder.layer.{layer}.attention"

    def norm(head):
        mine = slice(WIDTH * head, WIDTH * (head + 1))
        parts = [weights[f"{at}.output.dense.weight"][:, mine]]
        for name in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                parts.append(weights[f"{at}.self.{name}.{kind}"][mine])
        return np.sqrt(sum((part.astype(float) ** 2).sum() for part in parts))

    return sorted(range(HEADS), key=norm)


def silenced(count):
    """The weights with all but `count` heads blind to what they attend to: their values
    are the bias, whatever is said."""
    weights = random_weights()
    for layer in range(2):
        for head in weakest(weights, layer)[: HEADS - count]:
            mine = slice(WIDTH * head, WIDTH * (head + 1))
            weights[f"encoder.layer.{layer}.attention.self.value.weight"][mine] = 0
    return weights


def hidden(bert):
    return bert(tf.constant(IDS, tf.int32)).numpy()


@pytest.mark.parametrize("count", [1, 2])
def test_the_weakest_heads_are_gone(folder, count):
    bert = pruned(folder, count)
    assert heads(bert) == [count, count]
    for row, got in zip(IDS, hidden(bert), strict=True):
        real = row[row != 0]
        want = reference(silenced(count), real)
        np.testing.assert_allclose(got[: len(real)], want, rtol=1e-4, atol=1e-4)
    shapes = {tuple(v.shape) for v in bert.variables if "/attention/" in v.name}
    wide = count * WIDTH
    assert shapes == {(D, wide), (wide,), (wide, D), (D,)}
    assert np.abs(hidden(bert) - hidden(bert_lib.load(folder))).max() > 0.01


def test_a_folder_of_the_usual_shapes_says_the_same_everywhere(folder, tmp_path):
    bert, saved = pruned(folder, 2), tmp_path / "saved"
    bert_lib.save(bert, saved, like=folder)
    kept = safetensors.numpy.load_file(saved / "model.safetensors")
    assert {n: v.shape for n, v in kept.items()} == {
        n: v.shape for n, v in random_weights().items()
    }
    again = bert_lib.load(saved)
    assert heads(again) == [2, 2]
    np.testing.assert_array_equal(hidden(again), hidden(bert))
    theirs = on_legacy_keras("transformers").TFBertModel.from_pretrained(saved)
    real = tf.cast(IDS != 0, tf.int32)
    said = theirs(tf.constant(IDS), attention_mask=real)[0].numpy()
    np.testing.assert_allclose(said[IDS != 0], hidden(bert)[IDS != 0], atol=1e-5)


def test_step_by_step_is_the_same_as_at_once(folder, tmp_path):
    bert_lib.save(pruned(folder, 2), tmp_path / "two", like=folder)
    twice = pruned(tmp_path / "two", 1)
    np.testing.assert_allclose(hidden(twice), hidden(pruned(folder, 1)), atol=1e-5)


def test_what_was_traced_is_forgotten(folder):
    bert = bert_lib.load(folder)
    bert.traced(tf.constant(IDS, tf.int32))
    pruning.prune(bert, 1)
    said = bert.traced(tf.constant(IDS, tf.int32))
    np.testing.assert_allclose(said, hidden(bert), atol=1e-5)


@pytest.mark.parametrize("method", ["all", "last:1", "lora", "adalora", "prefix"])
def test_what_is_left_can_be_tuned(folder, tmp_path, method):
    bert = pruned(folder, 2)
    tuning.tune(bert, method, size=2)
    rng = np.random.default_rng(7)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(bert(tf.constant(IDS)) * rng.normal(size=(*IDS.shape, D)))
    assert None not in tape.gradient(total, bert.trainable_weights)
    for weight in bert.trainable_weights:
        weight.assign_add(rng.normal(0, 0.3, weight.shape))
    other = pruned(folder, 2)
    tuning.tune(other, method, size=2)
    tuning.apply(other, tuning.delta(bert))
    np.testing.assert_allclose(hidden(other), hidden(bert), atol=1e-6)
    if tuning.can_merge(bert):
        tuning.merge(bert)
        bert_lib.save(bert, tmp_path / "saved", like=folder)
        saved = bert_lib.load(tmp_path / "saved")
        np.testing.assert_allclose(hidden(saved), hidden(other), atol=1e-4)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_so_many_heads_are_no_pruning(folder, count):
    with pytest.raises(ValueError, match=f"this BERT's 3 attention.*Received: {count}"):
        pruning.prune(bert_lib.load(folder), count)
