"""When a call is tried again, one rule for gRPC and REST, and until when."""

import time
from typing import Any

import tenacity

# What a server says when it could not begin, or not now. A predict changes nothing, so it
# does no harm that one may be run twice whose answer was lost.
RETRIED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0


class ServerError(Exception):
    """The server refused a call or did not answer.

    Attributes:
      code: A canonical code's name: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, …
      message: The server's words.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Deadline:
    """When a call must have ended, with all its requests and pauses.

    Args:
      seconds: From now.

    Raises:
      ValueError: `seconds` is not positive.
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"timeout must be positive, in seconds: received {seconds!r}.")
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then.

        Raises:
          ServerError: There are none.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise self.passed()
        return seconds

    def passed(self) -> ServerError:
        """What is raised when the time is over."""
        return ServerError("DEADLINE_EXCEEDED", f"no answer within {self.seconds:g} s")


def policy(deadline: Deadline, *, retry: bool) -> dict[str, Any]:
    """The settings of `tenacity.Retrying` and `tenacity.AsyncRetrying` for one request.

    Pauses are drawn from 0 to a bound that doubles from 0.1 to 2 seconds: clients of a
    server that restarts do not come back all at once. No pause outlasts the deadline; the
    last refusal is then raised as it was.
    """
    again = lambda error: isinstance(error, ServerError) and error.code in RETRIED
    return {
        "retry": tenacity.retry_if_exception(lambda error: retry and again(error)),
        "wait": tenacity.wait_random_exponential(_FIRST_WAIT, _LONGEST_WAIT),
        "stop": tenacity.stop_before_delay(deadline.left()),
        "reraise": True,
    }
