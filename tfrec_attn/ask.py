"""`python -m tfrec_attn.ask --user 42`: asks a running server and prints its answer."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfrec_attn import item_flags
from tfrec_attn.serve.client import Client, Recommendations, ServerError, Tls
from tfrec_attn.serve.client.calls import RECOMMEND

NAME = "tfrec_attn.ask"


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = asking(NAME, __doc__)
    item_flags.add(parser)
    return parser


def asking(name: str, description: str | None) -> argparse.ArgumentParser:
    """The flags of every command that asks a server about a user."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    add = parser.add_argument
    add("--user", default="", help="user id; may be unknown to the model, or empty")
    add(
        "--history",
        action="append",
        default=[],
        metavar="ITEM",
        help="oldest first; repeat",
    )
    add(
        "--profile",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="a column of the user, for example age=30; repeat",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--target", default="localhost:8500", help="gRPC (default: %(default)s)"
    )
    where.add_argument("--rest", metavar="URL", help="ask over REST: http://localhost:8501")
    add("--model", default="movielens", help="default: %(default)s")
    add("--tls", action="store_true", help="gRPC by TLS; by the roots that are installed")
    pem = functools.partial(add, type=existing, metavar="PEM")
    pem("--ca", help="TLS, by this file of roots instead")
    pem("--certificate", help="our own, for a server that asks (mTLS)")
    pem("--key", help="of --certificate")
    add("--header", action="append", default=[], metavar="NAME=VALUE", help="repeat")
    add("--timeout", type=float, default=10.0, help="seconds (default: 10)")
    add("--json", action="store_true", help="print the whole answer as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the answer; 2 if there is none."""
    return answered(NAME, parser().parse_args(argv), ask, table)


def answered(
    name: str,
    args: argparse.Namespace,
    question: Callable[[Client, argparse.Namespace], Any],
    text: Callable[[Any], str],
) -> int:
    """Puts the question to the server and prints its answer, a dataclass, as `text` or as
    JSON; 2 and one line if there is none."""
    target = args.rest or args.target
    protocol = "rest" if args.rest else "grpc"
    try:
        if not args.rest and "://" in target:
            raise ValueError(
                f"--target must be host:port, for gRPC: received {target!r}. "
                "Drop the scheme, or ask over REST with --rest."
            )
        # Who types a command would rather be told at once that nothing answers.
        settings = {"protocol": protocol, "timeout": args.timeout, "retry": False}
        with Client(target, args.model, **settings, **identity(args)) as client:
            answer = question(client, args)
    except ServerError as error:
        line = advice(error, target, args.model, bool(args.rest))
        print(f"{name}: {line}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(answer), indent=2) if args.json else text(answer))
    return 0


def ask(client: Client, args: argparse.Namespace) -> Recommendations:
    """One call to the server."""
    wanted = item_flags.Wanted.of(args)
    if signature := client.metadata().signatures.get(RECOMMEND):
        wanted.require_read(signature.inputs)
    asked = {"profile": profile(args), **wanted.told()}
    try:
        return client.recommend(args.user, args.history, **asked)
    except ServerError as error:
        if flag := wanted.explained(error.message):
            raise ValueError(flag) from error
        raise


def existing(path: str) -> str:
    """A path of the command line, of a file that is there."""
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path!r}")
    return path


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """As whom the server is asked."""
    files = args.ca, args.certificate, args.key
    # What is none may be a secret all the same.
    rule = "--header must be NAME=VALUE, as in x-api-key=secret"
    headers = dict(pair(text, rule, "a text without =") for text in args.header)
    return {"tls": Tls(*files) if args.tls or any(files) else None, "headers": headers}


def profile(args: argparse.Namespace) -> dict[str, str]:
    """The values of `--profile` by column."""
    return dict(pair(text, "--profile must be COLUMN=VALUE") for text in args.profile)


def pair(text: str, rule: str, shown: str = "") -> tuple[str, str]:
    """Splits `age=30`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{rule}: received {shown or repr(text)}.")
    return name, value


def advice(error: ServerError, target: str, model: str, rest: bool) -> str:
    """One line: what is wrong and what to do."""
    if error.code == "UNAVAILABLE":
        protocol, other = ("REST", "--target") if rest else ("gRPC", "--rest")
        return (
            f"nothing answers {protocol} at {target}. Start a server: "
            f"python -m tfrec_attn.serve --model_base_path saved_models/{model} "
            f"({other} asks the other protocol, on a port of its own)"
        )
    if error.code == "NOT_FOUND":
        return (
            f"{target} has no model {model} ready: {error.message}. Name it with --model."
        )
    return f"{target} refused: {error.code} {error.message}"


def table(answer: Recommendations) -> str:
    """Rank, score, item id and title, and below them what the model did not know."""
    width = max([len("item"), *(len(item.id) for item in answer.items)])
    lines = [f"rank   score  {'item':<{width}}  title"]
    lines += [
        f"{rank:>4}  {item.score:>6.3f}  {item.id:<{width}}  {item.text}"
        for rank, item in enumerate(answer.items, 1)
    ]
    return "\n".join([*lines, *notes(answer)])


def notes(answer: Recommendations) -> list[str]:
    """The answer's doubts, in words."""
    found = []
    if not answer.items:
        found.append("no item is left to recommend")
    if not answer.known_user:
        found.append("the model has not seen this user")
    if answer.unknown_history:
        found.append(f"{answer.unknown_history} items of the history are unknown")
    if answer.truncated_history:
        found.append("the history was longer than the model reads")
    return [f"({note})" for note in found]


if __name__ == "__main__":
    sys.exit(main())
