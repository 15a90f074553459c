"""The flags of `python -m tfrec_attn.serve` about models, and those it does not serve.

Names, defaults and meanings are those of tensorflow/serving `model_servers/main.cc`.
"""

import argparse
import pathlib

# What each of them would change cannot be had here. A value in the tuple asks for nothing.
_REFUSED = {
    "use_alts_credentials": (("false",), "ALTS is not served: use --ssl_config_file"),
    "platform_config_file": ((), 'only the platform "tensorflow" is served'),
    "tensorflow_session_config_file": ((), "models run without a session"),
    "per_process_gpu_memory_fraction": (
        ("0", "0.0"),
        "set TF_FORCE_GPU_ALLOW_GROWTH=true in the environment instead",
    ),
    "saved_model_tags": (("serve",), 'only graphs tagged "serve" are loaded'),
    "prefer_tflite_model": (("false",), "TensorFlow Lite is not served"),
    "xla_cpu_compilation_enabled": (("true",), "XLA cannot be switched off here"),
    "xla_gpu_compilation_enabled": (("true",), "XLA cannot be switched off here"),
    "thread_pool_factory_config_file": ((), "TensorFlow's own thread pools are used"),
    "mixed_precision": (("",), "export the model with the precision you want"),
    "enable_signature_method_name_check": (
        ("false",),
        "a signature is judged by its inputs and outputs",
    ),
    "enable_serialization_as_tensor_content": (
        ("false",),
        "answers carry their values one by one",
    ),
}
# They change how fast a model server is, never what it answers: taken with a warning.
_TUNING = {
    "num_unload_threads": "a version goes with the last request that holds it",
    "flush_filesystem_caches": "caches are left to the operating system",
    "remove_unused_fields_from_bundle_metagraph": "graphs are kept as they were saved",
    "tensorflow_session_parallelism": "use --tensorflow_intra_op_parallelism and "
    "--tensorflow_inter_op_parallelism",
    "num_tflite_pools": "TensorFlow Lite is not served",
    "num_tflite_interpreters_per_pool": "TensorFlow Lite is not served",
    "skip_initialize_tpu": "there is no TPU to initialize",
}


def boolean(text: str) -> bool:
    """`true` or `false`, for argparse."""
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"it is true or false: received {text!r}")
    return values[text.lower()]


def add_models(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which models are served and how they are loaded."""
    group = parser.add_argument_group("models")
    add = group.add_argument
    add(
        "--model_base_path",
        type=pathlib.Path,
        help="folder of versions: 1/, 2/, …; the highest is served",
    )
    add("--model_name", help="default: the name of the folder")
    add(
        "--model_config_file",
        type=pathlib.Path,
        help="a ModelServerConfig in text format, instead of the two above",
    )
    add(
        "--model_config_file_poll_wait_seconds",
        type=seconds,
        default=0.0,
        help="seconds between two readings of it; 0 reads once (default: 0)",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=seconds,
        default=1.0,
        help="seconds between two looks for new versions; 0 looks once (default: 1)",
    )
    add(
        "--max_num_load_retries",
        type=count,
        default=5,
        help="tries after a first one that failed (default: 5)",
    )
    add(
        "--load_retry_interval_micros",
        type=int,
        default=60_000_000,
        help="between two tries; negative does not wait (default: 1 minute)",
    )
    add(
        "--num_load_threads",
        type=count,
        default=0,
        help="models loaded at the same time; 0 is one (default: 0)",
    )
    switch(
        add,
        "--allow_version_labels_for_unavailable_models",
        False,
        "take a label before its version is there",
    )
    switch(add, "--enable_model_warmup", True, "replay a version's warm-up requests")
    add(
        "--num_request_iterations_for_warmup",
        type=count,
        default=1,
        help="times that each of them is run (default: 1)",
    )
    switch(add, "--enable_profiler", True, "serve traces to TensorBoard and tf.profiler")
    switch(add, "--version", False, "say the versions of this package and of TensorFlow")
    for name in ("intra", "inter"):
        add(
            f"--tensorflow_{name}_op_parallelism",
            type=count,
            default=0,
            help=f"threads {name} operations; 0 lets TensorFlow choose (default: 0)",
        )


def switch(add, flag: str, default: bool, text: str) -> None:
    """Adds a flag that is true alone, or says `=true` or `=false`."""
    text = f"{text} (default: {str(default).lower()})"
    add(flag, type=boolean, nargs="?", const=True, default=default, help=text)


def add_unserved(parser: argparse.ArgumentParser) -> None:
    """Adds tensorflow_model_server's other flags, so that `unserved` can say why not."""
    for name in [*_REFUSED, *_TUNING]:
        parser.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)


def unserved(args: argparse.Namespace) -> list[str]:
    """What to warn of: flags that only tune, and are passed over.

    Raises:
      ValueError: A flag asks for what is not served.
    """
    for name, (harmless, why) in _REFUSED.items():
        value = getattr(args, name)
        if value is not None and value.lower() not in harmless:
            raise ValueError(f"--{name}={value} is not served: {why}.")
    return [
        f"--{name} is passed over: {why}"
        for name, why in _TUNING.items()
        if getattr(args, name) is not None
    ]


def seconds(text: str) -> float:
    """A number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"seconds are 0 or more: received {text!r}")
    return value


def count(text: str) -> int:
    """A whole number, 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"it is a whole number from 0: received {text!r}")
    return int(text)
