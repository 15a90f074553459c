"""Training: when it stops, what it keeps, and what it says when it cannot go on."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model.test_recommender import RETRIEVAL, build, shop
from tfrec_attn.settings import config
from tfrec_attn.training import checkpoints, distribution, fit
from tfrec_attn.training.keeper import Keeper


def settings(**changes):
    start = {"batch_size": 8, "patience": 2, "ranking_epochs": 0}
    return config.validate({"train": {**start, **changes}}).train


def values(model):
    return [variable.numpy() for variable in model.trainable_variables]


class Validation:
    """Answers with one figure after another, and keeps the weights it was asked about."""

    def __init__(self, model, *figures):
        self.model, self.figures, self.seen = model, list(figures), []

    def __call__(self):
        self.seen.append(values(self.model))
        figure = self.figures[len(self.seen) - 1]
        return {"ndcg@10": np.array([figure]), "hr@10": np.array([0.5])}


def train(model, validate, out, *, weigh=lambda: 1.0, resume=False, **changes):
    made = settings(**changes)
    return fit.fit(model, shop()[0], validate, weigh, settings=made, out=out, resume=resume)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose second epoch is its best, stopped after two more."""
    out, model = tmp_path_factory.mktemp("run"), build(**RETRIEVAL)
    validate = Validation(model, 0.1, 0.3, 0.3, 0.2, 0.9)
    return out, model, validate, train(model, validate, out, epochs=5)


def test_training_stops_after_epochs_without_a_better_figure(stopped):
    _, _, validate, history = stopped
    assert [line["ndcg@10"] for line in history] == [0.1, 0.3, 0.3, 0.2]
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert len(validate.seen) == 4


@pytest.mark.parametrize(
    ("directions", "best"),
    [([None] * 4, 0), ([9, 9, 9, 9], 0), ([9, 6, 6, 6], 2), ([9, 6, 5, 4], 3)],
)
def test_of_a_budget_that_falls_its_end_counts(tmp_path, directions, best):
    keeper = Keeper(build(), None, tmp_path, settings(), "retrieval", [])
    for left, figure in zip(directions, [0.9, 0.3, 0.5, 0.4], strict=True):
        found = {} if left is None else {"directions": left}
        keeper.history.append({"ndcg@10": figure, **found})
    assert keeper._best_epoch() == best


def test_the_weights_of_the_best_epoch_are_kept(stopped):
    _, model, validate, _ = stopped
    for kept, best, last in zip(
        values(model), validate.seen[1], validate.seen[3], strict=True
    ):
        np.testing.assert_array_equal(kept, best)
        assert kept.size < 2 or (kept != last).any() or (best == last).all()
    assert any((a != b).any() for a, b in zip(*validate.seen[2:], strict=True))


def test_averages_are_validated_and_kept_while_training_goes_on(tmp_path):
    """Of two steps, the first without a rate: by the second's decay of two elevenths."""
    ends = []
    for average in (0.0, 0.9):
        model = build({"average": average}, **RETRIEVAL)
        start, validate = values(model), Validation(model, 0.1, 0.2)
        train(model, validate, tmp_path / str(average), epochs=1, batch_size=8)
        ends.append((start, validate.seen[0], values(model)))
    (start, last, _), (_, seen, kept) = ends
    for begin, end, middle, best in zip(start, last, seen, kept, strict=True):
        np.testing.assert_array_equal(middle, best)
        np.testing.assert_allclose(middle, (2 * begin + 9 * end) / 11, atol=1e-6)
    assert max(np.abs(b - e).max() for b, e in zip(start, last, strict=True)) > 1e-3


def test_a_batch_that_does_not_fall_into_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train.accumulate must .* Received: 3 for 8 ex"):
        train(build(accumulate=3, **RETRIEVAL), None, tmp_path, epochs=1)


@pytest.mark.parametrize(("size", "received"), [(9, 9), (8, 11)])
def test_workers_with_shards_of_their_own_have_as_many_examples(
    tmp_path, monkeypatch, size, received
):
    """Of a step of both stages: of the ranking's 11, too."""
    monkeypatch.setattr(distribution, "worker", lambda strategy: (0, 2))
    given = {"batch_size": size, "own_shards": True}
    made = config.validate({"train": given, "data": {"prepared": "x"}}).train
    model = build(ranked_targets=11)
    with pytest.raises(ValueError, match=f"Received: {received} examples for 2 workers"):
        fit.fit(model, shop()[0], None, None, settings=made, out=tmp_path)


