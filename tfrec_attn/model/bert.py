"""A BERT checkpoint as a layer from token ids to hidden states, and its bulk use.

The only module that imports transformers. Letters: B texts, m token ids a text, d width.
"""

import contextlib
import copy
import functools
import logging
import pathlib
import re
import shutil

import numpy as np
import tensorflow as tf
import tf_keras
from safetensors import numpy as safetensors

from tfrec_attn import backbones
from tfrec_attn.keras_binding import on_legacy_keras
from tfrec_attn.model import blocks, forward, pruning, quantization

transformers = on_legacy_keras("transformers")

_log = logging.getLogger(__name__)

# What transformers says of every checkpoint, good or bad, where `_check_weights` tells them
# apart.
_KNOWN_MESSAGES = (
    "TensorFlow and JAX classes are deprecated",
    "Some weights of the PyTorch model were not used",
    "Some weights or buffers of the TF 2.0 model TFBertModel were not initialized",
    "Some weights of TFBertModel were not initialized",
    "Some layers of TFBertModel were not initialized",
    "All PyTorch model weights were used",
    "All the weights of TFBertModel were initialized",
    "Some layers from the model checkpoint at",
    "All model checkpoint layers were used",
    "All the layers of TFBertModel were initialized",
)
_UNUSED_HEADS = re.compile(
    r"pooler|position_ids|^cls[./]|/cls/|nsp___cls|mlm___cls|^global_step$|/adam_[mv]$"
)


class Bert(tf_keras.layers.Layer):
    """Hidden states of a BERT without its pooler.

    Call it with `[B, m]` ids padded with `pad_id`, and in training with the seed `[2]` of
    its dropout, which is drawn where there is none; the `[B, m, d]` float32 result is 0 at
    padded positions, which take no part in anything.

    Attributes:
      model: The `TFBertModel` inside.
      width: d.
      max_length: Longest row of ids that the checkpoint has positions for.
      vocab_size: Ids are below it.
      pad_id: Id that is not a token.
      recompute: Whether the backward pass computes each block again, see `forward`.
      xla: Whether training compiles it, for ids of a static shape.
    """

    def __init__(self, model, *, trainable=False):
        # Where its maps compute in half precision, the rest does not.
        super().__init__(name="bert", trainable=trainable, dtype="float32")
        self.model = model
        self.model.trainable = trainable
        self.width = model.config.hidden_size
        self.max_length = model.config.max_position_embeddings
        self.vocab_size = model.config.vocab_size
        self.pad_id = model.config.pad_token_id
        self.recompute = self.xla = False
        self._chosen = None

    def choose(self, variables):
        """Only these are trained from now on; said again where a map was replaced."""
        self._chosen = {id(variable) for variable in variables}
        for graph in ("traced", "_compiled"):
            self.__dict__.pop(graph, None)
        self.trainable = self.model.trainable = bool(self._chosen)

    @property
    def trainable_weights(self):
        weights = super().trainable_weights
        if self._chosen is None:
            return weights
        return [weight for weight in weights if id(weight) in self._chosen]

    @property
    def non_trainable_weights(self):
        chosen = {id(weight) for weight in self.trainable_weights}
        weights = super().trainable_weights + super().non_trainable_weights
        return [weight for weight in weights if id(weight) not in chosen]

    @functools.cached_property
    def traced(self):
        """The layer as a graph, which takes half a second to make. In a lambda, as what a
        layer holds as a graph is saved with it."""
        ids = tf.TensorSpec([None, None], tf.int32)
        graph = tf.function(self, input_signature=[ids], autograph=False)
        return lambda ids: graph(ids)

    def call(self, ids, training=False, seed=None):
        if ids.shape[1] is not None:
            _check_length(ids.shape[1], self.max_length)
        # A frozen BERT has no dropout either, whatever trains above it.
        if not (training and self.trainable):
            return self.with_states(ids)[0]
        run = self._compiled if self.xla else self._trained
        return self._masked(ids, run(ids, self._real(ids), forward.Dropout(seed).seed))

    def with_states(self, ids):
        """What a call gives; and the hidden states `[T, d]` of all pieces, one text behind
        the other, before the first block and after each."""
        texts = forward.Packed(self._real(ids))
        states = forward.states(self.model, ids, texts)
        return self._masked(ids, texts.unpack(states[-1])), states

    def _real(self, ids):
        """The first place of a text counts as a piece, so that no text has none."""
        return (ids != self.pad_id) | (tf.range(tf.shape(ids)[1]) == 0)

    def _masked(self, ids, hidden):
        return tf.where((ids != self.pad_id)[..., None], tf.cast(hidden, tf.float32), 0.0)

    def _trained(self, ids, real, seed, kind=forward.Packed):
        texts, drop = kind(real), forward.Dropout(seed)
        return texts.unpack(
            forward.states(self.model, ids, texts, drop, self.recompute)[-1]
        )

    @functools.cached_property
    def _compiled(self):
        run = functools.partial(self._trained, kind=forward.Padded)
        graph = tf.function(run, jit_compile=True, autograph=False)
        return lambda *given: graph(*given)


