r"""Whether two replicas learn what one does, and as fast; and two workers.

    python benchmarks/replicas.py --config configs/movielens-100k.toml

On two logical CPUs prints three Markdown tables. Of each stage without dropout: by how much
the loss and the gradients of a batch differ between one replica and two, as a share of the
largest entry of a gradient. Of each stage: targets a second of one replica and of two with
the same batches on the same cores, in turns, and the ratio within a turn. Of `--epochs`
epochs of a whole training and each seed: NDCG@10, hit@10 and MRR of the test fold, of one
process and of two workers over loopback.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import turns

STAGES = "retrieval", "ranking", "both"
METHODS = "retrieval", "retrieval + ranking"
METRICS = "ndcg@10", "hit@10", "mrr"
STILL = ["model.dropout=0", "model.id_dropout=0", "scorer.dropout=0"]


def strategies() -> dict:
    """Of one replica and of two, on two logical CPUs."""
    tf = turns.tensorflow()
    # It warns of what it leaves as it is.
    tf.autograph.set_verbosity(0)
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfrec_attn.training import distribution

    return {1: distribution.strategy("one"), 2: distribution.strategy("mirrored")}


def prepared(path: Path, sets: list[str]):
    from tfrec_attn.run import pipeline
    from tfrec_attn.settings import config as config_lib

    return pipeline.prepare(config_lib.load(path, sets))


def made(data, strategy, stage: str):
    """A model, the step that trains it, and batches of a stage."""
    import tensorflow as tf

    from tfrec_attn.data import batches, examples
    from tfrec_attn.run import building
    from tfrec_attn.training import distribution, fit, optimizers

    settings, loss = data.config.train, data.config.loss
    fit.deterministic(0)
    with strategy.scope():
        model = building.build(data)
    model.warm_up()
    model.stage = stage
    chosen = data.training()
    size = settings.batch_size
    if stage == "ranking":
        size = loss.ranked_targets
        chosen = examples.make(chosen.history, chosen.targets, length=chosen.length)
    with strategy.scope():
        model.compile(optimizer=optimizers.make(settings, 10_000, None))
        model.optimizer.build(model.trainable_variables)
    give = lambda **at: batches.training(chosen, size, seed=0, **at)
    stream = iter(distribution.distributed(strategy, give, size, model.parts))
    per_batch = len(chosen.targets) / batches.steps(chosen, size)
    run = tf.function(lambda batch: strategy.run(model.train_step, args=(batch,)))
    return model, run, stream, per_batch


def gradients(data, strategy, stage: str) -> tuple[float, list[np.ndarray]]:
    """The loss of a batch and all gradients, summed over the replicas."""
    import tensorflow as tf

    from tfrec_attn.model import gradients as of_step

    model, _, stream, _ = made(data, strategy, stage)
    variables = model.trainable_variables
    # Away from where training starts, where much is 0.
    draw = np.random.default_rng(0)
    for variable in variables:
        variable.assign(variable + draw.normal(0, 0.05, variable.shape))

    @tf.function
    def step(batch):
        total, found = of_step.of(model, batch, variables)
        pairs = zip(found, variables, strict=True)
        dense = [
            tf.zeros_like(v) if g is None else tf.convert_to_tensor(g) for g, v in pairs
        ]
        return total, dense

    total, found = strategy.run(step, args=(next(stream),))
    add = lambda value: strategy.reduce("SUM", value, axis=None).numpy()
    return float(add(total)), [add(value) for value in found]


def apart(data, sides: dict, stage: str) -> tuple:
    """A row: the loss, and how far both sides are from each other."""
    (one, ones), (two, twos) = (gradients(data, side, stage) for side in sides.values())
    shares = [
        np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)
        for a, b in zip(ones, twos, strict=True)
    ]
    loss = abs(one - two) / abs(one)
    return stage, f"{one:.5f}", f"{loss:.1e}", f"{max(shares):.1e}", str(len(shares))


def speeds(data, sides: dict, stage: str, steps: int, count: int) -> tuple:
    """A row: targets a second of both sides, and their ratio."""

    def timed(strategy):
        _, run, stream, per_batch = made(data, strategy, stage)

        def turn():
            begun = time.perf_counter()
            for _ in range(steps):
                found = run(next(stream))
            [value.numpy() for value in strategy.experimental_local_results(found["loss"])]
            return steps * per_batch / (time.perf_counter() - begun)

        return turn

    found = turns.in_turns({n: timed(side) for n, side in sides.items()}, count)
    ratio = turns.spread(found[2] / found[1])
    return stage, turns.spread(found[1], 0), turns.spread(found[2], 0), ratio


def figures(found: dict) -> list[str]:
    """Of a training's test metrics."""
    return [" ".join(f"{found[row][name]:.5f}" for name in METRICS) for row in METHODS]


def trained(path: Path, sets: list[str], workers: int) -> dict:
    """The test metrics of a training by one process, or by workers over loopback."""
    with tempfile.TemporaryDirectory() as folder:
        return _trained(path, Path(folder) / "run", sets, workers)


def _trained(path: Path, out: Path, sets: list[str], workers: int) -> dict:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in holders]
    for one in holders:
        one.close()
    command = [sys.executable, "-m", "tfrec_attn.train", "--config", str(path)]
    command += ["--out", str(out), *(x for one in sets for x in ("--set", one))]
    command += ["--strategy", "multiworker" if workers > 1 else "one"]
    running = []
    for index in range(workers):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        told = {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, env={**os.environ, **told}, **quiet))
    if any(process.wait() for process in running):
        raise SystemExit(f"A training failed; look at what this says: {' '.join(command)}")
    return json.loads((out / "metrics.json").read_text("utf-8"))["test"]


def main(argv=None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True)
    add("--set", action="append", default=[], metavar="section.field=value")
    add("--steps", type=int, default=30, help="of a turn")
    add("--turns", type=int, default=7)
    add("--epochs", type=int, default=3, help="of the retrieval and of the ranking each")
    add("--seeds", type=int, default=3, help="of the whole trainings")
    add("--only", choices=("gradients", "speed", "workers"))
    args = parser.parse_args(argv)
    wanted = lambda name: args.only in (None, name)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if wanted("gradients") or wanted("speed"):
        sides = strategies()
    if wanted("gradients"):
        still = prepared(args.config, [*args.set, *STILL])
        head = "stage", "loss", "its difference", "largest of a gradient", "gradients"
        turns.table(head, [apart(still, sides, stage) for stage in STAGES])
    if wanted("speed"):
        data = prepared(args.config, args.set)
        head = "stage", "targets/s, one replica", "two", "ratio"
        rows = [speeds(data, sides, s, args.steps, args.turns) for s in STAGES[:2]]
        turns.table(head, rows)
    if wanted("workers"):
        epochs = f"train.epochs={args.epochs}", f"train.ranking_epochs={args.epochs}"
        sets, rows = [*args.set, *STILL, *epochs], []
        for seed, count in itertools.product(range(args.seeds), (1, 2)):
            found = trained(args.config, [*sets, f"train.seed={seed}"], count)
            rows.append((str(seed), str(count), *figures(found)))
        head = (f"{row}: {' '.join(METRICS)}" for row in METHODS)
        turns.table(("seed", "workers", *head), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
