"""The settings of a run: their types, defaults and rules, section by section."""

import re
from typing import Annotated, Literal

import pydantic

from tfrec_attn.data.schema import Schema
from tfrec_attn.labels import LABELS

Positive = pydantic.PositiveInt
# Within what NumPy's older generators take.
Seed = Annotated[int, pydantic.Field(ge=0, le=10**9)]
TUNINGS = ("frozen", "all", "bitfit", "lora", "adalora", "adapter", "prefix")
Label = Literal["buy", "like", "ignore", "dislike", "not_buy"]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """Where the tables are.

    Attributes:
      source: A public data set by name; the three paths then stay empty.
      items: Table of items: a file or a folder of shards.
      users: Table of users; may be missing.
      interactions: Table of interactions.
      prepared: Folder that `tfrec_attn.prepare` made of tables; all above then stay empty.
      bad_rows: `stop` at rows that break a rule, or `set-aside` into rejects.csv.
    """

    source: Literal["movielens-100k"] | None = None
    items: str | None = None
    users: str | None = None
    interactions: str | None = None
    prepared: str | None = None
    bad_rows: Literal["stop", "set-aside"] = "stop"

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> "Data":
        paths = [self.items, self.users, self.interactions]
        if self.source and any(paths):
            raise ValueError(
                f"source={self.source!r} brings its own tables: remove it or the paths."
            )
        if self.prepared and (self.source or any(paths)):
            raise ValueError(
                f"prepared={self.prepared!r} has its tables in it: remove it, or source "
                "and the paths."
            )
        if not self.source and (self.items is None) != (self.interactions is None):
            raise ValueError("items and interactions are both needed.")
        return self


class Split(_Section):
    """How interactions are divided into train, validation and test.

    Attributes:
      name: The splitter.
      share: Part of the interactions (or items, or users) held out for test. Not used by
        `leave-last-out`.
      validation: Part held out for validation by `global-time` and `random`; as much as
        `share` by default.
      by_user: Whether `random` draws within each user.
      seed: Of the random splits.
    """

    name: Literal["leave-last-out", "global-time", "cold-items", "cold-users", "random"] = (
        "global-time"
    )
    share: float = pydantic.Field(0.1, gt=0, lt=0.5)
    validation: float | None = pydantic.Field(None, gt=0, lt=0.5)
    by_user: bool = False
    seed: Seed = 0

    @pydantic.model_validator(mode="after")
    def _used(self) -> "Split":
        for field, names in (
            ("validation", ("global-time", "random")),
            ("by_user", ("random",)),
        ):
            value = getattr(self, field)
            if value and self.name not in names:
                raise ValueError(
                    f"{field} is for split.name={' or '.join(names)}. Received: "
                    f"{field}={value} with name={self.name!r}: remove one of them."
                )
        return self


class Examples(_Section):
    """What one training example holds.

    Attributes:
      history: Events of history that a target can see.
      targets: Targets of one user that share an example, and so a pass of the tower.
      positives: Labels whose interactions are targets; the others are history only, or
        by `loss.rejected` negatives of the ranking.
    """

    history: Positive = 50
    targets: Positive = 50
    positives: tuple[Label, ...] = ("buy", "like")

    @pydantic.field_validator("positives")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"names one or more of {', '.join(LABELS)}, each once")
        return value


class Text(_Section):
    """The text backbone.

    Attributes:
      backbone: A known name, a BERT folder (of `save_pretrained`, or of Google), or a hub
        name. Empty: no text at all.
      max_length: Tokens of an item's or user's text, [CLS] and [SEP] included.
    """

    backbone: str = "all-MiniLM-L6-v2"
    max_length: int = pydantic.Field(48, ge=3, le=512)


