"""Which Keras stands under `tf.keras` in this process, and the demand that it be Keras 2.

TensorFlow 2.20 reads `TF_USE_LEGACY_KERAS` twice: when it is imported, for the submodules
that `from tensorflow.keras import …` finds, and at the first use of `tf.keras`, for that
name. So the switch still works after `import tensorflow`, and no longer after anything
touched `tf.keras`; `import tensorflow_text` alone does.
"""

import importlib
import os
import sys
from typing import Any

SWITCH = "TF_USE_LEGACY_KERAS"
_ON = ("1", "true", "True")


def switch_on():
    """Turns the switch on, unless the environment holds an explicit no."""
    # transformers takes "true" for a no, TensorFlow does not: "1" is clear to both.
    if os.environ.get(SWITCH, "") in ("", *_ON):
        os.environ[SWITCH] = "1"


def require_legacy_keras():
    """Makes sure that `tf.keras` is Keras 2 from here on. Call it before TFRS is imported.

    Imports TensorFlow and tf_keras.

    Raises:
      ImportError: tf_keras is missing, the environment refuses Keras 2, or `tf.keras` was
        already used as Keras 3. The message says what to do.
    """
    switch_on()
    # An explicit no is reported before TensorFlow is loaded for nothing.
    if os.environ[SWITCH] not in _ON and "tensorflow" not in sys.modules:
        raise ImportError(_refusal())
    tensorflow = importlib.import_module("tensorflow")
    try:
        legacy = importlib.import_module("tf_keras")
    except ModuleNotFoundError as error:
        minor = ".".join(tensorflow.__version__.split(".")[:2])
        raise ImportError(
            "tfrec_attn's models need Keras 2, which comes as the package tf-keras: it is "
            f"not installed. Run: pip install 'tf-keras~={minor}.0'"
        ) from error
    if tensorflow.keras.Model is not legacy.Model:
        raise ImportError(_refusal())
    _keep(tensorflow)


def on_legacy_keras(name: str) -> Any:
    """Imports a library that is written for Keras 2, which would fail on Keras 3 without
    the way out that `require_legacy_keras` tells.

    Raises:
      ImportError: See `require_legacy_keras`.
    """
    require_legacy_keras()
    return importlib.import_module(name)


def _keep(tensorflow):
    """Lets `from tensorflow.keras import …` find Keras 2 also if TensorFlow came first.

    Without it such an import, anywhere and at any time, would put Keras 3 under `tf.keras`.
    """
    api = importlib.import_module("tf_keras.api._v2.keras")
    folder = os.path.dirname(os.path.dirname(api.__file__))
    if folder not in tensorflow.__path__:
        tensorflow.__path__.insert(0, folder)


def _refusal():
    need = (
        "tfrec_attn's models need Keras 2 under tf.keras, as TFRS and transformers' "
        "TensorFlow classes do"
    )
    aside = "tfrec_attn.layers works with Keras 3 as it is."
    if os.environ[SWITCH] not in _ON:
        return (
            f"{need}: the environment sets {SWITCH}={os.environ[SWITCH]!r}. "
            f"Unset it or set {SWITCH}=1. {aside}"
        )
    return (
        f"{need}: it is already Keras {sys.modules['keras'].__version__} in this process. "
        "Something used tf.keras before tfrec_attn was imported; importing "
        "tensorflow_text, tensorflow_recommenders or tensorflow.keras does. Import "
        f"tfrec_attn before them, or start Python with {SWITCH}=1. {aside}"
    )
