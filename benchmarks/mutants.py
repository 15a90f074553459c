"""The formulas that `mutations` breaks, each by one piece of text, and their tests."""

from pathlib import Path
from typing import NamedTuple

# Of each module that is broken.
TESTS = {
    "model/scoring": (
        "tests/model/test_scoring.py",
        "tests/model/test_scoring_numerics.py",
    ),
    "model/distillation": ("tests/model/test_distillation.py",),
    "model/pruning": ("tests/model/test_pruning.py",),
    "model/quantization": ("tests/model/test_quantization.py",),
    "model/gradients": ("tests/model/test_gradients.py",),
    "model/recommender": ("tests/model/test_gradients.py",),
    "model/tasks": ("tests/model/test_gradients.py",),
    "model/augmentation": ("tests/model/test_augmentation.py",),
    "model/chunks": ("tests/model/test_texts.py",),
    "model/texts": ("tests/model/test_texts.py",),
    "model/forward": ("tests/model/test_texts.py",),
    "model/tuning": ("tests/model/test_tuning.py",),
    "training/optimizers": ("tests/training/test_optimizers.py",),
    "evaluation/weighing": ("tests/evaluation/test_weighing.py",),
    "serve/graph/nearest": ("tests/serve/graph/test_nearest.py",),
    "serve/graph/clusters": ("tests/serve/graph/test_nearest.py",),
    "serve/graph/conditions": ("tests/serve/graph/test_conditions.py",),
    "serve/graph/diversity": ("tests/serve/graph/test_diversity.py",),
}


class Mutation(NamedTuple):
    """One formula made wrong: `old` stands once in the file."""

    description: str
    old: str
    new: str
    module: str = "model/scoring"

    @property
    def file(self) -> Path:
        return Path("tfrec_attn") / f"{self.module}.py"


BIAS = "tf.where(real, bias, LOW)"
OMEGA = "_masked_softmax(logits, real, -1)"
FORTH = "drop(tf.nn.softmax(affinity + user.bias[:, :, None]))"
BACK = "drop(tf.nn.softmax(affinity + item.bias[..., None], -2))"
LENGTH = "norm(seen, user.floor) * flat(item.norms)"
LENGTH_BACK = "_root(square, item.floor[..., None]) * user.norms[:, :, None, None]"
DIVISOR = "(len(ways) * user.keys.shape[1])"
PAIRS = "scale * w.weights * w.attention * inner / w.length"
SIGMA = "_masked_softmax(tf.reduce_sum(tf.square(tokens), -1), mask, -1)"
REAL = "item_mask[:, :, None] & user_mask[:, None, :, None]"
COUNT = "tf.math.count_nonzero(user_mask, -1, dtype=q.dtype)"
ZEROED = "tf.where(mask[..., None], tokens, 0.0)"
ROOT_OF = "tf.sqrt(tf.maximum(square, tf.square(floor)))"
BOTH_REAL = "user_real[:, :, None, None] & item_real[..., None]"
BOUNDED = "return tokens / size, tf.maximum(smallest / size, _SHARE)[..., 0], size"

