"""The settings of batching: names, defaults and rules of TF Serving's BatchingParameters.

Source: tensorflow/serving `servables/tensorflow/session_bundle_config.proto`.
"""

import bisect
import dataclasses
import itertools
import os


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How requests are joined.

    Attributes:
      max_batch_size: Rows of a batch, and of a request.
      batch_timeout_micros: How long a batch that is not full waits for more.
      max_enqueued_batches: Batches that may wait for a thread, for each kind of request.
      num_batch_threads: Batches that run at once.
      thread_pool_name: Of those threads, in the metrics.
      allowed_batch_sizes: A batch is filled up to the next of these; none: any size.
      pad_variable_length_inputs: Whether inputs of other widths may be joined.
      enable_large_batch_splitting: Whether a request may be run in parts.
      max_execution_batch_size: Rows of a batch where requests may be run in parts, by
        default `max_batch_size`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    def __post_init__(self):
        for name, least in (
            ("max_batch_size", 1),
            ("batch_timeout_micros", 0),
            ("max_enqueued_batches", 1),
            ("num_batch_threads", 1),
            ("max_execution_batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}: received {value}.")
        self._check_allowed()
        if self.largest_part > self.max_batch_size:
            raise ValueError(
                "max_execution_batch_size must be at most max_batch_size, "
                f"{self.max_batch_size}: received {self.max_execution_batch_size}."
            )

    def _check_allowed(self) -> None:
        sizes = list(self.allowed_batch_sizes)
        if any(one >= other for one, other in itertools.pairwise([0, *sizes])):
            raise ValueError(
                f"allowed_batch_sizes must be positive and increasing: received {sizes}."
            )
        if sizes and sizes[-1] != self.max_batch_size:
            raise ValueError(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry "
                f"was {sizes[-1]}; expected {self.max_batch_size}."
            )

    @property
    def largest_part(self) -> int:
        """Rows of a batch."""
        split = self.enable_large_batch_splitting and self.max_execution_batch_size
        return split or self.max_batch_size

    def allowed(self, rows: int) -> int:
        """The size to which a batch of `rows` is filled up."""
        place = bisect.bisect_left(self.allowed_batch_sizes, rows)
        return [*self.allowed_batch_sizes, rows][place]
