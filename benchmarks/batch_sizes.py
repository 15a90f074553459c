"""What a call costs by the rows in it: what batching can gain, and where it stops gaining.

    python benchmarks/batch_sizes.py --model saved_models/movielens

Calls signatures in this process, on one thread a core that is given (`--cores`), for
`serving_default` by user ids and for `embed_item` by texts of their own. The largest batch
worth having is where rows a second no longer rise; that many rows and its milliseconds
are `max_batch_size` and the least that a request in a full batch takes.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np

from serving import newest

NAME = "benchmarks/batch_sizes.py"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="exported: saved_models/movielens")
    add("--cores", type=int, default=1, help="threads of one call (default: 1)")
    add("--seconds", type=float, default=2.0, help="of each line (default: 2)")
    add("--k", type=int, default=10, help="items a user (default: 10)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 2 if there is no model to measure."""
    args = parser().parse_args(argv)
    try:
        if args.cores < 1 or args.seconds <= 0:
            raise ValueError("--cores must be at least 1 and --seconds above 0.")
        measure(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    """A line a signature and number of rows."""
    import tensorflow as tf

    from tfrec_attn.serve.server import saved_model

    path = newest(args.model)
    tf.config.threading.set_intra_op_parallelism_threads(args.cores)
    tf.config.threading.set_inter_op_parallelism_threads(args.cores)
    loaded = saved_model.load(path, int(path.name))
    print("| signature | rows | ms | ms a row | rows/s |\n|---|---:|---:|---:|---:|")
    for name in ("serving_default", "embed_item"):
        for rows in ROWS if name in loaded.calls else ():
            given = arrays(loaded.signature_defs[name], rows, args.k)
            call = functools.partial(loaded.run, name, given)
            ms = 1e3 * np.median(timed(call, args.seconds))
            line = f"| {name} | {rows} | {ms:.1f} | {ms / rows:.2f}"
            print(f"{line} | {1e3 * rows / ms:.0f} |", flush=True)


def arrays(definition, rows: int, k: int) -> dict[str, np.ndarray]:
    """A request of `rows` users or items; what is not told is not given."""
    from tfrec_attn.serve import tensors

    told = {
        "user_id": tensors.as_array([str(n + 1) for n in range(rows)]),
        "text": tensors.as_array(
            [f"The {n} other films (1998). Drama" for n in range(rows)]
        ),
        "k": np.full(rows, k, np.int32),
    }
    found = {}
    for name, info in definition.inputs.items():
        dtype = tensors.kind_of(info.dtype).dtype
        shape = (rows,) + (1,) * (len(info.tensor_shape.dim) - 1)
        unknown = np.full(shape, b"" if dtype.kind == "O" else 0, dtype)
        found[name] = told.get(name, unknown)
    return found


def timed(call, seconds: float) -> list[float]:
    """Seconds of each call, of at least five, after one that is not counted."""
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    sys.exit(main())