MUTATIONS = [
    # One side of a comparison.
    Mutation(
        "keys are not unit vectors",
        "keys=keys / _norm(keys, floor)[..., None]",
        "keys=keys",
    ),
    Mutation(
        "W_q and W_v swapped", "for kernel in (key, value)", "for kernel in (value, key)"
    ),
    Mutation(
        "β and ω swapped", "for kernel in (attend, weigh)", "for kernel in (weigh, attend)"
    ),
    Mutation(
        "β and ω see the size of a token",
        "_times(tokens, kernel) / size",
        "_times(tokens, kernel)",
    ),
    Mutation(
        "β and ω over the norm, not the root mean square",
        "[..., None] * tokens.shape[-1] ** -0.5",
        "[..., None]",
    ),
    Mutation("padding is attended to", BIAS, "bias"),
    Mutation("padding has the logit 0", BIAS, "tf.where(real, bias, 0.0)"),
    Mutation("padding's logit is not low enough", "LOW = -1e30", "LOW = -1e2"),
    Mutation("ω without a mask", OMEGA, "tf.nn.softmax(logits)"),
    Mutation("ω over another axis", OMEGA, "_masked_softmax(logits, real, 1)"),
    Mutation("mask after the softmax only", "tf.where(mask, logits, LOW)", "logits"),
    Mutation(
        "no mask after the softmax",
        "return tf.where(mask, weights, 0.0)",
        "return weights",
    ),
    # mode="softmax".
    Mutation(
        "τ_a left out", "affinity = cosine * _like(cosine, focus)", "affinity = cosine"
    ),
    Mutation("sign of τ_a", "_like(cosine, focus)", "-_like(cosine, focus)"),
    Mutation("β left out", FORTH, "drop(tf.nn.softmax(affinity))"),
    Mutation("sign of β", FORTH, "drop(tf.nn.softmax(affinity - user.bias[:, :, None]))"),
    Mutation(
        "A over item tokens",
        FORTH,
        "drop(tf.nn.softmax(affinity + user.bias[:, :, None], -2))",
    ),
    Mutation("no dropout on A", FORTH, FORTH.removeprefix("drop(")[:-1]),
    Mutation(
        "dropout on the logits of A",
        FORTH,
        "tf.nn.softmax(drop(affinity + user.bias[:, :, None]))",
    ),
    Mutation("no gradient through A", FORTH, f"tf.stop_gradient({FORTH})"),
    Mutation("no gradient through ‖Q̃‖", LENGTH, f"tf.stop_gradient({LENGTH})"),
    Mutation(
        "Q̃ of keys, not of values",
        "tf.matmul(attention, user.values)",
        "tf.matmul(attention, user.keys)",
    ),
    Mutation("s not over ‖Q̃‖", LENGTH, "flat(item.norms)"),
    Mutation("s not over ‖W'_v k‖", LENGTH, "norm(seen, user.floor)"),
    Mutation(
        "sign of s",
        "match = tf.reduce_sum(seen * flat(item.values), -1)",
        "match = -tf.reduce_sum(seen * flat(item.values), -1)",
    ),
    Mutation(
        "s with the item's keys", "seen * flat(item.values)", "seen * flat(item.keys)"
    ),
    Mutation("ω left out", "tf.reduce_sum(w.match * w.weights", "tf.reduce_sum(w.match"),
    Mutation("heads are summed, not averaged", DIVISOR, "len(ways)"),
    Mutation("directions are summed, not averaged", DIVISOR, "user.keys.shape[1]"),
    Mutation("τ_s left out", "_like(match, scale) /", "1.0 /"),
    # bidirectional.
    Mutation(
        "β of the other direction left out", BACK, "drop(tf.nn.softmax(affinity, -2))"
    ),
    Mutation("A of the other direction over user tokens", BACK, BACK.replace("-2", "-1")),
    Mutation(
        "no dropout on A of the other direction", BACK, BACK.removeprefix("drop(")[:-1]
    ),
    Mutation(
        "‖K̃‖ without A twice",
        "tf.matmul(gram, attention)",
        "tf.linalg.diag_part(gram)[..., None]",
    ),
    Mutation("other direction not over ‖K̃‖", LENGTH_BACK, "user.norms[:, :, None, None]"),
    Mutation(
        "other direction not over ‖W_v q‖",
        LENGTH_BACK,
        "_root(square, item.floor[..., None])",
    ),
    Mutation(
        "ω of the other direction left out",
        "length, user.weights[:, :, None, None]",
        "length, tf.ones_like(match)",
    ),
    Mutation(
        "no gradient through A of the other direction", BACK, f"tf.stop_gradient({BACK})"
    ),
    # What explains a score.
    Mutation("pairs without τ_s", PAIRS, PAIRS.removeprefix("scale * ")),
    Mutation("pairs not over the norms", PAIRS, PAIRS.removesuffix(" / w.length")),
    Mutation(
        "contributions without τ_s", "scale * weights * way.match", "weights * way.match"
    ),
    Mutation("Q̃ without its size", "seen * user.size[..., None, None]", "seen"),
    Mutation("K̃ without its size", "k_tilde *= item.size[..., None]", "pass"),
    Mutation("A shows padding", "matrix(way.attention * real)", "matrix(way.attention)"),
    Mutation(
        "A shows padded item tokens",
        BOTH_REAL,
        "user_real[:, :, None, None] & tf.ones_like(item_real)[..., None]",
    ),
    Mutation(
        "A shows padded user tokens",
        BOTH_REAL,
        "tf.ones_like(user_real)[:, :, None, None] & item_real[..., None]",
    ),
    # mode="article".
    Mutation("article's A not over a", "dots(k / b, q / a)", "dots(k / b, q)"),
    Mutation("article's A not over b", "dots(k / b, q / a)", "dots(k, q / a)"),
    Mutation("article's S not over b", "inner /= tf.linalg.matrix_transpose(b)", "pass"),
    Mutation(
        "article's S not over a", "transpose_a=True) / a[:, None]", "transpose_a=True)"
    ),
    Mutation(
        "R over user tokens",
        "_masked_softmax(similarity, real, -1)",
        "_masked_softmax(similarity, real, -2)",
    ),
    Mutation(
        "R at padded item tokens",
        REAL,
        REAL.replace("item_mask[", "tf.ones_like(item_mask)["),
    ),
    Mutation(
        "R at padded user tokens",
        REAL,
        REAL.replace("user_mask[", "tf.ones_like(user_mask)["),
    ),
    Mutation(
        "score is not over n", "similarity / count[:, None, None, None]", "similarity"
    ),
    Mutation("n may be 0", f"tf.maximum({COUNT}, 1.0)", COUNT),
    Mutation(
        "n counts padding", COUNT, COUNT.replace("user_mask", "tf.ones_like(user_mask)")
    ),
    Mutation(
        "F of S, not of R",
        "tf.matmul(q[:, None], weights, transpose_a=True)",
        "tf.matmul(q[:, None], similarity, transpose_a=True)",
    ),
    Mutation("F, Q̃, K̃ without their sizes", "q, k = q * q_size, k * k_size", "pass"),
    Mutation(
        "σ without its root",
        "tf.sqrt(tf.maximum(sigma, _LEAST))",
        "tf.maximum(sigma, _LEAST)",
    ),
    Mutation(
        "σ of norms, not of their squares",
        SIGMA,
        "_masked_softmax(_norm(tokens, floor), mask, -1)",
    ),
    Mutation(
        "σ over padding", SIGMA, "tf.nn.softmax(tf.reduce_sum(tf.square(tokens), -1))"
    ),
    Mutation(
        "σ of long tokens",
        "tf.minimum(size, _LONGEST / _norm(tokens, floor)[..., None])",
        "size",
    ),
    Mutation("σ may be 0", "tf.maximum(sigma, _LEAST)", "sigma"),
    Mutation("σ of tokens above 10", "_LONGEST, _LEAST = 100.0", "_LONGEST, _LEAST = 10.0"),
    Mutation("σ is above 1e-4", "_LEAST = 100.0, 1e-6", "_LEAST = 100.0, 1e-4"),
    Mutation("σ is above 1e-7", "_LEAST = 100.0, 1e-6", "_LEAST = 100.0, 1e-7"),
    # Chunks.
    Mutation(
        "the last chunk's repetitions stay", "found.concat()[:count]", "found.concat()"
    ),
    Mutation(
        "the last chunk is left out",
        "-(-count // tf.maximum(width, 1))",
        "count // tf.maximum(width, 1)",
    ),
    Mutation("chunks overlap", "i * width + offsets", "i * (width - 1) + offsets"),
    Mutation(
        "the last chunk reads past the end",
        "tf.minimum(i * width + offsets, count - 1)",
        "i * width + offsets",
    ),
    # Numbers.
    Mutation("padding times 0", ZEROED, "tokens * tf.cast(mask, tokens.dtype)[..., None]"),
    Mutation("padding as it is", ZEROED, "tokens"),
    Mutation(
        "squares may overflow",
        BOUNDED,
        "return tokens, tf.maximum(smallest, _SHARE * size)[..., 0], tf.ones_like(size)",
    ),
    Mutation(
        "no floor of a norm",
        ROOT_OF,
        "tf.sqrt(square)",
    ),
    Mutation("no floor of a norm in one", "axis=-1), floor)", "axis=-1), 0 * floor)"),
    Mutation("gradient of a norm in one: not over it", "by_norm / norm", "by_norm"),
    Mutation(
        "gradient of a norm in one: below its floor",
        "tf.where(norm > floor, by_norm / norm, 0.0)",
        "by_norm / norm",
    ),
    Mutation(
        "a norm may be small beside its set",
        "tf.maximum(smallest / size, _SHARE)",
        "(smallest / size)",
    ),
    Mutation(
        "settings pass through float32",
        "tf.convert_to_tensor(value, dtype_hint=x.dtype)",
        "tf.cast(value, tf.float32)",
    ),
    Mutation(
        "infinite float16 tokens",
        "tf.clip_by_value(tokens, dtype.min, dtype.max)",
        "tokens",
    ),
    Mutation(
        "infinite float16 gradients",
        "_finite_gradient(x) if x.dtype == tf.float16 else x",
        "x",
    ),
    Mutation("float16 as small as float32", "{tf.float16: 1e-4}", "{}"),
    Mutation("float16 is computed in float16", "if dtype != tf.float64:", "if False:"),
    Mutation("float64 is computed in float32", "if dtype != tf.float64:", "if True:"),
    # Smaller encoders.
    Mutation(
        "the student has the first blocks",
        "place * of // count for place",
        "place for place",
        "model/distillation",
    ),
    Mutation(
        "hidden states against those of the same number",
        "goals[block])) / energy",
        "goals[1])) / energy",
        "model/distillation",
    ),
    Mutation(
        "hidden states not relative", " / energy(goals[block])", "", "model/distillation"
    ),
    Mutation("hidden states not averaged", " / len(apart)", "", "model/distillation"),
    Mutation("no cosine", "+ 1 - tf.reduce_mean(cosine)", "", "model/distillation"),
    Mutation(
        "the strongest heads go", "-magnitudes(block)", "magnitudes(block)", "model/pruning"
    ),
    Mutation(
        "queries, keys and values count against a head",
        "total += _by_head",
        "total -= _by_head",
        "model/pruning",
    ),
    Mutation(
        "heads by the wrong side of their maps",
        "_by_head(weights.T, width)",
        "_by_head(weights.reshape(-1, len(weights)), width)",
        "model/pruning",
    ),
    Mutation(
        "the bias of a head is lost",
        "        _fold_bias(block, order[count:])\n",
        "",
        "model/pruning",
    ),
    Mutation(
        "the bias of a head that stays",
        "_fold_bias(block, order[count:])",
        "_fold_bias(block, order[:count])",
        "model/pruning",
    ),
    Mutation(
        "the columns of another head",
        "np.asarray(heads)[:, None] * width",
        "np.asarray(heads)[:, None]",
        "model/pruning",
    ),
    Mutation("silent heads are kept", "if heard.any():", "if False:", "model/pruning"),
    Mutation("128 levels", "LEVELS = 127", "LEVELS = 128", "model/quantization"),
    Mutation(
        "units are cut, not rounded",
        "np.round(weights / np.where(scale > 0, scale, 1))",
        "np.trunc(weights / np.where(scale > 0, scale, 1))",
        "model/quantization",
    ),
    Mutation(
        "a scale for each input of a map",
        "rounded(dense.kernel.numpy(), 0)",
        "rounded(dense.kernel.numpy(), 1)",
        "model/quantization",
    ),
    Mutation(
        "a scale for each column of the words",
        "rounded(table.numpy(), 1)",
        "rounded(table.numpy(), 0)",
        "model/quantization",
    ),
    Mutation("no bias", "* self.scale + self.bias", "* self.scale", "model/quantization"),
    Mutation(
        "words in units",
        "units * tf.gather(self.scale, ids)",
        "units",
        "model/quantization",
    ),
    # How a step learns.
    Mutation(
        "parts count alike",
        "shares = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))",
        "shares = tf.ones_like(weights) / model.parts",
        "model/gradients",
    ),
    Mutation(
        "adversary downhill",
        "return tf.stop_gradient(size *",
        "return -tf.stop_gradient(size *",
        "model/gradients",
    ),
    Mutation(
        "adversary not halved",
        "None if g is None else g / 2",
        "None if g is None else g",
        "model/gradients",
    ),
    Mutation(
        "adversary's length absolute",
        "size = length * tf.norm(vectors, axis=-1, keepdims=True)",
        "size = length",
        "model/gradients",
    ),
    Mutation(
        "R-Drop not halved",
        "total += twice / 2 *",
        "total += twice *",
        "model/recommender",
    ),
    Mutation(
        "divergence the other way",
        "tf.exp(logits) * (logits - others)",
        "tf.exp(others) * (others - logits)",
        "model/tasks",
    ),
    Mutation(
        "one divergence of two",
        "(there + back) / 2",
        "there",
        "model/recommender",
    ),
    Mutation(
        "crop one more",
        "< first[:, None], -1, history",
        "<= first[:, None], -1, history",
        "model/augmentation",
    ),
    Mutation(
        "crop behind",
        "tf.range(tf.shape(history)[1]) < first",
        "tf.range(tf.shape(history)[1]) > first",
        "model/augmentation",
    ),
    Mutation(
        "first piece lost",
        "(tf.range(tf.shape(ids)[1]) > 0)",
        "(tf.range(tf.shape(ids)[1]) >= 0)",
        "model/augmentation",
    ),
    Mutation(
        "one seed for all features",
        "seed + tf.constant([place, 0], tf.int64)",
        "seed",
        "model/augmentation",
    ),
    Mutation(
        "begins one late",
        "self.iterations >= begin",
        "self.iterations > begin",
        "training/optimizers",
    ),
    Mutation(
        "average forgets nothing",
        "return tf.minimum(self._momentum_of_average, (1 + done) / (10 + done))",
        "return self._momentum_of_average",
        "training/optimizers",
    ),
    Mutation(
        "chunks' gradients not added",
        "[a + tf.convert_to_tensor(b) for",
        "[tf.convert_to_tensor(b) for",
        "model/chunks",
    ),
    Mutation(
        "other masks in the second pass",
        "again = say(chunks[place], place)",
        "again = say(chunks[place], place + 1)",
        "model/chunks",
    ),
    Mutation(
        "turns alike",
        "stateless_fold_in(seed, 1 + turn)",
        "stateless_fold_in(seed, 1)",
        "model/texts",
    ),
    Mutation(
        "recompute drops elsewhere",
        "drop(tf.cast(found, x.dtype), after.dropout, place + 2)",
        "drop(tf.cast(found, x.dtype), after.dropout, 0)",
        "model/forward",
    ),
    Mutation(
        "decay by block from below",
        "rate * decay**below",
        "rate * decay**(top + 1 - below)",
        "model/tuning",
    ),
    # What is served.
    Mutation(
        "the last block left out",
        "lambda start, best: start < count",
        "lambda start, best: start + block < count",
        "serve/graph/nearest",
    ),
    Mutation(
        "a block forgets those before it",
        "tf.concat([best[0], values], 1), size",
        "tf.concat([tf.fill(tf.shape(best[0]), LEFT_OUT), values], 1), size",
        "serve/graph/nearest",
    ),
    Mutation(
        "rows of the sorted vectors",
        "rows = tf.gather(self.order, at)",
        "rows = at",
        "serve/graph/nearest",
    ),
    Mutation(
        "padding of lists is a vector",
        "tf.where(place >= 0, adjust(cosine, rows), LEFT_OUT)",
        "adjust(cosine, rows)",
        "serve/graph/nearest",
    ),
    Mutation(
        "never all lists",
        "tf.reduce_all(found[0] > LEFT_OUT)",
        "tf.reduce_any(found[0] > LEFT_OUT)",
        "serve/graph/nearest",
    ),
    Mutation(
        "one list more than needed",
        "of[nearest.numpy()], 1) + 1",
        "of[nearest.numpy()], 1) + 2",
        "serve/graph/nearest",
    ),
    Mutation(
        "centroids not on the sphere",
        "(means.cluster_centers_ / np.maximum(norms, 1e-12))",
        "means.cluster_centers_",
        "serve/graph/clusters",
    ),
    Mutation(
        "at most is less than",
        "(value >= low) & (value <= high)",
        "(value >= low) & (value < high)",
        "serve/graph/conditions",
    ),
    Mutation(
        "one condition is enough",
        "tf.reduce_all(none |",
        "tf.reduce_any(none |",
        "serve/graph/conditions",
    ),
    Mutation(
        "nothing is forbidden unless all is",
        "~tf.reduce_any(self.attributes",
        "~tf.reduce_all(self.attributes",
        "serve/graph/conditions",
    ),
    Mutation(
        "values of any column",
        'tf.strings.join([of, "=", ',
        'tf.strings.join([tf.fill(tf.shape(of), "kinds"), "=", ',
        "serve/graph/conditions",
    ),
    Mutation(
        "a boost once",
        "tf.reduce_sum(tf.where(met,",
        "tf.reduce_max(tf.where(met,",
        "serve/graph/conditions",
    ),
    Mutation(
        "unlike the last chosen only",
        "tf.maximum(nearest, cosine)",
        "cosine",
        "serve/graph/diversity",
    ),
    Mutation(
        "relevance not weighed",
        "(1 - share) * relevance - share * near",
        "relevance - share * near",
        "serve/graph/diversity",
    ),
    Mutation(
        "relevance not scaled",
        "tf.math.divide_no_nan(scores - low, span)",
        "scores - low",
        "serve/graph/diversity",
    ),
    Mutation(
        "slope of the likelihood",
        "chosen(values) - (np.exp(log) * values).sum(-1)",
        "(np.exp(log) * values).sum(-1) - chosen(values)",
        "evaluation/weighing",
    ),
    Mutation(
        "a gain that is not sure counts",
        "gain > error",
        "gain > 0",
        "evaluation/weighing",
    ),
    Mutation(
        "known items are candidates",
        "scale * both, -np.inf",
        "scale * both, 0.0",
        "evaluation/weighing",
    ),
    Mutation(
        "share not by the retrieval's factor",
        "float(both[1])",
        "float(both[1] * both[0])",
        "evaluation/weighing",
    ),
    Mutation(
        "share without a bound",
        "fitted(MOST)",
        "fitted(None)",
        "evaluation/weighing",
    ),
    Mutation(
        "queries count alike, not users",
        "-by_user(value).mean()",
        "-value.mean()",
        "evaluation/weighing",
    ),
]