def test_the_ranking_goes_on_from_the_best_retrieval_and_leaves_it(tmp_path):
    """Of three epochs of retrieval the second is the best; of two of ranking the last."""
    model, seen = build(ranked_targets=8), []
    retrieval = [model.item_tower.features, model.item_tower.pool_norm, model.user_tower]
    ranking = [model.item_tower.candidate_id, model.user_tokens, model.scorer]
    of = lambda layers: [v.numpy() for layer in layers for v in layer.trainable_variables]
    figures = iter([0.1, 0.3, 0.2, 0.1, 0.4])

    def validate():
        seen.append((of(retrieval), of(ranking), model.stage, float(model.share)))
        return {"ndcg@10": np.array([next(figures, 0.0)])}

    history = train(model, validate, tmp_path, epochs=3, ranking_epochs=2)
    same = lambda one, two: all((a == b).all() for a, b in zip(one, two, strict=True))
    assert [line["stage"] for line in history] == ["retrieval"] * 3 + ["ranking"] * 2
    assert [stage for _, _, stage, _ in seen[:5]] == [line["stage"] for line in history]
    assert [share for *_, share in seen[:5]] == [0, 0, 0, 1, 1]
    for at, (towers, own, _, _) in enumerate(seen):
        assert same(towers, seen[1][0]) == (at == 1 or at > 2)
        assert same(own, seen[0][1]) == (at < 3)
    assert same(of(ranking), seen[4][1])


def test_the_ranking_is_shown_its_targets_one_by_one(tmp_path, monkeypatch):
    """Those of one window are of one user: a step would learn less from them."""
    shown, training = [], fit.batches.training

    def record(examples, size, **options):
        shown.append((examples.count, examples.width, len(examples), size))
        return training(examples, size, **options)

    monkeypatch.setattr(fit.batches, "training", record)
    examples = shop()[0]
    train(
        build(ranked_targets=5), lambda: {"ndcg@10": np.zeros(1)}, tmp_path,
        epochs=1, ranking_epochs=1, batch_size=7,
    )  # fmt: skip
    together = (examples.count, examples.width, len(examples), 7)
    assert examples.count > 1
    assert shown == [together, (1, examples.length, len(examples.targets), 5)]


@pytest.mark.parametrize(
    ("settings_", "loss", "want"),
    [
        ({"epochs": 7, "ranking_epochs": 3}, {}, {"retrieval": 7, "ranking": 3}),
        ({"epochs": 7, "ranking_epochs": 0}, {}, {"both": 7}),
        ({"epochs": 7, "ranking_epochs": 3}, {"ranking": 0.0}, {"both": 7}),
    ],
)
def test_the_stages_of_a_training(settings_, loss, want):
    made = config.validate({"train": settings_, "loss": loss})
    assert fit.stages(made.train, made.loss) == want


def test_the_share_of_the_scorer_is_asked_of_the_best_weights_and_kept(tmp_path):
    model = build()
    validate, asked = Validation(model, 0.3, 0.2), []

    def weigh():
        asked.append(values(model))
        return 0.7

    train(model, validate, tmp_path, weigh=weigh, epochs=2)
    assert len(asked) == 1
    assert all(map(np.array_equal, asked[0], validate.seen[0]))
    assert model.share == np.float32(0.7)
    again = build()
    best = str(tmp_path / "checkpoints" / "best")
    checkpoints.weights(again).read(best).assert_consumed()
    assert again.share == np.float32(0.7)


def test_what_is_kept_is_the_model_and_no_optimizer(stopped):
    """A new optimizer would take up the counter of an old one, and its learning rate."""
    out, model, _, _ = stopped
    names = dict(tf.train.list_variables(str(out / "checkpoints" / "best")))
    assert not [name for name in names if "optimizer" in name]
    count = len(model.trainable_variables) + 1  # and the share
    assert len([name for name in names if name.endswith("VARIABLE_VALUE")]) == count
    again = build(**RETRIEVAL)
    checkpoints.weights(again).read(str(out / "checkpoints" / "best")).assert_consumed()
    again.compile(optimizer=tf_keras.optimizers.AdamW(0.5))
    again.optimizer.build(again.trainable_variables)
    assert int(again.optimizer.iterations) == 0


def test_a_scorer_that_was_not_trained_does_not_count(stopped):
    _, model, _, _ = stopped
    assert model.share == 0


