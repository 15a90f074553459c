"""`python -m tfrec_attn.explain --user 42 --item 56`: what carried a score, by a running
server's account."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfrec_attn import ask, explanation_page
from tfrec_attn.explanation import Explanation, Part, explain
from tfrec_attn.serve.client import Client

NAME = "tfrec_attn.explain"
SHOWN = 10


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = ask.asking(NAME, __doc__)
    add = parser.add_argument
    add("--item", required=True, help="item id")
    add("--html", type=Path, metavar="FILE", help="also write a page, for a browser")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the explanation; 2 if there is none."""
    return ask.answered(NAME, parser().parse_args(argv), asked, text)


def asked(client: Client, args: argparse.Namespace) -> Explanation:
    """One question to the server, and the page of its answer."""
    found = explain(client, args.user, args.item, args.history, ask.profile(args))
    if args.html:
        args.html.write_text(explanation_page.page(found), "utf-8")
    return found


def text(found: Explanation) -> str:
    """The score as a sum, then the parts of either side that weigh most."""
    scorer = found.score - found.retrieval
    return "\n".join(
        [
            f"user {found.user}, item {found.item}: {found.item_text}",
            f"score {found.score:.4f} = retrieval {found.retrieval:.4f} "
            f"+ attention-weighted cosine {scorer:.4f}",
            "",
            f"the {scorer:.4f} by the item's parts",
            *rows(found.item_parts),
            "",
            f"the {scorer:.4f} by the user's parts",
            *rows(found.user_parts),
            *(f"({note})" for note in notes(found)),
        ]
    )


def rows(parts: Sequence[Part]) -> list[str]:
    """The parts of the largest contributions, up or down, and the sum of the others."""
    order = sorted(parts, key=lambda part: -abs(part.contribution))
    lines = [f"{part.contribution:>+9.4f}  {label(part)}" for part in order[:SHOWN]]
    if others := order[SHOWN:]:
        rest = sum(part.contribution for part in others)
        lines.append(f"{rest:>+9.4f}  ({len(others)} others)")
    return lines


def label(part: Part) -> str:
    """What a part is called in a list."""
    if part.kind == "event":
        return f"{part.name.replace('=', ' ')}: {part.text}"
    return part.text


def notes(found: Explanation) -> list[str]:
    """The explanation's doubts, in words."""
    said = []
    if not found.known_user:
        said.append("the model has not seen this user")
    if found.unknown_history:
        said.append(f"unknown items of the history: {', '.join(found.unknown_history)}")
    if not any(part.contribution for part in found.item_parts):
        said.append("in this model the retrieval decides alone")
    return said


if __name__ == "__main__":
    sys.exit(main())
