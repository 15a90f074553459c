"""The installed packages against the pins that this distribution was built with."""

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

DISTRIBUTION = "tfrec-attn"
# They link TensorFlow's C++ or wrap its Python, and come out with it.
_FAMILY = ("tf-keras", "tensorflow-text", "tensorflow-serving-api")


class Mismatch(NamedTuple):
    """A package that is not as it was pinned.

    Attributes:
      name: The package.
      found: Its version; None if it is not installed.
      wanted: A specifier: what works if `why` is said, else what the tests ran with.
      why: What goes wrong with the version found; "" where it may work.
    """

    name: str
    found: str | None
    wanted: str
    why: str = ""


def version(name: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def mismatches(extra: str = "") -> Iterator[Mismatch]:
    """The requirements of the distribution, or of one of its extras, that are not met."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    for line in metadata.requires(DISTRIBUTION) or ():
        required = Requirement(line)
        always = required.marker is None or required.marker.evaluate({"extra": ""})
        asked = required.marker is None or required.marker.evaluate({"extra": extra})
        if not asked or always == bool(extra):
            continue
        name, pin, found = required.name, required.specifier, version(required.name)
        needed, why = _needed(name)
        if found and found not in SpecifierSet(needed, prereleases=True):
            yield Mismatch(name, found, needed, why)
        elif found is None or not pin.contains(found, prereleases=True):
            yield Mismatch(name, found, str(pin))


def _needed(name: str) -> tuple[str, str]:
    """The versions of a package that can work at all, and what is wrong with others."""
    if name == "transformers":
        return ">=4.53,<4.55", "its TFBertModel reads no safetensors, or is not there"
    tensorflow = version("tensorflow")
    if name in _FAMILY and tensorflow:
        minor = ".".join(tensorflow.split(".")[:2])
        return f"~={minor}.0", f"its minor version is not that of tensorflow {tensorflow}"
    return "", ""
