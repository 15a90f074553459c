"""How many calls run at once, and how many may wait for that."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from tfrec_attn.serve.server import incoming
from tfrec_attn.serve.server.servable import ServingError


class Admission:
    """Lets `running` calls run and `waiting` more wait; a call past that is refused.

    A call whose deadline passes while it waits never runs.
    """

    def __init__(self, running: int, waiting: int):
        self._running = running
        self._room = running + waiting
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._active = self._present = 0

    @contextlib.contextmanager
    def admit(self, call: incoming.Call) -> Iterator[None]:
        """Waits for a place, and holds it.

        Raises:
          ServingError: RESOURCE_EXHAUSTED where too many wait, DEADLINE_EXCEEDED where
            the call's deadline passed first.
        """
        with self._lock:
            if self._present >= self._room:
                # The words of a gRPC server in C++ that is out of threads.
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted"
                )
            self._present += 1
        active = 0
        try:
            self._enter(call)
            active = 1
            yield
        finally:
            with self._lock:
                self._active -= active
                self._present -= 1
                # Also of a place that was offered to a call whose deadline had passed.
                self._free.notify()
                if not self._present:
                    self._idle.notify_all()

    def _enter(self, call: incoming.Call) -> None:
        with self._lock:
            free = lambda: self._active < self._running
            if not self._free.wait_for(free, call.remaining()):
                raise incoming.late("the server's queue")
            call.check("the server's queue")
            self._active += 1

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether the last call has left before `seconds` were over."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._present, seconds)
