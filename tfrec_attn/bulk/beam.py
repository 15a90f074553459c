"""The open shards on a Beam runner: an element is a shard, a worker loads the model once.

Version, users and answers are files that all workers see under the same paths.
"""

from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from tfrec_attn.bulk import shards, version
from tfrec_attn.item_flags import Wanted


class Answer(beam.DoFn):
    """Answers the users of a shard, by its number.

    Args:
      path: Of the version.
      out: The folder of the shards.
      wanted: Of the items of every user.
      batch: Users of a call.
    """

    users = beam.metrics.Metrics.counter("tfrec_attn.recommend", "users")

    def __init__(self, path: str, out: str, wanted: Wanted, batch: int):
        self.path, self.out, self.wanted, self.batch = path, out, wanted, batch

    def setup(self):
        """Once a worker."""
        self.version = version.Version(Path(self.path))

    def process(self, number):
        """Gives the number back, once its answers are there."""
        folder = shards.Shards(Path(self.out))
        self.version.shard(folder, number, self.wanted, self.batch, self.users.inc)
        yield number


def run(
    path: Path,
    out: Path,
    numbers: list[int],
    *,
    wanted: Wanted,
    batch: int,
    options: list[str],
) -> None:
    """Answers shards on a runner, and waits until they are there.

    Args:
      path: Of the version.
      out: The folder of the shards.
      numbers: The shards.
      wanted, batch: See `Answer`.
      options: Of Beam, such as `--runner=DirectRunner`.

    Raises:
      RuntimeError: The pipeline ended before all was answered.
    """
    answer = Answer(str(path.resolve()), str(out.resolve()), wanted, batch)
    pipeline = beam.Pipeline(options=PipelineOptions(options, save_main_session=False))
    # Else a runner may fuse the shards into one worker's.
    numbered = pipeline | beam.Create(numbers) | beam.Reshuffle()
    _ = numbered | "answer a shard" >> beam.ParDo(answer)
    state = pipeline.run().wait_until_finish()
    if state != PipelineState.DONE:
        raise RuntimeError(f"The pipeline ended as {state}: look at its runner's log.")
