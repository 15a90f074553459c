"""What a run stands on, and what of it is learned."""

import abc
import dataclasses

import numpy as np
import tensorflow as tf

from tfrec_attn.data import catalog, examples, folder, shards, splits, tables
from tfrec_attn.labels import LABELS
from tfrec_attn.model import texts
from tfrec_attn.run import knowledge
from tfrec_attn.settings.config import Config


@dataclasses.dataclass(frozen=True)
class Prepared(abc.ABC):
    """What a run stands on, wherever its interactions are.

    Attributes:
      config: With the schema that was inferred.
      tables, split: The checked tables and the folds of their interactions.
      items, users: The catalogs.
      item_features, user_features: Arrays by row, texts encoded; see
        `towers.FeatureTokens`.
      texts: Of the items, None where there are none.
      frequency: Share of each item among the training targets; of the first items, where
        `with_items` has added others.
      past: What an earlier training knew; None where the run is the first.
      old: `[interactions]` bool, which events that training had; None where none is.
      kept: The folder that `tfrec_attn.prepare` made; None where tables were read.
      drawn: Examples that were drawn of a fold, by fold and number: a validation asks the
        same ones each time.
    """

    config: Config
    tables: tables.Tables
    split: splits.Split
    items: catalog.Catalog
    users: catalog.Catalog
    item_features: dict[str, np.ndarray]
    user_features: dict[str, np.ndarray]
    texts: texts.Tokens | None
    frequency: np.ndarray
    past: knowledge.Past | None = None
    old: np.ndarray | None = None
    kept: folder.Folder | None = None
    drawn: dict[tuple[str, int], examples.Examples] = dataclasses.field(
        default_factory=dict
    )

    @property
    def goes_on(self) -> bool:
        """Whether its training goes on from another one."""
        return self.old is not None or bool(self.kept and self.kept.mark)

    @property
    def words(self) -> np.ndarray:
        """`[I, W]` the words of the item texts, by token; "" at padding."""
        return self.texts.words if self.texts else np.zeros((len(self.items), 0), str)

    @property
    def truncated(self) -> float:
        """Share of item texts that were longer than `text.max_length`."""
        return self.texts.truncated if self.texts else 0.0

    @property
    def label_is_positive(self) -> np.ndarray:
        """`[labels]` bool."""
        return np.isin(LABELS, self.config.examples.positives)

    @abc.abstractmethod
    def training(self) -> examples.Examples | shards.Shards:
        """Windows over the training fold. Its events are all targets of the feedback head,
        the positive ones of retrieval and ranking too."""

    def held_out(self, fold: str, most: int | None = None) -> examples.Examples:
        """One example for each new positive event of `validation` or `test`: what the
        user already had in the earlier folds is no target, as it is never recommended.

        Args:
          fold: `validation` or `test`.
          most: Examples to draw where there are more, always the same; all by default.
        """
        if most is None:
            return self._held_out(fold, most)
        if (fold, most) not in self.drawn:
            self.drawn[fold, most] = self._held_out(fold, most)
        return self.drawn[fold, most]

    @abc.abstractmethod
    def _held_out(self, fold: str, most: int | None) -> examples.Examples:
        """`held_out`, made anew."""

    @abc.abstractmethod
    def queries(self, fold: str) -> int:
        """How many examples `held_out` has."""

    @abc.abstractmethod
    def repeated(self, fold: str) -> int:
        """How many events of a fold are no targets as their users have had the item."""

    @abc.abstractmethod
    def positives_of(self) -> tf.RaggedTensor:
        """`[users, None]` item rows of each user's training positives."""


@dataclasses.dataclass(frozen=True)
class InMemory(Prepared):
    """With all interactions in `tables`."""

    def events(self, rows: np.ndarray) -> examples.Events:
        """Some rows of the interactions, sorted."""
        column = lambda name: self.tables.interactions[name].to_numpy()
        return examples.sort(
            column("user"),
            column("item"),
            column("time"),
            column("feedback"),
            column("weight"),
            rows,
        )

    def training(self) -> examples.Examples:
        past, settings = self.events(self.split.train), self.config.examples
        goal = self.events(learned(self.config, self.split, self.old))
        return examples.make(past, goal, length=settings.history, count=settings.targets)

    def _held_out(self, fold: str, most: int | None) -> examples.Examples:
        past, goal, fresh = self._goal(fold)
        wanted = np.flatnonzero(fresh & self.label_is_positive[goal.feedback])
        goal = goal.take(wanted[drawn(len(wanted), most)])
        return examples.make(past, goal, length=self.config.examples.history)

    def queries(self, fold: str) -> int:
        return len(self.held_out(fold))

    def positives_of(self) -> tf.RaggedTensor:
        past = self.events(self.split.train)
        past = past.take(np.flatnonzero(self.label_is_positive[past.feedback]))
        sizes = np.bincount(past.user, minlength=len(self.users))
        return tf.RaggedTensor.from_row_lengths(past.item, sizes)

    def repeated(self, fold: str) -> int:
        return int((~self._goal(fold)[2]).sum())

    def _goal(self, fold: str):
        """What was before a fold, its events, and whether each is of an item that is new
        to its user."""
        past = self.events(self.split.known(fold))
        goal = self.events(getattr(self.split, fold))
        seen = _pairs(past, len(self.items))
        return past, goal, ~np.isin(_pairs(goal, len(self.items)), seen)


def drawn(count: int, most: int | None) -> np.ndarray:
    """Some of so many, in order, always the same ones; all where there are no more."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def learned(config: Config, split: splits.Split, old: np.ndarray | None) -> np.ndarray:
    """Rows of the training fold that are targets: all, or where a training goes on the new
    ones and some of the old, which its seed chooses."""
    if old is None:
        return split.train
    chance = np.random.default_rng(config.train.seed).random(len(old))
    again = chance < config.train.replay
    return split.train[(~old | again)[split.train]]


def _pairs(events: examples.Events, n_items: int) -> np.ndarray:
    return events.user.astype(np.int64) * n_items + events.item
