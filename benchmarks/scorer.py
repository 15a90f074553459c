"""How long a scoring takes, beside the bare product and PyLate's MaxSim in PyTorch.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python benchmarks/scorer.py --peer .venv-peers/bin/python

One user of n = 64 tokens, 1,000 candidates of m = 16, d = 64, float32, on two cores. Each
side is a process of its own with the same unit tokens; row by row they take turns, a few
calls each, and ratios are taken within a turn. Without `--peer` its rows are missing.

- `bare QKᵀ`: the product of all item tokens with all user tokens, nothing else.
- `kept sides`: the score from what `user_side` and `item_side` give, as an index holds it,
  by the kernels of an exported model (`xla=False`); and by those that XLA has too.
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
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import turns

N, M, D = 64, 16, 64
CANDIDATES = 1000
GROWTH = (250, 1000, 4000, 16000)
MANY, CHUNKS = 20_000, (0, 4000, 1000, 250)
TOLERANCE = 1e-5
BARE = "bare QKᵀ"
BEST_ITEM, BEST_USER = "PyLate, best item token", "PyLate, best user token"
OURS = (BARE, "kept sides", "kept sides, for XLA", "plain tokens", "whole layer")
THEIRS = ("bare QKᵀ in PyTorch", BEST_ITEM, BEST_USER)
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
    """TensorFlow, and `inputs` as its tensors."""
    tf = turns.tensorflow()
    return tf, lambda *args: tf.nest.map_structure(tf.constant, inputs(*args))


def ours() -> Calls:
    tf, given = tensorflow()
    from tfrec_attn.layers import AttentionWeightedCosine
    from tfrec_attn.model import scoring

    layer, sharp = AttentionWeightedCosine(), AttentionWeightedCosine(focus=1e9, scale=1.0)
    exported = AttentionWeightedCosine(xla=False)
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

    def kept(x, layer=exported):
        layer(x)
        user = layer.user_side(x["user"], x["user_mask"])
        item = layer.item_side(x["item"], x["item_mask"])
        return timed(layer.compare, user, item, False)

    product = functools.partial(tf.matmul, transpose_b=True)
    calls = (
        timed(product, rows, x["user"][0]),
        kept(x),
        kept(x, layer),
        timed(plain, x),
        timed(layer, x),
    )
    return (
        dict(zip(OURS, calls, strict=True))
        | {str(count): kept(given(count)) for count in GROWTH}
        | {"limit": lambda: sharp(given(40, 3, 0.75))}
    )


def theirs() -> Calls:
    torch = turns.torch()
    from pylate.scores import colbert_scores

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


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="Python of the environment with PyLate")
    parser.add_argument("--turns", type=int, default=80)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        turns.answer(SIDES[args.side])
        return 0

    asked = {"ours": turns.start(sys.executable, "--side", "ours")}
    if args.peer:
        asked["theirs"] = turns.start(args.peer, "--side", "theirs")
    time = lambda side, call: functools.partial(asked[side], "time", call)
    calls = [("ours", call) for call in OURS]
    calls += [("theirs", call) for call in THEIRS if args.peer]
    spent = turns.in_turns({call: time(side, call) for side, call in calls}, args.turns)
    bases = [row for row in (BARE, BEST_ITEM, BEST_USER) if row in spent]
    ratios = lambda row: (turns.spread(spent[row] / spent[base]) for base in bases)
    turns.table(
        ("median [quartiles]", "ms", *(f"× {base}" for base in bases)),
        [(row, turns.spread(spent[row]), *ratios(row)) for row in spent],
    )
    sizes = [(count, side) for count in GROWTH for side in asked]
    spent = turns.in_turns(
        {(count, side): time(side, str(count)) for count, side in sizes},
        max(4, args.turns // 8),
    )
    names = {"ours": "kept sides", "theirs": BEST_ITEM}
    each = lambda count: [turns.spread(spent[count, s] / count * 1e3) for s in asked]
    turns.table(
        ("candidates", *(f"{names[side]}, ms a thousand" for side in asked)),
        [(str(count), *each(count)) for count in GROWTH],
    )
    peak = lambda chunk: turns.start(sys.executable, "--side", f"memory-{chunk}")("peak")
    peaks = {chunk: peak(chunk) for chunk in CHUNKS}
    turns.table(
        ("chunk", f"peak memory of {MANY:,} candidates, MB"),
        [(str(chunk or "all"), f"{peak:.0f}") for chunk, peak in peaks.items()],
    )
    if not args.peer:
        return 0
    apart = np.abs(np.subtract(*(ask("limit") for ask in asked.values()))).max()
    print(f"High focus and PyLate's MaxSim differ by {apart:.1e} at most.")
    return 0 if apart <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
