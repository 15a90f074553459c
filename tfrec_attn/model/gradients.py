"""The gradient of a step of the optimizer: over the parts of a batch, and against an
adversary."""

from collections.abc import Iterator

import tensorflow as tf


def of(model, batch, variables):
    """Of a model's objective over a batch, whose parts pass one after another.

    Each part counts by its share of the batch's positive targets. So of the retrieval it is
    the gradient of the whole batch, where a part holds whole groups of targets.

    Args:
      model: See `Recommender`.
      batch: Of one replica; see `data.batches.gather`.
      variables: What trains.

    Returns:
      The objective, and its gradient by each variable, None where it has none; times the
      optimizer's loss scale, where it has one.
    """
    if model.parts == 1:
        return _of_part(model, batch, variables)
    total, found = 0.0, None
    for part, share in _parts(model, batch):
        # Not begun before the one before is done and its memory free.
        done = [g for g in found or () if g is not None]
        with tf.control_dependencies(done):
            part = {name: tf.identity(value) for name, value in part.items()}
            loss, more = _of_part(model, part, variables, share)
            total += loss
            found = more if found is None else [*map(_added, found, more)]
    return total, found


def _parts(model, batch) -> Iterator[tuple[dict, tf.Tensor]]:
    """Equal parts of a batch, and the share of each in the positive targets of all
    replicas."""
    size = batch["user"].shape[0] // model.parts
    parts = [
        {name: value[start : start + size] for name, value in batch.items()}
        for start in range(0, size * model.parts, size)
    ]
    weights = tf.stack([tf.reduce_sum(model.positive(part)) for part in parts])
    context = tf.distribute.get_replica_context()
    weights = context.all_reduce(tf.distribute.ReduceOp.SUM, weights)
    shares = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
    yield from zip(parts, tf.unstack(shares), strict=True)


def _of_part(model, part, variables, share=None):
    scaled = lambda loss: loss if share is None else loss * share
    # The gradient of the loss times a number begins with that number.
    scale = getattr(getattr(model, "optimizer", None), "loss_scale", None)
    with tf.GradientTape() as tape:
        loss, vectors = model.objective(part)
        loss = scaled(loss)
    length = model.regularization.adversarial
    if not length or model.stage == "ranking":
        return loss, tape.gradient(loss, variables, scale)
    *found, felt = tape.gradient(loss, [*variables, vectors], scale)
    with tf.GradientTape() as tape:
        moved, _ = model.objective(part, _worst(vectors, felt, length))
        moved = scaled(moved)
    more = tape.gradient(moved, variables, scale)
    both = [None if g is None else g / 2 for g in map(_added, found, more)]
    return (loss + moved) / 2, both


def _worst(vectors, felt, length: float):
    """By what `[U, d]` vectors have to be moved for the loss to rise most, each by a part
    of its own length: `r = ε |v| g / |g|`.

    References:
      - FGM: Miyato et al., 2017, arXiv:1605.07725, equation 5; of the vectors of items: He
        et al., 2018, arXiv:1808.03908 (APR), equation 8.
    """
    size = length * tf.norm(vectors, axis=-1, keepdims=True)
    return tf.stop_gradient(size * tf.math.l2_normalize(felt, -1))


def _added(one, other):
    if one is None or other is None:
        return one if other is None else other
    return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)
