"""Assets from a server, a hub and a package index made here: no test leaves the machine."""

import hashlib
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tests.web import COMMIT, REPO, content, serving
from tfrec_attn import assets, downloads
from tfrec_attn.downloads import Hub, Wheel, Zip

CONTENT = {"a.txt": b"first" * 1009, "b.bin": bytes(range(256)) * 13}
pytestmark = pytest.mark.usefixtures("cache")
NOWHERE = "http://127.0.0.1:9/nothing.zip"  # the discard port: refused at once


def files_of(content):
    return {
        name: (len(data), hashlib.sha256(data).hexdigest())
        for name, data in content.items()
    }


FILES = files_of(CONTENT)


def zipped(content, inside=""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(inside + name, data)
    return buffer.getvalue()


@pytest.fixture
def origins(monkeypatch):
    """Makes the asset `toy` come from the given origins."""

    def use(*pairs):
        monkeypatch.setattr(assets, "ASSETS", {"toy": pairs})

    return use


def test_a_zip_is_fetched_once(origins, cache):
    body = zipped(CONTENT, "in/")
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), "in/"), FILES))
        folder = assets.fetch("toy")
        assert folder == cache / "assets/toy"
        assert content(folder) == CONTENT
        assert assets.fetch("toy") == folder
        assert server.asked == [("/toy.zip", None)]
    assert assets.problems("toy") == []
    # Neither the archive nor a temporary folder stays.
    assert sorted(path.name for path in folder.parent.iterdir()) == [".toy.lock", "toy"]


def test_a_broken_download_goes_on_where_it_stopped(origins):
    big = {"a.txt": bytes(range(251)) * 401}
    body = zipped(big)
    with serving({"/toy.zip": body}, cut=40_000) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), files_of(big)))
        assert content(assets.fetch("toy")) == big
        first, *others = [wanted for _, wanted in server.asked]
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in others]
    assert first is None
    # 100,651 bytes of content, at most 40,000 an answer: three answers or more.
    assert len(starts) >= 2
    assert starts == sorted(set(starts))
    assert 0 < starts[0] <= 40_000


def test_a_later_call_goes_on_too(origins, cache):
    body = zipped(CONTENT)
    partial = cache / "assets/.toy.partial"
    partial.mkdir(parents=True)
    (partial / "toy.zip").write_bytes(body[:1234])
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        assert content(assets.fetch("toy")) == CONTENT
        assert server.asked == [("/toy.zip", "bytes=1234-")]


def test_a_server_without_ranges_starts_again(origins, cache):
    body = zipped(CONTENT)
    partial = cache / "assets/.toy.partial"
    partial.mkdir(parents=True)
    (partial / "toy.zip").write_bytes(b"x" * 1234)
    with serving({"/toy.zip": body}, ranges=False) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        assert content(assets.fetch("toy")) == CONTENT


def test_a_server_that_always_ends_early_is_given_up(origins):
    big = {"a.txt": bytes(range(251)) * 401}
    body = zipped(big)
    with serving({"/toy.zip": body}, ranges=False, cut=40_000) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), files_of(big)))
        with pytest.raises(OSError, match="toy cannot be fetched"):
            assets.fetch("toy")
        assert len(server.asked) == 2  # the second brings it no further than the first


def test_wrong_bytes_never_get_the_name(origins, cache):
    wrong = zipped({**CONTENT, "a.txt": b"other" * 1009})
    with serving({"/toy.zip": wrong}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(wrong), ""), FILES))
        with pytest.raises(OSError, match=r"a\.txt has the wrong SHA-256"):
            assets.fetch("toy")
        assert not (cache / "assets/toy").exists()
        # The next try must not go on from the spoilt archive.
        server.bodies["/toy.zip"] = zipped(CONTENT)
        assert content(assets.fetch("toy")) == CONTENT


def test_what_is_no_zip_is_thrown_away(origins):
    good = zipped(CONTENT)
    with serving({"/toy.zip": b"<html>" + good[6:]}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(good), ""), FILES))
        with pytest.raises(OSError, match=r"toy\.zip: "):
            assets.fetch("toy")
        server.bodies["/toy.zip"] = good
        assert content(assets.fetch("toy")) == CONTENT


@pytest.mark.parametrize("checksums", [False, True])
def test_damage_is_noticed_and_fetched_again(origins, caplog, checksums):
    body = zipped(CONTENT)
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        folder = assets.fetch("toy")
        same_size = b"xirst" + CONTENT["a.txt"][5:]
        (folder / "a.txt").write_bytes(same_size if checksums else b"half")
        assets.fetch("toy", checksums=checksums)
        assert content(folder) == CONTENT
        assert len(server.asked) == 2
    assert "a.txt has" in caplog.text


def test_same_size_damage_needs_checksums_to_be_seen(origins):
    body = zipped(CONTENT)
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        folder = assets.fetch("toy")
        (folder / "a.txt").write_bytes(b"xirst" + CONTENT["a.txt"][5:])
        assets.fetch("toy")
        assert len(server.asked) == 1
    assert assets.problems("toy", checksums=False) == []
    assert assets.problems("toy") == ["a.txt has the wrong SHA-256 checksum"]


