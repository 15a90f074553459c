"""How weights move: AdamW, its schedule, and what is different for a trained BERT."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from tfrec_attn.model import tuning
from tfrec_attn.model.texts import Live


def make(
    settings: Any, steps: int, live: Live | None, *, average: float = 0.0, every: int = 0
) -> "AdamW":
    """The optimizer of a stage; a BERT has rates of its own and is not pulled to 0.

    Args:
      settings: See `sections.Train`.
      steps: Of the stage.
      live: The BERT that is trained in it.
      average: Decay of the weights' moving average; 0 for none.
      every: Steps after which a block of that BERT begins, once the one above it has.

    References:
      - Howard and Ruder, 2018, arXiv:1801.06146, section 3.3 (gradual unfreezing).
    """
    rates = live.rates if live else []
    made = AdamW(
        schedule(steps, settings),
        shares=[
            (one.variable, one.peak / settings.learning_rate, every * one.below)
            for one in rates
        ],
        felt=[
            weight
            for layer in (tuning.ranked(live.bert) if live else ())
            for weight in (layer.p, layer.values, layer.q)
        ],
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.clip,
        use_ema=average > 0,
        ema_momentum=average,
    )
    made.exclude_from_weight_decay([one.variable for one in rates])
    return made


def schedule(
    steps: int, settings: Any
) -> tf_keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step: up in a line, then down as a cosine to a twentieth."""
    return tf_keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, int(steps * (1 - settings.warmup))),
        alpha=0.05,
        warmup_target=settings.learning_rate,
        warmup_steps=max(1, int(steps * settings.warmup)),
    )


def adam(model) -> "AdamW":
    """The optimizer of a compiled model, without what scales its loss."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


@contextlib.contextmanager
def averaged(model) -> Iterator[None]:
    """A compiled model with the moving averages of its weights, where they are kept."""
    optimizer = adam(model)
    if not optimizer.use_ema:
        yield
        return
    kept = [(variable, variable.numpy()) for variable in model.trainable_variables]
    optimizer.finalize_variable_values([variable for variable, _ in kept])
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


class AdamW(tf_keras.optimizers.AdamW):
    """With less, or more, than the scheduled rate for some variables, a measure of how much
    the loss would change without a weight, the gradient's norm before it was clipped, and a
    variable's step as one kernel.

    Args:
      rate: The schedule.
      shares: Variables, their factors of the rate, and the step at which they begin; all
        others have 1 and 0.
      felt: Variables whose weights' `sensitivity` is wanted.

    References:
      - Sensitivity, smoothed, times its uncertainty: Zhang et al., 2023, arXiv:2303.10512
        (AdaLoRA), equations 8 to 10.
    """

    smoothing = 0.85

    def __init__(self, rate, *, shares=(), felt=(), **kwargs):
        super().__init__(rate, **kwargs)
        self._shares = {self._var_key(variable): rest for variable, *rest in shares}
        self._felt, self._slots = list(felt), {}
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        norm = tf.Variable(0.0, trainable=False, aggregation=first, name="gradient_norm")
        # A tracked variable would be missed in the checkpoints of earlier runs.
        self.gradient_norm = lambda: norm

    def _clip_gradients(self, grads):
        """What Keras does; the norm that it needs for it is kept in `gradient_norm`."""
        if not self.global_clipnorm:
            return super()._clip_gradients(grads)
        clipped, norm = tf.clip_by_global_norm(grads, self.global_clipnorm)
        self.gradient_norm().assign(norm)
        return clipped

    @property
    def ema_momentum(self):
        """Of the weights' moving average, so that it forgets where they began.

        References:
          - `num_updates` of `tf.train.ExponentialMovingAverage`.
        """
        done = tf.cast(self.iterations, tf.float32)
        return tf.minimum(self._momentum_of_average, (1 + done) / (10 + done))

    @ema_momentum.setter
    def ema_momentum(self, value):
        self._momentum_of_average = value

    def build(self, variables):
        super().build(variables)
        for variable in self._felt if not self._slots else ():
            self._slots[self._var_key(variable)] = [
                self.add_variable_from_reference(variable, name)
                for name in ("sensitivity", "uncertainty")
            ]

    def update_step(self, gradient, variable):
        if slots := self._slots.get(self._var_key(variable)):
            felt = tf.abs(variable * gradient)
            mean, spread = slots
            smooth = lambda kept, new: kept.assign(
                self.smoothing * kept + (1 - self.smoothing) * new
            )
            smooth(mean, felt)
            smooth(spread, tf.abs(felt - mean))
        real = lambda value: tf.cast(value, variable.dtype)
        step, beta1, beta2 = map(real, (self.iterations + 1, self.beta_1, self.beta_2))
        place = self._index_dict[self._var_key(variable)]
        # What Keras does, whose ten passes take longer than BERT itself on its words.
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].handle,
            v=self._velocities[place].handle,
            beta1_power=beta1**step,
            beta2_power=beta2**step,
            lr=real(self._rate(variable)),
            beta1=beta1,
            beta2=beta2,
            epsilon=real(self.epsilon),
            grad=tf.convert_to_tensor(gradient),
        )

    def _rate(self, variable):
        """Of this step."""
        share, begin = self._shares.get(self._var_key(variable), (1.0, 0))
        rate = self.learning_rate * share
        return tf.where(self.iterations >= begin, rate, 0.0) if begin else rate

    def sensitivity(self, variable):
        """Of each weight of a `felt` variable."""
        mean, spread = self._slots[self._var_key(variable)]
        return mean * spread


class Budget(tf_keras.callbacks.Callback):
    """Moves the ranks of an AdaLoRA to the maps where they matter: of all directions that
    were begun with, fewer and fewer keep their λ, those whose weights are felt most.

    References:
      - Zhang et al., 2023, arXiv:2303.10512, equations 11 and 12.
    """

    every = 10
    # Of the steps: before the first is cut, and with no more cuts at the end.
    warmup, rest = 0.1, 0.4

    def __init__(self, layers: Iterable[tuning.Singular], steps: int):
        super().__init__()
        self.layers, self.steps = list(layers), steps

    def at(self, step: int) -> int:
        """Directions that keep their λ after a step."""
        begun = sum(layer.size for layer in self.layers)
        left = sum(layer.aim for layer in self.layers)
        first, last = self.warmup * self.steps, (1 - self.rest) * self.steps
        done = min(1.0, max(0.0, (step - first) / max(last - first, 1.0)))
        return left + round((begun - left) * (1 - done) ** 3)

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        if step % self.every == 0:
            self._cut(step)

    def on_epoch_end(self, epoch, logs=None):
        self._cut(int(self.model.optimizer.iterations.numpy()))

    def _cut(self, step):
        if self.layers and self.at(step) < sum(layer.size for layer in self.layers):
            tuning.cut(self.layers, self.at(step), adam(self.model).sensitivity)
