"""How long a scoring takes, beside the bare product and PyLate's MaxSim in PyTorch.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python benchmarks/scorer.py --peer .venv-peers/bin/python

One user of n = 64 tokens, 1,000 candidates of m = 16, d = 64, float32, on two cores. Each
side is a process of its own with the same unit tokens; row by row they take turns, a few
calls each, and ratios are taken within a turn. Without `--peer` its rows are missing.

- `bare QKᵀ`: the product of all item tokens with all user tokens, nothing else.
- `kept sides`: the score from what `user_side` and `item_side` give, as an index holds it.
- `plain tokens`: from tokens, without projections.
- `whole layer`: `AttentionWeightedCosine()`, which projects both sides.
- PyLate's `colbert_scores`: for each user token the best item token (the user is the query,
  as it is mostly used) and for each item token the best user token (the scorer's limit).

The memory is what one scoring of 20,000 candidates by the whole layer holds at its peak
beside its inputs, each chunk in a process of its own. With a peer, the limit of high
`focus` is held against `colbert_scores` on random tokens and masks; the exit code is 1
where they differ by more than 1e-5. Linux only.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

N, M, D = 64, 16, 64
CANDIDATES = 1000
GROWTH = (250, 1000, 4000, 16000)
MANY, CHUNKS = 20_000, (0, 4000, 1000, 250)
CORES = 2
TOLERANCE = 1e-5
BARE = "bare QKᵀ"
BEST_ITEM, BEST_USER = "PyLate, best item token", "PyLate, best user token"
OURS = (BARE, "kept sides", "plain tokens", "whole layer")
THEIRS = ("bare QKᵀ in PyTorch", BEST_ITEM, BEST_USER)
# PyTorch's threads, where they spin, take ten times as long while anything else runs.
ENVIRONMENT = "OMP_WAIT_POLICY=PASSIVE", "CUDA_VISIBLE_DEVICES=-1", "TF_CPP_MIN_LOG_LEVEL=3"

Calls = dict[str, Callable]  # without arguments, to an array of some library


def inputs(count: int, users: int = 1, real: float = 1.0) -> dict[str, np.ndarray]:
    """What the layer takes, of unit tokens; each is padding with probability 1 - `real`."""
    draw = np.random.default_rng(0)
    user, item = (draw.normal(size=(*size, D)) for size in ((users, N), (count, M)))
    unit = lambda v: (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32)
    mask = lambda v: (draw.random(v.shape[:-1]) < real) | (np.arange(v.shape[1]) == 0)
    x = {"user": unit(user), "item": unit(item)}
    return x | {"user_mask": mask(user), "item_mask": mask(item)}


def tensorflow():
    """TensorFlow on our cores, and `inputs` as its tensors."""
    from tfrec_attn.keras_binding import switch_on

    switch_on()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf, lambda *args: tf.nest.map_structure(tf.constant, inputs(*args))


def ours() -> Calls:
    tf, given = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine
    from tfrec_attn.model import scoring

    layer, sharp = AttentionWeightedCosine(), AttentionWeightedCosine(focus=1e9, scale=1.0)
    x = given(CANDIDATES)
    rows = tf.reshape(x["item"], [-1, D])

    def plain(x):
        user = scoring.side(x["user"], x["user_mask"])
        item = scoring.side(x["item"][None], x["item_mask"][None])
        return scoring.softmax_score(user, item, focus=10.0, scale=10.0)

    def timed(function, *args):
        # Captured, as Python spends 0.1 to 0.4 ms on sorting out arguments: a graph that
        # calls the scorer, as a served one, has none of that.
        return tf.function(lambda: function(*args))

    def kept(x):
        layer(x)
        user = layer.user_side(x["user"], x["user_mask"])
        return timed(layer.compare, user, layer.item_side(x["item"], x["item_mask"]))

    product = functools.partial(tf.matmul, transpose_b=True)
    calls = timed(product, rows, x["user"][0]), kept(x), timed(plain, x), timed(layer, x)
    return (
        dict(zip(OURS, calls, strict=True))
        | {str(count): kept(given(count)) for count in GROWTH}
        | {"limit": lambda: sharp(given(40, 3, 0.75))}
    )


def theirs() -> Calls:
    import torch
    from pylate.scores import colbert_scores

    torch.set_num_threads(CORES)
    torch.inference_mode().__enter__()
    given = lambda *args: [torch.tensor(x) for x in inputs(*args).values()]
    user, item, *_ = given(CANDIDATES)
    calls = (
        lambda: item.reshape(-1, D) @ user[0].T,
        lambda: colbert_scores(user, item),
        lambda: colbert_scores(item, user),
    )

    def limit():
        """Its sums over real item tokens, as means. It gives padding the cosine 0, which
        no best of some 48 random cosines is below."""
        user, item, user_mask, item_mask = given(40, 3, 0.75)
        sums = colbert_scores(item, user, item_mask.float(), user_mask.float())
        return (sums / item_mask.sum(-1, keepdim=True)).T

    grown = {str(count): given(count) for count in GROWTH}
    return (
        dict(zip(THEIRS, calls, strict=True))
        | {row: functools.partial(colbert_scores, x[0], x[1]) for row, x in grown.items()}
        | {"limit": limit}
    )


def memory(chunk: int) -> Calls:
    tf, given = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine

    layer = AttentionWeightedCosine(chunk=chunk or None)
    x, few = given(MANY), given(10)
    layer(few)
    unknown = lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype)
    score = tf.function(layer, input_signature=[tf.nest.map_structure(unknown, x)])
    score(few)

    status = lambda: Path("/proc/self/status").read_text()
    kilobytes = lambda field: int(re.search(rf"{field}:\s+(\d+)", status())[1])

    def peak():
        """MB by which a call's peak is above what the process held before it."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = kilobytes("VmRSS")
        score(x)
        return np.float64((kilobytes("VmHWM") - before) / 1024)

    return {"peak": peak}


