"""A smaller encoder from the command line, in a small shop: measured, ranked, served."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.worded import arguments
from tfrec_attn import compress, evaluate, export, train
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.run import runs

METHODS = {
    "distill": ["--layers", "1", "--epochs", "2", "--batch-size", "4"],
    "prune": ["--heads", "1"],
    "quantize": [],
}


@pytest.fixture(scope="module")
def run(worded, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert train.main(arguments(worded, out)) == 0
    return out


def given(method, *more):
    return [method, *METHODS[method], *(str(word) for word in more)]


def ndcg(run, backbone=None):
    model, prepared = runs.load(run, backbone=backbone)
    return evaluate.evaluate(model, prepared, "validation")["ndcg@10"]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_smaller_and_measured(run, worded, tmp_path, capsys, method):
    to = tmp_path / "small"
    capsys.readouterr()
    assert compress.main(given(method, "--run", run, "--to", to)) == 0
    said = json.loads(capsys.readouterr().out)
    before, after = said["before"], said["after"]
    assert said["method"] == method
    small = bert_lib.load(to)
    nbytes = sum(v.dtype.size * v.shape.num_elements() for v in small.variables)
    assert after["mb"] == round(nbytes / 1e6, 1)
    original = bert_lib.load(worded / "bert")
    assert nbytes < sum(4 * v.shape.num_elements() for v in original.variables)
    assert after["texts_per_second"] > 0 < before["texts_per_second"]
    values = ndcg(run), ndcg(run, to)
    assert before["ndcg@10"] == pytest.approx(values[0].mean(), abs=1e-4)
    assert after["ndcg@10"] == pytest.approx(values[1].mean(), abs=1e-4)
    change = values[1] - values[0]
    error = change.std() / len(change) ** 0.5
    assert said["change"]["ndcg@10"] == pytest.approx(change.mean(), abs=1e-4)
    assert said["change"]["standard_error"] == pytest.approx(error, abs=1e-4)
    # Distinct titles of items with a training event; of a student, those it has not seen.
    _, prepared = runs.load(run)
    titles = set(prepared.items.texts[prepared.frequency > 0])
    held_out = {"distill": max(1, round(0.1 * len(titles)))}
    assert said["texts"] == held_out.get(method, len(titles))
    assert (to / "vocab.txt").read_text() == (worded / "bert/vocab.txt").read_text()


def test_the_cosine_is_that_of_the_means(run, worded, tmp_path, capsys):
    to, titles = tmp_path / "small", ["word1 word2", "word3", "word4 word5 word6"]
    (tmp_path / "titles.txt").write_text("\n".join([*titles, "", titles[0]]) + "\n")
    capsys.readouterr()
    flags = ["--backbone", worded / "bert", "--texts", tmp_path / "titles.txt", "--to", to]
    assert compress.main(given("prune", *flags)) == 0
    said = json.loads(capsys.readouterr().out)
    assert "change" not in said
    assert said["texts"] == 3
    total = 0.0
    for title in titles:
        ids = [2, *(4 + int(word.removeprefix("word")) for word in title.split()), 3]
        pair = [
            bert_lib.load(folder)(tf.constant([ids])).numpy()[0].mean(0)
            for folder in (worded / "bert", to)
        ]
        total += pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    assert said["cosine"] == pytest.approx(total / 3, abs=1e-4)
    assert said["cosine"] < 1


@pytest.mark.parametrize("method", ["prune", "quantize"])
def test_a_trained_run_is_served_with_it(run, tmp_path, method):
    """`export` holds the reloaded model's answers against those of the run so encoded."""
    to, base = tmp_path / "small", tmp_path / "shop"
    assert compress.main(given(method, "--run", run, "--to", to)) == 0
    flags = ["--run", str(run), "--to", str(base), "--backbone", str(to)]
    assert export.main(flags) == 0
    served = tf.saved_model.load(str(base / "1"))
    model, prepared = runs.load(run, backbone=to)
    rows = [3, 8]
    found = served.signatures["embed_item"](text=tf.constant(prepared.items.texts[rows]))
    texts = {n: v for n, v in prepared.item_features.items() if n.startswith("text")}
    features = {name: tf.gather(values, rows) for name, values in texts.items()}
    tower = model.item_tower
    want = tower.pool(tower.vector({"id": tf.zeros(2, tf.int32)} | features)).numpy()
    np.testing.assert_allclose(found["embedding"], want, atol=2e-2)
    reader = tf.train.load_checkpoint(str(base / "1" / "variables" / "variables"))
    kinds = list(reader.get_variable_to_dtype_map().values())
    assert kinds.count(tf.int8) == (13 if method == "quantize" else 0)