def _check_length(length, limit):
    if length > limit:
        raise ValueError(
            f"This BERT has positions for {limit} ids a text: got {length}. "
            f"Lower max_length of the tokenizer to {limit}."
        )


def load(folder, *, trainable=False):
    """Reads a BERT folder: `config.json` with `model.safetensors` or `tf_model.h5`, or a
    checkpoint as Google released it, `bert_config.json` with `bert_model.ckpt`.

    Safetensors written by PyTorch are read without torch. Every weight must come from the
    file: what is missing or of another shape is a ValueError, never a random start. Heads
    that are pruned, zero in the file, are left out; what is quantized there stays int8.

    Args:
      folder: As `save_pretrained` writes it.
      trainable: False freezes the weights and leaves dropout off.

    Raises:
      ValueError: The folder is no BERT with weights that TensorFlow reads, or a weight is
        missing or of another shape than `config.json` says.
    """
    folder = pathlib.Path(folder)
    backbones.check_weights(folder)
    read = _read_saved
    if backbones.is_google(folder):
        read = _read_google
    elif backbones.is_quantized(folder):
        read = _read_quantized
    with _without_known_messages():
        model, info = read(folder)
    _check_weights(folder, info)
    for block in model.bert.encoder.layer:
        pruning.leave_out_silent(block)
    bert = Bert(model, trainable=trainable)
    if trainable:
        quantization.require_float(bert, "training", "leave it frozen")
    return bert