class Bert(_Section):
    """What of the text backbone is trained, with the retrieval; items' texts only.

    Attributes:
      tuning: `frozen`, `last:2` (or another number of last blocks), `all`, `bitfit` (the
        biases), or little beside its maps: `lora`, `adalora`, `adapter`, `prefix`.
      size: Rank of `lora` and `adalora`, width of `adapter`, length of `prefix`.
      learning_rate: Peak rate of BERT's weights; all others have `train.learning_rate`.
      decay: Factor of that rate from each block to the one below it.
      live: Items of a step whose texts pass through BERT; of the others it is known what
        BERT said after the last epoch.
      chunk: Live texts that pass at once, for the memory of as many; each passes twice. 0
        takes all at once.
      recompute: Whether BERT's blocks are computed again in the backward pass, for the
        memory of one.
      xla: Whether BERT is compiled by XLA, for which texts are padded to one length.
      unfreeze: Epochs after which each block begins to train, once the one above it has;
        the last block begins with the training, and 0 lets all begin.
    """

    tuning: str = "frozen"
    size: Positive = 8
    learning_rate: float = pydantic.Field(2e-5, gt=0)
    decay: float = pydantic.Field(1.0, gt=0, le=1)
    live: Positive = 64
    chunk: int = pydantic.Field(0, ge=0)
    recompute: bool = False
    xla: bool = False
    unfreeze: int = pydantic.Field(0, ge=0)

    @pydantic.field_validator("tuning")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TUNINGS and not re.fullmatch(r"last:[1-9]\d*", value):
            raise ValueError(f"is {', '.join(TUNINGS)}, or last:N for the last N blocks")
        return value


class Model(_Section):
    """Widths and depths of the towers.

    Attributes:
      dim: Width of every feature token.
      heads: Attention heads of a user-tower block. Divides `dim`.
      blocks: Self-attention blocks of the user tower.
      pooling: What the retrieval takes for a user: the state after the `last` event, where
        events have an order, or the `mean` of the states after each, where they are a set.
      dropout: On tokens, attention and feed-forward layers.
      id_dropout: Share of items that lose their id token at a step, so that text learns
        to stand in for it.
      user_id: Whether users have an id token; off, all users are served alike.
      time: Whether the gaps between events, and up to the request, are features.
    """

    dim: Positive = 64
    heads: Positive = 2
    blocks: Positive = 1
    pooling: Literal["last", "mean"] = "last"
    dropout: float = pydantic.Field(0.3, ge=0, lt=1)
    id_dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    user_id: bool = False
    time: bool = True

    @pydantic.model_validator(mode="after")
    def _divides(self) -> "Model":
        _divides(self.heads, self.dim)
        return self


