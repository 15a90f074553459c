"""Training examples as TFRecord shards: written in bulk, read as a stream.

A record is a `tf.train.Example` of raw little-endian arrays: the events of some users, all
of them, and where examples begin and end among them (`partitions.records`). So an event
stands in a shard once, however many windows it is in; windows are cut in the graph.
Letters: B examples of a batch, W events of a window, T targets of an example, P positives.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfrec_attn import atomic
from tfrec_attn.data import shares, windows

# Of each array of a record.
DTYPES = {
    **dict.fromkeys(
        ("user", "events", "item", "goal", "stop", "first", "last", "begin", "end"),
        tf.int32,
    ),
    "time": tf.int64,
    "feedback": tf.int8,
    "weight": tf.float32,
}
# Shards that are read by turns, examples of one that follow one another, examples that a
# shuffle chooses from.
TURNS, RUN, BUFFER = 16, 8, 16_384


def write(records: Iterable[Mapping[str, np.ndarray]], path: Path) -> int:
    """Writes a shard, complete or not at all; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bytes_of = lambda value: tf.train.BytesList(value=[value.tobytes()])
    with (
        atomic.replacing(path) as partial,
        tf.io.TFRecordWriter(str(partial)) as writer,
    ):
        for record in records:
            features = {
                name: tf.train.Feature(
                    bytes_list=bytes_of(np.asarray(value, DTYPES[name].as_numpy_dtype))
                )
                for name, value in record.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return path.stat().st_size


@dataclasses.dataclass(frozen=True)
class Shard:
    """Attributes:
    path: The file.
    first_user: What is added to the rows of users in it.
    examples, targets: How many it has.
    bytes: Its size.
    """

    path: Path
    first_user: int
    examples: int
    targets: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Shards:
    """Training examples that are read as they are needed; see `examples.Examples`.

    Attributes:
      shards: All of them, or one worker's.
      length: L, most events that one target sees.
      count: T, most targets of an example.
      positives: Labels of the positives that come with a user.
      single: Whether each target is an example of its own, whatever was written.
      empty: Examples of an epoch without history or targets, beside those of the shards.
    """

    shards: Sequence[Shard]
    length: int
    count: int
    positives: tuple[int, ...]
    single: bool = False
    empty: int = 0

    def __len__(self) -> int:
        return self.empty + sum(map(self._size, self.shards))

    def _size(self, shard: Shard) -> int:
        return shard.targets if self.single else shard.examples

    @property
    def width(self) -> int:
        """W."""
        return self.length + self.count - 1

    @property
    def n_targets(self) -> int:
        """Of an epoch."""
        return sum(shard.targets for shard in self.shards)

    def singly(self) -> "Shards":
        """The same targets, each with a window of its own."""
        return dataclasses.replace(self, count=1, single=True)

    def own(self, worker: int, workers: int) -> "Shards":
        """Those of one worker; all together have each shard once. Its epoch is made as long
        as the longest by empty examples.

        Raises:
          ValueError: When there is not a shard with examples for each.
        """
        sizes = np.array([self._size(shard) for shard in self.shards])
        if (count := np.count_nonzero(sizes)) < workers:
            raise ValueError(
                "train.own_shards needs a shard with examples for each worker. Received: "
                f"{count} for {workers} workers. Start fewer workers, or set "
                "train.own_shards=false."
            )
        owner = shares.owners(sizes, workers)
        each = [int(sizes[owner == one].sum()) for one in range(workers)]
        return dataclasses.replace(
            self,
            shards=[s for s, its in zip(self.shards, owner, strict=True) if its == worker],
            empty=max(each) - each[worker],
        )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        step: int = 0,
        at: np.ndarray | None = None,
    ) -> tf.data.Dataset:
        """As `batches.training`, with the `positives` `[B, P]` of each example's user, item
        rows, -1 pads.

        Memory is that of the records that are read by turns and of the shuffle's buffer.

        Args:
          batch_size: B.
          seed: Of the order.
          epoch: The first one to give.
          step: How many of its batches to leave out; they are read all the same.
          at: `[R, b]` places of a batch, -1 for an empty example: each batch then comes as
            R elements of b examples, all of the same P. By default as one, of all places.

        Raises:
          ValueError: When a shard is missing or has another size than it was written with.
        """
        for shard in self.shards:
            size = shard.path.stat().st_size if shard.path.exists() else None
            if size != shard.bytes:
                what = "is missing" if size is None else f"has {size} bytes"
                raise ValueError(
                    f"{shard.path} {what}, and was written with {shard.bytes}: restore the "
                    "shard, or prepare anew."
                )
        paths = tf.constant([str(s.path) for s in self.shards if s.examples])
        users = tf.constant([s.first_user for s in self.shards if s.examples], tf.int32)

        def one(turn):
            order = tf.random.experimental.stateless_shuffle(
                tf.range(tf.size(paths)), seed=tf.stack([tf.cast(seed, tf.int64), turn])
            )
            files = tf.data.Dataset.from_tensor_slices(
                (tf.gather(paths, order), tf.gather(users, order))
            )
            found = files.interleave(self._of_file, cycle_length=TURNS, block_length=RUN)
            # Of this graph alone: a seed of 0 does not go with one that is a tensor.
            tf.random.set_seed(1)
            found = found.shuffle(
                BUFFER, seed=seed * 1_000_003 + turn, reshuffle_each_iteration=False
            )
            pad = self.empty + -len(self) % batch_size
            found = found.concatenate(self._nothing().repeat(pad))
            return found.padded_batch(
                batch_size,
                padded_shapes={n: spec.shape for n, spec in self._specs().items()},
                padding_values=self._padding(),
                drop_remainder=True,
            )

        options = tf.data.Options()
        # See `batches.training`.
        options.autotune.enabled = False
        turns = tf.data.Dataset.range(epoch, np.iinfo(np.int32).max)
        # Of a stream that may end a strategy would ask at each step whether it has, and
        # forget the shapes.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        found = turns.flat_map(one).skip(step)
        if at is not None:
            found = found.flat_map(lambda batch: self._shared(batch, at))
        ahead = 2 * (1 if at is None else len(at))
        return found.apply(endless).prefetch(ahead).with_options(options)

    def _shared(self, batch, at: np.ndarray) -> tf.data.Dataset:
        """A batch as elements of the examples at each row of `at`."""
        padding = self._padding()

        def take(name, value):
            # One more row, without anything: it is the last, and so at -1.
            shape = tf.concat([[1], tf.shape(value)[1:]], 0)
            value = tf.concat([value, tf.fill(shape, padding[name])], 0)
            return tf.gather(value, np.where(at < 0, value.shape[0] - 1, at))

        found = {name: take(name, value) for name, value in batch.items()}
        return tf.data.Dataset.from_tensor_slices(found)

    def _specs(self) -> dict[str, tf.TensorSpec]:
        """Of one example."""
        whole = dict.fromkeys(("history", "history_feedback"), tf.int32)
        goal = dict.fromkeys(("target", "target_seen", "target_feedback"), tf.int32)
        spec = lambda kinds, size: {n: tf.TensorSpec([size], d) for n, d in kinds.items()}
        return {
            "user": tf.TensorSpec([], tf.int32),
            **spec(whole | {"history_time": tf.int64}, self.width),
            **spec(goal | {"target_time": tf.int64, "weight": tf.float32}, self.count),
            "positives": tf.TensorSpec([None], tf.int32),
        }

    def _padding(self) -> dict[str, tf.Tensor]:
        missing = {"history": -1, "positives": -1}
        return {
            name: tf.constant(missing.get(name, 0), spec.dtype)
            for name, spec in self._specs().items()
        }

    def _nothing(self) -> tf.data.Dataset:
        """One example without history or targets."""
        pad = self._padding()
        # Of positives one place, as a user without any has.
        return tf.data.Dataset.from_tensors(
            {
                name: tf.fill([size or 1 for size in spec.shape], pad[name])
                for name, spec in self._specs().items()
            }
        )

    def _of_file(self, path, first_user) -> tf.data.Dataset:
        """The examples of a shard in order, one by one."""

        def of_record(data):
            record = _decoded(data)
            owner = tf.range(tf.size(record["user"]))
            starts = tf.cumsum(record["events"], exclusive=True)
            record["start"] = tf.repeat(starts, record["events"])
            record["owner"] = tf.repeat(owner, record["events"])
            liked = tf.reduce_any(
                record["feedback"][:, None] == tf.constant(self.positives), 1
            )
            record["liked"] = tf.boolean_mask(record["item"], liked)
            ends = tf.cumsum(tf.cast(liked, tf.int32))
            at = starts + record["events"] - 1
            record["liked_end"] = tf.gather(ends, at)
            for name in ("owner", "start"):
                record[name] = tf.gather(record[name], record["goal"])
            if self.single:
                stop, place = record["stop"], tf.range(tf.size(record["stop"]))
                record |= {"begin": place, "end": place + 1, "last": stop}
                record["first"] = tf.maximum(record["start"], stop - self.length)
            record["user"] += first_user
            count = tf.size(record["begin"])
            cut = lambda at: self._cut(record, tf.range(at, tf.minimum(at + 64, count)))
            return (
                tf.data.Dataset.range(0, tf.cast(count, tf.int64), 64)
                .map(lambda at: cut(tf.cast(at, tf.int32)))
                .unbatch()
            )

        return tf.data.TFRecordDataset(path).flat_map(of_record)

    def _cut(self, record, index) -> dict[str, tf.Tensor]:
        """The examples at `index` `[n]`; see `batches.gather`."""
        take = lambda name: tf.gather(record[name], index)
        at = windows.Spans(*map(take, windows.Spans._fields))
        owner = tf.gather(record["owner"], at.begin)
        end = tf.gather(record["liked_end"], owner)
        start = tf.where(
            owner > 0, tf.gather(record["liked_end"], tf.maximum(owner - 1, 0)), 0
        )
        # At least one place, as to unbatch nothing ends the process (TensorFlow 2.20).
        liked, real = windows.span(start, end, tf.maximum(1, tf.reduce_max(end - start)))
        empty = tf.size(record["liked"]) == 0
        items = tf.cond(empty, lambda: tf.constant([0]), lambda: record["liked"])
        return {
            "user": tf.gather(record["user"], owner),
            **windows.cut(at, record, _goals(record), self.width, self.count),
            "positives": tf.where(real, tf.gather(items, liked), -1),
        }

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Names the shard that cannot be read.

        Raises:
          OSError: Instead of TensorFlow's errors about a file.
        """
        try:
            yield
        except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
            for shard in self.shards:
                if fault := _fault(shard):
                    raise OSError(
                        f"{shard.path}: {fault}. Restore the shard, or prepare anew; "
                        "--resume goes on after the last full epoch."
                    ) from error
            raise


def _fault(shard: Shard) -> str | None:
    number = 0
    try:
        for _ in tf.data.TFRecordDataset(str(shard.path)):
            number += 1
    except tf.errors.DataLossError:
        return f"record {number + 1} is damaged"
    except tf.errors.OpError as error:
        return f"cannot be read ({error.message.splitlines()[0]})"
    return None


def _goals(record) -> dict[str, tf.Tensor]:
    """The targets of a record, by what its events are."""
    names = ("item", "feedback", "time", "weight")
    found = {name: tf.gather(record[name], record["goal"]) for name in names}
    return found | {"stop": record["stop"]}


def _decoded(data) -> dict[str, tf.Tensor]:
    spec = dict.fromkeys(DTYPES, tf.io.FixedLenFeature([], tf.string))
    found = tf.io.parse_single_example(data, spec)
    record = {name: tf.io.decode_raw(found[name], kind) for name, kind in DTYPES.items()}
    record["feedback"] = tf.cast(record["feedback"], tf.int32)
    every = tf.range(tf.size(record["item"]))
    record["goal"] = tf.cond(
        tf.size(record["goal"]) > 0, lambda: record["goal"], lambda: every
    )
    return record
