"""Says whether this machine can train and serve, and what to do where it cannot.

`python -m tfrec_attn.doctor` prints one row a finding as it comes, so that even a crash
inside a library shows which check it was in; `--json` prints them as a list at the end. The
status is 1 if a finding is a failure.
"""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfrec_attn import installed, keras_binding

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"

# Room for the assets, a few runs and their exports; a run of the example needs 0.2 GB.
_ENOUGH, _LEAST = 2e9, 5e8
_OPTIONAL = {
    "serve": "the embedded server and the gRPC client",
    "keras3": "the scorer as a Keras 3 layer",
    "baselines": "implicit ALS beside the model in evaluate",
    "beam": "prepare, and recommend on a Beam runner",
    "search": "the search for settings",
    "wandb": "curves on Weights & Biases",
    "test": "the tests",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes:
      check: What was looked at.
      status: `ok`; `note`, worth knowing; `warn`, may go wrong; `fail`, will.
      found: What is there.
      do: The way out; empty if there is nothing to do.
    """

    check: str
    status: str
    found: str
    do: str = ""


def findings() -> Iterator[Finding]:
    """Runs every check in turn. A check that raises is a finding too."""
    for name, check, way_out in _CHECKS:
        try:
            yield from check()
        except Exception as error:  # whatever a broken library raises, the others follow
            lines = str(error).strip().splitlines() or ["no message"]
            missing = isinstance(error, ModuleNotFoundError)
            found = f"{type(error).__name__}: {lines[0]}"
            yield Finding(name, FAIL, found, _INSTALL if missing else way_out)


def python() -> Iterator[Finding]:
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", OK, found)
    else:
        way_out = "Make an environment with Python 3.11: python3.11 -m venv .venv"
        yield Finding("python", FAIL, found, way_out)


def versions() -> Iterator[Finding]:
    """The installed packages against the pins that the distribution was built with."""
    wrong = [_version(mismatch) for mismatch in installed.mismatches()]
    yield from wrong or [
        Finding("versions", OK, "every required package has its pinned version")
    ]


def _version(wrong: installed.Mismatch) -> Finding:
    check, install = f"version of {wrong.name}", f"pip install '{wrong.name}{wrong.wanted}'"
    if wrong.found is None:
        return Finding(check, FAIL, "not installed", install)
    if wrong.why:
        return Finding(check, FAIL, f"{wrong.found}: {wrong.why}", install)
    found = f"{wrong.found}; the tests ran with {wrong.wanted.lstrip('=')}"
    return Finding(check, WARN, found, install)


def keras() -> Iterator[Finding]:
    """That `tf.keras` is Keras 2 here, that TFRS and transformers agree to it, and why."""
    first = [name for name in ("tensorflow_text", "keras") if name in sys.modules]
    try:
        keras_binding.require_legacy_keras()
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        yield Finding("keras", FAIL, str(error))  # the message holds the way out
        return
    legacy = importlib.import_module("tf_keras").__version__
    switch = os.environ[keras_binding.SWITCH]
    yield Finding(
        "keras", OK, f"tf.keras is Keras {legacy} ({keras_binding.SWITCH}={switch})"
    )
    order = "tfrec_attn was imported before TensorFlow's add-ons"
    if first:
        order = f"{', '.join(first)} came before tfrec_attn; it went well this time"
    way_out = "Import tfrec_attn first." if first else ""
    yield Finding("import order", NOTE if first else OK, order, way_out)
    importlib.import_module("tensorflow_recommenders")
    importlib.import_module("transformers.models.bert.modeling_tf_bert")
    yield Finding("libraries on keras", OK, "TFRS and transformers' TFBertModel load")


def devices() -> Iterator[Finding]:
    tf = importlib.import_module("tensorflow")
    gpus = tf.config.list_physical_devices("GPU")
    cores = f"{os.cpu_count()} CPU cores"
    if not gpus and shutil.which("nvidia-smi"):
        way_out = (
            f"pip install 'tensorflow[and-cuda]=={tf.__version__}', and check that "
            "CUDA_VISIBLE_DEVICES does not hide it"
        )
        found = f"{cores}; the machine has NVIDIA's driver, TensorFlow sees no GPU"
        yield Finding("devices", WARN, found, way_out)
        return
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in gpus
    ]
    for index, _ in enumerate(gpus):  # a wrong driver shows at the first product only
        with tf.device(f"GPU:{index}"):
            tf.linalg.matmul(tf.ones([8, 8]), tf.ones([8, 8])).numpy()
    yield Finding("devices", OK, f"{cores}; {', '.join(names) or 'no GPU'}")


def determinism() -> Iterator[Finding]:
    """Two runs of a seeded sum over segments, the usual culprit, must be bit-equal."""
    tf = importlib.import_module("tensorflow")
    tf.config.experimental.enable_op_determinism()

    def run():
        tf.random.set_seed(1)
        values = tf.random.normal([10_000, 7])
        rows = tf.random.uniform([10_000], maxval=13, dtype=tf.int32)
        return tf.math.unsorted_segment_sum(values, rows, 13).numpy().tobytes()

    if run() == run():
        found = "two seeded runs agree in every bit; another kind of machine may not"
        yield Finding("determinism", OK, found)
    else:
        way_out = "Compare runs by their spread over several seeds, not by single numbers."
        yield Finding("determinism", WARN, "two seeded runs differ", way_out)


def tensorflow_text() -> Iterator[Finding]:
    """Loads the ops, which a TensorFlow of another minor version refuses, and runs them."""
    text = importlib.import_module("tensorflow_text")
    tokenizer = text.FastBertTokenizer(
        ["[UNK]", "recommend", "##er"],
        support_detokenization=False,
        lower_case_nfd_strip_accents=True,
    )
    ids = tokenizer.tokenize(["Recommender"]).to_list()
    if ids == [[1, 2]]:
        yield Finding("tensorflow-text", OK, "the WordPiece runs in the graph")
    else:
        found = f"the WordPiece gives {ids} for the pieces 1 and 2"
        yield Finding("tensorflow-text", FAIL, found, _TEXT)


def cache() -> Iterator[Finding]:
    place = _assets().cache()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{place} cannot be written: {error.strerror}"
        way_out = "Point TFREC_ATTN_CACHE to a folder that can."
        yield Finding("cache", FAIL, found, way_out)
    else:
        yield Finding("cache", OK, str(place))


def disk() -> Iterator[Finding]:
    places = {"the cache": _assets().cache(), "this folder": Path.cwd()}
    for name, place in places.items():
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        status = FAIL if free < _LEAST else WARN if free < _ENOUGH else OK
        way_out = f"Make room on the disk of {there}." if status != OK else ""
        yield Finding(f"disk of {name}", status, f"{free / 1e9:.1f} GB free", way_out)


def whole_assets() -> Iterator[Finding]:
    assets = _assets()
    for name in assets.ASSETS:
        place = assets.folder(name)
        wrong = assets.problems(name)
        if not place.exists():
            way_out = "python -m tfrec_attn.assets fetches it now; its first use does too."
            yield Finding(name, NOTE, "not in the cache", way_out)
        elif wrong:
            way_out = f"python -m tfrec_attn.assets --check {name}"
            yield Finding(name, FAIL, f"{place}: {'; '.join(wrong)}", way_out)
        else:
            yield Finding(name, OK, f"{place}, checksums right")


def extras() -> Iterator[Finding]:
    for extra, use in _OPTIONAL.items():
        wrong = list(installed.mismatches(extra))
        missing = [mismatch.name for mismatch in wrong if mismatch.found is None]
        way_out = f"For {use}, in the package's folder: pip install '.[{extra}]'"
        if missing:
            yield Finding(f"extra {extra}", NOTE, f"without {', '.join(missing)}", way_out)
        else:
            yield Finding(f"extra {extra}", OK, use)
        yield from (_version(mismatch) for mismatch in wrong if mismatch.found)


def _assets():
    # Not at the top: what it stands on may be what is missing.
    return importlib.import_module("tfrec_attn.assets")


_INSTALL = "Install the package with its pinned dependencies, in its folder: pip install ."
_TEXT = "tensorflow-text must have TensorFlow's minor version; see the rows on versions."
_CHECKS: tuple[tuple[str, Callable[[], Iterator[Finding]], str], ...] = (
    ("python", python, ""),
    ("versions", versions, _INSTALL),
    ("keras", keras, _INSTALL),
    ("devices", devices, "Set CUDA_VISIBLE_DEVICES=-1 to go on without the GPU."),
    ("determinism", determinism, "Hide the device with CUDA_VISIBLE_DEVICES=-1."),
    ("tensorflow-text", tensorflow_text, _TEXT),
    ("cache", cache, "Point TFREC_ATTN_CACHE to another folder."),
    ("disk", disk, "Look whether the disks of this folder and of the cache are there."),
    ("assets", whole_assets, "python -m tfrec_attn.assets --check"),
    ("extras", extras, _INSTALL),
)


def row(finding: Finding) -> str:
    """The finding as lines of a table, with the way out below it."""
    head = f"{finding.status:<5} {finding.check:<24} "
    indent = " " * len(head)
    fill: Any = {"width": 100, "break_long_words": False, "break_on_hyphens": False}
    lines = textwrap.wrap(head + finding.found, subsequent_indent=indent, **fill)
    if finding.do:
        lines += textwrap.wrap(
            f"-> {finding.do}", initial_indent=indent, subsequent_indent=indent, **fill
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Checks this machine and prints what was found and what to do."""
    parser = argparse.ArgumentParser(
        prog="python -m tfrec_attn.doctor", description=main.__doc__
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead")
    args = parser.parse_args(argv)
    # TensorFlow's remarks, also on a GPU that is not there, would stand between the rows.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    found = []
    for finding in findings():
        found.append(finding)
        if not args.json:
            print(row(finding), flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    return int(any(finding.status == FAIL for finding in found))


if __name__ == "__main__":
    sys.exit(main())
