"""Hashed ids: by the standard's own construction, and keys that are refused."""

import hashlib

import pytest

from tfrec_attn.user_keys import VARIABLE, UserKey

SECRET = b"0123456789abcdef"


def test_it_is_hmac_sha256():
    """RFC 2104, written out: H(K ^ opad, H(K ^ ipad, text))."""
    padded = SECRET.ljust(64, b"\0")
    inner, outer = (bytes(one ^ pad for one in padded) for pad in (0x36, 0x5C))
    digest = hashlib.sha256(inner + b"user:42").digest()
    want = hashlib.sha256(outer + digest).hexdigest()
    assert UserKey(SECRET).hash("42") == want


def test_one_key_gives_one_pseudonym_and_nobody_stays_nobody():
    key, other = UserKey(SECRET), UserKey(b"another key of some length")
    assert key.hash("u1") == UserKey(SECRET).hash("u1") != key.hash("u2")
    assert key.hash("u1") != other.hash("u1")
    assert key.hash("") == ""
    assert key.name != other.name
    assert len(key.name) == 16


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "user.key").write_bytes(SECRET + b"\n")
    wanted = UserKey(SECRET).name
    assert UserKey.read(tmp_path / "user.key").name == wanted
    monkeypatch.setenv(VARIABLE, SECRET.decode())
    assert UserKey.read(None).name == wanted


def test_a_key_that_is_missing_or_short_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"name its file, or set {VARIABLE}"):
        UserKey.read(None)
    (tmp_path / "short").write_bytes(b"0123456789abcde\r\n")
    with pytest.raises(ValueError, match=r"short must hold .* 16 bytes.* received 15"):
        UserKey.read(tmp_path / "short")
