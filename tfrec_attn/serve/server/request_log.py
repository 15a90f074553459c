"""What was asked and answered, as lines of JSON to learn from; `impressions` reads them.

A line holds `id`, `time` (ms since 1970), `model`, `version`, `signature`, `user_key` (the
name of the key that user ids are hashed by, or null), `inputs`, `outputs` (ids, scores and
which of them are no padding) and `latency_ms`. No TensorFlow.
"""

import contextlib
import io
import json
import logging
import os
import queue
import random
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfrec_attn.user_keys import UserKey

KEPT_OUTPUTS = ("item_id", "score", "valid")
_WAITING = 1000
_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 64 << 20
_OLDEST_FILE = 3600.0
_BETWEEN_WARNINGS = 60.0
_log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]


class Entry(NamedTuple):
    """One answered request; its arrays are not copied. Outputs are of `KEPT_OUTPUTS`."""

    time: float
    model: str
    version: int
    signature: str
    inputs: Arrays
    outputs: Arrays
    seconds: float


class RequestLog:
    """Files of lines in one folder, written by a thread of their own.

    A request never waits: what finds the queue full, or the disk, is counted and a warning
    says how many. A line is handed to the system as soon as it is written, so that a
    process that is killed loses what waited in the queue; only the last line of a file can
    be torn. Each file is begun anew, after 64 MiB or an hour, and never renamed.

    Args:
      folder: Made if it is not there. Several servers may share it.
      share: Of the requests that are written, above 0 up to 1.
      key: Hashes user ids; None writes them as they are.
      waiting: Most requests in the queue.

    Raises:
      ValueError: `share` is out of its range.
      OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        share: float = 1.0,
        key: UserKey | None = None,
        waiting: int = _WAITING,
    ):
        if not 0 < share <= 1:
            raise ValueError(
                f"The share of requests to log is above 0 and at most 1: received {share}."
            )
        self.folder, self._share, self._key = folder, share, key
        self._server, self._begun = uuid.uuid4().hex[:8], 0
        self._lost, self._warned = 0, -_BETWEEN_WARNINGS
        self._counting = threading.Lock()
        self._queue: queue.Queue[Entry | None] = queue.Queue(waiting)
        folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._open()
        self._thread = threading.Thread(target=self._write, name="requests", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """How many sampled requests were not written."""
        return self._lost

    def offer(self, entry: Entry) -> None:
        """Takes an entry, if it is among the sample and there is room."""
        if random.random() >= self._share:
            return
        # Here too: the queue holds so many entries, of whatever size.
        if (size := _size(entry.inputs) + _size(entry.outputs)) > _LONGEST_LINE:
            self._lose(f"one of {size} bytes, more than {_LONGEST_LINE}")
            return
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._lose("the queue is full")

    def close(self, grace: float = 10.0) -> None:
        """Writes what waits, for at most `grace` seconds."""
        try:
            self._queue.put(None, timeout=grace)
        except queue.Full:
            _log.error("the request log was left with its queue full")
            return
        self._thread.join(grace)

    def _lose(self, why: str) -> None:
        with self._counting:
            self._lost += 1
            if time.monotonic() - self._warned < _BETWEEN_WARNINGS:
                return
            self._warned = time.monotonic()
        _log.warning("%d requests were not logged so far; the last: %s", self._lost, why)

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            # Whatever a request holds, the next one must still be written.
            try:
                self._append(line(entry, self._key))
            except Exception as error:
                self._lose(str(error))
                self._leave()
        self._leave()
        if self._lost:
            _log.warning("%d requests were not logged in all", self._lost)

    def _append(self, text: bytes) -> None:
        if len(text) > _LONGEST_LINE:
            self._lose(f"one of {len(text)} bytes, more than {_LONGEST_LINE}")
            return
        if self._file is None or self._is_done():
            self._leave()
            self._open()
        if self._file.write(text) != len(text):
            raise OSError("a line was cut short")

    def _is_done(self) -> bool:
        old = time.monotonic() - self._opened > _OLDEST_FILE
        return old or self._file.tell() > _LARGEST_FILE

    def _open(self) -> None:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"requests-{now}-{self._server}-{self._begun}.jsonl"
        # Not for everybody: it says who asked for what.
        private = lambda path, flags: os.open(path, flags, 0o640)
        self._file = io.FileIO(self.folder / name, "xb", opener=private)
        self._begun, self._opened = self._begun + 1, time.monotonic()

    def _leave(self) -> None:
        """After a fault too: the next line must not follow a torn one."""
        left, self._file = self._file, None
        if left is not None:
            with contextlib.suppress(OSError):
                left.close()


def line(entry: Entry, key: UserKey | None) -> bytes:
    """An entry as JSON with its line end."""
    inputs = {name: _plain(array) for name, array in entry.inputs.items()}
    if key is not None and "user_id" in inputs:
        inputs["user_id"] = [key.hash(user) for user in inputs["user_id"]]
    fields = {
        "id": uuid.uuid4().hex,
        "time": int(entry.time * 1000),
        "model": entry.model,
        "version": entry.version,
        "signature": entry.signature,
        "user_key": key and key.name,
        "inputs": inputs,
        "outputs": {name: _plain(array) for name, array in entry.outputs.items()},
        "latency_ms": round(entry.seconds * 1000, 3),
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _size(arrays: Arrays) -> int:
    """Bytes of the values, without what JSON puts around them."""
    texts = (array for array in arrays.values() if array.dtype == object)
    numbers = (array.nbytes for array in arrays.values() if array.dtype != object)
    return sum(numbers) + sum(len(value) for array in texts for value in array.flat)


def _plain(array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.size, object)
    texts[:] = [value.decode(errors="backslashreplace") for value in array.ravel()]
    return texts.reshape(array.shape).tolist()
