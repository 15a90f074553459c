"""The untrained model of a run: where its data meet the layers."""

import contextlib
import logging
from collections.abc import Iterator

import tf_keras

from tfrec_attn import backbones
from tfrec_attn.model import assembly, recommender, texts, tuning
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.run.prepared import Prepared
from tfrec_attn.settings.config import Config

logger = logging.getLogger(__name__)


def build(prepared: Prepared, precision: str = "float32") -> recommender.Recommender:
    """The untrained model of a prepared run.

    Args:
      prepared: The run's data.
      precision: Of a trained BERT's maps.
    """
    profile = {
        name: value
        for name, value in prepared.user_features.items()
        if name != "id" or prepared.config.model.user_id
    }
    return assembly.build(
        prepared.config,
        items=prepared.item_features,
        users=profile,
        item_columns=prepared.items.columns,
        user_columns=prepared.users.columns,
        frequency=prepared.frequency,
        positives_of=prepared.positives_of(),
        live=_live(prepared, precision),
    )


def _live(prepared: Prepared, precision: str) -> texts.Live | None:
    """The BERT that is trained, None where it is frozen."""
    config, settings = prepared.config, prepared.config.bert
    if settings.tuning == "frozen":
        return None
    if prepared.texts is None:
        raise ValueError(
            f"bert.tuning={settings.tuning!r} trains BERT on the texts of items, and there "
            "are none: set schema.items.text and text.backbone, or bert.tuning=frozen."
        )
    with computing_in(precision):
        bert = tuned(config)
    bert.recompute, bert.xla = settings.recompute, settings.xla
    logger.info("bert.tuning=%s: %s", settings.tuning, tuning.count(bert))
    rates = tuning.rates(bert, settings.learning_rate, settings.decay)
    # A step's, of which each part has its share.
    count = -(-settings.live // config.train.accumulate)
    return texts.Live(
        bert,
        prepared.texts,
        count=count,
        rates=rates,
        unfreeze=settings.unfreeze,
        chunk=settings.chunk,
        lost=config.regularization.token_dropout,
    )


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Keras layers that are made here compute so, with weights of float32."""
    mixed, was = tf_keras.mixed_precision, tf_keras.mixed_precision.global_policy()
    mixed.set_global_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        mixed.set_global_policy(was)


def tuned(config: Config) -> bert_lib.Bert:
    """The backbone, ready to be trained by `bert.tuning`, as it starts."""
    bert = bert_lib.load(backbones.backbone(config.text.backbone))
    settings = config.bert
    tuning.tune(bert, settings.tuning, size=settings.size, seed=config.train.seed)
    return bert
