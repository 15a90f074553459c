"""Ids of users behind a keyed hash, HMAC-SHA256 (RFC 2104).

A plain hash of an id is undone by hashing every id there may be; without the key of this
one that cannot be tried.
"""

import hashlib
import hmac
import os
from pathlib import Path

VARIABLE = "TFREC_ATTN_USER_KEY"
_SHORTEST = 16


class UserKey:
    """A secret, by which one id always becomes the same pseudonym.

    Args:
      secret: At least 16 bytes.
      origin: Where it is from, for the message.

    Raises:
      ValueError: It is shorter.
    """

    def __init__(self, secret: bytes, origin: str = "the key"):
        if len(secret) < _SHORTEST:
            raise ValueError(
                f"{origin} must hold a key of at least {_SHORTEST} bytes, lest it be found "
                f"by trying: received {len(secret)}. Make one: openssl rand -hex 32."
            )
        self._secret = secret

    @classmethod
    def read(cls, path: Path | None) -> "UserKey":
        """From a file, its line end left out, or from the environment.

        Raises:
          ValueError: There is none, or it is too short.
          OSError: The file cannot be read.
        """
        if path is not None:
            return cls(path.read_bytes().rstrip(b"\r\n"), str(path))
        if not os.environ.get(VARIABLE):
            raise ValueError(
                f"Users are hashed by a key: name its file, or set {VARIABLE}. "
                "Make one: openssl rand -hex 32 > user.key."
            )
        return cls(os.environ[VARIABLE].encode(), VARIABLE)

    def hash(self, user_id: str) -> str:
        """A pseudonym of 64 hexadecimal digits; "" is nobody and stays so."""
        return self._digest(b"user:" + user_id.encode()) if user_id else ""

    @property
    def name(self) -> str:
        """Tells one key from another, and nothing of what it is."""
        return self._digest(b"name")[:16]

    def _digest(self, message: bytes) -> str:
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
