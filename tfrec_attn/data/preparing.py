"""The work of `prepare` on a block of rows and on a part of the users.

What a worker does: no Beam here, which only says who does what when. Rows lie in files of
a scratch folder, so that what passes between workers is small and no runner has to hold the
interactions in memory: a worker holds a block, or a part.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn.data import (
    blocks,
    checks,
    examples,
    folder,
    interactions,
    partitions,
    readers,
    rejects,
)
from tfrec_attn.data.schema import InteractionSchema

FACTS = "facts.json"
Key = tuple[int, int]  # Number of the file, and of the block in it.


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every worker is told.

    Attributes:
      out: The folder that is made; all workers see it.
      schema: Of the interactions, resolved.
      whole: What whole columns decide.
      parts: Of the users.
      shares: Of validation and test in time; None leaves each user's last out.
      length, count: See `examples.make`.
      positive: `[labels]` bool.
      stop: Whether a bad row ends the work.
      until: The last moment that the model knows which is gone on with; None where none is.
      replay, seed: Of the events until then the share that is learned again, and by what
        chance.
    """

    out: Path
    schema: InteractionSchema
    whole: interactions.Whole
    parts: int
    shares: tuple[float, float] | None
    length: int
    count: int
    positive: tuple[bool, ...]
    stop: bool
    until: int | None = None
    replay: float = 0.0
    seed: int = 0

    @property
    def scratch(self) -> Path:
        """Where workers leave what other workers need."""
        return self.out / "scratch"

    def file(self, what: str, key: Key) -> Path:
        """Of a block."""
        return self.scratch / f"{what}-{key[0]:06d}-{key[1]:06d}.arrow"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What became of a block.

    Attributes:
      key: Of the block.
      kept, bad: How many rows.
      pieces: Part, and begin and end in the file of the rows.
      fault: Why it could not be read; "" where it could.
      new: How many of the kept rows are later than what the model knows; all, where none is
        gone on with.
      last: The last moment of the kept rows; None where there are none.
    """

    key: Key
    kept: int = 0
    bad: int = 0
    pieces: tuple[tuple[int, int, int], ...] = ()
    fault: str = ""
    new: int = 0
    last: int | None = None


@functools.cache
def _items(out: Path, *, numbers: bool = False) -> pl.DataFrame:
    """Ids of items and their rows, with `numbers` those that are whole numbers, as such:
    read once a worker."""
    ids = pl.read_parquet(out / "items.parquet", columns=["id"])["id"]
    rows = pl.int_range(len(ids), dtype=pl.Int32, eager=True)
    found = pl.DataFrame({"item": ids, "row": rows})
    if not numbers:
        return found
    # "007" is another id than 7.
    number = pl.col("item").cast(pl.Int64, strict=False)
    same = number.cast(pl.String) == pl.col("item")
    return found.filter(same.fill_null(False)).with_columns(item=number)


def check(plan: Plan, block: blocks.Block) -> Checked:
    """Checks a block, and writes its good rows by part and its bad ones."""
    key = block.file, block.number
    try:
        found = _checked(plan, block)
    except (ValueError, OSError) as error:
        return Checked(key, fault=str(error))
    if found.rejects.height:
        found.rejects.write_ipc(plan.file("rejects", key))
    frame = found.frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    frame, bounds = partitions.scattered(frame, plan.parts)
    frame.write_ipc(plan.file("rows", key))
    times = frame["time"].to_numpy()
    pieces = zip(range(plan.parts), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return Checked(
        key,
        kept=frame.height,
        bad=rejects.count_rows(found.rejects),
        pieces=tuple(piece for piece in pieces if piece[1] < piece[2]),
        new=int(partitions.is_new(times, plan.until).sum()),
        last=int(times.max()) if len(times) else None,
    )


def _checked(plan: Plan, block: blocks.Block) -> checks.Checked:
    raw = blocks.read(block, plan.schema.file)
    if raw.frame.is_empty():
        kinds = {"user": pl.String, "item": pl.Int32, "time": pl.Int64}
        kinds |= {"feedback": pl.Int8, "weight": pl.Float32}
        return checks.Checked(pl.DataFrame(schema=kinds), raw.rejects)
    if readers.kind_of(Path(block.path)) in readers.JSON:
        raw = dataclasses.replace(raw, frame=_with_keys(raw.frame, plan.schema))
    # Where the order of the files is time: a row comes after the lines before its block.
    first = (block.file << 40) + block.lines + 1
    whole = dataclasses.replace(plan.whole, first=first)
    numbers = raw.frame[plan.schema.item or ""].dtype in _WHOLE
    known = _items(plan.out, numbers=numbers)
    return interactions.checked(raw, plan.schema, known, whole)


_WHOLE = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


def numbers(files: Iterable[Path], column: str) -> bool:
    """Whether a column holds whole numbers in all of some files, without reading them."""
    return all(
        readers.kind_of(path) in readers.PARQUET
        and pl.read_parquet_schema(path).get(column) in _WHOLE
        for path in files
    )


def _with_keys(frame: pl.DataFrame, schema: InteractionSchema) -> pl.DataFrame:
    """A key that no object of a block has is a missing value."""
    feedback = schema.feedback.column if schema.feedback else ""
    names = schema.user, schema.item, schema.time, schema.weight, feedback
    lacking = [name for name in names if name and name not in frame.columns]
    return frame.with_columns(pl.lit(None).alias(name) for name in lacking)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known once all blocks are checked.

    Attributes:
      first: The row of the whole table with which each block begins.
      cuts: The first times of validation and test.
      stopped: Whether there is nothing more to do.
    """

    first: Mapping[Key, int]
    cuts: tuple[int, int] | None
    stopped: bool


