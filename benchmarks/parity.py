r"""Whether a server answers every user as the trained model does, over gRPC and REST.

    python benchmarks/parity.py --run runs/movielens-100k \
        --model_base_path saved_models/movielens

The model's answers are computed from the run's checkpoint by the towers and the scorer
themselves (`tfrec_attn.serve.parity`), not by the exported graph. Every user is asked for
in a request of its own: the same ids in the same order, scores within 1e-5. The embedded
server is started on free ports; with --grpc and --rest one that already runs is asked, for
example TF Serving. The status is 1 if an answer differs.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from serving import MEASURED, server

NAME = "benchmarks/parity.py"


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder that tfrec_attn.train wrote")
    add("--model_base_path", type=Path, help="what tfrec_attn.export made of the run")
    add("--grpc", metavar="HOST:PORT", help="of a running server")
    add("--rest", metavar="URL", help="of a running server")
    add("--model_name", default="movielens", help="on a running server")
    add("--k", type=int, default=10, help="items a request (default: 10)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints a row a protocol; 1 if an answer differs, 2 if there is nothing to compare."""
    args = parser().parse_args(argv)
    from tfrec_attn.serve.client import ServerError

    try:
        return run(args)
    except (OSError, ValueError, ServerError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """The model's answers, then each protocol's."""
    from tfrec_attn.run import runs
    from tfrec_attn.serve import parity

    if not (args.model_base_path or args.grpc or args.rest):
        raise ValueError(
            "give --model_base_path, or --grpc and --rest of a running server."
        )
    model, prepared = runs.load(args.run)
    want = parity.trained(model, prepared, k=args.k)
    print(
        "| protocol | users | same ids, same order | order of ties | largest difference |"
    )
    print("|---|---:|---:|---:|---:|")
    wrong = []
    with targets(args) as (name, listed):
        for protocol, target in listed:
            verdict = parity.compare(want, *ask(protocol, target, name, want))
            same = verdict.users - len(verdict.wrong) - verdict.ties
            print(
                f"| {protocol} | {verdict.users} | {same} | {verdict.ties} "
                f"| {verdict.difference:.1e} |"
            )
            wrong += [f"{protocol}: {line}" for line in verdict.wrong]
    for line in wrong[:10]:
        print(line)
    return int(bool(wrong))


@contextlib.contextmanager
def targets(args: argparse.Namespace):
    """The model's name and the address of each protocol."""
    if args.grpc or args.rest:
        given = [("gRPC", args.grpc), ("REST", args.rest)]
        yield args.model_name, [pair for pair in given if pair[1]]
        return
    with server(args.model_base_path) as started:
        yield MEASURED, [("gRPC", started.grpc), ("REST", started.rest)]


def ask(protocol: str, target: str, name: str, want) -> tuple[list, list]:
    """Ids and scores that the server answers each user with."""
    from tfrec_attn.serve.client import Client

    items, scores = [], []
    with Client(target, name, protocol=protocol.lower(), timeout=60) as client:
        for user in want.users:
            answer = client.recommend(user, k=want.k).items
            items.append([item.id for item in answer])
            scores.append([item.score for item in answer])
    return items, scores


if __name__ == "__main__":
    sys.exit(main())
