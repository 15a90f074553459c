r"""Whether training waits for its input, by TensorFlow's profiler.

    python benchmarks/input_pipeline.py --config configs/movielens-100k.toml

Trains some steps of each stage under the profiler and prints a Markdown table: the median
milliseconds of a step and of the draw of its batch (`IteratorGetNext`, which ends once the
batch is there), and how many times as many batches a second the input pipeline gives where
nobody trains.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tfrec_attn.evaluation import report
from tfrec_attn.run import building

WARM_UP = 5


def durations(folder: Path, name: str) -> np.ndarray:
    """Milliseconds of all events whose name holds `name`, from a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    return np.array(
        [
            event.duration_ps / 1e9
            for plane in space.planes
            for line in plane.lines
            for event in line.events
            if name in plane.event_metadata[event.metadata_id].name
        ]
    )


def measure(model, examples, settings, stage: str, steps: int) -> dict[str, str]:
    """One row of the table."""
    import tensorflow as tf

    from tfrec_attn.data import batches
    from tfrec_attn.data import examples as examples_lib
    from tfrec_attn.training import optimizers

    model.stage = stage
    size = settings.batch_size
    if stage == "ranking":
        size = model.settings.ranked_targets
        examples = examples_lib.make(
            examples.history, examples.targets, length=examples.length
        )
    model.compile(optimizer=optimizers.make(settings, steps, model.trained_bert))
    stream = iter(batches.training(examples, size, seed=0))
    step = tf.function(lambda: model.train_step(next(stream)))
    for _ in range(WARM_UP):
        step()
    with tempfile.TemporaryDirectory() as name:
        with tf.profiler.experimental.Profile(name):
            for number in range(steps):
                with tf.profiler.experimental.Trace("measured step", step_num=number, _r=1):
                    tf.nest.map_structure(lambda value: value.numpy(), step())
        whole = durations(Path(name), "measured step")
        waited = durations(Path(name), "IteratorGetNext")
    alone = iter(batches.training(examples, size, seed=1))
    for _ in range(WARM_UP):
        next(alone)
    begun = time.perf_counter()
    for _ in range(steps):
        next(alone)
    drawn = (time.perf_counter() - begun) / steps * 1e3
    return {
        "stage": stage,
        "step, ms": f"{np.median(whole):.1f}",
        "draw of its batch, ms": f"{waited.sum() / steps:.2f}",
        "share": f"{waited.sum() / whole.sum():.1%}",
        "input alone, × as fast": f"{np.median(whole) / drawn:.0f}",
    }


def main(argv=None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args(argv)
    from tfrec_attn.run import pipeline
    from tfrec_attn.settings import config
    from tfrec_attn.training import fit

    settings = config.load(args.config)
    fit.deterministic(settings.train.seed)
    prepared = pipeline.prepare(settings)
    model = building.build(prepared)
    model.warm_up()
    examples = prepared.training()
    rows = [
        measure(model, examples, settings.train, stage, args.steps)
        for stage in fit.stages(settings.train, settings.loss)
    ]
    print(report.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
