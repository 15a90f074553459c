"""What benchmarks share that time this package beside a peer in an environment of its own.

Each side is a process; a line names one of its calls, and the answer is a number or an
array. Row by row the sides take turns, so that ratios are taken within a turn.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

CORES = 2
# PyTorch's threads, where they spin, take ten times as long while anything else runs.
ENVIRONMENT = "OMP_WAIT_POLICY=PASSIVE", "CUDA_VISIBLE_DEVICES=-1", "TF_CPP_MIN_LOG_LEVEL=3"


def tensorflow():
    """TensorFlow on our cores."""
    from tfrec_attn.keras_binding import switch_on

    switch_on()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(CORES)
    tf.config.threading.set_inter_op_parallelism_threads(CORES)
    return tf


def torch():
    """PyTorch on our cores."""
    import torch as library

    library.set_num_threads(CORES)
    return library


def answer(side: Callable[[], dict[str, Callable]]) -> None:
    """A side's process: reads calls with their arguments, and prints what they give; of
    `time` and a call, its milliseconds."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    # What else a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    calls = side()
    calls["time"] = lambda name, *counts: milliseconds(calls[name], *counts)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        found = np.asarray(calls[name](*arguments)).tolist()
        print(json.dumps(found), file=answers, flush=True)


def milliseconds(call: Callable, count: int = 5, cold: int = 2) -> float:
    """The median of a few calls, after some that find their caches cold."""
    times = []
    for _ in range(cold + count):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[cold:]))


def start(python: str, *arguments: str) -> Callable:
    """Starts a side's process, which is the calling script with `arguments`; gives what
    asks it."""
    command = ["env", *ENVIRONMENT, python, sys.argv[0], *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)

    def ask(name: str, *values):
        print(json.dumps((name, *values)), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(arguments)} failed under {python}, see above.")
        return json.loads(line)

    return ask


def in_turns(rows: dict[object, Callable], turns: int) -> dict:
    """What each row gives, `[turns]`; a first turn warms up."""
    spent = [{row: call() for row, call in rows.items()} for _ in range(turns + 1)]
    return {row: np.array([turn[row] for turn in spent[1:]]) for row in rows}


def spread(values: np.ndarray, digits: int = 2) -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in np.percentile(values, [25, 50, 75]))
    return f"{middle} [{low}, {high}]"


def table(head: tuple, rows: list[tuple]) -> None:
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        print("|", " | ".join(row), "|")
    print()
