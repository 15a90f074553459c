"""A recommender whose users and items are sets of feature tokens.

tables → examples → catalog → tokens → towers → scorer → training → index → SavedModel:
`data` reads tables into tensors, `model` holds the weights, `training` moves them, `run`
keeps them, `evaluation` measures them, and `serve` turns them into answers. A module
imports only from those before it.

Importing the package loads neither TensorFlow nor polars; a name below loads its module
on first use.
"""

import importlib
import os

from tfrec_attn import keras_binding

# TFRS and transformers' TensorFlow classes need Keras 2 under `tf.keras`, and TensorFlow
# reads this switch when it is first imported.
keras_binding.switch_on()
# TensorFlow's notes on start-up (no GPU, oneDNN) are not for whoever runs a command.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "serve.client",
    "AttentionWeightedCosine": "layers",
    "Client": "serve.client",
    "LABELS": "labels",
    "Schema": "data.schema",
    "Tables": "data.tables",
    "backbone": "backbones",
    "fetch": "assets",
    "movielens_100k": "data.sources",
    "read_tables": "data.tables",
    "require_legacy_keras": "keras_binding",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'tfrec_attn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfrec_attn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