SIDES = {"ours": ours, "theirs": theirs}
SIDES |= {f"memory-{chunk}": functools.partial(memory, chunk) for chunk in CHUNKS}


def answer(side: str) -> None:
    """A side's process: a line names a call and how often it is timed, 0 for its value."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    calls = SIDES[side]()
    for line in sys.stdin:
        name, count = json.loads(line)
        call = calls[name]
        found = milliseconds(call, count) if count else np.asarray(call()).tolist()
        print(json.dumps(found), flush=True)


def milliseconds(call: Callable, count: int) -> float:
    """The median of a few calls, after two that find their caches cold."""
    times = []
    for _ in range(count + 2):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[2:]))


def start(python: str, side: str) -> Callable:
    """Starts a side's process; gives what asks it."""
    command = ["env", *ENVIRONMENT, python, __file__, "--side", side]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)

    def ask(name: str, count: int = 0):
        print(json.dumps((name, count)), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{side} failed under {python}, see above.")
        return json.loads(line)

    return ask


def in_turns(rows: dict, turns: int, calls: int, name=str) -> dict:
    """Milliseconds of each row, `[turns]`; a first turn warms up.

    Args:
      rows: What asks the side of each.
      name: Gives a row's call.
    """
    turn = lambda: {row: ask(name(row), calls) for row, ask in rows.items()}
    spent = [turn() for _ in range(turns + 1)]
    return {row: np.array([turn[row] for turn in spent[1:]]) for row in rows}


def spread(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def table(head: tuple, rows: list[tuple]) -> None:
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        print("|", " | ".join(row), "|")
    print()


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="Python of the environment with PyLate")
    parser.add_argument("--turns", type=int, default=80)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        answer(args.side)
        return 0

    us = start(sys.executable, "ours")
    rows = dict.fromkeys(OURS, us)
    if args.peer:
        them = start(args.peer, "theirs")
        rows |= dict.fromkeys(THEIRS, them)
    spent = in_turns(rows, args.turns, calls=5)
    bases = [row for row in (BARE, BEST_ITEM, BEST_USER) if row in rows]
    ratios = lambda row: (spread(spent[row] / spent[base]) for base in bases)
    table(
        ("median [quartiles]", "ms", *(f"× {base}" for base in bases)),
        [(row, spread(spent[row]), *ratios(row)) for row in rows],
    )
    sides = {"kept sides": us} | ({BEST_ITEM: them} if args.peer else {})
    grown = in_turns(
        {(side, count): ask for count in GROWTH for side, ask in sides.items()},
        max(4, args.turns // 8),
        calls=5,
        name=lambda row: str(row[1]),
    )
    per_thousand = {row: times / row[1] * 1e3 for row, times in grown.items()}
    table(
        ("candidates", *(f"{side}, ms a thousand" for side in sides)),
        [(str(n), *(spread(per_thousand[side, n]) for side in sides)) for n in GROWTH],
    )
    peaks = {chunk: start(sys.executable, f"memory-{chunk}")("peak") for chunk in CHUNKS}
    table(
        ("chunk", f"peak memory of {MANY:,} candidates, MB"),
        [(str(chunk or "all"), f"{peak:.0f}") for chunk, peak in peaks.items()],
    )
    if not args.peer:
        return 0
    apart = np.abs(np.subtract(us("limit"), them("limit"))).max()
    print(f"High focus and PyLate's MaxSim differ by {apart:.1e} at most.")
    return 0 if apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
