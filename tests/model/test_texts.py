"""What BERT says of texts: as it was encoded last, and live, with a gradient."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model.test_bert import random_weights, write_folder
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import texts, tuning

# The third is a text of nothing but its frame.
IDS = np.array(
    [[2, 7, 9, 30, 5, 3], [2, 8, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0], [2, 6, 6, 4, 3, 0]]
)
PLACE = np.array(
    [[-1, 0, 0, 1, 2, -1], [-1, 0, *[-1] * 4], [-1] * 6, [-1, 0, 1, 1, -1, -1]]
)
WORDS = np.array([["a", "b", "c"], ["d", "", ""], ["", "", ""], ["e", "f", ""]])
TOKENS = texts.Tokens(IDS, PLACE, WORDS, pad_id=0, truncated=0.0)
STEP = tf.constant([3, 1, 0, 2])  # rows of the items of a step
AT = tf.constant([[1, 2, 1], [0, 0, 1]])  # items 1, 0 and 3 are targets


@pytest.fixture
def live(tmp_path):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = bert_lib.load(write_folder(tmp_path / "bert", random_weights(), **off))
    tuning.tune(bert, "all")

    def made(count, *, drop=0.0, recompute=False, xla=False, **options):
        bert.recompute, bert.xla = recompute, xla
        for layer in bert.submodules:
            if hasattr(layer, "rate"):
                layer.rate = drop
        return texts.Live(bert, TOKENS, count=count, rates=[], **options)

    return made


def said(bert):
    return texts.features(bert_lib.encode(bert, IDS), TOKENS)


def test_a_text_is_the_mean_of_its_pieces_and_its_words_those_of_theirs(live):
    bert = live(9).bert
    hidden = bert(tf.constant(IDS)).numpy()
    found = said(bert)
    np.testing.assert_allclose(found["text_mean"][1], hidden[1, :3].mean(0), atol=1e-5)
    want = hidden[3, 2:4].mean(0).astype(np.float16)
    np.testing.assert_allclose(found["text"][3, 1], want, atol=2e-3)
    np.testing.assert_array_equal(found["text_mask"], WORDS != "")
    assert not found["text_mean"][2].any()


def test_a_word_is_the_mean_of_its_pieces():
    hidden = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float16)
    place = np.array([[-1, 0, 0, 1], [0, 1, -1, 1]])
    found = texts._mean(hidden, place, 3)
    wide = hidden.astype(np.float64)
    want = [
        [wide[0, 1:3].mean(0), wide[0, 3], np.zeros(3)],
        [wide[1, 0], (wide[1, 1] + wide[1, 3]) / 2, np.zeros(3)],
    ]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_targets_are_live_and_all_else_is_as_it_was(live):
    made, before = live(9), np.full((4, 6), 5.0, np.float32)
    got = made.means(tf.constant(before), STEP, AT, [0, 0]).numpy()
    want = said(made.bert)["text_mean"][STEP]
    np.testing.assert_allclose(got[:3], want[:3], atol=1e-5)
    np.testing.assert_array_equal(got[3], before[3])


def test_an_empty_text_says_nothing_live_either(live):
    got = live(9).means(tf.ones((4, 6)), STEP, tf.constant([3]), [0, 0]).numpy()
    np.testing.assert_array_equal(got, [*np.ones((3, 6)), np.zeros(6)])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_more_are_live_than_asked_for_and_others_at_each_step(live, count):
    made = live(count)
    chosen = lambda step: tuple(
        np.flatnonzero(made.means(tf.zeros((4, 6)), STEP, AT, [7, step]).numpy().any(1))
    )
    found = [chosen(step) for step in range(12)]
    assert {len(places) for places in found} == {min(count, 3)}
    assert set().union(*found) == {0, 1, 2}
    assert chosen(3) == found[3]


def test_the_loss_of_live_texts_reaches_bert(live):
    made = live(9)
    with tf.GradientTape() as tape:
        means = made.means(tf.zeros((4, 6)), STEP, AT, [0, 0])
        loss = tf.reduce_sum(tf.square(means))
    gradients = tape.gradient(loss, made.bert.trainable_weights)
    assert all(g is not None for g in gradients)
    assert sum(bool(np.any(tf.convert_to_tensor(g))) for g in gradients) > 30


def gradients(made, seed=(3, 8)):
    """Of a loss of the live texts, with dropout."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            means = made.means(tf.zeros((4, 6)), STEP, AT, tf.constant(seed))
            loss = tf.reduce_sum(tf.square(means) * tf.range(1.0, 7.0))
        found = tape.gradient(loss, made.bert.trainable_weights)
        return loss, [tf.convert_to_tensor(g) for g in found]

    return step()


def test_a_pass_that_is_computed_again_has_the_same_gradient(live):
    """Block by block, with dropout."""
    plain, other = (gradients(live(9, drop=0.3), seed) for seed in ((3, 8), (3, 9)))
    again = gradients(live(9, drop=0.3, recompute=True))
    assert float(plain[0]) == pytest.approx(float(again[0]), rel=1e-6)
    for one, other in zip(plain[1], again[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert float(other[0]) != pytest.approx(float(plain[0]), rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("count", [2, 9])
def test_compiled_it_says_the_same_with_the_same_gradient(live, options, count):
    """More texts than there are targets are padding."""
    loss, plain = gradients(live(count))
    other, compiled = gradients(live(count, xla=True, **options))
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    for one, two in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("chunk", "recompute"), [(1, False), (2, False), (2, True), (8, False)]
)
def test_chunks_have_the_gradient_of_one_pass(live, chunk, recompute):
    """Without dropout, whose masks are of a chunk."""
    loss, whole = gradients(live(9))
    other, parts = gradients(live(9, chunk=chunk, recompute=recompute))
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert max(np.abs(g).max() for g in whole) > 1e-2


def test_the_second_pass_of_a_chunk_drops_what_the_first_did(live):
    """Against finite differences in one weight: with other masks they would be far off."""
    made = live(9, drop=0.3, chunk=2)
    weight = made.bert.model.bert.encoder.layer[0].bert_output.dense.bias
    place = [v is weight for v in made.bert.trainable_weights].index(True)
    slopes = gradients(made)[1][place].numpy()
    most, start = int(np.argmax(np.abs(slopes))), weight.numpy()
    losses = []
    for move in (2e-3, -2e-3):
        weight.assign(start + move * np.eye(6, dtype=np.float32)[most])
        losses.append(float(gradients(made)[0]))
    assert (losses[0] - losses[1]) / 4e-3 == pytest.approx(slopes[most], rel=2e-2)


def test_lost_pieces_change_what_is_said_and_turns_drop_others(live):
    made, thin = live(9), live(9, lost=0.5)
    say = lambda one, turn: one.means(tf.zeros((4, 6)), STEP, AT, [0, 0], turn).numpy()
    np.testing.assert_array_equal(say(made, 0), say(made, 1))
    assert np.abs(say(thin, 0) - say(made, 0)).max() > 1e-2
    assert np.abs(say(thin, 0) - say(thin, 1)).max() > 1e-2


def test_texts_are_encoded_anew(live):
    made = live(9)
    before = said(made.bert)
    tensors = {name: tf.Variable(value) for name, value in before.items()}
    for weight in made.bert.trainable_weights:
        weight.assign(weight * 1.5 + 0.1)
    made.refresh(tensors)
    after = said(made.bert)
    assert np.abs(after["text_mean"] - before["text_mean"]).max() > 0.01
    for name, value in after.items():
        np.testing.assert_allclose(tensors[name], value, atol=2e-3)
