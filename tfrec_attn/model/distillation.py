"""A shorter BERT that learns to say what a longer one says.

Letters: N texts, m token ids a text, T token ids of a step without padding, d width, L
blocks of the student, M blocks of the teacher.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model import quantization, tuning
from tfrec_attn.model.towers import masked_mean


def stages(count: int, of: int) -> list[int]:
    """The teacher's blocks `g(1) … g(L)` that a student's blocks stand for, `⌊l M / L⌋`:
    evenly spread, the last one for the last.

    References:
      - The uniform mapping of TinyBERT: Jiao et al., 2019, arXiv:1909.10351, section 4.
    """
    if not 1 <= count < of:
        raise ValueError(
            f"--layers is how many blocks the student has, at least 1 and fewer than the "
            f"{of} of its teacher. Received: {count}."
        )
    return [place * of // count for place in range(1, count + 1)]


def student(teacher, count: int):
    """The embeddings of the teacher and `count` of its blocks, which alone are trained.

    Raises:
      ValueError: When the teacher has no more blocks than that, or is quantized.

    References:
      - DistilBERT: Sanh et al., 2019, arXiv:1910.01108, section 3, which takes every other
        block.
    """
    quantization.require_float(teacher, "distillation", "distil first and quantize then")
    chosen = stages(count, len(teacher.model.bert.encoder.layer))
    made = bert_lib.shorter(teacher, [block - 1 for block in chosen])
    tuning.tune(made, f"last:{count}")
    return made


def loss(teacher, student, ids):
    """How far a student is from its teacher, over some texts.

    `1/L Σ_l ‖H_l − G_g(l)‖² / ‖G_g(l)‖²  +  1 − cos(h, g)`, with H and G `[T, d]` the
    hidden states of all pieces, h and g the means of a text's last ones, and the mean
    cosine of all texts. Widths are the same: TinyBERT's W_h is the identity.

    Args:
      teacher, student: From `bert.load` and `student`.
      ids: `[N, m]`, padded behind.

    References:
      - Hidden states: TinyBERT's L_hidn, Jiao et al., 2019, arXiv:1909.10351, section 3.1,
        here relative to their size, as blocks differ in it.
      - The cosine: DistilBERT's L_cos, Sanh et al., 2019, arXiv:1910.01108, section 2.
    """
    theirs, goals = teacher.with_states(ids)
    # Without dropout: the same texts are to give the same states.
    mine, states = student.with_states(ids)
    energy = lambda x: tf.reduce_sum(tf.square(x))
    chosen = stages(len(states) - 1, len(goals) - 1)
    apart = [
        energy(state - tf.stop_gradient(goals[block])) / energy(goals[block])
        for state, block in zip(states[1:], chosen, strict=True)
    ]
    real = ids != teacher.pad_id
    means = (tf.math.l2_normalize(masked_mean(x, real), -1) for x in (theirs, mine))
    cosine = tf.reduce_sum(tf.multiply(*means), -1)
    return tf.add_n(apart) / len(apart) + 1 - tf.reduce_mean(cosine)


def learn(
    teacher,
    student,
    ids: np.ndarray,
    *,
    optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> None:
    """Trains the student's blocks on texts.

    Args:
      teacher, student: As of `loss`.
      ids: `[N, m]` of the texts.
      optimizer: A Keras optimizer.
      epochs, batch_size: Passes over the texts, and texts of a step.
      seed: Of their order.
      after_epoch: Called with the number of the epoch, from 1, and its mean loss.

    Raises:
      FloatingPointError: When the loss is not finite.
    """
    weights = student.trainable_weights
    optimizer.build(weights)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False)
    def step(batch):
        with tf.GradientTape() as tape:
            value = loss(teacher, student, batch)
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))
        return value

    lengths, draw = (ids != teacher.pad_id).sum(1), np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        order, losses = draw.permutation(len(ids)), []
        for start in range(0, len(ids), batch_size):
            rows = order[start : start + batch_size]
            losses.append(float(step(ids[rows, : lengths[rows].max()])))
        mean = float(np.mean(losses))
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"The loss of epoch {epoch} is {mean}: lower --learning-rate."
            )
        after_epoch(epoch, mean)
