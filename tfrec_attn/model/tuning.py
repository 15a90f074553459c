"""What of a BERT is trained: all of it, its last blocks, its biases, or little that stands
beside its maps.

Letters: B texts, m token ids a text, d width of what goes in, e of what comes out, r rank,
p length of a prefix, w width of an adapter.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.model import blocks, quantization
from tfrec_attn.settings.sections import TUNINGS


class Beside(tf_keras.layers.Layer):
    """A map `x W + b` of the checkpoint, and what is learned beside it.

    Args:
      dense: The map, which stays as it is.
      size: r, w or p.
      seed: Of the start.
    """

    def __init__(self, dense, size: int, seed: int):
        super().__init__(name=dense.name)
        self.dense, self.size, self.seed = dense, size, seed
        self.width, self.out = dense.kernel.shape
        self.built = True

    def _new(self, name: str, shape, start="zeros"):
        return self.add_weight(name, shape, initializer=start)

    def _normal(self, deviation: float, stream: int = 0):
        return tf_keras.initializers.RandomNormal(stddev=deviation, seed=self.seed + stream)


class LowRank(Beside):
    """`x W + b + s x A B`: a change of rank r, 0 at the start. s is 2.

    References:
      - LoRA: Hu et al., 2021, arXiv:2106.09685, equation 3, on the maps to queries and
        values (section 4.2), with α = 2 r.
    """

    scale = 2.0

    def __init__(self, dense, size: int, seed: int):
        super().__init__(dense, size, seed)
        start = self._normal(self.width**-0.5)
        self.a = self._new("lora_a", (self.width, size), start)
        self.b = self._new("lora_b", (size, self.out))

    def call(self, inputs):
        return self.dense(inputs) + self.scale * tf.matmul(
            tf.matmul(inputs, self.a), self.b
        )

    def change(self):
        """`[d, e]`, what is added to W."""
        return self.scale * tf.matmul(self.a, self.b)


class Singular(Beside):
    """`x W + b + x P diag(λ) Q`: a change whose rank can be cut, 0 at the start.

    P and Q are kept near orthogonal, so that a λ says how much its direction counts. Half
    as many directions again as are wanted in the end are begun with; see `cut`.

    References:
      - AdaLoRA: Zhang et al., 2023, arXiv:2303.10512, equations 3 and 4.
    """

    penalty = 0.1

    def __init__(self, dense, size: int, seed: int):
        super().__init__(dense, math.ceil(1.5 * size), seed)
        self.aim = size
        starts = self._normal(self.width**-0.5), self._normal(self.out**-0.5, 1)
        self.p = self._new("adalora_p", (self.width, self.size), starts[0])
        self.q = self._new("adalora_q", (self.size, self.out), starts[1])
        self.values = self._new("adalora_values", (self.size,))
        self.add_loss(self._skew)

    def call(self, inputs):
        inner = tf.matmul(inputs, self.p) * self.values
        return self.dense(inputs) + tf.matmul(inner, self.q)

    def change(self):
        """`[d, e]`, what is added to W."""
        return tf.matmul(self.p * self.values, self.q)

    def _skew(self):
        grams = (
            tf.matmul(self.p, self.p, transpose_a=True),
            tf.matmul(self.q, self.q, transpose_b=True),
        )
        unit = tf.eye(self.size)
        return self.penalty * sum(tf.reduce_sum(tf.square(g - unit)) for g in grams)


class Adapter(Beside):
    """`y + gelu(y D) U` of `y = x W + b`: a bottleneck, 0 at the start.

    References:
      - Houlsby et al., 2019, arXiv:1902.00751, behind both sublayers of a block.
    """

    def __init__(self, dense, size: int, seed: int):
        super().__init__(dense, size, seed)
        start = self._normal(self.out**-0.5)
        self.down = self._new("adapter_down", (self.out, size), start)
        self.down_bias = self._new("adapter_down_bias", (size,))
        self.up = self._new("adapter_up", (size, self.out))
        self.up_bias = self._new("adapter_up_bias", (self.out,))

    def call(self, inputs):
        y = self.dense(inputs)
        hidden = tf.nn.gelu(tf.matmul(y, self.down) + self.down_bias)
        return y + tf.matmul(hidden, self.up) + self.up_bias


class Prefix(Beside):
    """p learned keys, or values `[p, e]`, which `bert` puts before those of each text.

    References:
      - Li and Liang, 2021, arXiv:2101.00190; without their reparametrization, which is
        thrown away after training.
    """

    def __init__(self, dense, size: int, seed: int):
        super().__init__(dense, size, seed)
        self.prefix = self._new("prefix", (size, self.out), self._normal(0.02))

    def call(self, inputs):
        return self.dense(inputs)


# What a method puts beside which maps of a block.
_BESIDE: dict[str, tuple[type[Beside], tuple[str, ...]]] = {
    "lora": (LowRank, ("query", "value")),
    "adalora": (Singular, tuple(blocks.MAPS)),
    "adapter": (Adapter, ("attention", "down")),
    "prefix": (Prefix, ("key", "value")),
}


# What is a change of a map's own weights.
_MERGED = LowRank, Singular


def tune(bert, method: str, *, size: int = 8, seed: int = 0) -> None:
    """Makes a frozen BERT trainable, in one of the ways of `sections.Bert`.

    Args:
      bert: From `bert.load`, as it was loaded.
      method: `frozen`; `last:2` for the last two blocks; `all`; `bitfit` for the biases;
        or what `lora`, `adalora`, `adapter` or `prefix` puts beside the maps.
      size: Rank, width of an adapter, or length of a prefix.
      seed: Of what is put there.

    Raises:
      ValueError: When the method is none of these, N is not among the blocks, or the BERT
        is quantized.

    References:
      - BitFit: Ben Zaken et al., 2021, arXiv:2106.10199.
    """
    every = bert.model.bert.encoder.layer
    if method != "frozen":
        quantization.require_float(bert, f"bert.tuning={method}", "set bert.tuning=frozen")
    if method == "frozen":
        chosen: list[Any] = []
    elif method == "all":
        chosen = bert.variables
    elif method == "bitfit":
        chosen = [
            v for v in bert.variables if blocks.weight_name(v).endswith(("bias", "beta"))
        ]
    elif method in _BESIDE:
        kind, maps = _BESIDE[method]
        chosen = []
        for number, block in enumerate(every):
            for place, name in enumerate(maps):
                owner, attribute = blocks.owner(block, name)
                start = seed + 10 * (number * len(maps) + place)
                beside = kind(getattr(owner, attribute), size, start)
                setattr(owner, attribute, beside)
                chosen += beside._trainable_weights
    else:
        chosen = [v for block in _last(method, every) for v in block.variables]
    bert.choose(chosen)


def _last(method: str, every):
    found = re.fullmatch(r"last:(\d+)", method)
    if not found:
        raise ValueError(
            f"bert.tuning is {', '.join(TUNINGS)}, or last:N. Received: {method!r}."
        )
    count = int(found[1])
    if not 1 <= count <= len(every):
        raise ValueError(
            f"bert.tuning=last:N trains the last N of this BERT's {len(every)} blocks. "
            f"Received: {method!r}."
        )
    return every[-count:]


def beside(bert) -> Iterator[tuple[str, Any, str, Beside]]:
    """All that `tune` put there: its name, the layer and attribute it hangs on, itself."""
    for number, block in enumerate(bert.model.bert.encoder.layer):
        for name in blocks.MAPS:
            owner, attribute = blocks.owner(block, name)
            if isinstance(found := getattr(owner, attribute), Beside):
                yield f"layer_{number}/{name}", owner, attribute, found


def merge(bert) -> None:
    """Adds changes of low rank to the maps themselves, and leaves these frozen and plain.

    Raises:
      ValueError: When what stands beside a map is none of its weights.
    """
    for _, owner, attribute, found in list(beside(bert)):
        if not isinstance(found, _MERGED):
            raise ValueError(
                f"{type(found).__name__} layers are no part of a map, so that they cannot "
                "be merged into it: keep what `delta` gives beside the checkpoint."
            )
        found.dense.kernel.assign_add(found.change())
        setattr(owner, attribute, found.dense)
    bert.choose([])


def cut(layers: Sequence[Singular], count: int, felt) -> None:
    """Leaves the `count` directions of all layers that are felt most, and sets the λ of the
    others to 0, from where they may come back.

    Args:
      felt: Gives what each weight of a variable is felt, of its shape; a direction is its λ
        and the means of its column of P and its row of Q.

    References:
      - Zhang et al., 2023, arXiv:2303.10512, equations 6 and 7.
    """
    scores = [
        felt(layer.values)
        + tf.reduce_mean(felt(layer.p), 0)
        + tf.reduce_mean(felt(layer.q), 1)
        for layer in layers
    ]
    order = tf.argsort(tf.concat(scores, 0), direction="DESCENDING", stable=True)
    keep = tf.scatter_nd(order[:count, None], tf.ones(count), tf.shape(order))
    sizes = [layer.size for layer in layers]
    for layer, kept in zip(layers, tf.split(keep, sizes), strict=True):
        layer.values.assign(layer.values * kept)


def ranked(bert) -> list[Singular]:
    """The layers of an AdaLoRA."""
    return [found for *_, found in beside(bert) if isinstance(found, Singular)]


def directions(layers: Sequence[Singular]) -> int:
    """How many keep their λ, of all layers together."""
    return sum(int(np.count_nonzero(layer.values.numpy())) for layer in layers)


def can_merge(bert) -> bool:
    """Whether a plain BERT can say the same."""
    return all(isinstance(found, _MERGED) for *_, found in beside(bert))


def delta(bert) -> dict[str, np.ndarray]:
    """What a tuned BERT differs by from its checkpoint, by name."""
    return {name: variable.numpy() for name, variable in _named(bert).items()}


def apply(bert, values: Mapping[str, np.ndarray]) -> None:
    """Gives a BERT that was tuned the same way what `delta` kept of another.

    Raises:
      ValueError: When the names or shapes are those of another BERT or method.
    """
    named = _named(bert)
    shapes = [{n: tuple(v.shape) for n, v in kept.items()} for kept in (named, values)]
    if shapes[0] != shapes[1]:
        name = min(n for n, _ in shapes[0].items() ^ shapes[1].items())
        mine, other = (kept.get(name, "missing") for kept in shapes)
        raise ValueError(
            f"The delta is of another BERT or another tuning: {name} is {other} there, and "
            f"here {mine}."
        )
    for name, variable in named.items():
        variable.assign(values[name])


def kept(bert) -> list[tf.Variable]:
    """The variables behind `delta`."""
    return list(_named(bert).values())


def count(bert) -> str:
    """How many weights train, of how many of the checkpoint, in words."""
    size = lambda variables: sum(int(np.prod(v.shape)) for v in variables)
    trained, added = size(bert.trainable_weights), size(_added(bert).values())
    share = trained / (size(bert.variables) - added)
    return f"{trained:,} weights of BERT train ({share:.2%})"


class Rate(NamedTuple):
    """How a variable trains: its peak learning rate, and how many blocks are above it."""

    variable: tf.Variable
    peak: float
    below: int


def rates(bert, rate: float, decay: float) -> list[Rate]:
    """What trains and its rate: each block's is `decay` times that of the block above.

    References:
      - Howard and Ruder, 2018, arXiv:1801.06146, section 3.2 (discriminative fine-tuning).
    """
    top = len(bert.model.bert.encoder.layer) - 1
    found = []
    for name, variable in _named(bert).items():
        block = re.search(r"layer_(?:\._)?(\d+)/", name)
        below = top - int(block[1]) if block else top + 1
        found.append(Rate(variable, rate * decay**below, below))
    return [one for one in found if one.variable.trainable]


def _named(bert) -> dict[str, tf.Variable]:
    added = _added(bert)
    new = {id(variable) for variable in added.values()}
    of_checkpoint = (v for v in bert.trainable_weights if id(v) not in new)
    return {blocks.weight_name(v): v for v in of_checkpoint} | added


def _added(bert) -> dict[str, tf.Variable]:
    """What stands beside the maps, by place and name."""
    added: dict[str, tf.Variable] = {}
    for name, _, _, found in beside(bert):
        own = found._trainable_weights
        added |= {f"{name}/{v.name.removesuffix(':0')}": v for v in own}
    return added
