"""What a training on a prepared folder stands on: tables of items and users in memory,
interactions on disk, read as they are needed.

`evaluate` and `export` take the whole (`pipeline.prepare`), as an export holds the
histories of all users in any case.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import tensorflow as tf

from tfrec_attn.data import examples, folder, partitions, shards
from tfrec_attn.run import knowledge, pipeline
from tfrec_attn.run.prepared import Prepared, drawn
from tfrec_attn.settings.config import Config


def prepare(
    config: Config, out: Path | None = None, past: knowledge.Past | None = None
) -> "Streamed":
    """As `pipeline.prepare`, of the folder that `data.prepared` names."""
    return pipeline.stored(config, Streamed, out, past)


@dataclasses.dataclass(frozen=True)
class Streamed(Prepared):
    """Without interactions in memory, but for those of a part of the users at a time."""

    @property
    def _folder(self) -> folder.Folder:
        return cast(folder.Folder, self.kept)

    def training(self) -> shards.Shards:
        """`shards.Shards` over the training fold."""
        settings = self.config.examples
        return shards.Shards(
            shards=[
                shards.Shard(
                    folder.shard(self._folder.root, one["number"]),
                    one["first_user"],
                    one["examples"],
                    one["targets"],
                    one["bytes"],
                )
                for one in self._folder.parts
            ],
            length=settings.history,
            count=settings.targets,
            positives=tuple(np.flatnonzero(self.label_is_positive).tolist()),
        )

    def positives_of(self) -> tf.RaggedTensor:
        """None of anybody: they come with the batches."""
        nothing = tf.zeros([0], tf.int32)
        return tf.RaggedTensor.from_row_lengths(
            nothing, tf.zeros(len(self.users), tf.int64)
        )

    def queries(self, fold: str) -> int:
        return self._folder.total(f"{fold} queries")

    def repeated(self, fold: str) -> int:
        return self._folder.total(f"{fold} repeated")

    def counts_before(self, fold: str) -> np.ndarray:
        """`[I]` positive events of each item that are known before a fold."""
        return np.sum([self._folder.counts[name] for name in partitions.known(fold)], 0)

    def _held_out(self, fold: str, most: int | None) -> examples.Examples:
        """With no more history than that of the users who are asked."""
        chosen = drawn(self.queries(fold), most)
        found = _joined(list(self._chosen(fold, chosen)))
        return examples.make(*found, length=self.config.examples.history)

    def parts_of(self, fold: str) -> Iterator[examples.Examples]:
        """All examples of a fold, part by part; none of a part without."""
        for past, goal in self._chosen(fold, np.arange(self.queries(fold))):
            yield examples.make(past, goal, length=self.config.examples.history)

    def _chosen(self, fold: str, chosen: np.ndarray):
        """Of each part that has some of the `chosen` examples of a fold the history of
        their users, and the targets."""
        first = 0
        for one in self._folder.parts:
            count = one[f"{fold} queries"]
            mine = chosen[(chosen >= first) & (chosen < first + count)] - first
            first += count
            if not len(mine):
                continue
            part = self._folder.part(one)
            goal, past = part.of(fold), part.of(*partitions.known(fold))
            new = partitions.fresh(part, fold, len(self.items))
            wanted = np.flatnonzero(new & self.label_is_positive[goal.feedback])
            goal = goal.take(wanted[mine])
            users = np.unique(goal.user)
            place = np.minimum(np.searchsorted(users, past.user), len(users) - 1)
            yield past.take(np.flatnonzero(users[place] == past.user)), goal


def _joined(parts) -> tuple[examples.Events, ...]:
    """Histories and targets of parts that follow one another."""
    names = [f.name for f in dataclasses.fields(examples.Events)]
    join = lambda several: examples.Events(
        *(np.concatenate([getattr(one, name) for one in several]) for name in names)
    )
    return tuple(join(several) for several in zip(*parts, strict=True))
