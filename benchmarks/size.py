r"""A million items, from the tables to answers of the embedded server.

    python benchmarks/size.py --out /tmp/size

Makes up 1,000,000 items of 200 categories and a price, and 3,000 users with 15 events
each; trains an epoch, exports with token matrices in int8, once to search all items and
once in lists, and asks each version over gRPC, one user after another. Prints a Markdown
table: bytes on disk, seconds until the server is ready, its memory then and after the
requests, milliseconds a request. What `--out` holds is not made again.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from tfrec_attn.evaluation import report
from tfrec_attn.serve.client import Client

USERS, EVENTS, CATEGORIES = 3000, 15, 200
VERSIONS = {
    "all items": ["index.clusters=0"],
    "lists": ["index.clusters=1000", "index.recall=0.95"],
}
SETS = (
    "text.backbone=",
    "split.name=leave-last-out",
    "model.dim=64",
    "train.epochs=1",
    "train.ranking_epochs=1",
    "train.validation_queries=200",
    "examples.history=20",
)


def write_tables(folder: Path, items: int) -> None:
    """Users keep to a few categories; within one the first items are the popular ones."""
    draw = np.random.default_rng(0)
    category = draw.integers(CATEGORIES, size=items)
    of = [np.flatnonzero(category == one) for one in range(CATEGORIES)]
    price = draw.lognormal(3, 1, items).round(2)
    ids = lambda kind, rows: (
        pl.Series(rows).cast(pl.String).map_elements(lambda one: f"{kind}{one}", pl.String)
    )
    pl.DataFrame(
        {
            "item_id": ids("i", np.arange(items)),
            "category": ids("c", category),
            "price": price,
        }
    ).write_parquet(folder / "items.parquet")
    liked = draw.integers(CATEGORIES, size=(USERS, 3))
    chosen = np.take_along_axis(liked, draw.integers(3, size=(USERS, EVENTS)), 1)
    place = draw.pareto(1, size=chosen.shape)
    rows = [
        of[one][int(at * 20) % len(of[one])]
        for one, at in zip(chosen.ravel(), place.ravel(), strict=True)
    ]
    pl.DataFrame(
        {
            "user_id": ids("u", np.repeat(np.arange(USERS), EVENTS)),
            "item_id": ids("i", np.array(rows)),
            "timestamp": np.tile(np.arange(EVENTS), USERS) * 86_400 + 1_500_000_000,
        }
    ).write_parquet(folder / "interactions.parquet")


def call(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"tfrec_attn.{module}", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def memory(process: subprocess.Popen) -> float:
    """GB that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 2**20


def measure(base: Path, requests: int) -> dict[str, str]:
    """Serves a model's folder, and asks it."""
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "tfrec_attn.serve", "--model_base_path", str(base),
         "--port", "0", "--rest_api_port", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        port = re.search(r"gRPC on [\d.]+:(\d+)", line)[1]
        with Client(f"127.0.0.1:{port}", base.name, timeout=600) as client:
            while True:
                try:
                    client.metadata()
                    break
                except Exception:
                    if server.poll() is not None:
                        raise
                    time.sleep(0.2)
            ready, held = time.perf_counter() - begun, memory(server)
            took = []
            for user in range(requests + 20):
                start = time.perf_counter()
                answer = client.recommend(f"u{user}", k=10)
                took.append((time.perf_counter() - start) * 1e3)
                if len(answer.items) != 10:
                    raise SystemExit(f"user {user} got {len(answer.items)} items")
            after = memory(server)
    finally:
        server.terminate()
        server.wait()
    disk = sum(file.stat().st_size for file in base.rglob("*")) / 2**30
    middle, late = np.percentile(took[20:], [50, 95])
    return {
        "on disk, GB": f"{disk:.2f}",
        "ready after, s": f"{ready:.0f}",
        "memory, GB": f"{held:.2f}",
        "after the requests": f"{after:.2f}",
        "P50, ms": f"{middle:.1f}",
        "P95, ms": f"{late:.1f}",
    }


def main(argv=None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=200)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "interactions.parquet").exists():
        write_tables(args.out, args.items)
    run = args.out / "run"
    if not (run / "metrics.json").exists():
        tables = [
            word
            for name in ("items", "interactions")
            for word in (f"--{name}", str(args.out / f"{name}.parquet"))
        ]
        sets = [word for one in SETS for word in ("--set", one)]
        call("train", *tables, "--out", str(run), *sets)
    rows = []
    for number, (name, settings) in enumerate(VERSIONS.items()):
        base = args.out / f"size-{number}"
        if not (base / "1").exists():
            sets = [
                word for one in (*settings, "index.tokens=int8") for word in ("--set", one)
            ]
            call("export", "--run", str(run), "--to", str(base), *sets)
        rows.append({"searches": name, **measure(base, args.requests)})
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
