"""BERT folders: found by path or name, and checked before anything is read from them."""

import contextlib
import hashlib
import json
import re
from pathlib import Path

from tfrec_attn import assets, downloads, paths
from tfrec_attn.origins import HUB_NAME, MINILM

# What google-research/bert released: weights by their names in TensorFlow 1.
GOOGLE, GOOGLE_CONFIG = "bert_model.ckpt", "bert_config.json"
# Int8 weights, see model.quantization; a name of our own, as only we can read them.
QUANTIZED = "model.int8.safetensors"
# The weights that TFBertModel reads without torch, the first that is there.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "tf_model.h5")
TOKENIZER = (
    "vocab.txt",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
)


def backbone(name_or_path: str | Path) -> Path:
    """Returns the folder of a BERT: config.json, vocab.txt, weights that TensorFlow reads.
    What Google released will do: bert_config.json, vocab.txt, bert_model.ckpt.*.

    Args:
      name_or_path: A folder on disk; else `all-MiniLM-L6-v2`; else a name on the Hugging
        Face hub, whose files go to the hub's own cache and are used from there without
        asking again.

    Raises:
      ValueError: It is nothing of these, or no BERT that can be read.
      OSError: The hub or the asset cannot be reached.
    """
    place = Path(name_or_path).expanduser()
    if place.is_dir():
        check(place)
        return place
    if str(name_or_path) in (MINILM, HUB_NAME):
        return assets.fetch(MINILM)
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(name_or_path)):
        raise ValueError(
            "A backbone is a folder with a BERT in it, the asset "
            f"{MINILM}, or a hub name such as google-bert/bert-base-uncased: "
            f"got {str(name_or_path)!r}, and there is no such folder"
            f"{paths.looked_in(place)}."
        )
    return _hub_bert(str(name_or_path))


def terms(name_or_path: str | Path) -> str:
    """A backbone and the licence that its own card names."""
    place = backbone(name_or_path)
    if str(name_or_path) in (MINILM, HUB_NAME):
        return f"{MINILM}, Apache-2.0"
    readme = place / "README.md"
    words = readme.read_text("utf-8", "replace") if readme.is_file() else ""
    named = re.search(r"\A---\n.*?^license: *(\S+)", words, re.MULTILINE | re.DOTALL)
    return f"{name_or_path}, " + (
        named[1] if named else "whose terms are not in its folder"
    )


def _hub_bert(name):
    import huggingface_hub

    # A cached copy may be one of which another program fetched only a part.
    with contextlib.suppress(FileNotFoundError, ValueError):
        place = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        check(place)
        return place
    try:
        # The small files first: a model that is no BERT costs no download of weights.
        found = downloads.from_hub(name, ["config.json"])
        config = found[0] if found else Path(name, "config.json")
        _check_config(config)
        downloads.from_hub(name, TOKENIZER)
        if not downloads.from_hub(name, ["model.safetensors"]):
            downloads.from_hub(name, ["tf_model.h5"])
    except (OSError, huggingface_hub.errors.HFValidationError) as error:
        raise OSError(
            f"backbone {name!r}: the Hugging Face hub did not give it "
            f"({assets.reason(error)}), and there is no such folder"
            f"{paths.looked_in(Path(name))}. Check the name, or give a BERT's folder."
        ) from error
    check(config.parent)
    return config.parent


def check(place: Path) -> None:
    """Raises a ValueError that names what keeps a folder from being a usable BERT."""
    check_weights(place)
    if not (place / "vocab.txt").is_file():
        raise ValueError(
            f"{place}: vocab.txt is missing; the tokenizer in the graph is made from it. "
            "transformers' AutoTokenizer.from_pretrained(…).save_vocabulary(…) writes it."
        )


def check_weights(place: Path) -> None:
    """`check` without the vocabulary: config.json, and weights beside it."""
    if is_google(place):
        _read_config(place / GOOGLE_CONFIG)
        weights: tuple[str, ...] = (f"{GOOGLE}.index",)
    else:
        _check_config(place / "config.json")
        weights = (QUANTIZED,) if is_quantized(place) else _WEIGHTS
    if not any((place / name).is_file() for name in weights):
        raise ValueError(
            f"{place}: no weights that TensorFlow can read: {' or '.join(weights)} is "
            f"needed, got {', '.join(sorted(path.name for path in place.iterdir()))}. "
            "A pytorch_model.bin becomes model.safetensors by save_pretrained in an "
            "environment with torch."
        )


def is_google(place: Path) -> bool:
    """Whether a folder is a checkpoint as Google released it."""
    return (place / GOOGLE_CONFIG).is_file() and not (place / "config.json").is_file()


def width(place: Path) -> int:
    """Of a BERT's hidden states."""
    config = _read_config(place / (GOOGLE_CONFIG if is_google(place) else "config.json"))
    # As BertConfig has it where a file does not say.
    return config.get("hidden_size", 768)


def is_quantized(place: Path) -> bool:
    """Whether a folder's weights are int8, as `compress quantize` writes them."""
    return (place / QUANTIZED).is_file()


def fingerprint(place: Path) -> str:
    """SHA-256 over the names and contents of a BERT's config.json and weights."""
    total = hashlib.sha256()
    for path in sorted(place.iterdir()):
        shard = path.suffix == ".safetensors" or path.name.startswith(f"{GOOGLE}.")
        if shard or path.name in ("config.json", GOOGLE_CONFIG, *_WEIGHTS):
            total.update(f"{path.name} {assets.checksum(path)}\n".encode())
    return total.hexdigest()


def _check_config(path):
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: a backbone is what save_pretrained writes, config.json, "
            "vocab.txt and model.safetensors."
        )
    kind = _read_config(path).get("model_type")
    if kind != "bert":
        raise ValueError(
            f"{path}: model_type must be 'bert', as the text is cut by BERT's WordPiece: "
            f"got {kind!r}. Choose a BERT, such as {MINILM}."
        )


def _read_config(path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON object: {error}") from error