def test_the_history_is_a_line_an_epoch(stopped):
    out, _, _, history = stopped
    lines = (out / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    for line in history:
        assert {"train_loss", "train_retrieval", "ndcg@10", "hr@10"} <= set(line)
        assert line["stage"] == "both"
        assert np.isfinite([v for k, v in line.items() if k != "stage"]).all()


def test_a_run_that_was_stopped_does_not_train_on(stopped):
    out, _, validate, history = stopped
    model = build(**RETRIEVAL)
    again = train(model, Validation(model), out, epochs=5, resume=True)
    assert again == history
    for kept, best in zip(values(model), validate.seen[1], strict=True):
        np.testing.assert_array_equal(kept, best)


def test_a_line_without_its_checkpoint_is_trained_again(tmp_path):
    """Killed between the two: the line was written, the state was not."""
    model = build(**RETRIEVAL)
    first = train(model, Validation(model, 0.1), tmp_path, epochs=1)
    with (tmp_path / "history.jsonl").open("a") as lines:
        lines.write('{"epoch": 2, "ndcg@10": 0.7}\n')
    model = build(**RETRIEVAL)
    history = train(model, Validation(model, 0.2), tmp_path, epochs=2, resume=True)
    assert [line["ndcg@10"] for line in history] == [0.1, 0.2]
    assert history[:1] == first
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


def test_a_loss_that_is_not_finite_names_epoch_and_batch(tmp_path):
    model = build(**RETRIEVAL)

    def poison():
        model.retrieval.log_scale.assign(np.nan)
        return {"ndcg@10": np.array([0.1])}

    with pytest.raises(
        FloatingPointError, match=r"epoch 2, batch 1 is nan: lower train\.l"
    ):
        train(model, poison, tmp_path, epochs=2)


def test_the_batch_that_is_named_is_the_first_that_was_not_finite():
    watch = fit.StopAtNaN()
    watch.on_epoch_begin(4)
    watch.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match="epoch 5, batch 2 is inf"):
        watch.on_train_batch_end(1, {"loss": float("inf")})


def test_an_unknown_metric_is_named_with_those_there_are(tmp_path):
    model = build(**RETRIEVAL)
    with pytest.raises(
        ValueError, match=r"train\.monitor='map@3' is none .*: ndcg@10, hr@10"
    ):
        train(model, Validation(model, 0.1), tmp_path, epochs=1, monitor="map@3")


@pytest.mark.parametrize(("name", "replicas"), [("one", 1), ("auto", 2), ("mirrored", 2)])
def test_a_strategy_takes_one_device_or_all(name, replicas):
    assert distribution.strategy(name).num_replicas_in_sync == replicas
    assert isinstance(distribution.strategy(name), tf.distribute.MirroredStrategy) == (
        replicas > 1
    )


@pytest.mark.parametrize(
    ("stage", "tuned", "named", "other"),
    [
        ("retrieval", False, "lower train.batch_size, ", "loss.ranked_targets"),
        ("ranking", False, "lower loss.ranked_targets, ", "train.batch_size"),
        ("both", False, "of the training does not fit into memory: lower train.ba", "live"),
        ("retrieval", True, "lower bert.live, ", "loss.ranked_targets"),
    ],
)
def test_what_to_lower_where_memory_is_short(stage, tuned, named, other):
    found = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nand more")
    with pytest.raises(MemoryError) as told, fit.advice_of_memory(stage, tuned=tuned):
        raise found
    assert named in str(told.value)
    assert other not in str(told.value)
    assert str(told.value).endswith("TensorFlow: OOM when allocating")


def test_a_step_that_does_not_fit_is_told_by_train(tmp_path):
    model = build(**RETRIEVAL)

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    model.train_step = full
    with pytest.raises(MemoryError, match="lower train"):
        train(model, Validation(model, 0.1), tmp_path, epochs=1)


def test_a_service_makes_the_batches_where_one_is_named(tmp_path, monkeypatch):
    asked = []

    def training(*args, address, **options):
        asked.append((address, options))
        return fit.batches.training(*args, **options)

    monkeypatch.setattr(fit.service, "training", training)
    model = build(**RETRIEVAL)
    validate = Validation(model, 0.1, 0.1)
    train(model, validate, tmp_path, epochs=1, data_service="host:5050")
    assert asked == [("host:5050", {"seed": 0, "epoch": 0, "step": 0})]
