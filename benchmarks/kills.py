r"""Kills trainings at random moments, goes on with each, and compares what they end with.

    python benchmarks/kills.py --out runs/kills --config configs/movielens-100k.toml \
        --set train.epochs=2 --set train.ranking_epochs=1 --set train.checkpoint_steps=20 \
        --set loss.negatives=256 --set loss.hard_negatives=4 --set loss.easy_negatives=8 \
        --set loss.ranked_targets=1024

Trains once without a stop. Then begins the same training `--kills` times, each time ends it
by SIGKILL, goes on by --resume, and holds all tensors of the kept weights, the history and
the test metrics against those of the first, bit for bit. The moments are drawn by `--seed`,
one from each of as many equal parts of the time that the first training took, so that each
phase has its share: tables and texts, both stages, validations, the choice of the scorer's
share, the test fold. Prints a Markdown table; 1 where anything differs.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

NAME = "benchmarks/kills.py"


class Training:
    """A training in a process of its own, which writes its log beside its folder.

    Args:
      out: Its folder.
      arguments: Of `tfrec_attn.train`, behind `--out`.
    """

    def __init__(self, out: Path, *arguments: str):
        self.out, self.log = out, out.with_suffix(".log")
        command = [sys.executable, "-m", "tfrec_attn.train", "--out", str(out)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log)
        self.started = time.monotonic()

    def claimed(self) -> float:
        """Waits for its folder; seconds since the start."""
        while not self.out.exists() and self.process.poll() is None:
            time.sleep(0.02)
        return time.monotonic() - self.started

    def ended(self) -> float:
        """Waits for its end; seconds since the start.

        Raises:
          ValueError: When it failed.
        """
        if self.process.wait():
            raise ValueError(f"{self.out} failed:\n{self.log.read_text()[-2000:]}")
        return time.monotonic() - self.started

    def killed(self, moment: float) -> str:
        """Kills it so many seconds after it has its folder; what it was doing."""
        self.claimed()
        try:
            self.process.wait(moment)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return self.doing()
        return "it had ended"

    def doing(self) -> str:
        """The last thing that it said."""
        said = [x.strip() for x in re.split(r"[\r\n]", self.log.read_text()) if x.strip()]
        last = re.sub(r"^[-0-9]+ [:,0-9]+ (tfrec_attn\.)?", "", said[-1]) if said else ""
        return re.sub(r"\s+", " ", last.split("|")[0])[:44]

    def went_on(self) -> str:
        """After which state it went on, the last one that it took."""
        found = re.findall(r"(\w+): going on after (.*)", self.log.read_text())
        return "{}: {}".format(*found[-1]) if found else "the start"


def content(prefix: Path) -> dict[str, bytes]:
    """All tensors of a checkpoint, and `{}` where there is none."""
    import tensorflow as tf

    if not prefix.with_suffix(".index").exists():
        return {}
    reader = tf.train.load_checkpoint(str(prefix))
    names = reader.get_variable_to_shape_map()
    # The graph of the objects lists them in an order of its own.
    kept = [name for name in names if not name.startswith("_CHECKPOINTABLE")]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in kept}


def differences(run: Path, other: Path) -> list[str]:
    """Names of what two runs do not agree about."""
    files = [
        name
        for name in ("history.jsonl", "metrics.json")
        if (run / name).read_bytes() != (other / name).read_bytes()
    ]
    for name in ("best", "best-retrieval", "best-ranking", "best-both"):
        one, two = (content(out / "checkpoints" / name) for out in (run, other))
        files += [
            f"{name}: {key}"
            for key in one.keys() | two.keys()
            if one.get(key) != two.get(key)
        ]
    return files


def rows(out: Path, arguments: list[str], kills: int, seed: int):
    """A row for each kill."""
    whole = Training(out / "whole", *arguments)
    begun = whole.claimed()
    length = whole.ended() - begun
    print(
        f"without a stop: {begun:.1f} s to the run folder, {length:.1f} s after it",
        file=sys.stderr,
    )
    parts = np.arange(kills) + np.random.default_rng(seed).random(kills)
    for number, moment in enumerate(parts / kills * length, 1):
        run = out / f"killed-{number}"
        doing = Training(run, *arguments).killed(moment)
        resumed = Training(run, *arguments, "--resume")
        seconds = resumed.ended()
        differ = differences(run, whole.out)
        yield {
            "killed at, s": f"{moment:.1f}",
            "doing": doing,
            "went on after": resumed.went_on(),
            "resumed, s": f"{seconds:.1f}",
            "differs": f"{len(differ)}: {differ[0]}" if differ else "nothing",
        }


def main(argv=None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, arguments = parser.parse_known_args(argv)
    from tfrec_attn.evaluation import report

    if args.out.exists():
        print(f"{NAME}: {args.out} exists: name a new folder by --out.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True)
    try:
        found = list(rows(args.out, arguments, args.kills, args.seed))
    except ValueError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(report.table(found))
    return int(any(row["differs"] != "nothing" for row in found))


if __name__ == "__main__":
    sys.exit(main())
