"""The calls in the docs and the README, run against a small model of the same columns.

Numbers and ids are of another model; what must agree is the form of the answers.
"""

import contextlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys

import films
import pytest
import toys

from tfrec_attn import ask

PAGES = ["README.md", "docs/serving.md", "docs/client.md"]
REST = "\N{HORIZONTAL ELLIPSIS}"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "movielens"
    films.save(tmp_path_factory.mktemp("films"), base)
    with toys.live(base, "movielens") as (running, _):
        yield running


def here(text, live):
    """The text with the ports of the live server."""
    return text.replace(":8500", f":{live.grpc_port}").replace(
        ":8501", f":{live.rest_port}"
    )


def read(page):
    return (films.ROOT / page).read_text("utf-8")


def commands(page):
    """(command, what is printed under it) of every call on a page."""
    lines = read(page).splitlines()
    # The README's are fenced and without a prompt, its answers stand below.
    lines = [re.sub(r"^curl ", "    $ curl ", line) for line in lines if line != "```"]
    starts = [i for i, line in enumerate(lines) if line.startswith("    $ ")]
    for start in starts:
        taken = [lines[start].removeprefix("    $ ")]
        end = start + 1
        while not whole("\n".join(taken)):
            taken.append(lines[end])
            end += 1
        while end < len(lines) and not lines[end]:
            end += 1
        shown = []
        while end < len(lines) and lines[end].startswith("    ") and end not in starts:
            shown.append(lines[end].strip())
            end += 1
        yield "\n".join(taken), shown


def whole(text):
    """Whether a shell would run it, instead of asking for more."""
    try:
        shlex.split(text)
    except ValueError:
        return False
    return not text.endswith("\\")


def calls(program):
    """(page, command, answer) of all calls by a program."""
    return [
        pytest.param(command, shown, id=f"{page} {n}")
        for page in PAGES
        for n, (command, shown) in enumerate(commands(page))
        if command.startswith(program)
    ]


def parsed(shown):
    """An answer as the docs print it; `…` stands for more of a list, or of a text."""
    text = re.sub(rf"(?<=[\[, ]){REST}(?=[\],])", f'"{REST}"', " ".join(shown))
    return json.loads(text)


def check_form(found, shown):
    """Same names, kinds and lengths, but where the docs leave something out."""
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for name, value in shown.items():
            check_form(found[name], value)
    elif isinstance(shown, list):
        assert isinstance(found, list)
        some = [one for one in shown if one != REST]
        assert len(found) >= len(some) if REST in shown else len(found) == len(some)
        for one, value in zip(found, some, strict=False):
            check_form(one, value)
    else:
        assert type(found) is type(shown)


def run(command, path=""):
    done = subprocess.run(
        ["bash", "-c", f"PATH={path}:$PATH; {command}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("command", "shown"), calls("curl"))
def test_curl(command, shown, live):
    check_form(run(here(command, live)), parsed(shown))


@pytest.mark.parametrize(("command", "shown"), calls("grpcurl"))
def test_grpcurl(command, shown, live, tmp_path):
    """By a program of that name that does the same: the real one is in no package."""
    twin = pathlib.Path(__file__).with_name("grpcurl_twin.py")
    (tmp_path / "grpcurl").write_text(f'#!/bin/sh\nexec {sys.executable} {twin} "$@"\n')
    (tmp_path / "grpcurl").chmod(0o755)
    check_form(run(here(command, live), tmp_path), parsed(shown))


@pytest.mark.parametrize(("command", "shown"), calls("python -m tfrec_attn.ask"))
def test_ask(command, shown, live, capsys):
    given = shlex.split(here(command, live).replace("\\\n", " "))[3:]
    if "--rest" not in given:
        given += ["--target", f"localhost:{live.grpc_port}"]
    assert ask.main(given) == 0
    found = capsys.readouterr().out.splitlines()
    assert len(found) == len(shown)
    assert found[0].split() == shown[0].split()
    for line, documented in zip(found[1:], shown[1:], strict=True):
        if documented.startswith("("):
            assert line == documented
        else:
            assert re.match(r" +\d+ +-?[\d.]+ +\d+ +\w", line)


@pytest.mark.parametrize("page", PAGES)
def test_python(page, live, capsys, tmp_path, monkeypatch):
    """One block after another; what is printed has the form of the comment behind it."""
    monkeypatch.chdir(tmp_path)
    write_certificates(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", read(page), re.DOTALL)
    names = {}
    called = [block for block in blocks if "localhost" in block or "example.org" in block]
    assert called
    for block in called:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(here(block, live), page, "exec"), names)
        if comment := re.search(r"^print\(.*\)(?:  |\n)# (.*)\n\Z", block, re.MULTILINE):
            assert form(printed.getvalue()) == form(comment[1])


def form(text):
    """Printed arrays without their numbers and ids."""
    return re.sub(r"\s+(?=[\s\]])", "", re.sub(r"-?\d[\d.e-]*", "0", text)).strip()


def write_certificates(folder):
    import trustme

    own = trustme.CA().issue_cert("localhost")
    own.cert_chain_pems[0].write_to_path(folder / "client.pem")
    own.cert_chain_pems[0].write_to_path(folder / "ca.pem")
    own.private_key_pem.write_to_path(folder / "client.key")


def test_the_form_is_of_names_kinds_and_lengths():
    """The comparison above can fail."""
    shown = parsed(['{"a": [1.5, …], "b": ["x"], "c": true}'])
    check_form({"a": [2.5, 3.5, 4.5], "b": ["y"], "c": False}, shown)
    for wrong in (
        {"a": [2.5], "b": ["y"]},
        {"a": [], "b": ["y"], "c": True},
        {"a": ["2"], "b": ["y"], "c": True},
        {"a": [2.5], "b": ["y", "z"], "c": True},
        {"a": [2.5], "b": ["y"], "c": 1},
    ):
        with pytest.raises(AssertionError):
            check_form(wrong, shown)


def test_every_program_has_calls():
    assert [len(calls(one)) for one in ("curl", "grpcurl", "python -m tfrec_attn.ask")] == [
        4, 1, 2,
    ]  # fmt: skip