def summed(plan: Plan, found: Iterable[Checked]) -> Facts:
    """What all blocks say together, and of the whole table; kept in the scratch folder."""
    ordered = sorted(found, key=lambda one: one.key)
    kept = [one.kept for one in ordered]
    first = np.cumsum([0, *kept])[:-1].tolist()
    bad = sum(one.bad for one in ordered)
    faults = tuple(one.fault for one in ordered if one.fault)
    stopped = bool(faults) or (plan.stop and bad > 0) or not sum(kept)
    new = sum(one.new for one in ordered)
    if not (stopped or new):
        faults, stopped = (_NOTHING_NEW.format(sum(kept)),), True
    cuts = None
    if plan.shares and not stopped:
        some = [one for one in ordered if one.new]
        cuts = partitions.cuts(lambda: _times(plan, some), new, *plan.shares)
    keys = [one.key for one in ordered]
    last = max((one.last for one in ordered if one.last is not None), default=None)
    told = {"kept": sum(kept), "bad": bad, "faults": faults}
    text = json.dumps(told | {"last": last if plan.schema.time else None})
    (plan.scratch / FACTS).write_text(text, "utf-8")
    return Facts(dict(zip(keys, first, strict=True)), cuts, stopped)


_NOTHING_NEW = (
    "None of the {} interactions is later than those that the model knows: there is "
    "nothing to go on with. Name tables that have later events too."
)


def _times(plan: Plan, found: Iterable[Checked]) -> Iterator[np.ndarray]:
    """Of the new events, block by block."""
    for one in found:
        rows = pl.scan_ipc(plan.file("rows", one.key)).select("time")
        time = rows.collect()["time"].to_numpy()
        yield time[partitions.is_new(time, plan.until)]


def blocks_of(plan: Plan, file: tuple[int, str]) -> list[blocks.Block]:
    """The blocks of a file; of one that cannot be read one that says so when it is."""
    number, path = file
    try:
        return blocks.of_file(Path(path), number, plan.schema.file)
    except (ValueError, OSError):
        return [blocks.Block(number, 0, path, 0, None)]


