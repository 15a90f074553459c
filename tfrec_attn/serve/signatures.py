"""What a served model reads and answers, as its server describes it. No TensorFlow."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
      dtype: `object` for strings, which travel as bytes.
      shape: -1 for a free size; None if even the rank is free.
    """

    dtype: np.dtype
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a server says of the version that it was asked about."""

    model: str
    version: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which model a client asks, and which version of it.

    Attributes:
      model: The name under which it is served.
      version: Its number; None takes the one in service.
      label: A name that the server's configuration gives to a version.

    Raises:
      ValueError: Both are given, or the version is no version's number.
    """

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self):
        if self.version is not None and self.label is not None:
            raise ValueError(
                "A client asks for a version or for a label: received "
                f"version={self.version!r} and label={self.label!r}. Leave one out."
            )
        if self.version is not None and self.version < 0:
            raise ValueError(
                f"version must be a whole number of at least 0: received {self.version!r}."
            )
