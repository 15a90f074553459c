"""What is put beside a BERT's maps: by NumPy, that nothing else trains, merged and kept."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model.test_bert import IDS, random_weights, reference, write_folder
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import blocks, tuning

D, WIDE, BLOCKS, SIZE = 6, 11, 2, 3
BEGUN = 5  # of an AdaLoRA, half as many again
REAL = IDS != 0
# Biases of a block: of six maps and two norms.
BIASES = 4 * D + WIDE + D + 2 * D
COUNTS = {
    "frozen": 0,
    "last:1": 4 * D * D + 2 * D * WIDE + BIASES + 2 * D,
    "bitfit": D + BLOCKS * BIASES,
    "lora": BLOCKS * 2 * SIZE * 2 * D,
    "adalora": BLOCKS * BEGUN * (4 * (2 * D + 1) + 2 * (D + WIDE + 1)),
    "adapter": BLOCKS * 2 * (2 * D * SIZE + SIZE + D),
    "prefix": BLOCKS * 2 * SIZE * D,
}
COUNTS["all"] = sum(value.size for value in random_weights().values())
METHODS = list(COUNTS)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "bert", random_weights())


def tuned(folder, method, *, shaken=True):
    """A tuned BERT, all that trains moved away from its start."""
    bert = bert_lib.load(folder)
    tuning.tune(bert, method, size=SIZE)
    rng = np.random.default_rng(7)
    for weight in bert.trainable_weights if shaken else ():
        weight.assign_add(rng.normal(0, 0.3, weight.shape))
    return bert


def hidden(bert):
    return bert(tf.constant(IDS, tf.int32)).numpy()[REAL]


@pytest.mark.parametrize("method", METHODS)
def test_so_many_weights_train(folder, method):
    bert = tuned(folder, method)
    assert sum(np.prod(w.shape) for w in bert.trainable_weights) == COUNTS[method]
    assert len({id(w) for w in bert.trainable_weights}) == len(bert.trainable_weights)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_at_the_start_but_by_a_prefix(folder, method):
    plain, start = (
        hidden(bert_lib.load(folder)),
        hidden(tuned(folder, method, shaken=False)),
    )
    if method == "prefix":
        assert np.abs(start - plain).max() > 1e-3
    else:
        np.testing.assert_array_equal(start, plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_what_trains_and_nothing_else(folder, method):
    bert = tuned(folder, method)
    before = {id(v): v.numpy() for v in bert.variables}
    added = COUNTS[method] if list(tuning.beside(bert)) else 0
    assert sum(v.size for v in before.values()) == COUNTS["all"] + added
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(bert(tf.constant(IDS, tf.int32)))[:, 0])
    gradients = tape.gradient(loss, bert.trainable_weights)
    tf_keras.optimizers.SGD(0.1).apply_gradients(
        zip(gradients, bert.trainable_weights, strict=True)
    )
    moved = {id(v) for v in bert.variables if (v.numpy() != before[id(v)]).any()}
    trained = {id(v) for v in bert.trainable_weights}
    assert moved <= trained
    # A bias of all keys cancels in the softmax, and some ids are not among these.
    assert len(moved) >= len(trained) - BLOCKS


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_matter(folder, method):
    bert = tuned(folder, method)
    alone = bert(tf.constant(IDS[2:3, :4], tf.int32)).numpy()[0]
    np.testing.assert_allclose(alone, hidden(bert)[-4:], atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_low_rank_is_a_change_of_the_maps(folder, method):
    bert = tuned(folder, method)
    weights = random_weights()
    torch = {"query": "attention.self.query", "key": "attention.self.key"}
    torch |= {"value": "attention.self.value", "attention": "attention.output.dense"}
    torch |= {"up": "intermediate.dense", "down": "output.dense"}
    for name, _, _, layer in tuning.beside(bert):
        at, part = name.removeprefix("layer_").split("/")
        w = {v.name.removesuffix(":0"): v.numpy() for v in layer.weights}
        if method == "lora":
            change = 2 * w["lora_a"] @ w["lora_b"]
        else:
            change = w["adalora_p"] @ np.diag(w["adalora_values"]) @ w["adalora_q"]
        assert np.linalg.matrix_rank(change) == (SIZE if method == "lora" else BEGUN)
        weights[f"encoder.layer.{at}.{torch[part]}.weight"] += change.T
    for row, got in zip(IDS, bert(tf.constant(IDS, tf.int32)).numpy(), strict=True):
        text = row[row != 0]
        np.testing.assert_allclose(got[: len(text)], reference(weights, text), atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_merged_is_unmerged_and_a_plain_bert(folder, method):
    bert = tuned(folder, method)
    before, names = hidden(bert), [v.name for v in bert_lib.load(folder).variables]
    tuning.merge(bert)
    np.testing.assert_allclose(hidden(bert), before, atol=1e-5)
    assert not list(tuning.beside(bert))
    assert not bert.trainable_weights
    assert len(bert.variables) == len(names)


@pytest.mark.parametrize("method", ["adapter", "prefix"])
def test_what_is_no_part_of_a_map_is_not_merged(folder, method):
    bert = tuned(folder, method)
    before = hidden(bert)
    with pytest.raises(ValueError, match="cannot be merged"):
        tuning.merge(bert)
    np.testing.assert_array_equal(hidden(bert), before)


def test_an_adapter_is_a_bottleneck_behind_both_sublayers(folder):
    bert = tuned(folder, "adapter")
    found = {name: layer for name, _, _, layer in tuning.beside(bert)}
    assert list(found) == [f"layer_{b}/{m}" for b in (0, 1) for m in ("attention", "down")]
    layer = found["layer_1/down"]
    x = np.random.default_rng(1).normal(size=(2, 4, WIDE)).astype(np.float32)
    y = layer.dense(x).numpy().astype(np.float64)
    w = {v.name.removesuffix(":0"): v.numpy() for v in layer._trainable_weights}
    inner = y @ w["adapter_down"] + w["adapter_down_bias"]
    gelu = inner * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / 2**0.5)))(inner)
    want = y + gelu @ w["adapter_up"] + w["adapter_up_bias"]
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


def test_a_prefix_is_attended_to_by_all_heads_of_all_blocks(folder):
    bert = tuned(folder, "prefix")
    blocks = [b.attention.self_attention for b in bert.model.bert.encoder.layer]
    before = [(b.key.prefix.numpy(), b.value.prefix.numpy()) for b in blocks]
    want = [reference(random_weights(), row[row != 0], before) for row in IDS]
    np.testing.assert_allclose(hidden(bert), np.concatenate(want), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_encoding_sees_what_was_put_beside_and_merged(folder, method):
    """It keeps a graph, which must not be that of the plain BERT."""
    bert = bert_lib.load(folder)
    bert_lib.encode(bert, IDS)
    tuning.tune(bert, method, size=SIZE)
    for weight in bert.trainable_weights:
        weight.assign_add(tf.ones(weight.shape))
    before = hidden(bert)
    np.testing.assert_allclose(bert_lib.encode(bert, IDS)[REAL], before, atol=1e-5)
    if method == "lora":
        tuning.merge(bert)
        np.testing.assert_allclose(bert_lib.encode(bert, IDS)[REAL], before, atol=1e-4)


def test_directions_that_are_not_orthogonal_cost(folder):
    bert = tuned(folder, "adalora")
    for _ in range(3):  # however often it was called
        hidden(bert)
    _, _, _, layer = next(tuning.beside(bert))
    assert len(layer.losses) == 1
    p, q, unit = layer.p.numpy(), layer.q.numpy(), np.eye(BEGUN)
    want = 0.1 * (((p.T @ p - unit) ** 2).sum() + ((q @ q.T - unit) ** 2).sum())
    np.testing.assert_allclose(layer.losses[0], want, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7, BLOCKS * 6 * BEGUN])
def test_the_directions_that_are_felt_most_are_left(folder, count):
    layers = tuning.ranked(tuned(folder, "adalora"))
    rng = np.random.default_rng(5)
    felt = {id(v): rng.random(v.shape) for x in layers for v in (x.p, x.q, x.values)}
    before = np.concatenate([layer.values.numpy() for layer in layers])
    score = np.concatenate(
        [felt[id(x.values)] + felt[id(x.p)].mean(0) + felt[id(x.q)].mean(1) for x in layers]
    )
    best = np.isin(np.arange(len(score)), np.argsort(-score)[:count])
    tuning.cut(layers, count, lambda v: tf.constant(felt[id(v)], tf.float32))
    after = np.concatenate([layer.values.numpy() for layer in layers])
    np.testing.assert_array_equal(after, np.where(best, before, 0))


@pytest.mark.parametrize("method", METHODS)
def test_the_delta_is_all_that_differs(folder, method):
    bert, other = tuned(folder, method), tuned(folder, method, shaken=False)
    kept = tuning.delta(bert)
    assert sum(value.size for value in kept.values()) == COUNTS[method]
    tuning.apply(other, kept)
    np.testing.assert_array_equal(hidden(other), hidden(bert))


@pytest.mark.parametrize(
    ("method", "message"),
    [("bitfit", "is missing there"), ("adapter", "is missing there, and here")],
)
def test_the_delta_of_another_tuning_is_refused(folder, method, message):
    with pytest.raises(ValueError, match=message):
        tuning.apply(tuned(folder, method), tuning.delta(tuned(folder, "lora")))


def test_the_delta_of_another_size_is_refused(folder):
    other = bert_lib.load(folder)
    tuning.tune(other, "lora", size=SIZE + 1)
    with pytest.raises(ValueError, match=r"is \(6, 3\) there, and here \(6, 4\)"):
        tuning.apply(other, tuning.delta(tuned(folder, "lora")))


@pytest.mark.parametrize("method", ["lorra", "last", "last:", "last:-1", "last:x"])
def test_an_unknown_method_is_named_with_the_known_ones(folder, method):
    with pytest.raises(ValueError, match=f"all, bitfit.*last:N. Received: '{method}'"):
        tuning.tune(bert_lib.load(folder), method)


@pytest.mark.parametrize("method", ["last:0", "last:3"])
def test_no_more_blocks_than_there_are(folder, method):
    with pytest.raises(ValueError, match=f"this BERT's 2 blocks. Received: '{method}'"):
        tuning.tune(bert_lib.load(folder), method)


def test_the_rate_of_a_block_falls_with_the_blocks_above_it(folder):
    bert = bert_lib.load(folder)
    tuning.tune(bert, "all")
    found = {blocks.weight_name(one.variable): one for one in tuning.rates(bert, 0.4, 0.5)}
    assert len(found) == len(bert.trainable_weights)
    for name, one in found.items():
        below = 0 if "layer_._1/" in name else 1 if "layer_._0/" in name else 2
        assert (one.below, one.peak) == (below, 0.4 * 0.5**below)