def pieces_of(checked: Checked) -> list[tuple[int, tuple[Key, int, int]]]:
    """The pieces of a block by part."""
    return [(part, (checked.key, a, b)) for part, a, b in checked.pieces]


def cut(
    plan: Plan,
    grouped: tuple[int, Iterable[tuple[Key, int, int]]],
    facts: Facts,
) -> None:
    """Makes a part out of its pieces: its shard, its events, and what it adds to all.

    Args:
      plan: Of the work.
      grouped: Number of the part, and where its rows are: block, begin and end.
      facts: Of all blocks.
    """
    from tfrec_attn.data import shards

    number, pieces = grouped
    if facts.stopped:
        return
    frames = []
    for key, begin, end in sorted(pieces):
        rows = pl.scan_ipc(plan.file("rows", key))
        frame = rows.slice(begin, end - begin).collect()
        frames.append(frame.with_columns(pl.col("row") + facts.first[key]))
    part = partitions.ordered(pl.concat(frames), facts.cuts, plan.until)
    past, positive = part.of("train"), np.array(plan.positive)
    goal = past
    if plan.until is not None:
        wanted = partitions.learned(past, plan.until, plan.replay, (plan.seed, number))
        goal = past.take(np.flatnonzero(wanted))
        # Of a user without a target nothing is read.
        past = past.take(np.flatnonzero(np.isin(past.user, goal.user)))
    made = examples.make(past, goal, length=plan.length, count=plan.count)
    sums = {
        "examples": len(made),
        "targets": made.n_targets,
        "bytes": shards.write(partitions.records(made), folder.shard(plan.out, number)),
        "digest": folder.write_events(part, folder.events(plan.out, number)),
    }
    counted = partitions.counted(part, positive, _items(plan.out).height)
    place = plan.scratch / f"part-{number:05d}"
    liked = goal.item[positive[goal.feedback]]
    counted["arrays"]["learned"] = np.bincount(liked, minlength=_items(plan.out).height)
    np.savez(place.with_suffix(".npz"), **counted["arrays"])
    part.users.to_frame("id").write_ipc(place.with_suffix(".arrow"))
    # The last of a part's files, by which it is known to be whole.
    text = json.dumps({"number": number, **counted["sums"], **sums})
    place.with_suffix(".json").write_text(text, "utf-8")


def begin(plan: Plan) -> None:
    """Makes the folders; what an earlier try has left is removed."""
    for name in ("scratch", "train", "events"):
        shutil.rmtree(plan.out / name, ignore_errors=True)
        (plan.out / name).mkdir(parents=True)


def parts(plan: Plan) -> list[dict[str, Any]]:
    """The sums of all parts in order, each with the row of its first user."""
    found = [
        json.loads(path.read_text("utf-8"))
        for path in sorted(plan.scratch.glob("part-*.json"))
    ]
    first = 0
    for one in found:
        one["first_user"] = first
        first += one["users"]
    return found


def totals(plan: Plan, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Of the counts by item, the sums over all parts; of yes and no, whether any is yes."""
    total: dict[str, np.ndarray] = {}
    for number in numbers:
        with np.load(plan.scratch / f"part-{number:05d}.npz") as one:
            for name in one:
                # Of bool the sum is "or".
                total[name] = total[name] + one[name] if name in total else one[name]
    return total


def users(plan: Plan, numbers: Sequence[int]) -> pl.Series:
    """The users of all parts, in order of row."""
    files = [plan.scratch / f"part-{number:05d}.arrow" for number in numbers]
    return pl.concat([pl.read_ipc(path)["id"] for path in files])


def rejected(plan: Plan) -> pl.DataFrame:
    """The bad rows of all blocks, in order."""
    files = sorted(plan.scratch.glob("rejects-*.arrow"))
    read = [pl.read_ipc(path) for path in files]
    return pl.concat([rejects.empty(), *read])