def test_a_run_begins_with_it(run, worded, tmp_path, capsys):
    to = tmp_path / "int8"
    assert compress.main(given("quantize", "--run", run, "--to", to)) == 0
    with_it = f"text.backbone={to}"
    assert train.main(arguments(worded, tmp_path / "again", with_it)) == 0
    capsys.readouterr()
    tuned = arguments(worded, tmp_path / "tuned", with_it, "bert.tuning=lora")
    assert train.main(tuned) == 2
    assert "bert.tuning=lora changes weights, and those" in capsys.readouterr().err


def test_of_a_trained_bert_it_is_the_trained_one(worded, tmp_path, capsys):
    out, to = tmp_path / "run", tmp_path / "small"
    far = "bert.tuning=lora", "bert.learning_rate=0.05", "train.epochs=2"
    assert train.main(arguments(worded, out, *far)) == 0
    capsys.readouterr()
    assert compress.main(given("quantize", "--run", out, "--to", to)) == 0
    assert json.loads(capsys.readouterr().out)["cosine"] > 0.99
    ids = tf.constant([[2, 5, 9, 3]])
    near = lambda folder: np.abs(bert_lib.load(folder)(ids) - bert_lib.load(to)(ids)).mean()
    assert near(out / "bert") < 0.5 * near(worded / "bert")


def test_what_stands_beside_a_bert_is_not_compressed(worded, tmp_path, capsys):
    out = tmp_path / "run"
    tuned = arguments(worded, out, "bert.tuning=prefix", "train.epochs=1")
    assert train.main(tuned) == 0
    assert compress.main(given("quantize", "--run", out, "--to", tmp_path / "x")) == 2
    assert "bert.tuning=prefix trains is no BERT by itself" in capsys.readouterr().err


def test_mistakes_are_named(run, worded, tmp_path, capsys):
    def refused(method, *flags):
        assert compress.main(given(method, *flags)) == 2
        return capsys.readouterr().err

    to = tmp_path / "to"
    both = "--run", run, "--backbone", worded / "bert", "--texts", worded / "items.csv"
    for flags in ((), both, both[:4], both[2:4], both[4:], both[:2] + both[4:]):
        said = refused("quantize", *flags, "--to", to)
        assert "Give --run, or --backbone and --texts" in said
    (tmp_path / "one.txt").write_text("word1\nword1\n")
    alone = *both[2:5], tmp_path / "one.txt"
    assert "or more: got 1. Give" in refused("quantize", *alone, "--to", to)
    assert "--to names a new folder" in refused("quantize", "--run", run, "--to", run)
    many = ["--heads", "2", "--run", run, "--to", to]
    assert "Received: 2" in refused("prune", *many)
    deep = ["--layers", "2", "--run", run, "--to", to]
    assert "fewer than the 2 of its teacher" in refused("distill", *deep)
    assert not to.exists()
    assert "holds no trained model" in refused("quantize", "--run", worded, "--to", to)


def test_another_width_is_no_stand_in(run, worded, tmp_path, capsys):
    from tests.model.test_bert import random_weights, write_folder

    wide = write_folder(tmp_path / "wide", random_weights(), hidden_size=8)
    (wide / "vocab.txt").write_text((worded / "bert" / "vocab.txt").read_text())
    flags = ["--run", str(run), "--to", str(tmp_path / "m"), "--backbone", str(wide)]
    assert export.main(flags) == 2
    said = capsys.readouterr().err
    assert f"hidden states 6 wide: those of {wide} are 8 wide" in said
