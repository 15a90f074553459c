"""One model as its versions: looked for, loaded, served, unloaded. No socket, no thread.

Sources: tensorflow/serving `core/availability_preserving_policy.cc`,
`core/loader_harness.cc`, `util/retrier.cc`.
"""

import dataclasses
import logging
import math
import pathlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from tfrec_attn.serve.server import saved_model
from tfrec_attn.serve.server.servable import Servable, ServingError
from tfrec_attn.serve.versions import LATEST, chosen, last_change, missing, versions

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VersionState:
    """What became of one version.

    Attributes:
      state: START, LOADING, AVAILABLE, UNLOADING or END, as the protocol names them.
      code: Canonical code number of a failed load, else 0.
      message: Why the load failed.
    """

    state: str
    code: int = 0
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Retries:
    """How a load that failed is tried again.

    Attributes:
      most: Tries after the first one.
      interval: Seconds between two tries; at once where negative.
    """

    most: int = 5
    interval: float = 60.0


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A version that did not load `tries` times; `changed` is its `last_change` then."""

    tries: int
    due: float
    changed: float


class Model:
    """One folder of versions, of which its policy names those to serve.

    A new version is loaded before an old one is unloaded, and a version that fails to load
    leaves the old one in service. It is tried again as `retries` say, and anew once its
    files change: a folder may be seen while it is still being copied.

    Args:
      name: What requests call it.
      base_path: Holds one folder a version, named by a number.
      load: Loads a version folder.
      policy: Which versions are served, a `ServableVersionPolicy`; by default the latest.
      retries: For loads that fail.
      clock: Seconds, for the time between two tries.
    """

    def __init__(
        self,
        name: str,
        base_path: pathlib.Path,
        load: Callable[[pathlib.Path, int], Servable] = saved_model.load,
        *,
        policy: Any = LATEST,
        retries: Retries = Retries(),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name = name
        self.base_path = base_path
        self.policy = policy
        self._load = load
        self._retries = retries
        self._clock = clock
        self._polling = threading.Lock()
        self._retired = False
        self._wanted: dict[int, pathlib.Path] = {}
        # Replaced, never changed: requests take no lock.
        self._serving: dict[int, Servable] = {}
        self._states: dict[int, VersionState] = {}
        self._failures: dict[int, _Failure] = {}
        self._warned = ""

    def configure(self, base_path: pathlib.Path, policy: Any) -> bool:
        """Takes other settings, or a retired model back; True where that is a change."""
        settings = (base_path, policy, False)
        changed = (self.base_path, self.policy, self._retired) != settings
        self.base_path, self.policy, self._retired = settings
        return changed

    def retire(self) -> None:
        """Answers no more and unloads everything; only the states stay."""
        self._retired = True
        self.poll()

    def poll(self) -> None:
        """Looks at the folder once, then loads and unloads what the policy asks for."""
        with self._polling:
            self._look()
            self._settle()

    def settle(self) -> None:
        """Tries loads again that are due, without a look at the folder."""
        with self._polling:
            self._settle()

    def _look(self) -> None:
        if self._retired:
            self._wanted = {}
        elif not self.base_path.is_dir():
            # What is served stays: the folder may be away for a moment only.
            self._warn(
                f"Could not find base path {self.base_path} for servable {self.name}"
            )
        else:
            found = versions(self.base_path)
            self._wanted = chosen(found, self.policy)
            self._warn(self._lack(missing(found, self.policy)))

    def _lack(self, lacking: list[int]) -> str:
        if lacking:
            return f"Versions {lacking} of servable {self.name} are not in {self.base_path}"
        if not self._wanted:
            return (
                f"No versions of servable {self.name} found under base path "
                f"{self.base_path}: a version is a folder named by a number, like 1/"
            )
        return ""

    def _warn(self, message: str) -> None:
        """Says once what every look would say again."""
        if message and message != self._warned:
            _log.warning("%s", message)
        self._warned = message

    def _settle(self) -> None:
        for version in set(self._failures) - set(self._wanted):
            self._drop_failed(version)
        for version in set(self._wanted) - set(self._serving) - set(self._failures):
            self._states[version] = VersionState("START")
        while True:
            stale = sorted(set(self._serving) - set(self._wanted))
            replaced = len(stale) < len(self._serving)
            if stale and (replaced or not self._wanted or len(stale) > 1):
                self._unload(stale[0])
            elif due := [version for version in self._wanted if self._is_due(version)]:
                self._try(max(due))
            else:
                return

    def _is_due(self, version: int) -> bool:
        if version in self._serving:
            return False
        failure = self._failures.get(version)
        if failure is None or self._clock() >= failure.due:
            return True
        return failure.changed != last_change(self._wanted[version])

    def _try(self, version: int) -> None:
        path = self._wanted[version]
        # Before the load: what is written during it must count as a change.
        changed = last_change(path)
        self._states[version] = VersionState("LOADING")
        started = time.monotonic()
        # Whatever a broken folder raises, the version in service must stay there.
        try:
            fresh = self._load(path, version)
        except Exception as error:
            self._keep_failed(version, error, changed)
            return
        self._failures.pop(version, None)
        self._serving = {**self._serving, version: fresh}
        self._states[version] = VersionState("AVAILABLE")
        spent = time.monotonic() - started
        _log.info("model %s version %d ready (%.1f s)", self.name, version, spent)

    def _keep_failed(self, version: int, error: Exception, changed: float) -> None:
        before = self._failures.get(version)
        tries = 1 + before.tries if before and before.changed == changed else 1
        again = tries <= self._retries.most
        due = self._clock() + self._retries.interval if again else math.inf
        self._failures[version] = _Failure(tries, due, changed)
        state = "LOADING" if again else "END"
        self._states[version] = VersionState(state, _code(error), str(error))
        follows = f"next try in {self._retries.interval:g} s" if again else "no more tries"
        text = "model %s version %d did not load: %s (try %d, %s)"
        _log.error(text, self.name, version, error, tries, follows)

    def _drop_failed(self, version: int) -> None:
        failure = self._failures.pop(version)
        if failure.due < math.inf:
            cancelled = grpc.StatusCode.CANCELLED.value[0]
            self._states[version] = VersionState(
                "END", cancelled, "Loading of servable cancelled"
            )

    def _unload(self, version: int) -> None:
        unloading = VersionState("UNLOADING")
        self._states[version] = unloading
        serving = dict(self._serving)
        # It goes with the last request that holds it.
        weakref.finalize(serving.pop(version), self._end, version, unloading).atexit = False
        self._serving = serving

    def _end(self, version: int, unloading: VersionState) -> None:
        # Meanwhile it may have been loaded again.
        if self._states.get(version) is unloading:
            self._states[version] = VersionState("END")

    @property
    def retired(self) -> bool:
        """Whether the configuration no longer lists it."""
        return self._retired

    @property
    def ready(self) -> bool:
        """Whether a version answers."""
        return bool(self._serving)

    @property
    def available(self) -> frozenset[int]:
        """The versions that answer."""
        return frozenset() if self._retired else frozenset(self._serving)

    @property
    def unavailable(self) -> str:
        """Which wanted versions do not answer, and why."""
        lacking = sorted(set(self._wanted) - set(self._serving), reverse=True)
        told = [
            f"{{name: {self.name} version: {version}}} due to error: {state.message}"
            for version in lacking
            if (state := self._states.get(version))
        ]
        return ", ".join(told) or self._warned

    @property
    def states(self) -> dict[int, VersionState]:
        """Every version ever seen, newest first."""
        return dict(sorted(self._states.copy().items(), reverse=True))

    def servable(self, version: int | None) -> Servable:
        """The version asked for, or the latest in service."""
        serving = {} if self._retired else self._serving
        wanted = max(serving, default=None) if version is None else version
        if wanted not in serving:
            raise not_found(self.name, version)
        return serving[wanted]


def not_found(name: str, version: int | None) -> ServingError:
    """No such model, no such version, or nothing loaded yet."""
    asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(
        grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}"
    )


def _code(error: Exception) -> int:
    code = getattr(error, "error_code", None)
    if isinstance(error, ServingError):
        code = error.code.value[0]
    return code or grpc.StatusCode.UNKNOWN.value[0]
