"""`python -m tfrec_attn.prepare`: tables larger than memory to a folder of shards.

Flags that are not named here are Apache Beam's own and go to it as they are, as
`--runner=FlinkRunner`; by default all cores of this machine work.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

from tfrec_attn import atomic
from tfrec_attn.data import (
    blocks,
    folder,
    interactions,
    partitions,
    preparing,
    readers,
    rejects,
    splits,
    tables,
)
from tfrec_attn.data.schema import Schema
from tfrec_attn.labels import LABELS
from tfrec_attn.settings import config as config_lib
from tfrec_attn.settings import flags

logger = logging.getLogger("tfrec_attn.prepare")

# What the columns mean is inferred from so many rows, or bytes of text.
SAMPLE_ROWS, SAMPLE_BYTES = 2**18, 2**24
# Parts of the users: enough to be read by turns, and none too large for a worker.
FEWEST, EVENTS_OF_A_PART = 16, 2_000_000
# Bytes of text that stand for an event.
EVENT = 32


def run(
    config: config_lib.Config,
    out: Path,
    beam_flags: list[str],
    base: Path | None = None,
) -> dict[str, Any]:
    """Checks, divides and cuts; returns what `prepared.json` says of it.

    Args:
      config: Tables, schema, split and examples.
      out: The folder to be made.
      beam_flags: Beam's pipeline options.
      base: A run or a version that a training is to go on from.

    Raises:
      ValueError: When something is wrong with the config, the tables or the folder.
      OSError: When a file cannot be read.
    """
    beam = _beam()
    _require(config, out)
    past = _past(base, config) if base else None
    items, users, _ = config_lib.paths(config)
    files, sample = _sample(config)
    schema, known_items, known_users = tables.read_both(
        items, users, sample, config.schema_
    )
    config = config.model_copy(update={"schema_": schema})
    _require_time(config)
    bad = pl.concat([known_items.rejects, known_users.rejects])
    if config.data.bad_rows == "stop" and bad.height:
        tables.settle(bad, "stop", out / "rejects.csv")
    tables.require_left(str(items), known_items.frame.height, bad)
    plan = _plan(config, schema, out, files, sample)
    item_rows = known_items.frame
    if past:
        past.require("items", item_rows["id"])
        item_rows = item_rows[past.order("items", item_rows["id"])]
        train = config.train
        more = {"until": past.until, "replay": train.replay, "seed": train.seed}
        plan = dataclasses.replace(plan, **more)
    preparing.begin(plan)
    item_rows.write_parquet(out / "items.parquet")
    try:
        _pipeline(beam, plan, files, beam_flags)
        return _finish(config, plan, known_users.frame, bad, past.mark if past else None)
    finally:
        shutil.rmtree(plan.scratch)


def _beam():
    # It warns of clouds that nobody has named.
    logging.disable(logging.WARNING)
    try:
        import apache_beam
    except ImportError as error:
        raise ValueError(
            "prepare works by Apache Beam, which is not installed: "
            "pip install 'tfrec-attn[beam]'."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _past(base: Path, config: config_lib.Config):
    """What the model knows that is gone on with, by which its old events are told apart.

    Raises:
      ValueError: It is no model to go on with, by these settings, or has no clock.
    """
    from tfrec_attn.run import incremental, knowledge

    base = incremental.base(base)
    incremental.require_same_shape(base, config)
    past = knowledge.Past.of(base, grows=True)
    if past.until is None:
        raise ValueError(
            f"prepare --from tells old events from new ones by time, and {base} was "
            "trained without a time column. Go on with tables: train --from "
            "--interactions."
        )
    return past


def _require(config: config_lib.Config, out: Path) -> None:
    name = config.split.name
    if name not in partitions.SPLITS:
        raise ValueError(
            f"split.name={name!r} cannot be made one part of the users at a time: prepare "
            f"knows {' and '.join(partitions.SPLITS)}. Choose one of them, or train from "
            "the tables."
        )
    if config.data.prepared:
        raise ValueError("data.prepared names what prepare makes: leave it out here.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out names a folder: {out} is a file.")
    if (out / folder.MANIFEST).exists():
        raise ValueError(
            f"{out} holds prepared data already: name another folder by --out, or remove "
            "this one."
        )


def _require_time(config: config_lib.Config) -> None:
    schema = config.schema_
    if config.split.name == "global-time" and not (schema and schema.interactions.time):
        raise ValueError(
            'split.name="global-time" cuts at points in time, and there is no time column. '
            "Set schema.interactions.time, or split.name=leave-last-out."
        )


def _sample(config: config_lib.Config) -> tuple[list[Path], readers.RawTable]:
    """The files of the interactions, and the first rows of them."""
    path = config_lib.paths(config)[2]
    if path is None:
        raise ValueError("No tables: give --items and --interactions, or set data.source.")
    files = readers.files(Path(path))
    file_format = (config.schema_ or Schema()).interactions.file
    for file in files:
        first = blocks.of_file(file, 0, file_format, rows=SAMPLE_ROWS, size=SAMPLE_BYTES)
        if first:
            found = blocks.read(first[0], file_format)
            if not found.frame.is_empty():
                return files, found
    raise ValueError(f"{path}: the table has no rows.")


def _plan(config, schema: Schema, out: Path, files, sample) -> preparing.Plan:
    split, settings = config.split, config.examples
    shares = None
    if split.name == "global-time":
        shares = split.validation or split.share, split.share
    whole = interactions.Whole.of(sample, schema.interactions)
    numbers = preparing.numbers(files, schema.interactions.user or "")
    rough = sum(_events(path) for path in files)
    return preparing.Plan(
        out=out,
        schema=schema.interactions,
        whole=dataclasses.replace(whole, numbers=numbers),
        parts=max(FEWEST, rough // EVENTS_OF_A_PART),
        shares=shares,
        length=settings.history,
        count=settings.targets,
        positive=tuple(label in settings.positives for label in LABELS),
        stop=config.data.bad_rows == "stop",
    )


def _events(path: Path) -> int:
    """About how many a file has."""
    if readers.kind_of(path) in readers.PARQUET:
        return pl.scan_parquet(path).select(pl.len()).collect().item()
    return path.stat().st_size // EVENT


def _pipeline(beam, plan: preparing.Plan, files: list[Path], flags: list[str]) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    if not any(flag.split("=")[0] == "--runner" for flag in flags):
        # By name, as DirectRunner looks on the net for another one first. Threads: Polars
        # and NumPy hold no lock while they work.
        runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
        threads = ["--direct_running_mode=multi_threading"]
        workers = [f"--direct_num_workers={os.cpu_count()}"]
        flags = [f"--runner={runner}", *threads, *workers, *flags]
        # TensorFlow loads, which takes seconds, while blocks are checked without it.
        module = ("tfrec_attn.data.shards",)
        threading.Thread(target=importlib.import_module, args=module, daemon=True).start()
    named = list(enumerate(map(str, files)))
    try:
        with beam.Pipeline(options=PipelineOptions(flags)) as p:
            checked = (
                p
                | "files" >> beam.Create(named)
                | "blocks" >> beam.FlatMap(lambda file: preparing.blocks_of(plan, file))
                | "spread" >> beam.Reshuffle()
                | "check" >> beam.Map(lambda block: preparing.check(plan, block))
            )
            facts = (
                checked
                | "all" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
                | "sum" >> beam.Map(lambda found: preparing.summed(plan, found))
            )
            (
                checked
                | "pieces" >> beam.FlatMap(preparing.pieces_of)
                | "by part" >> beam.GroupByKey()
                | "cut"
                >> beam.Map(
                    lambda grouped, facts: preparing.cut(plan, grouped, facts),
                    beam.pvalue.AsSingleton(facts),
                )
            )
    except RuntimeError as error:
        # Beam puts a worker's traceback before the error itself.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OSError(f"the pipeline failed: {lines[-1] if lines else error}") from error


def _finish(
    config, plan: preparing.Plan, known_users, entity_rejects, mark: dict | None
) -> dict[str, Any]:
    """Puts together what the parts say, and writes the manifest last."""
    facts = json.loads((plan.scratch / preparing.FACTS).read_text("utf-8"))
    if faults := facts["faults"]:
        raise ValueError("\n".join(faults))
    bad = pl.concat([entity_rejects, preparing.rejected(plan)])
    tables.settle(bad, config.data.bad_rows, plan.out / "rejects.csv")
    tables.require_left("interactions", facts["kept"], bad)
    parts = preparing.parts(plan)
    numbers = [part["number"] for part in parts]
    counts = preparing.totals(plan, numbers)
    total = lambda name: sum(part[name] for part in parts)
    name = config.split.name.replace("-", "_")
    every = lambda: (total("users"), int((counts["seen"] | counts["asked"]).sum()))
    splits.require_folds(name, {fold: total(fold) for fold in partitions.FOLDS}, every)
    users = tables.add_users(known_users, preparing.users(plan, numbers))
    _write_users(users, preparing.users(plan, numbers), plan.out / "users.parquet")
    positive: Any = {name: counts[name] for name in (*partitions.FOLDS, "learned")}
    np.savez(plan.out / "counts.npz", **positive)
    digest = hashlib.sha256("".join(part["digest"] for part in parts).encode())
    promise = splits.PROMISES[name]
    if mark:
        digest.update(json.dumps([mark, plan.replay, plan.seed]).encode())
        promise += splits.GOING_ON
    made = {
        "version": folder.VERSION,
        "digest": digest.hexdigest(),
        "from": mark,
        "until": facts["last"],
        "schema": config.schema_.model_dump(mode="json"),
        "split": {
            "name": name,
            "promise": promise,
            "users_only_in_training": total("users_only_in_training"),
            "users_not_in_training": total("users_not_in_training"),
            "items_not_in_training": int((counts["asked"] & ~counts["seen"]).sum()),
            "digest": splits.digest_of(_folds(plan.out, numbers, facts["kept"])),
        },
        "interactions": facts["kept"],
        "rejected_rows": rejects.count_rows(bad),
        "parts": parts,
    }
    plain = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    (plan.out / "config.toml").write_text(tomli_w.dumps(plain), "utf-8")
    atomic.write(plan.out / folder.MANIFEST, json.dumps(made, indent=1) + "\n")
    return made


def _write_users(users: pl.DataFrame, order: pl.Series, path: Path) -> None:
    """Users in order of part, and behind them those who did nothing."""
    rank = pl.DataFrame({"id": order}).with_row_index("rank")
    ranked = users.join(rank, on="id", how="left", maintain_order="left")
    ranked.sort("rank", nulls_last=True, maintain_order=True).drop("rank").write_parquet(
        path
    )


def _folds(out: Path, numbers: list[int], rows: int) -> np.ndarray:
    """`[interactions]` the fold of each row."""
    found = np.empty(rows, np.uint8)
    for number in numbers:
        frame = pl.read_parquet(folder.events(out, number), columns=["row", "fold"])
        found[frame["row"].to_numpy()] = frame["fold"].to_numpy()
    return found


def parser() -> argparse.ArgumentParser:
    """The flags of the command; all others are Beam's."""
    p = argparse.ArgumentParser(
        prog="tfrec_attn.prepare", description=__doc__, allow_abbrev=False
    )
    flags.add(p)
    p.add_argument("--out", required=True, type=Path, help="folder to be made")
    p.add_argument(
        "--from",
        dest="base",
        type=Path,
        metavar="RUN_OR_VERSION",
        help="for a training that goes on from this model, by its settings",
    )
    return p


def _settings(args: argparse.Namespace) -> config_lib.Config:
    overrides = flags.overrides(args)
    if not args.base:
        return config_lib.load(args.config, overrides)
    from tfrec_attn.run import incremental

    flags.require_no_config(args)
    return incremental.settings(args.base, overrides)


def main(argv=None) -> int:
    """Prints a line of JSON about what was made; 2 with the reason where nothing was."""
    args, beam_flags = parser().parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # A worker's fault is told once, by the command.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        made = run(_settings(args), args.out, beam_flags, args.base)
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.prepare: {error}", file=sys.stderr)
        return 2
    shown = {name: made[name] for name in ("interactions", "rejected_rows")}
    shown |= {"parts": len(made["parts"]), "split": made["split"]["name"]}
    print(json.dumps(shown | {"digest": made["split"]["digest"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
