"""An int8 BERT: by a BERT of NumPy with rounded weights, its files, what it refuses."""

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tests.model.test_bert import IDS, random_weights, reference, write_folder
from tfrec_attn import backbones
from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import distillation, pruning, quantization, tuning

MAPS = ("query", "key", "value", "dense")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "bert", random_weights())


def quantized(folder, to, count=None):
    bert = bert_lib.load(folder)
    if count is not None:
        pruning.prune(bert, count)
    quantization.quantize(bert.model)
    bert_lib.save(bert, to, like=folder)
    return bert


def hidden(bert):
    return bert(tf.constant(IDS, tf.int32)).numpy()


def in_levels(weights):
    """Each row by itself, each weight to the next of 255 levels."""
    found = np.zeros(weights.shape)
    for row, values in enumerate(weights.astype(float)):
        step = np.abs(values).max() / 127
        found[row] = [step * round(value / step) for value in values]
    return found


def test_units_and_scales():
    weights = np.array([[0.5, -2.54, 0.0], [0.013, 1.27, 0.0]], np.float32)
    units, scale = quantization.rounded(weights, 1)
    np.testing.assert_array_equal(units, [[25, -127, 0], [1, 127, 0]])
    np.testing.assert_allclose(scale, [[0.02], [0.01]], rtol=1e-6)
    assert (units.dtype, scale.dtype) == (np.int8, np.float32)
    units, scale = quantization.rounded(weights, 0)
    np.testing.assert_array_equal(units, [[127, -127, 0], [3, 64, 0]])
    np.testing.assert_allclose(scale, [[0.5 / 127, 0.02, 0]], rtol=1e-6)


def test_says_what_rounded_weights_say(folder, tmp_path):
    weights = random_weights()
    for name, value in weights.items():
        path = name.split(".")
        if "word_embeddings" in path or (path[-1] == "weight" and path[-2] in MAPS):
            weights[name] = in_levels(value)
    bert = quantized(folder, tmp_path / "int8")
    for row, got in zip(IDS, hidden(bert), strict=True):
        real = row[row != 0]
        want = reference(weights, real)
        np.testing.assert_allclose(got[: len(real)], want, rtol=1e-4, atol=1e-4)
    apart = np.abs(hidden(bert) - hidden(bert_lib.load(folder)))
    assert 1e-3 < apart.max() < 0.3


def test_transformers_own_call_says_the_same(folder, tmp_path):
    bert = quantized(folder, tmp_path / "int8")
    mask = tf.cast(IDS != 0, tf.int32)
    said = bert.model(tf.constant(IDS, tf.int32), attention_mask=mask)[0].numpy()
    np.testing.assert_allclose(said[IDS != 0], hidden(bert)[IDS != 0], atol=1e-5)


@pytest.mark.parametrize("count", [None, 1])
def test_a_folder_keeps_the_int8(folder, tmp_path, count):
    bert = quantized(folder, tmp_path / "int8", count)
    loaded = bert_lib.load(tmp_path / "int8")
    np.testing.assert_array_equal(hidden(loaded), hidden(bert))
    whole = [v for v in loaded.variables if v.dtype == tf.int8]
    assert len(whole) == 1 + 2 * 6
    assert not [v for v in loaded.variables if v.dtype != tf.int8 and "kernel" in v.name]
    assert not loaded.trainable_variables
    values = safetensors.numpy.load_file(tmp_path / "int8" / backbones.QUANTIZED)
    assert sum(v.nbytes for v in values.values()) == sum(
        v.dtype.size * v.shape.num_elements() for v in loaded.variables
    )


class Served(tf.Module):
    def __init__(self, folder):
        super().__init__()
        self.bert = bert_lib.load(folder)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def hidden(self, ids):
        return self.bert(ids)


def test_a_saved_model_holds_the_int8(tmp_path):
    """And its graph no floats instead: the words, 40,000 by 6, are most of the bytes."""
    weights = random_weights()
    words = np.random.default_rng(0).normal(size=(40_000, 6)).astype(np.float32)
    weights["embeddings.word_embeddings.weight"] = words
    folder = write_folder(tmp_path / "bert", weights, vocab_size=len(words))
    quantized(folder, tmp_path / "int8")
    sizes = {}
    for name in ("bert", "int8"):
        module = Served(tmp_path / name)
        tf.saved_model.save(module, tmp_path / f"saved-{name}")
        files = (tmp_path / f"saved-{name}").rglob("*")
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
        again = tf.saved_model.load(tmp_path / f"saved-{name}")
        np.testing.assert_allclose(again.hidden(IDS), hidden(module.bert), atol=1e-6)
    # A byte a weight instead of four, and a scale of four bytes for six weights.
    saved = 40_000 * (6 * 4 - 6 - 4)
    assert sizes["bert"] - sizes["int8"] > 0.9 * saved


def test_no_other_program_takes_it_for_a_bert(folder, tmp_path):
    quantized(folder, tmp_path / "int8")
    transformers = on_legacy_keras("transformers")
    with pytest.raises(OSError, match=r"no file named .*safetensors"):
        transformers.TFBertModel.from_pretrained(tmp_path / "int8")


def change(file, name, value):
    values = safetensors.numpy.load_file(file)
    values[name] = value
    kept = {n: v for n, v in values.items() if v is not None}
    safetensors.numpy.save_file(kept, file)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder/layer_._1/output/dense/scale", None, "1 are missing, as encoder/layer_"),
        (
            "embeddings/word_embeddings/weight",
            np.zeros((7, 6), np.int8),
            r"word_embeddings/weight must have the shape \(31, 6\) .*got \(7, 6\)",
        ),
    ],
)
def test_its_file_is_checked_as_any(folder, tmp_path, name, value, message):
    quantized(folder, tmp_path / "int8")
    change(tmp_path / "int8" / backbones.QUANTIZED, name, value)
    with pytest.raises(ValueError, match=message):
        bert_lib.load(tmp_path / "int8")


def test_its_fingerprint_is_its_own(folder, tmp_path):
    quantized(folder, tmp_path / "int8")
    before = backbones.fingerprint(tmp_path / "int8")
    change(
        tmp_path / "int8" / backbones.QUANTIZED,
        "embeddings/word_embeddings/weight",
        np.zeros((31, 6), np.int8),
    )
    after = backbones.fingerprint(tmp_path / "int8")
    assert len({before, after, backbones.fingerprint(folder)}) == 3


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda bert: tuning.tune(bert, "lora"), "bert.tuning=lora .*bert.tuning=frozen"),
        (lambda bert: tuning.tune(bert, "all"), "bert.tuning=all changes weights"),
        (lambda bert: pruning.prune(bert, 1), "pruning .*: prune first"),
        (lambda bert: distillation.student(bert, 1), "distillation .*: distil first"),
    ],
)
def test_nothing_changes_int8_weights(folder, tmp_path, refused, message):
    quantized(folder, tmp_path / "int8")
    bert = bert_lib.load(tmp_path / "int8")
    with pytest.raises(ValueError, match=message):
        refused(bert)
    tuning.tune(bert, "frozen")


def test_int8_weights_do_not_train(folder, tmp_path):
    quantized(folder, tmp_path / "int8")
    with pytest.raises(ValueError, match=r"training .* of a quantized BERT are int8"):
        bert_lib.load(tmp_path / "int8", trainable=True)
