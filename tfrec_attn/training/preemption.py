"""SIGTERM, by which a machine is asked back: what is trained is kept first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Preempted(BaseException):
    """The program was asked to end, and may. No `Exception`: nothing goes on after it."""


class Preemption:
    """Within `with`, SIGTERM raises `Preempted`: where steps are trained once their state
    is kept, and anywhere else at once, as there all that is kept is kept already.

    Attributes:
      asked: Whether it came.
    """

    def __init__(self) -> None:
        self.asked = self._waits = self._mine = False

    def __enter__(self) -> "Preemption":
        # Python has signals handled by its first thread alone.
        self._mine = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def listen(self) -> None:
        """Takes the signal; once more, where something else has taken it within."""
        if self._mine:
            signal.signal(signal.SIGTERM, self._on)

    def __exit__(self, *_) -> None:
        if self._mine:
            signal.signal(signal.SIGTERM, self._before)

    def _on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._waits:
            raise Preempted

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, whoever trains looks at `asked` after each step, and raises."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before
