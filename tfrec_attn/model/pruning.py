"""Attention heads that are taken out of a BERT.

Letters: H heads of a block, w width of a head, d width of a hidden state.
"""

import re

import numpy as np
import tensorflow as tf
import tf_keras

from tfrec_attn.model import blocks, quantization


def magnitudes(block) -> np.ndarray:
    """`[H]`, the norm of the weights of each head: of its slices of the maps to queries,
    keys and values, biases included, and of the map behind the attention."""
    width = block.attention.self_attention.attention_head_size
    total = _by_head(blocks.linear(block, "attention").kernel.numpy(), width)
    for name in ("query", "key", "value"):
        linear = blocks.linear(block, name)
        for weights in (linear.kernel.numpy(), linear.bias.numpy()[None]):
            total += _by_head(weights.T, width)
    return np.sqrt(total)


def _by_head(rows: np.ndarray, width: int) -> np.ndarray:
    """`[H]`, the sum of squares of each head's rows, `[H w, ..]`."""
    return np.square(rows.astype(np.float64)).reshape(-1, width * rows.shape[1]).sum(1)


def prune(bert, count: int) -> None:
    """Leaves in each block of a BERT the `count` heads of the largest `magnitudes`.

    A head gives `(Σ_j a_j x_j W_v + b_v) W_o` with `Σ_j a_j = 1`: of one that goes, the
    part that no text changes, `b_v W_o`, goes into the bias of the map behind.

    Raises:
      ValueError: When a block has no more heads than that already, or the BERT is
        quantized.

    References:
      - Heads that can go without much loss: Michel et al., 2019, arXiv:1905.10650; by
        magnitude as weights in Han et al., 2015, arXiv:1506.02626.
    """
    quantization.require_float(bert, "pruning", "prune first and quantize what is left")
    every = bert.model.bert.encoder.layer
    least = min(block.attention.self_attention.num_attention_heads for block in every)
    if not 1 <= count < least:
        raise ValueError(
            f"--heads is how many of this BERT's {least} attention heads a block are left, "
            f"at least 1 and fewer than it has. Received: {count}."
        )
    for block in every:
        order = np.argsort(-magnitudes(block), kind="stable")
        _fold_bias(block, order[count:])
        keep(block, np.sort(order[:count]))
    # What was traced is of the maps before.
    bert.choose([])


def _fold_bias(block, heads) -> None:
    attention = block.attention.self_attention
    at = _places(heads, attention.attention_head_size)
    value, after = blocks.linear(block, "value"), blocks.linear(block, "attention")
    bias = tf.gather(value.bias, at)
    after.bias.assign_add(
        tf.linalg.matvec(tf.gather(after.kernel, at), bias, transpose_a=True)
    )


def keep(block, heads) -> None:
    """Cuts the maps of a block down to some of its heads, in this order."""
    attention = block.attention.self_attention
    if len(heads) == attention.num_attention_heads:
        return
    at = _places(heads, attention.attention_head_size)
    for name in ("query", "key", "value"):
        linear = blocks.linear(block, name)
        _replace(linear, "kernel", at, 1)
        _replace(linear, "bias", at, 0)
    after = blocks.linear(block, "attention")
    _replace(after, "kernel", at, 0)
    after.input_spec = tf_keras.layers.InputSpec(min_ndim=2, axes={-1: len(at)})
    attention.num_attention_heads = len(heads)


def _replace(linear, name: str, at, axis: int) -> None:
    was = getattr(linear, name)
    new = tf.gather(was, at, axis=axis)
    setattr(linear, name, tf.Variable(new, name=was.name.removesuffix(":0")))


def _places(heads, width: int) -> np.ndarray:
    """Where some heads are among the `H w` columns of their maps."""
    return (np.asarray(heads)[:, None] * width + np.arange(width)).reshape(-1)


def padded(name: str, value: np.ndarray, width: int) -> np.ndarray:
    """A weight in the shape it has when no head is pruned, with zeros for those that are.

    Args:
      name: By `blocks.weight_name`.
      value: The weight.
      width: d, which is that of all heads together.
    """
    if not re.search("/attention/(self|output/dense)/", name):
        return value
    return np.pad(value, [(0, width - size) for size in value.shape])


def leave_out_silent(block) -> None:
    """Cuts out the heads that the map behind the attention multiplies by 0: nobody hears
    them. So a pruned BERT is kept in a file of the usual shapes, as zeros."""
    if quantization.is_rounded(blocks.linear(block, "attention")):
        return
    width = block.attention.self_attention.attention_head_size
    heard = _by_head(blocks.linear(block, "attention").kernel.numpy(), width) > 0
    if heard.any():
        keep(block, np.flatnonzero(heard))