def _read_saved(folder):
    return transformers.TFBertModel.from_pretrained(
        str(folder),
        add_pooling_layer=False,
        local_files_only=True,
        # Its own check fails while raising; `_check_weights` does it.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )


def _read_google(folder):
    """The same by the names that weights had in TensorFlow 1."""
    config = transformers.BertConfig.from_json_file(folder / backbones.GOOGLE_CONFIG)
    model = _empty(config)
    reader = tf.train.load_checkpoint(str(folder / backbones.GOOGLE))
    shapes = reader.get_variable_to_shape_map()
    # `encoder/layer_._0/…/kernel`, `embeddings/word_embeddings/weight`.
    named = {
        re.sub(r"(_embeddings)/\w+$", r"\1", f"bert/{name.replace('_._', '_')}"): variable
        for name, variable in blocks.weights(model).items()
    }
    return model, _filled(named, shapes, reader.get_tensor)


def _read_quantized(folder):
    """The same by our own names, of an encoder that is made int8 before it is filled."""
    model = _empty(transformers.BertConfig.from_pretrained(str(folder)))
    values = safetensors.load_file(folder / backbones.QUANTIZED)
    for number, block in enumerate(model.bert.encoder.layer):
        attention = block.attention.self_attention
        query = values.get(f"encoder/layer_._{number}/attention/self/query/kernel")
        if query is not None:
            left = query.shape[-1] // attention.attention_head_size
            pruning.keep(block, range(left))
    quantization.quantize(model)
    shapes = {name: list(value.shape) for name, value in values.items()}
    return model, _filled(blocks.weights(model), shapes, values.__getitem__)


def _empty(config):
    model = transformers.TFBertModel(config, add_pooling_layer=False)
    model.build_in_name_scope()
    return model


def _filled(named, shapes, value_of):
    """Gives variables the values of a file, all or none; and says what did not fit."""
    other = [
        (name, shapes[name], variable.shape)
        for name, variable in named.items()
        if name in shapes and shapes[name] != variable.shape
    ]
    info = {
        "missing_keys": sorted(named.keys() - shapes),
        "mismatched_keys": other,
        "unexpected_keys": sorted(shapes.keys() - named),
    }
    if not info["missing_keys"] and not other:
        for name, variable in named.items():
            variable.assign(value_of(name))
    return info


def shorter(bert, chosen):
    """A frozen BERT of some of the blocks of another, and its embeddings.

    Args:
      bert: From `load`.
      chosen: Numbers of the blocks, from 0.
    """
    config = copy.deepcopy(bert.model.config)
    config.num_hidden_layers = len(chosen)
    model = _empty(config)
    every = bert.model.bert.encoder.layer
    named = blocks.weights(bert.model)
    for block, number in zip(model.bert.encoder.layer, chosen, strict=True):
        heads = every[number].attention.self_attention.num_attention_heads
        pruning.keep(block, range(heads))
    for name, variable in blocks.weights(model).items():
        found = re.match(r"encoder/layer_\._(\d+)/(.*)", name)
        if found:
            name = f"encoder/layer_._{chosen[int(found[1])]}/{found[2]}"
        variable.assign(named[name])
    return Bert(model)


def save(bert, folder, *, like):
    """Writes a BERT folder that `load` reads, with the tokenizer of another, `like`.

    Other programs read it as any that PyTorch wrote, with pruned heads as zeros; of a
    quantized one they find no weights.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(bert.model.config)
    config.architectures = ["BertModel"]
    values = {name: v.numpy() for name, v in blocks.weights(bert.model).items()}
    file = backbones.QUANTIZED
    if not quantization.is_quantized(bert.model):
        file = "model.safetensors"
        whole = lambda name, value: pruning.padded(name, value, bert.width)
        values = dict(_torch(name, whole(name, value)) for name, value in values.items())
    config.save_pretrained(folder)
    safetensors.save_file(values, folder / file, {"format": "pt"})
    for name in backbones.TOKENIZER:
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)


def _torch(name, value):
    """A weight by the name, and with the axes, that it has in PyTorch."""
    *path, last = name.replace("layer_._", "layer/").split("/")
    last = {"kernel": "weight", "gamma": "weight", "embeddings": "weight"}.get(last, last)
    if name.endswith("/kernel"):
        value = np.ascontiguousarray(value.T)
    return ".".join([*path, "bias" if last == "beta" else last]), value


def _check_weights(folder, info):
    missing = info["missing_keys"]
    if missing:
        raise ValueError(
            f"{folder}: every weight of the BERT must be in the file: "
            f"{len(missing)} are missing, as {missing[0]}. "
            "Check that the config belongs to the weights."
        )
    if info["mismatched_keys"]:
        name, found, needed = info["mismatched_keys"][0]
        raise ValueError(
            f"{folder}: {name} must have the shape {tuple(needed)} by the config: "
            f"got {tuple(found)}. Check that config.json belongs to the weights."
        )
    leftover = [key for key in info["unexpected_keys"] if not _UNUSED_HEADS.search(key)]
    if leftover:
        _log.warning("%s: weights that a BERT has no place for: %s", folder, leftover)


@contextlib.contextmanager
def _without_known_messages():
    def unknown(record):
        return not record.getMessage().startswith(_KNOWN_MESSAGES)

    names = ("modeling_tf_utils", "modeling_tf_pytorch_utils")
    loggers = [logging.getLogger(f"transformers.{name}") for name in names]
    for logger in loggers:
        logger.addFilter(unknown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(unknown)


def encode(bert, ids, *, pieces=4096, dtype=np.float32, progress=None):
    """Hidden states of many texts, in bulk and without training.

    Texts are taken by length and each batch is cut to its longest, so padding costs
    little; equal rows are computed once.

    Args:
      bert: From `load`.
      ids: `[N, m]` integers on the host, padded behind with `bert.pad_id`.
      pieces: Token ids a step, padding included: bounds its memory. One text is taken in
        any case.
      dtype: Of the result; np.float16 halves the memory.
      progress: Called with the number of texts done since its last call.

    Returns:
      `[N, m, d]` array, zero at padded positions.
    """
    ids = np.asarray(ids, np.int32)
    _, first, row_of = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    original = first[row_of.reshape(-1)]
    lengths = (ids != bert.pad_id).sum(axis=1)
    _check_length(lengths.max(initial=0), bert.max_length)
    hidden = np.zeros((*ids.shape, bert.width), dtype)
    order = first[np.argsort(lengths[first], kind="stable")]
    for rows in _batches(order, lengths, pieces):
        batch = ids[rows, : lengths[rows[-1]]]
        hidden[rows, : batch.shape[1]] = bert.traced(batch)
        if progress is not None:
            progress(len(rows))
    repeated = np.flatnonzero(original != np.arange(len(ids)))
    hidden[repeated] = hidden[original[repeated]]
    if progress is not None and len(repeated):
        progress(len(repeated))
    return hidden


def _batches(order, lengths, pieces):
    """Parts of `order`, which goes by length, of at most so many pieces."""
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= pieces:
            stop += 1
        yield order[start:stop]
        start = stop
