"""Whether a training ends early, which its workers decide together."""

import time

import numpy as np
import tensorflow as tf

from tfrec_attn.training import distribution
from tfrec_attn.training.preemption import Preemption

# Between two questions to all workers: each is a message, and a machine that is asked
# back has half a minute.
SECONDS = 1.0


class Ending:
    """Whether SIGTERM ends a training: of several workers that of any, and all of them
    after the same step.

    Workers add up who was asked, every so many steps. How many the chief says each time, by
    its clock, so that all of them ask together.

    Args:
      strategy: Of all workers.
      preemption: Whether this process was asked.
    """

    def __init__(self, strategy: tf.distribute.Strategy, preemption: Preemption):
        self._strategy, self._preemption = strategy, preemption
        self._alone = distribution.alone(strategy)
        self._is_chief = distribution.is_chief(strategy)
        self._since, self._steps, self._every = time.monotonic(), 0, 1

    def after_step(self) -> bool:
        """Whether it ends after this step; asked after each."""
        if self._alone:
            return self._preemption.asked
        self._steps += 1
        return self._steps >= self._every and self.now()

    def now(self) -> bool:
        """Whether it ends here, where all workers are."""
        if self._alone:
            return self._preemption.asked
        told = self._preemption.asked, self._planned() if self._is_chief else 0
        asked, self._every = distribution.summed(self._strategy, np.array(told))
        self._since, self._steps = time.monotonic(), 0
        return asked > 0

    def _planned(self) -> int:
        """Steps until the next question, by the time that those since the last one took. A
        validation among them makes them too few, until the question after it."""
        each = (time.monotonic() - self._since) / max(self._steps, 1)
        return int(np.clip(SECONDS / max(each, 1e-9), 1, 1000))
