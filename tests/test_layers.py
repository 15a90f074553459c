"""The same promises asked of every public layer, in tf_keras and in Keras 3."""

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model import reference
from tfrec_attn import keras3_layers, layers

B, C, N, M, D = 2, 3, 7, 5, 6
FULL = {"heads": 2, "dim": 8, "bidirectional": True, "focus": 4.0, "scale": 3.0}
SETTINGS = {
    "default": {},
    "full": FULL,
    "chunked": FULL | {"chunk": 2, "dropout": 0.3, "l2": 0.1},
    "article": {"mode": "article"},
    "article-softmax": {"mode": "article", "normalizer": "softmax"},
}
HOMES = {tf_keras: layers, keras: keras3_layers}
CASES = [
    pytest.param(home.AttentionWeightedCosine, settings, id=f"{home.__name__[11:]}-{name}")
    for home in HOMES.values()
    for name, settings in SETTINGS.items()
]
every = pytest.mark.parametrize(("cls", "settings"), CASES)


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


def built(cls, settings, **kwargs):
    """A layer whose weights are all random, so that none can hide."""
    layer = cls(**settings, **kwargs)
    layer(inputs())
    draw = np.random.default_rng(1)
    layer.set_weights([draw.normal(size=w.shape) * 0.5 for w in layer.get_weights()])
    return layer


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
    assert found == {case.values[0] for case in CASES}
    assert {name for home in HOMES.values() for name in home.__all__} == {
        cls.__name__ for cls in found
    }


@pytest.mark.parametrize("pairs", [False, True])
@every
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


@every
def test_starts_as_a_cosine_of_the_tokens(cls, settings):
    """Identity projections, or orthonormal ones: equal tokens score the whole scale."""
    if settings.get("mode") == "article":
        pytest.skip("has no weights")
    settings = {**settings, "dim": settings.get("dim", D) * 2}
    x = inputs()
    same = tf.ones_like(x["user"]) * tf.range(1.0, D + 1)
    x |= {"user": same, "item": same, "item_mask": x["user_mask"]}
    layer = cls(**settings)
    np.testing.assert_allclose(layer(x), layer.scale * np.ones((B, B)), rtol=1e-5)


@every
def test_config_round_trip(cls, settings):
    layer = built(cls, settings, name="scorer")
    again = cls.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert {k: v for k, v in again.get_config().items() if k in settings} == settings
    again(inputs())
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(inputs()), layer(inputs()))
    signature = inspect.signature(layers.Scorer.__init__).parameters
    own = set(signature) - {"self", "kwargs"}
    assert own <= set(layer.get_config())


def functional(cls, settings):
    api = framework(cls)
    shapes = {"user": (None, D), "item": (None, None, D), "user_mask": (None,)}
    shapes["item_mask"] = (None, None)
    x = {
        name: api.Input(shape, dtype="bool" if "mask" in name else "float32", name=name)
        for name, shape in shapes.items()
    }
    return api.Model(x, built(cls, settings)(x))


@every
def test_lives_in_a_saved_functional_model(cls, settings, tmp_path):
    model = functional(cls, settings)
    x = inputs(3, pairs=True)
    want = model(x)
    assert want.shape == (B, C)
    model.save(tmp_path / "model.keras")
    loaded = framework(cls).models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), want, rtol=1e-6)


@every
def test_lives_in_a_saved_model_of_unknown_sizes(cls, settings, tmp_path):
    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer = built(cls, settings)
            self.kept = [variable(w) for w in layer.weights]
            specs = {"user": [None, None, D], "item": [None, None, None, D]}
            specs |= {"user_mask": [None, None], "item_mask": [None, None, None]}
            self.score = tf.function(
                lambda x: layer(x),
                input_signature=[
                    {
                        k: tf.TensorSpec(v, tf.bool if "mask" in k else tf.float32, k)
                        for k, v in specs.items()
                    }
                ],
            )

    served = Served()
    if framework(cls) is keras:
        # A Keras 3 layer is no Trackable of TensorFlow's that this could walk.
        del served.layer
    x = inputs(3, pairs=True)
    want = served.score(x)
    tf.saved_model.save(served, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.score(x), want, rtol=1e-6)
    fewer = {k: v[:1, :2] for k, v in x.items()}
    assert loaded.score(fewer).shape == (1, 2)


@pytest.mark.parametrize(
    "policy", ["float16", "mixed_float16", "bfloat16", "mixed_bfloat16", "float64"]
)
@every
def test_any_precision_is_finite_and_close(cls, settings, policy):
    layer = cls(**settings, dtype=policy)
    plain = cls(**settings)
    compute = getattr(tf, policy.removeprefix("mixed_"))
    x = inputs(dtype=compute)
    with tf.GradientTape() as tape:
        tape.watch(x["user"])
        scores = layer(x)
        loss = tf.reduce_sum(scores)
    exact = plain(
        {k: tf.cast(v, tf.float32) if "mask" not in k else v for k, v in x.items()}
    )
    assert all(w.dtype in ("float32", tf.float32) for w in layer.weights)
    assert scores.dtype == (tf.float64 if policy == "float64" else tf.float32)
    np.testing.assert_allclose(scores, exact, rtol=1e-4)
    gradient = tape.gradient(loss, x["user"])
    assert gradient.dtype == compute
    if settings.get("mode") != "article" or compute != tf.float16:
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


@pytest.mark.parametrize("focus", [1.0, 200.0])
@every
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
def test_compiles_by_xla(cls, settings):
    layer, x = built(cls, settings), inputs(pairs=True)
    compiled = tf.function(lambda x: layer(x), jit_compile=True)
    np.testing.assert_allclose(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


@every
def test_replicas_agree(cls, settings):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = built(cls, settings)
    x = inputs()
    step = tf.function(lambda: strategy.run(lambda: layer(x)))
    first, second = strategy.experimental_local_results(step())
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, layer(x), rtol=1e-5)


@every
def test_every_weight_learns(cls, settings):
    if settings.get("mode") == "article":
        pytest.skip("has no weights")
    layer, x = built(cls, settings), inputs(pairs=True)
    count = 10 if settings.get("bidirectional") else 8
    assert len(layer.trainable_variables) == count
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) * tf.range(1.0, C + 1))
    variables = [variable(w) for w in layer.trainable_variables]
    for weight, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert np.abs(gradient).max() > 1e-6, weight.name


@every
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
