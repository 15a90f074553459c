"""An explanation as one HTML page that needs nothing else."""

from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

from tfrec_attn.explanation import Explanation, Part

STYLE = """
body { font: 15px/1.6 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.parts td { padding: 0.1em 0.8em } .parts td:first-child { text-align: right }
mark, .chip { color: inherit; border-radius: 0.2em; padding: 0.1em 0.15em }
.chip { border: 1px solid #ccc; padding: 0.1em 0.4em; margin: 0 0.3em 0.3em 0;
  display: inline-block }
.text { font-size: 1.3em } .scroll { overflow-x: auto }
.heat { font-size: 12px; line-height: 1.2 }
.heat th { font-weight: normal; text-align: right; white-space: nowrap; padding: 0 0.5em }
.heat thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: 0.5em 0 }
.heat td { width: 1.5em; min-width: 1.5em; height: 1.5em; border: 1px solid #eee }
"""
# Blue lifts the score, orange lowers it: told apart by all eyes.
UP, DOWN = "33, 102, 172", "230, 97, 1"
LONGEST = 48


def page(found: Explanation) -> str:
    """The page: the sum, the words highlighted by contribution, the user's parts alike, and
    a heat map of the attention."""
    title = f"Item {found.item} for user {found.user}"
    scorer = found.score - found.retrieval
    largest = max((abs(p.contribution) for p in found.item_parts), default=0.0)
    body = element(
        "body",
        element("h1", title),
        element(
            "p",
            f"Score {found.score:.4f} = retrieval {found.retrieval:.4f} + "
            f"attention-weighted cosine {scorer:.4f}. ",
            *doubts(found),
        ),
        element("h2", f"What of the item carried the {scorer:.4f}"),
        element("p", *words(found, largest), {"class": "text"}),
        element(
            "p", *(chip(part, largest) for part in found.item_parts if part.span is None)
        ),
        element(
            "p",
            f"Blue lifts the score, orange lowers it; the deepest is {largest:.4f}.",
        ),
        element("details", element("summary", "As numbers"), parts(found.item_parts)),
        element("h2", f"What of the user carried the {scorer:.4f}"),
        parts(found.user_parts),
        element("h2", "Attention"),
        element(
            "p",
            "How much each part of the item (columns) looks at each part of the user "
            "(rows); the darkest is the largest weight.",
        ),
        element("div", heat_map(found), {"class": "scroll"}),
    )
    head = element(
        "head",
        element("meta", {"charset": "utf-8"}),
        element("title", title),
        element("style", STYLE),
    )
    html = element("html", head, body, {"lang": "en"})
    text = ElementTree.tostring(html, encoding="unicode", method="html")
    return f"<!doctype html>\n{text}\n"


def element(tag: str, *content) -> ElementTree.Element:
    """An element of texts, elements and dicts of attributes; the library escapes them."""
    made = ElementTree.Element(tag)
    for part in content:
        if isinstance(part, dict):
            made.attrib.update(part)
        elif not isinstance(part, str):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
    return made


def doubts(found: Explanation) -> Iterator[str]:
    """What the model did not know."""
    if not found.known_user:
        yield "The model has not seen this user. "
    if found.unknown_history:
        yield f"Unknown items of the history: {', '.join(found.unknown_history)}."


def colour(value: float, largest: float) -> dict[str, str]:
    """Attributes that show a signed number against the largest one."""
    depth = abs(value) / largest if largest else 0.0
    shade = f"rgba({UP if value >= 0 else DOWN}, {0.75 * depth:.3f})"
    return {"style": f"background: {shade}", "title": f"{value:+.4f}"}


def words(found: Explanation, largest: float) -> Iterator[str | ElementTree.Element]:
    """The item's text with its words marked."""
    at = 0
    for part in found.item_parts:
        if part.span is not None:
            yield found.item_text[at : part.span[0]]
            yield element("mark", part.text, colour(part.contribution, largest))
            at = part.span[1]
    yield found.item_text[at:]


def chip(part: Part, largest: float) -> ElementTree.Element:
    """A part that has no place in the text."""
    return element("span", part.text, {"class": "chip"}, colour(part.contribution, largest))


def parts(shown: Iterable[Part]) -> ElementTree.Element:
    """A row a part, the largest contribution first."""
    order = sorted(shown, key=lambda part: -part.contribution)
    largest = max((abs(part.contribution) for part in order), default=0.0)
    return element(
        "table",
        {"class": "parts"},
        *(
            element(
                "tr",
                element(
                    "td", f"{part.contribution:+.4f}", colour(part.contribution, largest)
                ),
                element("td", part.text),
                element("td", part.name if part.kind == "event" else ""),
            )
            for part in order
        ),
    )


def heat_map(found: Explanation) -> ElementTree.Element:
    """A table of the attention, its rows the user's parts."""
    largest = max((abs(w) for row in found.attention for w in row), default=0.0)
    return element(
        "table",
        {"class": "heat"},
        element(
            "thead",
            element(
                "tr",
                element("td"),
                *(element("th", short(part.text)) for part in found.item_parts),
            ),
        ),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    element("th", short(part.text)),
                    *(element("td", colour(weight, largest)) for weight in row),
                )
                for part, row in zip(found.user_parts, found.attention, strict=True)
            ),
        ),
    )


def short(text: str) -> str:
    """A label of a row or column."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
