r"""What BERT's training takes, in memory and time, by each way to take less.

    python benchmarks/memory.py --config configs/movielens-100k.toml

A step is the loss and gradient of `--live` item texts through all weights of the config's
backbone, with dropout, in a process of its own each. Prints a Markdown table: texts a
second, median of `--steps` after the first two, and the peak memory of the process above
what it had before the first step.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

from tfrec_attn.evaluation import report
from tfrec_attn.run import building

WAYS: dict[str, dict] = {
    "all at once": {},
    "bert.chunk=32": {"chunk": 32},
    "bert.recompute": {"recompute": True},
    "both": {"chunk": 32, "recompute": True},
    "bert.xla": {"xla": True},
    "train.precision=bfloat16": {"precision": "bfloat16"},
}


def measure(queue, path: Path, live: int, steps: int, way: dict) -> None:
    """Of one way, in this process."""
    import numpy as np
    import tensorflow as tf

    from tfrec_attn import backbones
    from tfrec_attn.data import catalog
    from tfrec_attn.model import texts
    from tfrec_attn.run import pipeline
    from tfrec_attn.settings import config as config_lib

    config = config_lib.load(path, ["bert.tuning=all"])
    config, tables = pipeline.read(config)
    items = catalog.make(tables.items, {})
    folder = backbones.backbone(config.text.backbone)
    tokens = texts.tokenize(folder, items.texts, config.text.max_length)
    with building.computing_in(way.get("precision", "float32")):
        bert = building.tuned(config)
    bert.recompute, bert.xla = way.get("recompute", False), way.get("xla", False)
    made = texts.Live(bert, tokens, count=live, rates=[], chunk=way.get("chunk", 0))
    rows = tf.constant(np.random.default_rng(0).permutation(len(items))[:live], tf.int32)
    means = tf.zeros([live, bert.width])
    weights = bert.trainable_weights

    @tf.function
    def step(number):
        with tf.GradientTape() as tape:
            found = made.means(means, rows, tf.range(live), tf.stack([0, number]))
            loss = tf.reduce_sum(tf.square(found))
        # As the optimizer takes them, one after another.
        return [tf.reduce_sum(tf.abs(g)) for g in tape.gradient(loss, weights)]

    most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, took = most(), []
    for number in range(2 + steps):
        begun = time.perf_counter()
        step(tf.constant(number))
        took.append(time.perf_counter() - begun)
    queue.put({"rate": live / float(np.median(took[2:])), "memory": most() - before})


def main(argv=None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True)
    add("--live", type=int, default=512, help="texts of a step")
    add("--steps", type=int, default=3)
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, way in WAYS.items():
        queue = context.Queue()
        given = (queue, args.config, args.live, args.steps, way)
        process = context.Process(target=measure, args=given)
        process.start()
        process.join()
        if process.exitcode:
            print(f"benchmarks/memory.py: {json.dumps(way)} failed", file=sys.stderr)
            return 2
        found = queue.get()
        cells = {"texts/s": f"{found['rate']:.0f}", "peak, MB": f"{found['memory']:.0f}"}
        rows.append({"way": name, **cells})
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
