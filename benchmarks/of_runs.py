"""What benchmarks share that read trained runs and print one table."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def main(
    doc: str, rows: Callable[[list[Path]], Iterable[dict[str, str]]], argv=None
) -> int:
    """Prints the rows of the runs that the command line names; 2 with the reason where
    there are none.

    Args:
      doc: Of the benchmark.
      rows: Gives them.
      argv: Of the command.
    """
    name = f"benchmarks/{Path(sys.argv[0]).name}"
    parser = argparse.ArgumentParser(prog=name, description=doc.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of tfrec_attn.train")
    args = parser.parse_args(argv)
    from tfrec_attn.evaluation import report

    try:
        print(report.table(rows(args.runs)))
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
