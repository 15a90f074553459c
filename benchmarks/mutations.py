"""Breaks the package's formulas one at a time: each time a test has to turn red.

    python benchmarks/mutations.py             # about an hour
    python benchmarks/mutations.py --only σ    # those whose description matches

A mutant is a module of the package with one piece of text replaced, see `mutants`, in a
copy of the package in a temporary folder; the working tree stays as it is. On each of them
run the tests of that module. The table names the first that turned red,
and by which error: an AssertionError, where numbers are wrong and not only shapes. The exit
code is 1 where a mutant survived, and 2 where a text to replace is not, or no longer, there
once.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from mutants import MUTATIONS, TESTS

ROOT = Path(__file__).parent.parent


def run_tests(folder: Path, tests: tuple[str, ...]) -> None:
    """Runs in a process of its own; the exit code is pytest's."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True  # two mutants of a second would share a cached file
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def outcome(context, folder: Path, module: str) -> tuple[int, str, str]:
    """The exit code of the tests on a copy, the first that failed, and its error."""
    process = context.Process(target=run_tests, args=(folder, TESTS[module]))
    process.start()
    process.join()
    log = (folder / "log").read_text("utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) [^:]*(?:::(\S+))?", log, re.MULTILINE)
    error = re.search(r"^E +([\w.]+)", log, re.MULTILINE)
    test = (failed and failed[1]) or log.strip()[-300:]
    return process.exitcode or 0, test, error[1].split(".")[-1] if error else ""


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression")
    args = parser.parse_args(argv)
    formulas = {m.file: (ROOT / m.file).read_text("utf-8") for m in MUTATIONS}
    missing = [m.description for m in MUTATIONS if formulas[m.file].count(m.old) != 1]
    if missing:
        print(f"The text to replace is not once in its module: {missing}", file=sys.stderr)
        return 2
    # A server that has imported TensorFlow once; each mutant's process is forked from it.
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "tf_keras"])
    chosen = [m for m in MUTATIONS if re.search(args.only, m.description)]
    survivors, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in ("tfrec_attn", "tests"):
            shutil.copytree(
                ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        for module in dict.fromkeys(m.module for m in chosen):
            code, said, _ = outcome(context, copy, module)
            if code:
                print(f"The tests are red before any mutation: {said}", file=sys.stderr)
                return 2
        print("| mutation | first red test | error |\n|---|---|---|")
        for mutation in chosen:
            whole = formulas[mutation.file]
            mutant = whole.replace(mutation.old, mutation.new)
            (copy / mutation.file).write_text(mutant, "utf-8")
            code, said, error = outcome(context, copy, mutation.module)
            (copy / mutation.file).write_text(whole, "utf-8")
            # 1 is pytest's code for failed tests; a mutant has to import, at least.
            if code != 1:
                survivors.append(mutation.description)
                said = f"**none** (pytest's exit code: {code})"
            print(f"| {mutation.description} | {said} | {error} |", flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{len(chosen)} mutants in {minutes:.1f} minutes, {len(survivors)} survived")
    print("\n".join(survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
