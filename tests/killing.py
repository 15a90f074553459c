"""A kill without a process: what is raised here nobody expects, and nothing cleans up."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


class Killed(BaseException):
    """No `Exception`."""


@contextlib.contextmanager
def dying(owner: Any, name: str, at: int = 1, *, after: bool = False) -> Iterator[list]:
    """Within, the call number `at` of a function kills, before it or after it.

    Yields:
      A list that holds something once it has.
    """
    function, calls, died = getattr(owner, name), [], []

    def deadly(*args, **options):
        calls.append(name)
        if died or (len(calls) == at and not after):
            died.append(at)
            raise Killed
        result = function(*args, **options)
        if len(calls) == at:
            died.append(at)
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with contextlib.suppress(Killed):
            yield died