def test_a_failed_repair_leaves_what_was_there(origins, cache):
    origins((Zip(NOWHERE, 10, ""), FILES))
    folder = cache / "assets/toy"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(CONTENT["a.txt"])
    with pytest.raises(OSError, match="toy cannot be fetched"):
        assets.fetch("toy")
    assert content(folder) == {"a.txt": CONTENT["a.txt"]}


def make_wheel(folder, name="toywheel"):
    """A wheel as pip accepts it, with the files in `toywheel/data/`."""
    info = f"{name}-1.0.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    inside = {f"{name}/data/{file}": data for file, data in CONTENT.items()}
    path = folder / f"{name}-1.0-py3-none-any.whl"
    path.write_bytes(zipped({**inside, **meta}))
    return path.stat().st_size


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index that holds one wheel; returns the wheel's size."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_CONSTRAINT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return make_wheel(folder)


def test_an_unreachable_home_falls_back_to_the_wheel(origins, index, caplog):
    other = {"b.bin": FILES["b.bin"]}  # the second origin may bring other files
    origins(
        (Zip(NOWHERE, 10, ""), FILES),
        (Wheel("toywheel==1.0", index, "toywheel/data/"), other),
    )
    with caplog.at_level(logging.WARNING, "tfrec_attn.assets"):
        folder = assets.fetch("toy")
    assert content(folder) == {"b.bin": CONTENT["b.bin"]}
    assert assets.problems("toy") == []
    (line,) = caplog.messages
    assert line.startswith(f"toy: {NOWHERE} cannot be used (ConnectionError: ")
    assert "refused" in line
    assert sorted(path.name for path in folder.parent.iterdir()) == [".toy.lock", "toy"]


def test_when_nothing_can_be_reached_the_error_says_all(origins, index, cache):
    origins(
        (Zip(NOWHERE, 10, ""), FILES),
        (Wheel("absent==1.0", index, "x/"), {"c.txt": (1, "")}),
    )
    with pytest.raises(OSError, match="toy cannot be fetched") as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in (
        f"  {NOWHERE}: ConnectionError: ",
        "  the wheel absent==1.0: OSError: pip download ended with status 1: ERROR: No",
        f"put these files into the folder {cache / 'assets/toy'}",
        "a.txt, b.bin (as in ",
        "or these\n  c.txt (as in the wheel absent==1.0)",
        "TFREC_ATTN_CACHE",
    ):
        assert part in message


def test_files_placed_by_hand_are_taken(origins, cache):
    origins((Zip(NOWHERE, 10, ""), FILES))
    folder = cache / "assets/toy"
    folder.mkdir(parents=True)
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    assert assets.fetch("toy", checksums=True) == folder


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(
        ValueError, match="one of movielens-100k, all-MiniLM-L6-v2: got 'x'"
    ):
        assets.fetch("x")


def test_processes_that_come_at_once_fetch_once(origins):
    body = zipped(CONTENT)
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        threads = [threading.Thread(target=assets.fetch, args=("toy",)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1


# --- the hub -----------------------------------------------------------------------------


def test_an_asset_comes_from_the_hub(origins, hub):
    server = hub(CONTENT | {"README.md": b"not needed"})
    origins((Hub(REPO, COMMIT), FILES))
    folder = assets.fetch("toy")
    assert content(folder) == CONTENT
    assert not any("README" in path for path, _ in server.asked)
    count = len(server.asked)
    assets.fetch("toy")
    assert len(server.asked) == count


def test_a_silent_hub_fails_fast(origins, monkeypatch):
    """A host that takes the connection and says nothing is given up after one wait."""
    from huggingface_hub import constants

    monkeypatch.setattr(downloads, "CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        origins((Hub(REPO, COMMIT), FILES))
        start = time.monotonic()
        with pytest.raises(OSError, match="the hub's org/toy: ReadTimeout"):
            assets.fetch("toy")
        assert time.monotonic() - start < 3


# --- the command -------------------------------------------------------------------------


def test_the_command_prints_where_things_lie(origins, cache, capsys):
    body = zipped(CONTENT)
    with serving({"/toy.zip": body}) as server:
        origins((Zip(f"{server.url}/toy.zip", len(body), ""), FILES))
        assert assets.main(["toy"]) == 0
        assert capsys.readouterr().out == f"toy\t{cache / 'assets/toy'}\n"


def test_the_command_names_the_problem(capsys):
    assert assets.main(["no-such"]) == 1
    assert "An asset is one of movielens-100k" in capsys.readouterr().err


def test_the_script_calls_the_command():
    script = Path(__file__).parents[1] / "scripts/assets"
    done = subprocess.run(
        ["sh", script, "--help"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert "python -m tfrec_attn.assets" in done.stdout
