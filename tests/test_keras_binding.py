"""Each order of imports in a process of its own, as a user's program would have it."""

import concurrent.futures
import os
import subprocess
import sys

import pytest

NEED = "from tfrec_attn import require_legacy_keras; require_legacy_keras();"
SHOW = (
    "import tensorflow as tf, tf_keras;"
    "print('keras 2' if tf.keras.Model is tf_keras.Model else 'keras 3')"
)
REFUSED = "the environment sets TF_USE_LEGACY_KERAS='0'. Unset it"
AFTER = "Import tfrec_attn before them"
# What a program does → what it must print at its end.
ORDERS = {
    "tfrec_attn first, TFRS after": (
        f"{NEED} import tensorflow_recommenders; {SHOW}",
        "keras 2",
    ),
    # The late import would bind Keras 3 again, had `require_legacy_keras` not seen to it.
    "tensorflow first, tensorflow.keras after": (
        f"from tensorflow import keras; {NEED} from tensorflow.keras import layers; {SHOW}",
        "keras 2",
    ),
    "keras 3 first": (f"import keras; {NEED} {SHOW}", "keras 2"),
    "tf.keras used first": (f"import tensorflow as tf; tf.keras.Model; {NEED}", AFTER),
    "tensorflow.keras first": (f"from tensorflow.keras import layers; {NEED}", AFTER),
    "tensorflow_text first": (f"import tensorflow_text; {NEED}", "it is already Keras 3"),
    "tensorflow first, and an explicit no": (
        f"import tensorflow, os; os.environ['TF_USE_LEGACY_KERAS'] = '0'; {NEED}",
        REFUSED,
    ),
    "TFRS first": (
        "import contextlib\nwith contextlib.suppress(ImportError):\n"
        f"  import tensorflow_recommenders\n{NEED}",
        AFTER,
    ),
}


def run(program, **environment):
    clean = {name: value for name, value in os.environ.items() if "KERAS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs():
    """All programs, two at a time: most of their time is TensorFlow's import."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {name: pool.submit(run, program) for name, (program, _) in ORDERS.items()}
        return {name: job.result() for name, job in jobs.items()}


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_imports(outputs, order):
    assert ORDERS[order][1] in outputs[order]


@pytest.mark.parametrize("value", ["", "true", "True", "1"])
def test_the_switch_is_on_after_the_import(value):
    # "1" and not "true", which transformers warns about.
    program = "import os, tfrec_attn; print(repr(os.environ['TF_USE_LEGACY_KERAS']))"
    assert run(program, TF_USE_LEGACY_KERAS=value) == "'1'\n"


def test_an_explicit_no_is_kept_and_told_without_loading_tensorflow():
    program = (
        "import sys, tfrec_attn\n"
        "try:\n  tfrec_attn.require_legacy_keras()\n"
        "except ImportError as error:\n  print(error, 'tensorflow' in sys.modules)"
    )
    printed = run(program, TF_USE_LEGACY_KERAS="0")
    assert REFUSED in printed
    assert printed.endswith("False\n")


def test_a_missing_tf_keras_is_named_with_the_fitting_version():
    program = f"import sys; sys.modules['tf_keras'] = None; {NEED}"
    printed = run(program)
    assert "pip install 'tf-keras~=2.20.0'" in printed


def test_importing_the_package_is_light():
    program = (
        "import sys, tfrec_attn, tfrec_attn.assets\n"
        "print([name for name in ('tensorflow', 'polars', 'transformers', 'keras',"
        " 'huggingface_hub') if name in sys.modules])"
    )
    assert run(program) == "[]\n"
