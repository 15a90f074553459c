"""The same promises asked of every public layer, in tf_keras and in Keras 3."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model import reference
from tfrec_attn import keras3_layers, layers
from tfrec_attn.training import distribution

B, C, N, M, D = 2, 3, 7, 5, 6
FULL = {"heads": 2, "dim": 8, "bidirectional": True, "focus": 4.0, "scale": 3.0}
SETTINGS = {
    "default": {},
    "full": FULL,
    "chunked": FULL | {"chunk": 2, "dropout": 0.3, "l2": 0.1, "xla": False},
    "article": {"mode": "article"},
    "article-softmax": {"mode": "article", "normalizer": "softmax"},
}
HOMES = {tf_keras: layers, keras: keras3_layers}
SCORERS = [
    pytest.param(home.AttentionWeightedCosine, settings, id=f"{home.__name__[11:]}-{name}")
    for home in HOMES.values()
    for name, settings in SETTINGS.items()
]
scorers = pytest.mark.parametrize(("cls", "settings"), SCORERS)
with_weights = pytest.mark.parametrize(
    ("cls", "settings"), [case for case in SCORERS if "mode" not in case.values[1]]
)


def framework(cls):
    return keras if issubclass(cls, keras.layers.Layer) else tf_keras


def inputs(seed=0, pairs=False, dtype=np.float32):
    draw = np.random.default_rng(seed)
    lead = (B, C) if pairs else (C,)
    user_mask, item_mask = draw.random((B, N)) < 0.7, draw.random((*lead, M)) < 0.7
    user_mask[:, 0], item_mask[..., 0] = True, True
    return {
        "user": tf.cast(draw.normal(size=(B, N, D)) * 0.3, dtype),
        "item": tf.cast(draw.normal(size=(*lead, M, D)) * 0.3, dtype),
        "user_mask": tf.constant(user_mask),
        "item_mask": tf.constant(item_mask),
    }


class Case(NamedTuple):
    """A public layer, its settings, and what a call takes: floats in a dtype, B first."""

    cls: type
    settings: dict
    inputs: Callable


def pairs(dtype=np.float32):
    return inputs(3, pairs=True, dtype=dtype)


def vectors(dtype=np.float32):
    return tf.cast([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]], dtype)


def masked_tokens(dtype=np.float32):
    draw = np.random.default_rng(4)
    tokens = tf.cast(draw.normal(size=(B, N, D)), dtype)
    return tokens, tf.constant([[True, False, True] + [False] * 4, [False] * N])


CASES = {
    case.id: Case(*case.values, pairs) for case in SCORERS
} | {
    "category": Case(
        layers.CategoryTokens,
        {"size": 7, "dim": 5, "drop": 0.2},
        lambda dtype=None: tf.constant([[1, 7, 0], [3, 4, 2]]),
    ),
    "embedding": Case(layers.EmbeddingTokens, {"dim": 5, "dropout": 0.2}, vectors),
    "number": Case(
        layers.NumberTokens,
        {"knots": [-2.0, 0.5, 1.0, 7.0], "dim": 5},
        lambda dtype=np.float32: tf.cast([0.75, np.nan, -1.0, 5.0], dtype),
    ),
    "text": Case(layers.TextTokens, {"dim": 5, "dropout": 0.2}, masked_tokens),
    "pooling": Case(layers.MeanPooling, {}, masked_tokens),
    "unit-pooling": Case(layers.MeanPooling, {"unit": True}, masked_tokens),
}  # fmt: skip
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
IN_FLOAT32 = (layers.Scorer, layers.MeanPooling)


def built(cls, settings, x=None, **kwargs):
    """A layer whose weights are all random, so that none can hide."""
    layer = cls(**settings, **kwargs)
    layer(inputs() if x is None else x)
    draw = np.random.default_rng(1)
    layer.set_weights([draw.normal(size=w.shape) * 0.5 for w in layer.get_weights()])
    return layer


def layer_of(case, **kwargs):
    return built(case.cls, case.settings, case.inputs(), **kwargs)


def check_equal(found, wanted, **tolerances):
    """Of a tensor, or of tokens and their mask."""
    pairs = zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True)
    for one, other in pairs:
        one, other = (tf.cast(x, tf.float64) for x in (one, other))
        np.testing.assert_allclose(one, other, **tolerances)


def unknown_sizes(x):
    """The shape of an input of which only the width of tokens is known."""
    rank = x.shape.rank
    width = [x.shape[-1]] if x.dtype.is_floating and rank > 1 else []
    return [None] * (rank - len(width)) + width


def variable(weight):
    """The TensorFlow variable of a weight; Keras 3 wraps it."""
    return weight if isinstance(weight, tf.Variable) else weight.value


def test_no_layer_is_left_out():
    found = {
        cls
        for framework, home in HOMES.items()
        for _, cls in inspect.getmembers(home, inspect.isclass)
        if issubclass(cls, framework.layers.Layer)
    }
    assert found == {case.cls for case in CASES.values()}
    assert {name for home in HOMES.values() for name in home.__all__} == {
        cls.__name__ for cls in found
    }


@pytest.mark.parametrize("pairs", [False, True])
@scorers
def test_matches_numpy(cls, settings, pairs):
    layer, x = built(cls, settings), inputs(2, pairs)
    scores = layer(x)
    user, item, um, im = (
        np.asarray(x[k]) for k in ("user", "item", "user_mask", "item_mask")
    )
    if settings.get("mode") == "article":
        options = {"normalizer": settings.get("normalizer", "l2")}
        pair = reference.article_pair
    else:
        names = [w.name.split("/")[-1].split(":")[0] for w in layer.weights]
        weights = dict(zip(names, layer.get_weights(), strict=True))
        options = {name: np.exp(weights.pop(f"log_{name}")) for name in ("focus", "scale")}
        options |= {k: settings[k] for k in ("heads", "bidirectional") if k in settings}
        options["weights"] = weights
        pair = reference.softmax_pair
    for b, c in np.ndindex(B, C):
        at = (b, c) if pairs else (c,)
        want = pair(
            *(v.astype(float) for v in (user[b][um[b]], item[at][im[at]])), **options
        )
        np.testing.assert_allclose(scores[b, c], want["score"], rtol=2e-4, atol=1e-4)
    again, parts = layer(x, return_attention=True)
    np.testing.assert_allclose(again, scores, rtol=1e-5)
    total = tf.reduce_sum(parts["pair_contributions"], (2, 3))
    np.testing.assert_allclose(total, scores, rtol=1e-4, atol=1e-5)


@with_weights
def test_starts_as_a_cosine_of_the_tokens(cls, settings):
    """Identity projections, or orthonormal ones: equal tokens score the whole scale."""
    settings = {**settings, "dim": settings.get("dim", D) * 2}
    x = inputs()
    same = tf.ones_like(x["user"]) * tf.range(1.0, D + 1)
    x |= {"user": same, "item": same, "item_mask": x["user_mask"]}
    layer = cls(**settings)
    np.testing.assert_allclose(layer(x), layer.scale * np.ones((B, B)), rtol=1e-5)


@every
def test_config_round_trip(case):
    layer, x = layer_of(case, name="layer"), case.inputs()
    again = case.cls.from_config(layer.get_config())
    config = again.get_config()
    assert config == layer.get_config()
    assert {k: v for k, v in config.items() if k in case.settings} == case.settings
    assert set(inspect.signature(case.cls.__init__).parameters) - {"self", "kwargs"} <= set(
        config
    )
    again(x)
    again.set_weights(layer.get_weights())
    check_equal(again(x), layer(x), rtol=0)


@every
def test_lives_in_a_saved_functional_model(case, tmp_path):
    api, x = framework(case.cls), case.inputs()
    end = lambda v, name=None: api.Input(
        unknown_sizes(v)[1:], dtype=v.dtype.name, name=name
    )
    named = isinstance(x, dict)
    ends = {k: end(v, k) for k, v in x.items()} if named else tf.nest.map_structure(end, x)
    model = api.Model(ends, layer_of(case)(ends))
    want = model(x)
    model.save(tmp_path / "model.keras")
    loaded = api.models.load_model(tmp_path / "model.keras")
    check_equal(loaded(x), want, rtol=1e-6)


@every
def test_lives_in_a_saved_model_of_unknown_sizes(case, tmp_path):
    x = case.inputs()
    spec = tf.nest.map_structure(lambda v: tf.TensorSpec(unknown_sizes(v), v.dtype), x)

    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer = layer_of(case)
            self.kept = [variable(w) for w in layer.weights]
            self.call = tf.function(lambda x: layer(x), input_signature=[spec])

    served = Served()
    if framework(case.cls) is keras:
        # A Keras 3 layer is no Trackable of TensorFlow's that this could walk.
        del served.layer
    tf.saved_model.save(served, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    fewer = tf.nest.map_structure(
        lambda v: v[:1, :2] if unknown_sizes(v)[1:2] == [None] else v[:1], x
    )
    for values in (x, fewer):
        check_equal(loaded.call(values), served.call(values), rtol=1e-6)


@scorers
def test_candidates_that_users_share_may_be_of_any_number(cls, settings):
    layer, x = built(cls, settings), inputs(5)
    spec = tf.nest.map_structure(lambda v: tf.TensorSpec(unknown_sizes(v), v.dtype), x)
    score = tf.function(lambda x: layer(x), input_signature=[spec])
    np.testing.assert_allclose(score(x), layer(x), rtol=1e-5)
    alone = x | {"item": x["item"][1:2, :3], "item_mask": x["item_mask"][1:2, :3]}
    np.testing.assert_allclose(score(alone), layer(alone), rtol=1e-5)
    assert score(alone).shape == (B, 1)


@pytest.mark.parametrize(
    "policy", ["float16", "mixed_float16", "bfloat16", "mixed_bfloat16", "float64"]
)
@every
def test_any_precision_is_finite_and_close(case, policy):
    compute = getattr(tf, policy.removeprefix("mixed_"))
    x = case.inputs(compute)
    in_float32 = issubclass(case.cls, IN_FLOAT32)
    layer, plain = (layer_of(case, **kwargs) for kwargs in ({"dtype": policy}, {}))
    plain.set_weights(layer.get_weights())
    seen = [v for v in tf.nest.flatten(x) if in_float32 and v.dtype.is_floating]
    variables = [variable(w) for w in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(seen)
        found = layer(x)
        first = tf.nest.flatten(found)[0]
        loss = tf.reduce_sum(tf.cast(first, tf.float32))
    assert first.dtype == (
        compute if not in_float32 or compute == tf.float64 else tf.float32
    )
    exact = plain(
        tf.nest.map_structure(
            lambda v: tf.cast(v, tf.float32) if v.dtype.is_floating else v, x
        )
    )
    # Eight bits of bfloat16, and sums of a few products.
    loose = {"rtol": 1e-4, "atol": 1e-5} if in_float32 else {"rtol": 2e-2, "atol": 5e-2}
    check_equal(found, exact, **loose)
    gradients = tape.gradient(loss, seen + variables)
    assert any(g is not None for g in gradients)
    if issubclass(case.cls, layers.Scorer):
        assert all(w.dtype in ("float32", tf.float32) for w in layer.weights)
    for gradient in gradients:
        if gradient is not None:
            assert np.isfinite(tf.cast(tf.convert_to_tensor(gradient), tf.float32)).all()


@pytest.mark.parametrize("focus", [1.0, 200.0])
@scorers
def test_padding_never_changes_a_score(cls, settings, focus):
    layer = built(cls, settings)
    if settings.get("mode") != "article":
        weights = {w.name.split("/")[-1].split(":")[0]: w for w in layer.weights}
        weights["log_focus"].assign(np.log(focus))
    x = inputs(pairs=True)
    long = {
        k: tf.repeat(v, 2, axis=v.shape.rank - (1 if "mask" in k else 2))
        for k, v in x.items()
    }
    for side in ("user", "item"):
        mask, real = f"{side}_mask", x[f"{side}_mask"]
        padding = tf.reshape(tf.stack([real, tf.zeros_like(real)], -1), long[mask].shape)
        long[mask] = padding
        filled = tf.where(padding[..., None], long[side], 1e3)
        long[side] = filled
    np.testing.assert_allclose(layer(long), layer(x), rtol=1e-4, atol=1e-5)


@every
def test_compiles_by_xla(case):
    layer, x = layer_of(case), case.inputs()
    compiled = tf.function(lambda x: layer(x), jit_compile=True)
    check_equal(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


@with_weights
def test_the_faster_norm_is_the_same_where_nothing_is_trained(cls, settings):
    layer = built(cls, settings | {"xla": False})
    score = tf.function(layer)
    graph = lambda **how: score.get_concrete_function(inputs(), **how).graph
    assert "EuclideanNorm" in str(graph(training=False).as_graph_def())
    assert "EuclideanNorm" not in str(graph(training=True).as_graph_def())
    assert not layer.supports_jit
    slower = built(cls, settings | {"xla": True})
    check_equal(layer(inputs(), training=False), slower(inputs()), rtol=1e-5, atol=1e-6)


@every
def test_replicas_agree(case):
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        mirrored = layer_of(case)
    x = case.inputs()

    def learn(layer):
        variables = [variable(w) for w in layer.trainable_variables]
        with tf.GradientTape() as tape:
            found = layer(x)
            loss = tf.reduce_sum(tf.nest.flatten(found)[0])
        gradients = tape.gradient(loss, variables)
        return found, [tf.convert_to_tensor(gradient) for gradient in gradients]

    results = tf.function(lambda: strategy.run(learn, args=(mirrored,)))()
    first, second = (
        [strategy.experimental_local_results(v)[at] for v in tf.nest.flatten(results)]
        for at in (0, -1)  # a mask that is passed on is one for both
    )
    check_equal(first, second, rtol=1e-6, atol=1e-7)
    check_equal(first, tf.nest.flatten(learn(layer_of(case))), rtol=1e-4, atol=1e-5)


@every
def test_every_weight_learns(case):
    layer, x = layer_of(case), case.inputs()
    if issubclass(case.cls, layers.Scorer):
        count = 0 if "mode" in case.settings else 8
        count += 2 if case.settings.get("bidirectional") else 0
        assert len(layer.trainable_variables) == count
    with tf.GradientTape() as tape:
        first = tf.nest.flatten(layer(x, training=True))[0]
        pull = tf.random.stateless_normal(tf.shape(first), (0, 1))
        loss = tf.reduce_sum(first * pull)
    variables = [variable(w) for w in layer.trainable_variables]
    for weight, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 1e-6, weight.name


@scorers
def test_dropout_and_penalty(cls, settings):
    layer, x = cls(**settings), inputs()
    fixed = np.array_equal(layer(x, training=True), layer(x, training=True))
    assert fixed == (not settings.get("dropout"))
    np.testing.assert_array_equal(layer(x), layer(x))
    at_start = sum(float(loss) for loss in layer.losses)
    assert at_start == 0.0
    if settings.get("l2"):
        weights = layer.get_weights()
        layer.set_weights([w + 0.5 for w in weights])
        moved = sum(float(loss) for loss in layer.losses)
        # Four projections of D x dim, each entry moved by a half.
        np.testing.assert_allclose(moved, 0.1 * 4 * D * settings["dim"] * 0.25, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_keras_2_and_3_give_the_same_from_the_same_weights(settings):
    two = built(layers.AttentionWeightedCosine, settings)
    three = keras3_layers.AttentionWeightedCosine(**settings)
    three(inputs())
    names = [[w.name.split("/")[-1].split(":")[0] for w in x.weights] for x in (two, three)]
    assert names[0] == names[1]
    three.set_weights(two.get_weights())
    np.testing.assert_array_equal(three(inputs(5)), two(inputs(5)))


def test_pooling_is_the_mean_of_real_tokens():
    tokens, mask = masked_tokens()
    found = layers.MeanPooling()((tf.where(mask[..., None], tokens, np.nan), mask))
    np.testing.assert_allclose(found[0], (tokens[0, 0] + tokens[0, 2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.zeros(D))
    unit = layers.MeanPooling(unit=True)((tokens, mask))
    np.testing.assert_allclose(unit[0], found[0] / np.linalg.norm(found[0]), rtol=1e-6)
    np.testing.assert_array_equal(unit[1], np.zeros(D))


def test_a_year_is_not_rounded_by_mixed_precision():
    """2048 and 2049 are one number in float16, and in bfloat16 too."""
    settings = {"knots": [2047.0, 2048.0, 2049.0], "dim": 5}
    for policy in ("mixed_float16", "mixed_bfloat16"):
        tokens, _ = layers.NumberTokens(**settings, dtype=policy)(
            tf.constant([2048.0, 2049])
        )
        assert np.abs(tf.cast(tokens[0] - tokens[1], tf.float32)).max() > 1e-3


def test_sides_can_be_kept():
    layer = built(layers.AttentionWeightedCosine, FULL)
    x = inputs()
    user = layer.user_side(x["user"], x["user_mask"])
    item = layer.item_side(x["item"], x["item_mask"])
    np.testing.assert_array_equal(layer.compare(user, item), layer(x))


def run(program, **environment):
    import os

    out = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


def test_imports_neither_tfrs_nor_transformers_nor_keras_3():
    program = (
        "import sys; import tfrec_attn.layers;"
        "print(*[m for m in ('keras', 'transformers', 'tensorflow_recommenders') "
        "if m in sys.modules])"
    )
    assert run(program) == []


def test_works_where_tf_keras_is_keras_3():
    program = (
        "import tensorflow as tf; tf.keras.Model;"
        "from tfrec_attn.layers import AttentionWeightedCosine as Two;"
        "from tfrec_attn.keras3_layers import AttentionWeightedCosine as Three;"
        "x = {'user': tf.ones((1, 2, 3)), 'user_mask': tf.ones((1, 2), bool)};"
        "x |= {'item': tf.ones((4, 2, 3)), 'item_mask': tf.ones((4, 2), bool)};"
        "print(tf.keras.__version__[0], Two()(x).shape, Three()(x).shape)"
    )
    assert run(program, TF_USE_LEGACY_KERAS="0") == ["3", "(1,", "4)", "(1,", "4)"]


def test_the_code_of_the_page_runs():
    page = Path(__file__).parent.parent / "docs" / "layers.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 6
    assert blocks[0].count("\n") <= 40
    said = " ".join(run("\n".join(blocks)))
    assert re.fullmatch(r"likes genre (\d); best items are of genres \[\1( \1){4}\]", said)


def test_another_backend_of_keras_3_is_named():
    program = (
        # No other backend is installed here: Keras is made to say that it has one.
        "import keras\nkeras.backend.backend = lambda: 'jax'\n"
        "try:\n    import tfrec_attn.keras3_layers\n"
        "except ImportError as error:\n    print(error)"
    )
    said = " ".join(run(program))
    assert "Keras 3 on TensorFlow: the backend is jax. Set KERAS_BACKEND" in said


@pytest.mark.parametrize("home", HOMES.values(), ids=["tf_keras", "keras"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "cosine"}, "mode is one of softmax, article. Received: 'cosine'"),
        ({"normalizer": "l1"}, "normalizer is one of l2, softmax. Received: 'l1'"),
        ({"normalizer": "softmax"}, "normalizer='softmax' belongs to mode='article'"),
        ({"heads": 0}, "heads must be positive. Received: 0"),
        ({"focus": 0.0}, "focus must be positive. Received: 0.0"),
        ({"heads": 4}, "heads must divide dim.*Received: heads=4, dim=6"),
    ],
)
def test_a_wrong_setting_is_named(home, settings, message):
    with pytest.raises(ValueError, match=message):
        home.AttentionWeightedCosine(**settings)(inputs())


@pytest.mark.parametrize("home", HOMES.values(), ids=["tf_keras", "keras"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": tf.ones((B, D))}, "inputs must be user.*'user': 2"),
        ({"item_mask": tf.ones((B, C, M), bool)}, "inputs must be.*'item_mask': 3"),
        (
            {"item": tf.ones((C, M, 4))},
            "must be the same, and known. Received: user 6, item 4",
        ),
        ({"user_mask": tf.ones((B, N))}, "user_mask must be bool.*Received: float32"),
    ],
)
def test_wrong_inputs_are_named(home, change, message):
    with pytest.raises(ValueError, match=message):
        home.AttentionWeightedCosine()(inputs() | change)
