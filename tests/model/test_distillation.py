"""A student: what it begins with, its loss by NumPy, and that it learns."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model import test_bert
from tests.model.test_bert import IDS, many_ids, random_weights, reference, write_folder
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import blocks, distillation, pruning


@pytest.fixture
def weights(monkeypatch):
    """Of a BERT of three blocks."""
    monkeypatch.setitem(test_bert.CONFIG, "num_hidden_layers", 3)
    return random_weights()


@pytest.fixture
def folder(tmp_path, weights):
    return write_folder(tmp_path / "bert", weights)


def state(monkeypatch, weights, ids, count):
    """Of one text after so many blocks."""
    monkeypatch.setitem(test_bert.CONFIG, "num_hidden_layers", count)
    return reference(weights, ids)


def without_the_second(weights):
    """Those of a student of two blocks: the first and the third."""
    third = {name: name.replace("layer.1.", "layer.2.") for name in weights}
    return {name: weights[third[name]] for name in weights if ".layer.2." not in name}


@pytest.mark.parametrize(
    ("count", "of", "found"),
    [
        (3, 6, [2, 4, 6]),
        (6, 12, [2, 4, 6, 8, 10, 12]),
        (4, 6, [1, 3, 4, 6]),
        (2, 3, [1, 3]),
        (1, 6, [6]),
    ],
)
def test_blocks_are_evenly_spread(count, of, found):
    assert distillation.stages(count, of) == found


@pytest.mark.parametrize("count", [0, 3, 4])
def test_a_student_is_shorter(folder, count):
    with pytest.raises(ValueError, match=f"fewer than the 3 of .*Received: {count}"):
        distillation.student(bert_lib.load(folder), count)


def test_it_begins_with_blocks_of_the_teacher(folder, weights, monkeypatch):
    student = distillation.student(bert_lib.load(folder), 2)
    for row, got in zip(IDS, student(tf.constant(IDS)).numpy(), strict=True):
        real = row[row != 0]
        want = state(monkeypatch, without_the_second(weights), real, 2)
        np.testing.assert_allclose(got[: len(real)], want, rtol=1e-4, atol=1e-4)


def test_of_a_pruned_teacher_too(folder, tmp_path):
    teacher = bert_lib.load(folder)
    pruning.prune(teacher, 1)
    student = distillation.student(teacher, 2)
    named = blocks.weights(student.model), blocks.weights(teacher.model)
    for mine, other in ((0, 0), (1, 2)):
        key = "encoder/layer_._{}/attention/self/key/kernel"
        found = named[0][key.format(mine)]
        assert found.shape == (6, 3)
        np.testing.assert_array_equal(found, named[1][key.format(other)])


def test_the_loss_by_numpy(folder, weights, monkeypatch):
    teacher = bert_lib.load(folder)
    student = distillation.student(teacher, 2)
    got = float(distillation.loss(teacher, student, tf.constant(IDS, tf.int32)))
    texts = [row[row != 0] for row in IDS]
    both = lambda ids, count, block: (
        state(monkeypatch, without_the_second(weights), ids, count),
        state(monkeypatch, weights, ids, block),
    )
    want = 0.0
    for count, block in ((1, 1), (2, 3)):
        pairs = [both(ids, count, block) for ids in texts]
        apart = sum(((h - g) ** 2).sum() for h, g in pairs)
        want += apart / sum((g**2).sum() for _, g in pairs) / 2
    for ids in texts:
        h, g = (x.mean(0) for x in both(ids, 2, 3))
        want += (1 - h @ g / np.linalg.norm(h) / np.linalg.norm(g)) / len(texts)
    assert got == pytest.approx(want, rel=1e-4)


def learn(teacher, student, rate=0.01, epochs=12):
    told = []
    distillation.learn(
        teacher,
        student,
        many_ids(),
        optimizer=tf_keras.optimizers.Adam(rate),
        epochs=epochs,
        batch_size=5,
        seed=0,
        after_epoch=lambda epoch, loss: told.append((epoch, loss)),
    )
    return told


def test_it_learns_and_nothing_else_does(folder):
    teacher = bert_lib.load(folder)
    student = distillation.student(teacher, 2)
    before = {n: v.numpy() for n, v in blocks.weights(student.model).items()}
    whole = [v.numpy() for v in teacher.variables]
    others = tf.constant(IDS, tf.int32)
    far = distillation.loss(teacher, student, others)
    told = learn(teacher, student)
    assert [epoch for epoch, _ in told] == list(range(1, 13))
    assert told[-1][1] < 0.5 * told[0][1]
    assert distillation.loss(teacher, student, others) < 0.8 * far
    for name, variable in blocks.weights(student.model).items():
        same = np.array_equal(variable, before[name])
        # A key's bias adds the same to all logits of a query, so that it has no gradient.
        assert same == name.startswith("embeddings/") or "/key/bias" in name, name
    for was, variable in zip(whole, teacher.variables, strict=True):
        np.testing.assert_array_equal(variable, was)


def test_a_loss_that_is_not_finite_stops_it(folder):
    teacher = bert_lib.load(folder)
    student = distillation.student(teacher, 2)
    for weight in student.trainable_weights[:1]:
        weight.assign(tf.fill(weight.shape, np.nan))
    with pytest.raises(FloatingPointError, match="epoch 1 is nan: lower --learning-rate"):
        learn(teacher, student)
