"""A recommender whose users and items are sets of feature tokens.

tables → examples → catalog → tokens → towers → scorer → training → index → SavedModel:
`data` reads tables into tensors, `model` holds the weights, `fit` trains them, `serve`
turns a trained model into answers. A module imports only from those before it.
"""

import os

# TFRS and transformers' TensorFlow classes need Keras 2 under `tf.keras`; TensorFlow reads
# this switch once, when it is first imported.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.1.0"
