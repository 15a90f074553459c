"""What a training keeps of a model."""

import tensorflow as tf
import tf_keras

from tfrec_attn.model.recommender import Recommender


def generators(model: Recommender) -> list:
    """Where dropout draws from, which Keras leaves out of a model's checkpoint."""
    kind = tf_keras.__internal__.layers.BaseRandomLayer
    roots = [model, *([model.live.bert] if model.live else [])]
    layers = [x for root in roots for x in root.submodules if isinstance(x, kind)]
    with model.distribute_strategy.scope():
        for layer in layers:
            layer._random_generator._maybe_init()
    return [layer._random_generator for layer in layers]


def weights(model: Recommender) -> tf.train.Checkpoint:
    """What a trained model is: what it learned, without optimizer and counters."""
    return tf.train.Checkpoint(**model.learned)
