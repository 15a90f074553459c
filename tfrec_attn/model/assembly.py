"""A run's model out of its settings: the one place where config meets layers."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfrec_attn.labels import LABELS
from tfrec_attn.layers import AttentionWeightedCosine
from tfrec_attn.model import encoders, tasks
from tfrec_attn.model.recommender import Recommender
from tfrec_attn.model.states import Features
from tfrec_attn.model.texts import Live
from tfrec_attn.model.towers import ItemTower, UserTokens, UserTower
from tfrec_attn.settings.config import Config


def build(
    config: Config,
    *,
    items: Mapping[str, np.ndarray],
    users: Mapping[str, np.ndarray],
    item_columns,
    user_columns,
    frequency: np.ndarray,
    positives_of: tf.RaggedTensor,
    live: Live | None = None,
) -> Recommender:
    """The untrained model.

    Args:
      config: All settings.
      items, users: Features by row; see `towers.FeatureTokens`. Items have `id`.
      item_columns, user_columns: `catalog.Column` of each feature column, by name.
      frequency: `[I]` share of each item among the training targets.
      positives_of: `[U, None]` item rows of each user's training positives.
      live: A BERT that is trained with the retrieval.
    """
    settings = config.model
    dim, wide, drop = settings.dim, config.scorer.dim, settings.dropout
    item_encoders = {
        "id": encoders.CategoryTokens(len(frequency), dim, settings.id_dropout)
    }
    item_encoders |= _encoders(item_columns, items, dim, drop)
    user_encoders = _encoders(user_columns, users, dim, drop)
    if settings.user_id:
        user_encoders["id"] = encoders.CategoryTokens(positives_of.shape[0], dim, 0.5)
    tower = UserTower(
        user_encoders,
        dim=dim,
        heads=settings.heads,
        blocks=settings.blocks,
        length=config.examples.history,
        pooling=settings.pooling,
        dropout=drop,
        time=settings.time,
    )
    loss = config.loss
    return Recommender(
        item_tower=ItemTower(
            item_encoders,
            candidate=encoders.CategoryTokens(len(frequency), wide, settings.id_dropout),
            event=encoders.CategoryTokens(len(frequency), wide, settings.id_dropout),
            most=config.scorer.item_tokens,
            wide=wide,
        ),
        user_tower=tower,
        user_tokens=UserTokens(
            wide=wide,
            length=min(config.scorer.events, config.examples.history),
            time=settings.time,
        ),
        scorer=AttentionWeightedCosine(
            xla=False,  # what is exported must not need it
            **config.scorer.model_dump(exclude={"item_tokens", "events"}),
        ),
        retrieval=tasks.Retrieval(
            group=loss.group, logq=loss.logq, temperature=loss.temperature
        ),
        items=Features(items, anew=live is not None),
        users=Features(users),
        frequency=frequency,
        positives_of=positives_of,
        live=live,
        settings=loss,
        regularization=config.regularization,
        parts=config.train.accumulate,
        pull=config.train.pull,
        shortlist=config.index.shortlist,
        positives=tuple(LABELS.index(label) for label in config.examples.positives),
        seed=config.train.seed,
    )


def _encoders(columns, features, dim: int, dropout: float):
    make = {
        "category": lambda c: encoders.CategoryTokens(len(c.vocabulary), dim),
        "categories": lambda c: encoders.CategoryTokens(len(c.vocabulary), dim),
        "number": lambda c: encoders.NumberTokens(c.knots, dim),
        "time": lambda c: encoders.NumberTokens(c.knots, dim),
        "embedding": lambda c: encoders.EmbeddingTokens(dim, dropout),
    }
    made = {name: make[column.kind](column) for name, column in columns.items()}
    if "text" in features:
        text = encoders.TextTokens(dim, dropout)
        text.adapt(features["text_mean"][features["text_mask"].any(-1)])
        made["text"] = text
    return made
