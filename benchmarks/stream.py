r"""Preparing and training on data larger than memory.

    python benchmarks/stream.py
    python benchmarks/stream.py --interactions 1e6 --items 1e5 --steps 20

Makes interactions of a catalogue in chunks, as Parquet: users of about forty events, a few
items far more often than most. Prints Markdown tables:

- the seconds in which Polars reads the file, sorts it by user and time and writes it, those
  of `tfrec_attn.prepare`, both in processes of their own, and how many times as many they
  are (best of `--times` runs, one after another by turns);
- of trainings of some steps on streams of 1 in 200, 1 in 20, half and all of the
  interactions over the same catalogue, with the same model and batch: examples and targets
  a second (median over the steps after the first ten), and the peak memory of the process
  with its children.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CHUNK, EVENTS, SECONDS = 1_000_000, 40, 100_000_000
WARM_UP = 10
SORT = """
import sys, polars as pl
table = pl.read_parquet(sys.argv[1])
table.sort("user_id", "timestamp").write_parquet(sys.argv[2])
"""
# Small: a step of AdamW moves all weights of all items.
SETTINGS = [
    "text.backbone=",
    "split.name=global-time",
    "model.dim=16",
    "scorer.dim=16",
    "train.ranking_epochs=0",
    "train.strategy=one",
]


def write(path: Path, interactions: int, items: int) -> None:
    """The interactions table, a chunk at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    draw, users = np.random.default_rng(0), max(1, interactions // EVENTS)
    writer = None
    for start in range(0, interactions, CHUNK):
        n = min(CHUNK, interactions - start)
        table = pa.table(
            {
                "user_id": draw.integers(0, users, n),
                # The first tenth of the items has half of the events.
                "item_id": (items * draw.random(n) ** 3.3).astype(np.int64),
                "timestamp": 1_500_000_000 + draw.integers(0, SECONDS, n),
            }
        )
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def seconds(*command) -> float:
    """Of a process of its own."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return time.perf_counter() - begun


def prepare(place: Path, table: Path, out: Path) -> float:
    """Seconds of the command."""
    given = ["-m", "tfrec_attn.prepare", "--items", place / "items.parquet"]
    given += ["--interactions", table, "--out", out]
    return seconds(*given, *(x for one in SETTINGS for x in ("--set", one)))


class Peak(threading.Thread):
    """The largest sum of resident memory of a process and its children, in bytes."""

    def __init__(self, process: int):
        super().__init__(daemon=True)
        self.process, self.most, self.over = process, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.05):
            self.most = max(self.most, sum(map(resident, tree(self.process))))


def tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            below = path.read_text().split()
        except OSError:
            continue
        found += [x for child in below for x in tree(int(child))]
    return found


def resident(process: int) -> int:
    """Bytes, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def train(folder: Path, steps: int) -> None:
    """Trains some steps and a validation in this process; prints what was measured."""
    import tensorflow as tf

    from tfrec_attn import evaluate
    from tfrec_attn.data import batches
    from tfrec_attn.run import building, streamed
    from tfrec_attn.settings import config as config_lib
    from tfrec_attn.training import distribution, fit, optimizers

    given = [f"data.prepared={json.dumps(str(folder))}", *SETTINGS]
    config = config_lib.load(folder / "config.toml", given, without=["data"])
    prepared = streamed.prepare(config)
    fit.deterministic(config.train.seed)
    strategy = distribution.strategy(config.train.strategy)
    with strategy.scope():
        model = building.build(prepared)
    model.warm_up()
    examples, size = prepared.training(), config.train.batch_size
    with strategy.scope():
        model.compile(optimizer=optimizers.make(config.train, steps, None))
        model.optimizer.build(model.trainable_variables)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = policy
    source = batches.training(examples, size, seed=config.train.seed).with_options(options)
    stream = iter(strategy.experimental_distribute_dataset(source))
    # As `fit` calls it.
    step, took = model.make_train_function(), []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        float(step(stream)["loss"])
        took.append(time.perf_counter() - begun)
    alone = time.perf_counter()
    for _ in range(steps):
        next(stream)
    alone = time.perf_counter() - alone
    most = min(100, config.train.validation_queries)
    evaluate.evaluate(model, prepared, "validation", most=most)
    found = {
        "step": float(np.median(took[WARM_UP:])),
        "batch": size,
        "targets": size * examples.n_targets / len(examples),
        "alone": alone / steps,
    }
    print(json.dumps(found))


def measured(folder: Path, steps: int) -> dict[str, float]:
    """Of a training in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, "--train", str(folder), "--steps", str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    peak.start()
    out, _ = process.communicate()
    peak.over.set()
    if process.returncode:
        raise SystemExit(f"the training ended with {process.returncode}")
    return json.loads(out.splitlines()[-1]) | {"peak": peak.most}


def row(interactions: int, found: dict[str, float]) -> dict[str, str]:
    """Of the table of trainings."""
    return {
        "interactions": f"{interactions:,}",
        "step, ms": f"{found['step'] * 1e3:.0f}",
        "examples/s": f"{found['batch'] / found['step']:.0f}",
        "targets/s": f"{found['targets'] / found['step']:.0f}",
        "input alone, ms a batch": f"{found['alone'] * 1e3:.1f}",
        "peak, GiB": f"{found['peak'] / 2**30:.2f}",
    }


def main(argv=None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--interactions", type=lambda text: int(float(text)), default=20_000_000)
    add("--items", type=lambda text: int(float(text)), default=1_000_000)
    add("--steps", type=int, default=50)
    add("--times", type=int, default=3, help="runs of Polars and of prepare")
    add("--place", type=Path, help="folder for the files, removed by default")
    add("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.train:
        train(args.train, args.steps)
        return 0
    with tempfile.TemporaryDirectory() as name:
        place = args.place or Path(name)
        place.mkdir(parents=True, exist_ok=True)
        run(place, args)
    return 0


def run(place: Path, args) -> None:
    """Measures in a folder."""
    import polars as pl

    from tfrec_attn.evaluation import report

    ids = np.arange(args.items)
    table = pl.DataFrame({"item_id": ids, "kind": [f"kind {i % 50}" for i in ids]})
    table.write_parquet(place / "items.parquet")
    sizes = [args.interactions // part for part in (200, 20, 2, 1)]
    for size in sizes:
        write(place / f"{size}.parquet", size, args.items)
    whole = place / f"{args.interactions}.parquet"
    took: dict[str, list[float]] = {"Polars": [], "prepare": []}
    for turn in range(args.times):
        took["Polars"].append(seconds("-c", SORT, whole, place / "sorted.parquet"))
        took["prepare"].append(prepare(place, whole, place / f"prepared-{turn}"))
    best = {name: min(values) for name, values in took.items()}
    shown = {name: f"{value:.1f} s" for name, value in best.items()}
    ratio = f"{best['prepare'] / best['Polars']:.2f}"
    rows = {"interactions": f"{args.interactions:,}", **shown, "times as long": ratio}
    print(report.table([rows]), flush=True)
    folders = {args.interactions: place / "prepared-0"}
    for size in sizes[:-1]:
        folders[size] = place / f"prepared-{size}"
        prepare(place, place / f"{size}.parquet", folders[size])
    found = [row(size, measured(folders[size], args.steps)) for size in sizes]
    print(report.table(found))


if __name__ == "__main__":
    sys.exit(main())