class Scorer(_Section):
    """The attention-weighted cosine; see `tfrec_attn.layers.AttentionWeightedCosine`.

    Attributes:
      mode: `softmax`, or `article` for the formulas of the article (docs/design.md).
      normalizer: Of `article`: lengths (`l2`) or their softmax (`softmax`).
      item_tokens: Tokens of an item that are compared: its vector, its id, and the first of
        its columns and words. What is left out is in the vector still.
      events: Events of a history that are compared, the last ones.
      dim: Width of the tokens that are compared.
      heads: Subspaces in which they are compared. Divides `dim`.
      bidirectional: Whether user tokens attend to the item's as well.
      dropout: On the attention weights.
      l2: Factor of the squared projections in the loss.
    """

    mode: Literal["softmax", "article"] = "softmax"
    normalizer: Literal["l2", "softmax"] = "l2"
    item_tokens: int = pydantic.Field(16, ge=2)
    events: Positive = 20
    dim: Positive = 128
    heads: Positive = 1
    bidirectional: bool = False
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    l2: float = pydantic.Field(0.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _divides(self) -> "Scorer":
        _divides(self.heads, self.dim)
        return self


def _divides(heads: int, dim: int) -> None:
    if dim % heads:
        raise ValueError(f"heads must divide dim: got heads={heads}, dim={dim}")


class Loss(_Section):
    """The weighted sum that is trained.

    Attributes:
      retrieval: Weight of the in-batch softmax over pooled cosines, which trains the
        towers.
      ranking: Weight of the ranking, which trains the scorer and the ranking's own ids.
      order: How the ranking learns: a softmax over all candidates of a target
        (`listwise`), target and candidate two by two (`pairwise`), or each alone as a hit
        or none (`pointwise`).
      label_smoothing: Share of the truth that the ranking's target gives to the others.
      distillation: Weight of what the retrieval learns from the order that the ranking
        gives; only with `train.ranking_epochs` 0, as else the retrieval is done before.
      feedback: Weight of the classification of the feedback label.
      negatives: Items with a training event that are drawn uniformly a step, shared by its
        targets; at least the catalogue's size means all of them.
      logq: Whether scores are corrected by the log-probability of being a candidate.
      group: Targets that share a softmax as each other's negatives.
      rejected: So many items of the window without a positive label, the last, join the
        shortlist; it gained nothing where it was measured (docs/results.md).
      hard_negatives: Candidates beside a ranked target, drawn from the shortlist that the
        retrieval would make of the step's items.
      easy_negatives: Of `negatives`, so many are candidates for all ranked targets.
      ranked_targets: Targets of a step, over all replicas, that train the ranking. In a
        stage of its own they are drawn one by one from all users, and are the whole step.
      labelled_targets: Targets of a step, over all replicas, of any label, that train the
        feedback.
      temperature: Initial divisor of the pooled cosine; it is trained.
    """

    retrieval: float = pydantic.Field(1.0, gt=0)
    ranking: float = pydantic.Field(0.5, ge=0)
    order: Literal["listwise", "pairwise", "pointwise"] = "listwise"
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    distillation: float = pydantic.Field(0.0, ge=0)
    feedback: float = pydantic.Field(0.1, ge=0)
    negatives: int = pydantic.Field(2048, ge=0)
    logq: bool = True
    group: Positive = 256
    hard_negatives: Positive = 15
    easy_negatives: int = pydantic.Field(64, ge=0)
    rejected: int = pydantic.Field(0, ge=0)
    ranked_targets: Positive = 256
    labelled_targets: Positive = 32
    temperature: float = pydantic.Field(0.07, gt=0)


class Regularization(_Section):
    """Against overfitting; what each did where it was measured is in docs/results.md.

    Attributes:
      adversarial: Part of its length by which each item's vector is moved where the
        retrieval's loss rises most, for a second pass (FGM).
      consistency: Weight of how far two passes with different dropout are from each other
        in the retrieval's choice among the step's negatives (R-Drop).
      token_dropout: Share of feature tokens beside the ids that are left out at a step; of
        texts that pass through BERT, of their pieces.
      event_dropout: Share of the events of histories that are left out.
      event_crop: Share of histories that lose all events before one of their own.
      average: Decay a step of the moving average of the weights that is validated and kept
        in their place, such as 0.999 (EMA).
    """

    adversarial: float = pydantic.Field(0.0, ge=0)
    consistency: float = pydantic.Field(0.0, ge=0)
    token_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    event_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    event_crop: float = pydantic.Field(0.0, ge=0, le=1)
    average: float = pydantic.Field(0.0, ge=0, lt=1)


class Train(_Section):
    """The training loop.

    Attributes:
      epochs: At most so many passes over the training targets.
      ranking_epochs: At most so many more, in which the ranking and the feedback are
        trained and the retrieval stays as it is; 0 trains all together in `epochs`.
      replay: Of a training that goes on from another (`--from`), the share of old targets
        that are trained beside the new ones.
      pull: Of such a training, the factor of the squared distance to the old weights in the
        loss.
      batch_size: Examples of a step, over all replicas; of the ranking's own stage see
        `loss.ranked_targets`.
      accumulate: Parts of a batch that pass one after another and have their gradients
        added, for less memory: divides the examples that a replica has of a step.
      learning_rate: Peak of AdamW's schedule.
      warmup: Share of all steps over which the rate rises; it decays as a cosine after.
      weight_decay: Of AdamW.
      clip: Largest global norm of a gradient.
      precision: Of BERT's maps while it is trained: float32, or half of it, which GPUs are
        faster with; weights, norms and losses stay float32, and so does what is served.
      monitor: Validation metric that early stopping and the kept weights follow.
      validation_queries: Queries of the validation fold that `monitor` is measured on,
        drawn where there are more.
      patience: Epochs without a better `monitor` before training stops.
      checkpoint_steps: Steps of an epoch after which the state is kept, as it is at its end
        in any case; 0 keeps none within.
      seed: Of weights, order and dropout.
      strategy: `one` uses the first visible device, `mirrored` all of them, `multiworker`
        those of all workers that the environment's `TF_CONFIG` names; `auto` is
        `multiworker` where it names several, and else `mirrored`.
      data_service: `host:port` of a tf.data service's dispatcher, whose workers make the
        batches; by default the trainer makes them.
      own_shards: Whether each of several workers reads shards of its own of
        `data.prepared`, and not all of them; docs/distributed.md says what changes.
    """

    epochs: Positive = 60
    ranking_epochs: int = pydantic.Field(8, ge=0)
    replay: float = pydantic.Field(0.2, ge=0, le=1)
    pull: float = pydantic.Field(0.0, ge=0)
    batch_size: Positive = 64
    accumulate: Positive = 1
    learning_rate: float = pydantic.Field(2e-3, gt=0)
    warmup: float = pydantic.Field(0.05, ge=0, lt=1)
    weight_decay: float = pydantic.Field(0.01, ge=0)
    clip: float = pydantic.Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    monitor: str = "ndcg@10"
    validation_queries: Positive = 2000
    patience: Positive = 10
    checkpoint_steps: int = pydantic.Field(2000, ge=0)
    seed: Seed = 0
    strategy: Literal["auto", "one", "mirrored", "multiworker"] = "auto"
    data_service: str = pydantic.Field("", pattern=r"^(\S+:\d+)?$")
    own_shards: bool = False


class Index(_Section):
    """How answers are found.

    Attributes:
      shortlist: Items that the retrieval hands to the scorer; 0 serves the retrieval
        alone.
      max_k: Most answers to one request; who asks for more gets these.
      tokens: Dtype in which the items' token matrices are kept, the largest part of an
        export: `float16` halves them, `int8` takes a quarter and two bytes a token. Scores
        are those of the rounded tokens, in `evaluate` as in the export.
      clusters: Lists that the export sorts the items into, of which a request searches the
        nearest; 0 searches all items. The square root of their number is a good start.
      recall: Share of the exact shortlist that is found in as many lists as are searched.
      filters: Columns of the items table by which a request may choose items, and their
        kinds. They need not be features.
      diversity: Whether a request may ask for items that are unlike one another.
    """

    shortlist: int = pydantic.Field(100, ge=0)
    max_k: Positive = 100
    tokens: Literal["float32", "float16", "int8"] = "float32"
    clusters: int = pydantic.Field(0, ge=0)
    recall: float = pydantic.Field(0.97, gt=0, le=1)
    filters: dict[str, Literal["category", "categories", "number"]] = {}
    diversity: bool = False


class Config(_Section):
    """All settings of a run; `dump` gives the TOML that reads back equal."""

    data: Data = Data()
    schema_: Schema | None = pydantic.Field(None, alias="schema")
    split: Split = Split()
    examples: Examples = Examples()
    text: Text = Text()
    bert: Bert = Bert()
    model: Model = Model()
    scorer: Scorer = Scorer()
    loss: Loss = Loss()
    regularization: Regularization = Regularization()
    train: Train = Train()
    index: Index = Index()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "Config":
        """Settings that are each right, but not with one another."""
        loss, train, against = self.loss, self.train, self.regularization
        if loss.distillation and train.ranking_epochs:
            raise ValueError(
                "loss.distillation needs train.ranking_epochs=0: the retrieval learns from "
                "the ranking only where both are trained at once. Received: "
                f"loss.distillation={loss.distillation}, "
                f"train.ranking_epochs={train.ranking_epochs}"
            )
        if against.average and self.bert.tuning == "adalora":
            raise ValueError(
                "regularization.average must be 0 with bert.tuning=adalora, as an average "
                f"brings back directions that were cut. Received: {against.average}. Set "
                "bert.tuning=lora, or no average"
            )
        if against.consistency and not loss.negatives:
            raise ValueError(
                "regularization.consistency compares choices among a step's negatives and "
                "needs loss.negatives above 0: raise it, or set consistency to 0. "
                f"Received: regularization.consistency={against.consistency}, "
                "loss.negatives=0"
            )
        if train.data_service and self.data.prepared:
            raise ValueError(
                "train.data_service makes batches of tables, and data.prepared has its in "
                f"shards: leave one of them out. Received: {train.data_service!r} and "
                f"{self.data.prepared!r}"
            )
        if train.own_shards and not self.data.prepared:
            raise ValueError(
                "train.own_shards divides the shards of data.prepared among workers, and "
                "there are none: name a prepared folder, or set train.own_shards=false"
            )
        return self
