"""The call that a thread answers: what it is named and until when its answer is wanted.

Front ends set it, and what lies below reads it; the calls of the protocol between them
have no argument for it.
"""

import contextlib
import contextvars
import dataclasses
import math
import time
from collections.abc import Iterator

import grpc

from tfrec_attn.serve.server.servable import ServingError


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
      api: Predict, Classify, …: a label of the metrics.
      deadline: Of `time.monotonic`; infinite where the caller named none.
    """

    api: str = "Predict"
    deadline: float = math.inf

    def remaining(self) -> float | None:
        """Seconds left, None for any number; below 0 where the deadline has passed."""
        left = self.deadline - time.monotonic()
        return None if math.isinf(left) else left

    def check(self, where: str) -> None:
        """Raises DEADLINE_EXCEEDED if nobody waits for the answer any more."""
        if time.monotonic() >= self.deadline:
            raise late(where)


def late(where: str) -> ServingError:
    """The deadline passed; `where` says what the call was waiting for."""
    return ServingError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"Run() timeout exceeded while waiting in {where}",
    )


# Of a thread that answers none.
_NO_CALL = Call()
_current = contextvars.ContextVar("call", default=_NO_CALL)


def current() -> Call:
    """The call that this thread answers."""
    return _current.get()


@contextlib.contextmanager
def answering(call: Call) -> Iterator[None]:
    """Makes `call` the current one."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
