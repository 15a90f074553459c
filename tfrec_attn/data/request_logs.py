"""The lines that `serve --log-requests` wrote, as tables of what was shown and told."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tfrec_attn.labels import LABELS

_SHOWN = {"user": pl.String, "item": pl.String, "time": pl.Int64}
_TOLD = {
    "user": pl.String,
    "item": pl.String,
    "label": pl.String,
    "time": pl.Int64,
    "before": pl.Int64,
}


@dataclasses.dataclass(frozen=True)
class Requests:
    """What a log holds.

    Attributes:
      shown: `user`, `item`, `time` (ms): an item of an answer, when it was answered.
      told: `user`, `item`, `label`, `time` (ms; null where the request gave none),
        `before` (ms): an event of a history that a request brought. It was before that
        time: the request's, less 1 ms for each event behind it.
      key: Name of the key that users are hashed by; None where they are not.
      counts: Lines, and those that were passed over.
    """

    shown: pl.DataFrame
    told: pl.DataFrame
    key: str | None
    counts: dict[str, int]


def read(folder: Path, first: int | None = None) -> Requests:
    """Reads all files of a log, a request of several copies once.

    Args:
      folder: Of `requests-….jsonl`.
      first: How many items of an answer were shown, the best ones; None takes all.

    Raises:
      ValueError: There is no such file, a line is none of a request log, or users are
        hashed by more than one key.
    """
    files = sorted(folder.glob("requests-*.jsonl"))
    if not files:
        raise ValueError(
            f"--log names a folder of requests-….jsonl, as serve --log-requests writes "
            f"them: {folder} has none."
        )
    counts = {"requests": 0, "repeated_lines": 0, "torn_lines": 0, "without_a_user": 0}
    seen: set[str] = set()
    keys: set[str | None] = set()
    shown: list[tuple] = []
    told: list[tuple] = []
    for line in (line for file in files for line in _lines(file, counts)):
        if line["id"] in seen:
            counts["repeated_lines"] += 1
            continue
        seen.add(line["id"])
        keys.add(line["user_key"])
        counts["requests"] += 1
        for row, user in enumerate(line["inputs"].get("user_id", ())):
            if not user:
                counts["without_a_user"] += 1
                continue
            shown += [(user, item, line["time"]) for item in _items(line, row, first)]
            told += [(user, *event) for event in _history(line, row)]
    if len(keys) > 1:
        raise ValueError(
            f"{folder}: its users are hashed by {len(keys)} keys (or not at all in some "
            f"files): {', '.join(sorted(map(str, keys)))}. Read the files of one at a time."
        )
    return Requests(
        pl.DataFrame(shown, _SHOWN, orient="row"),
        pl.DataFrame(told, _TOLD, orient="row"),
        next(iter(keys), None),
        counts,
    )


def _lines(file: Path, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    lines = file.read_bytes().split(b"\n")
    for number, text in enumerate(lines, 1):
        if not text:
            continue
        try:
            line = json.loads(text)
            line["id"], line["time"], line["user_key"], line["inputs"], line["outputs"]
        except (ValueError, KeyError, TypeError) as error:
            # Its writer was killed, or the disk was full, or it is being written.
            if number == len(lines):
                counts["torn_lines"] += 1
                return
            raise ValueError(
                f"{file}:{number}: is no line of a request log: {error!r}."
            ) from error
        yield line


def _items(line: dict[str, Any], row: int, first: int | None) -> list[str]:
    outputs = line["outputs"]
    if not {"item_id", "valid"} <= outputs.keys():
        return []
    pairs = zip(outputs["item_id"][row], outputs["valid"][row], strict=True)
    return [item for item, valid in pairs if valid][:first]


def _history(line: dict[str, Any], row: int) -> Iterator[tuple]:
    asked, inputs = line["time"], line["inputs"]
    items = inputs.get("history", {row: ()})[row]
    # One "not given" may stand for a whole row.
    fit = lambda name, none: [*inputs.get(name, {row: ()})[row], *[none] * len(items)]
    labels, times = fit("history_feedback", ""), fit("history_time", 0)
    for place, item in enumerate(items):
        if item:
            before = asked - (len(items) - place)
            # What is said to be of later than the request is not: it was known by then.
            time = min(times[place], before) if times[place] else None
            # As the model reads what it does not know.
            label = labels[place] if labels[place] in LABELS else "like"
            yield item, label, time, before
