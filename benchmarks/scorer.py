"""How long a scoring takes, beside the bare product and PyLate's MaxSim in PyTorch.

    python3.11 -m venv .venv-scorer
    .venv-scorer/bin/pip install -r benchmarks/requirements-scorer.txt
    python benchmarks/scorer.py --peer .venv-scorer/bin/python

One user of n = 64 tokens, 1,000 candidates of m = 16, d = 64, float32, on two cores. Both
sides run in processes of their own, on the same cores, turn by turn, with the same tokens.
Without `--peer` the peer's rows are missing. What is timed:

- `bare QKᵀ`: the product of all item tokens with all user tokens, nothing else.
- `kept sides`: the score from the sides that `user_side` and `item_side` give, as an index
  holds them. PyLate's function, too, is given unit vectors.
- `no projections`: the same from plain tokens, each head its part of them.
- `whole layer`: `AttentionWeightedCosine()`, which projects both sides.
- PyLate: its product, and `colbert_scores` in both directions: for each item token the
  best user token, which is the scorer's limit, and for each user token the best item token.

The memory is what one scoring of 20,000 candidates by the whole layer holds at its peak
beside its inputs, in a process of its own for each chunk (Linux). With a peer, the limit of
high `focus` is held against `colbert_scores` on random tokens and masks; the exit code is 1
where they differ by more than 1e-5.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N, M, D = 64, 16, 64
CANDIDATES = 1000
GROWTH = (250, 1000, 4000, 16000)
MANY = 20_000
CHUNKS = (None, 4000, 1000, 250)
CORES = 2
WARM_UP, CALLS = 20, 200
TOLERANCE = 1e-5


def tokens(count: int, length: int, seed: int) -> np.ndarray:
    """`[count, length, D]` float32 unit vectors."""
    drawn = np.random.default_rng(seed).normal(size=(count, length, D))
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def limit_inputs() -> dict[str, np.ndarray]:
    """Three users and forty candidates of which one token in four is padding."""
    user_mask, item_mask = (
        np.random.default_rng(seed).random(shape) < 0.75
        for seed, shape in ((2, (3, N)), (3, (40, M)))
    )
    user_mask[:, 0], item_mask[:, 0] = True, True
    return {
        "user": tokens(3, N, 4),
        "item": tokens(40, M, 5),
        "user_mask": user_mask,
        "item_mask": item_mask,
    }


def timed(call: Callable[[], Any], calls: int = CALLS) -> list[float]:
    """Milliseconds of each call."""
    for _ in range(WARM_UP):
        call()
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1e3)
    return spent


def tensorflow():
    import tfrec_attn  # noqa: F401  (before TensorFlow: the switch to Keras 2)

    # isort: split
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def inputs(count: int) -> dict:
    import tensorflow as tf

    return {
        "user": tf.constant(tokens(1, N, 0)),
        "item": tf.constant(tokens(count, M, 1)),
        "user_mask": tf.ones((1, N), bool),
        "item_mask": tf.ones((count, M), bool),
    }


def kept(layer, x) -> Callable:
    """The score of kept sides, and those sides."""
    import tensorflow as tf

    layer(x)
    user = layer.user_side(x["user"], x["user_mask"])
    item = layer.item_side(x["item"], x["item_mask"])
    compare = tf.function(layer.compare)
    return lambda: compare(user, item).numpy()


def ours(_) -> dict[str, list[float]]:
    tf = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine
    from tfrec_attn.model import scoring

    x = inputs(CANDIDATES)
    rows = tf.reshape(x["item"], [-1, D])
    bare = tf.function(lambda item, user: tf.matmul(item, user, transpose_b=True))

    @tf.function
    def plain(x):
        user = scoring.side(x["user"], x["user_mask"])
        item = scoring.side(x["item"][None], x["item_mask"][None])
        return scoring.softmax_score(user, item, focus=10.0, scale=10.0)

    layer = AttentionWeightedCosine()
    whole = tf.function(lambda x: layer(x))
    return {
        "bare QKᵀ": timed(lambda: bare(rows, x["user"][0]).numpy()),
        "kept sides": timed(kept(layer, x)),
        "no projections": timed(lambda: plain(x).numpy()),
        "whole layer": timed(lambda: whole(x).numpy()),
    }


def pylate(_) -> dict[str, list[float]]:
    import torch
    from pylate.scores import colbert_scores

    torch.set_num_threads(CORES)
    user, item = torch.tensor(tokens(1, N, 0)), torch.tensor(tokens(CANDIDATES, M, 1))
    rows = item.reshape(-1, D)
    with torch.inference_mode():
        return {
            "PyTorch, bare QKᵀ": timed(lambda: (rows @ user[0].T).numpy()),
            "PyLate, best user token": timed(lambda: colbert_scores(item, user).numpy()),
            "PyLate, best item token": timed(lambda: colbert_scores(user, item).numpy()),
        }


def growth(_) -> dict[str, list[float]]:
    tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine

    layer = AttentionWeightedCosine()
    calls = {count: max(10, CALLS * CANDIDATES // count // 4) for count in GROWTH}
    return {str(count): timed(kept(layer, inputs(count)), calls[count]) for count in GROWTH}


def peak_growth(call: Callable[[], Any]) -> float:
    """MB by which a call's peak is above what the process held before it."""
    kilobytes = lambda field: int(
        re.search(rf"^{field}:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)[1]
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = kilobytes("VmRSS")
    call()
    return (kilobytes("VmHWM") - before) / 1024


def memory(chunk: str) -> float:
    """MB."""
    tf = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine

    layer = AttentionWeightedCosine(chunk=None if chunk == "None" else int(chunk))
    x, few = inputs(MANY), inputs(10)
    layer(few)
    unknown = tf.nest.map_structure(
        lambda v: tf.TensorSpec([None, *v.shape[1:]], v.dtype), x
    )
    score = tf.function(lambda x: layer(x), input_signature=[unknown])
    score(few)
    return peak_growth(lambda: score(x))


def our_limit(_) -> list:
    tf = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine

    x = {name: tf.constant(value) for name, value in limit_inputs().items()}
    scores = AttentionWeightedCosine(focus=1e9, scale=1.0)(x)
    return scores.numpy().tolist()


def their_limit(_) -> list:
    """Its sums over real item tokens, as means. It gives padding the cosine 0, which no
    best of some 48 random cosines is below."""
    import torch
    from pylate.scores import colbert_scores

    x = {name: torch.tensor(value) for name, value in limit_inputs().items()}
    mask = x["item_mask"].float()
    sums = colbert_scores(x["item"], x["user"], mask, x["user_mask"].float())
    return (sums / mask.sum(-1, keepdim=True)).T.tolist()


PARTS = {f.__name__: f for f in (ours, pylate, growth, memory, our_limit, their_limit)}


def measured(python: str, part: str, argument: str = "") -> Any:
    """A part's result, from a process of its own on the first `CORES` of our cores."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    done = subprocess.run(
        [python, __file__, "--part", part, "--argument", argument],
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    if done.returncode:
        raise SystemExit(f"{part} failed under {python}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="Python of the environment with PyLate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        print(json.dumps(PARTS[args.part](args.argument)))
        return 0

    spent: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for python, part in ((sys.executable, "ours"), (args.peer, "pylate")):
            for row, times in measured(python, part).items() if python else ():
                spent.setdefault(row, []).extend(times)
    best = "PyLate, best user token"
    base = {name: np.median(spent[name]) for name in ("bare QKᵀ", best) if name in spent}
    print(f"1 user × {CANDIDATES} candidates × m={M} × n={N} × d={D}, ms a call")
    print("| | median | quartiles | to bare QKᵀ | to PyLate |\n|---|---|---|---|---|")
    for row, times in spent.items():
        low, middle, high = np.percentile(times, [25, 50, 75])
        ratios = [f"{middle / base[name]:.2f}" if name in base else "" for name in
                  ("bare QKᵀ", best)]  # fmt: skip
        print(f"| {row} | {middle:.2f} | {low:.2f} – {high:.2f} | {' | '.join(ratios)} |")

    print("\n| candidates | kept sides, ms | ms a thousand |\n|---|---|---|")
    for count, times in measured(sys.executable, "growth").items():
        middle = np.median(times)
        print(f"| {int(count):,} | {middle:.2f} | {middle / int(count) * 1e3:.2f} |")

    print(f"\n| chunk | peak memory of {MANY:,} candidates, MB |\n|---|---|")
    for chunk in CHUNKS:
        print(
            f"| {chunk or 'all'} | {measured(sys.executable, 'memory', str(chunk)):.0f} |"
        )

    if not args.peer:
        return 0
    scores = np.array(measured(sys.executable, "our_limit"))
    apart = np.abs(scores - measured(args.peer, "their_limit")).max()
    print(f"\nHigh focus and PyLate's MaxSim differ by {apart:.1e} at most.")
    return 0 if apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
