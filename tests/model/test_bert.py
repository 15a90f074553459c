"""The BERT layer against a NumPy BERT written here, its loading, and its bulk use."""

import json
import logging
import math
import re

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfrec_attn import backbones
from tfrec_attn.model import bert as bert_lib

CONFIG = {
    "model_type": "bert",
    "vocab_size": 31,
    "hidden_size": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 11,
    "max_position_embeddings": 13,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
IDS = np.array(
    [[2, 7, 9, 30, 5, 3, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 8, 8, 3, 0, 0, 0, 0]]
)


def random_weights():
    """Under PyTorch's names: what a checkpoint of the hub holds."""
    rng = np.random.default_rng(3)
    make = lambda *shape: rng.normal(0, 0.7, shape).astype(np.float32)
    d, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    e = "embeddings"
    weights = {
        f"{e}.word_embeddings.weight": make(CONFIG["vocab_size"], d),
        f"{e}.position_embeddings.weight": make(CONFIG["max_position_embeddings"], d),
        f"{e}.token_type_embeddings.weight": make(2, d),
        f"{e}.LayerNorm.weight": make(d),
        f"{e}.LayerNorm.bias": make(d),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, rows, columns in [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", wide, d),
            ("output.dense", d, wide),
        ]:
            weights[f"encoder.layer.{layer}.{name}.weight"] = make(rows, columns)
            weights[f"encoder.layer.{layer}.{name}.bias"] = make(rows)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"encoder.layer.{layer}.{name}.weight"] = make(d)
            weights[f"encoder.layer.{layer}.{name}.bias"] = make(d)
    return weights


def write_folder(path, weights, **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    safetensors.numpy.save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "bert", random_weights())


def reference(weights, ids, before=None):
    """One text without padding, from the paper (arXiv:1810.04805); `before` has keys and
    values `[2, p, d]` for each block, which stand before those of the text."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    dense = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    gelu = lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    tables = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position")]
    x = w[tables[0]][ids] + w[tables[1]][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (dense(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        if before is not None:
            k, v = np.concatenate([before[layer], [k, v]], 1)
        seen = []
        for part in np.split(
            np.arange(CONFIG["hidden_size"]), CONFIG["num_attention_heads"]
        ):
            weight = np.exp(q[:, part] @ k[:, part].T / math.sqrt(len(part)))
            seen.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])
        attended = dense(np.concatenate(seen, -1), f"{at}.attention.output.dense")
        x = norm(x + attended, f"{at}.attention.output.LayerNorm")
        hidden = dense(gelu(dense(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + hidden, f"{at}.output.LayerNorm")
    return x


def test_matches_numpy_and_padding_does_not_count(folder):
    bert = bert_lib.load(folder)
    hidden = bert(IDS).numpy()
    for row, got in zip(IDS, hidden, strict=True):
        real = row[row != 0]
        np.testing.assert_allclose(
            got[: len(real)], reference(random_weights(), real), rtol=1e-4, atol=1e-4
        )
        assert not got[len(real) :].any()
    assert hidden.dtype == np.float32
    assert (bert.width, bert.max_length, bert.vocab_size, bert.pad_id) == (6, 13, 31, 0)


def test_says_what_transformers_says_with_its_gradients(folder):
    """The layers of a `TFBertModel` called as we do, and as it does."""
    bert = bert_lib.load(folder, trainable=True)
    real = tf.constant(IDS != 0)
    weight = tf.constant(np.random.default_rng(0).normal(size=(*IDS.shape, 6)), tf.float32)

    def told(call):
        with tf.GradientTape() as tape:
            hidden = tf.where(real[..., None], call(tf.constant(IDS)), 0.0)
            total = tf.reduce_sum(hidden * weight)
        gradients = tape.gradient(total, bert.trainable_variables)
        return hidden, *(tf.convert_to_tensor(gradient) for gradient in gradients)

    theirs = lambda ids: bert.model(ids, attention_mask=tf.cast(real, tf.int32))[0]
    for ours, other in zip(told(bert), told(theirs), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-4)


def test_reads_its_own_formats(folder, tmp_path):
    bert = bert_lib.load(folder)
    for name, safe in (("model.safetensors", True), ("tf_model.h5", False)):
        saved = tmp_path / name.replace(".", "_")
        bert.model.save_pretrained(saved, safe_serialization=safe)
        assert (saved / name).exists()
        np.testing.assert_array_equal(bert_lib.load(saved)(IDS), bert(IDS))


def google_folder(path, **changed):
    """What google-research/bert wrote: names of TensorFlow 1, with heads and slots."""
    renamed = {}
    for name, value in random_weights().items():
        name = re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")
        name = name.replace("LayerNorm/weight", "LayerNorm/gamma")
        name = name.replace("LayerNorm/bias", "LayerNorm/beta")
        name = name.replace("_embeddings/weight", "_embeddings")
        if name.endswith("/weight"):
            name, value = name.removesuffix("weight") + "kernel", value.T
        renamed[f"bert/{name}"] = value
    for name in ("bert/pooler/dense/kernel", "cls/predictions/output_bias", "global_step"):
        renamed[name] = np.zeros(3, np.float32)
    renamed["bert/embeddings/word_embeddings/adam_m"] = np.zeros(3, np.float32)
    renamed |= changed
    path.mkdir()
    names = [name for name, value in renamed.items() if value is not None]
    tf.raw_ops.SaveV2(
        prefix=str(path / "bert_model.ckpt"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[renamed[name] for name in names],
    )
    google = {name: value for name, value in CONFIG.items() if name != "model_type"}
    (path / "bert_config.json").write_text(json.dumps(google))
    (path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    return path


def test_reads_what_google_released(folder, tmp_path, caplog):
    place = google_folder(tmp_path / "google")
    assert backbones.backbone(place) == place
    np.testing.assert_array_equal(bert_lib.load(place)(IDS), bert_lib.load(folder)(IDS))
    assert caplog.text == ""
    bert_lib.save(bert_lib.load(place), tmp_path / "kept", like=place)
    np.testing.assert_array_equal(
        bert_lib.load(tmp_path / "kept")(IDS), bert_lib.load(folder)(IDS)
    )
    before = backbones.fingerprint(place)
    moved = {"bert/embeddings/LayerNorm/beta": np.ones(6, np.float32)}
    other = backbones.fingerprint(google_folder(tmp_path / "other", **moved))
    assert len({before, other, backbones.fingerprint(folder)}) == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bert/embeddings/word_embeddings", None, "1 are missing, as bert/embeddings/word"),
        (
            "bert/encoder/layer_1/output/dense/bias",
            np.zeros(5, np.float32),
            r"layer_1/output/dense/bias must have the shape \(6,\) .*got \(5,\)",
        ),
    ],
)
def test_a_checkpoint_of_google_is_checked_as_any(tmp_path, name, value, message):
    place = google_folder(tmp_path / "google", **{name: value})
    with pytest.raises(ValueError, match=message):
        bert_lib.load(place)


def test_says_nothing_of_a_head_and_something_of_the_rest(tmp_path, capfd, caplog):
    weights = {f"bert.{name}": value for name, value in random_weights().items()}
    weights["bert.pooler.dense.weight"] = np.ones((6, 6), np.float32)
    weights["cls.predictions.bias"] = np.ones(31, np.float32)
    folder = write_folder(tmp_path / "bert", weights)
    with caplog.at_level(logging.INFO):
        bert_lib.load(folder)
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))
    weights["bert.encoder.layer.2.output.dense.bias"] = np.ones(6, np.float32)
    with caplog.at_level(logging.INFO):
        bert_lib.load(write_folder(folder, weights))
    assert "no place for: ['bert.encoder.layer.2.output.dense.bias']" in caplog.text


def test_a_missing_weight_is_never_random(tmp_path):
    weights = random_weights()
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(
        ValueError,
        match=r"every weight.*: 1 are missing, as encoder.layer.1.output.dense.bias",
    ):
        bert_lib.load(write_folder(tmp_path / "bert", weights))


def test_a_weight_of_another_shape_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"word_embeddings.* must have the shape \(37, 6\) .*got \(31, 6\)"
    ):
        bert_lib.load(write_folder(tmp_path / "bert", random_weights(), vocab_size=37))


def test_folders_that_hold_no_bert_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is missing: a backbone is what"):
        bert_lib.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"model_type must be .bert., .*: got .gpt2."):
        bert_lib.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tf_model.h5 is needed, got .*pytorch_model.bin"):
        bert_lib.load(tmp_path)


@pytest.mark.parametrize("trainable", [True, False])
def test_frozen_means_no_gradient_and_no_dropout(folder, trainable):
    bert = bert_lib.load(folder, trainable=trainable)
    assert len(bert.trainable_variables) == (37 if trainable else 0)
    assert len(bert.variables) == 37
    drops = np.abs(bert(IDS, training=True) - bert(IDS)).max() > 0.1
    assert drops == trainable


def test_more_ids_than_positions_is_an_error(folder):
    bert = bert_lib.load(folder)
    assert bert(np.ones((1, 13), np.int32)).shape == (1, 13, 6)
    with pytest.raises(
        ValueError, match=r"positions for 13 ids a text: got 14. Lower max_length"
    ):
        bert(np.ones((1, 14), np.int32))
    with pytest.raises(ValueError, match="positions for 13 ids a text: got 14"):
        bert_lib.encode(bert, np.ones((1, 14), np.int32))


def many_ids():
    rng = np.random.default_rng(5)
    ids = rng.integers(4, 31, (23, 12)) * (np.arange(12) < rng.integers(2, 11, (23, 1)))
    ids[17] = ids[4]
    return ids


@pytest.mark.parametrize("pieces", [1, 40, 4096])
def test_encode_does_not_depend_on_the_batch(folder, pieces):
    bert = bert_lib.load(folder)
    ids, ready = many_ids(), []
    hidden = bert_lib.encode(bert, ids, pieces=pieces, progress=ready.append)
    assert hidden.dtype == np.float32
    assert sum(ready) == 23
    for row, got in zip(ids, hidden, strict=True):
        real = row[row != 0]
        np.testing.assert_allclose(got[: len(real)], bert(real[None])[0], atol=1e-5)
        assert not got[len(real) :].any()


def test_encode_cuts_each_batch_to_its_longest_and_skips_repeats(folder):
    bert = bert_lib.load(folder)
    ids, seen = many_ids(), []
    graph = bert.traced
    bert.traced = lambda batch: seen.append(batch.shape) or graph(batch)
    bert_lib.encode(bert, ids, pieces=30)
    lengths = np.sort((np.unique(ids, axis=0) != 0).sum(1))
    assert len(lengths) == sum(rows for rows, _ in seen) == 22
    ends = np.cumsum([rows for rows, _ in seen])
    assert [length for _, length in seen] == list(lengths[ends - 1])
    for (rows, length), end in zip(seen[:-1], ends, strict=False):
        assert rows * length <= 30 < (rows + 1) * lengths[end]


def test_encode_in_half_precision_and_of_nothing(folder):
    bert = bert_lib.load(folder)
    half = bert_lib.encode(bert, IDS, dtype=np.float16)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, bert_lib.encode(bert, IDS), atol=2e-3, rtol=1e-3)
    assert bert_lib.encode(bert, IDS[:0]).shape == (0, 8, 6)
    only_padding = bert_lib.encode(bert, np.zeros((1, 3), np.int32))
    np.testing.assert_array_equal(only_padding, np.zeros((1, 3, 6)))


def test_lives_in_a_saved_model(folder, tmp_path):
    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert_lib.load(folder)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
        def hidden(self, ids):
            return self.bert(ids)

    served = Served()
    tf.saved_model.save(served, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.hidden(IDS), served.bert(IDS), atol=1e-6)
