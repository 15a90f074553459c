"""The scorer as a Keras 3 layer on the TensorFlow backend, beside tf_keras in one process.

The same class as in `tfrec_attn.layers`, with the same weights in the same order:
`keras3_layer.set_weights(tf_keras_layer.get_weights())` gives the same scores.
"""

from typing import ClassVar

import keras

from tfrec_attn import layers

__all__ = ["AttentionWeightedCosine"]

if not keras.__version__.startswith("3."):
    raise ImportError(f"tfrec_attn.keras3_layers needs Keras 3: found {keras.__version__}.")
if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfrec_attn.keras3_layers needs Keras 3 on TensorFlow: the backend is "
        f"{keras.backend.backend()}. Set KERAS_BACKEND=tensorflow before Keras is imported."
    )


@keras.saving.register_keras_serializable("tfrec_attn")
class AttentionWeightedCosine(layers.Scorer, keras.layers.Layer):
    __doc__ = layers.AttentionWeightedCosine.__doc__

    keras = keras
    float32: ClassVar = {"autocast": False}
