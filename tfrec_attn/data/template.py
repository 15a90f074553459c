"""Several columns as one text: `"{title} ({year}). {genres}"`."""

import polars as pl

from tfrec_attn.data.schema import template_parts

# Unicode noncharacters, which no text holds: a missing field, a bracket of the template
# that opens and one that has closed, the begin and the end of a field's value.
_GAP, _OPEN, _CLOSED, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
_OTHER = f"[^{_OPEN}{_CLOSED}{_BEGIN}{_END}]*"
_SOFT = r"[\s,;:/|·–—-]*"

_CLOSE_GAPS = (
    # A bracket without any value goes as a whole, "(by {author})" with its words.
    (f"{_OPEN}{_OTHER}{_GAP}{_OTHER}{_CLOSED}", _GAP),
    (f'"{_GAP}"', _GAP),
    # A gap at the beginning, also of a bracket, takes what follows it,
    (rf"^(?:[\s,;:./|·–—-]*{_GAP})+[\s,;:./|·–—-]*", ""),
    (rf"{_OPEN}([(\[])(?:{_SOFT}{_GAP})+{_SOFT}", "$1"),
    # any other what stands before it.
    (rf"{_SOFT}{_GAP}", ""),
    (f"[{_OPEN}{_CLOSED}{_BEGIN}{_END}]", ""),
)


def fill(template: str, fields: dict[str, pl.Series], height: int) -> pl.Series:
    """Fills the template for each row; a field's value is never changed.

    Where all fields of a row are missing the text is empty.

    Args:
      template: Literal text with `{column}` in it.
      fields: String columns by name; null, blank and the word nan are missing.
      height: Number of rows.
    """
    parts = template_parts(template)
    if len(parts) == 1:
        return pl.repeat(template.strip(), height, dtype=pl.String, eager=True).alias(
            "text"
        )
    frame = pl.DataFrame({f"f{i}": fields[name] for i, name in enumerate(parts[1::2])})
    gaps = pl.sum_horizontal(is_missing(pl.col(name)) for name in frame.columns)
    text = (
        pl.when(gaps == 0)
        .then(pl.concat_str(_pieces(parts, frame.columns)))
        .when(gaps < len(frame.columns))
        .then(_without_gaps(parts, frame.columns))
        .otherwise(pl.lit(""))
    )
    return frame.select(text.str.strip_chars().alias("text"))["text"]


def is_missing(text: pl.Expr) -> pl.Expr:
    stripped = text.str.strip_chars()
    return stripped.is_null() | stripped.is_in(["", "nan", "NaN", "<NA>"])


def _pieces(literals: list[str], values: list[str]) -> list[pl.Expr]:
    pieces: list[pl.Expr] = [pl.lit(literals[0])]
    for value, literal in zip(values, literals[2::2], strict=True):
        pieces += [pl.col(value), pl.lit(literal)]
    return pieces


def _without_gaps(parts: list[str], names: list[str]) -> pl.Expr:
    marked = list(parts)
    for i in range(0, len(parts), 2):
        for bracket in "([":
            marked[i] = marked[i].replace(bracket, _OPEN + bracket)
        for bracket in ")]":
            marked[i] = marked[i].replace(bracket, bracket + _CLOSED)
    pieces = [
        pl.when(is_missing(piece)).then(pl.lit(_GAP)).otherwise(_BEGIN + piece + _END)
        if i % 2
        else piece
        for i, piece in enumerate(_pieces(marked, names))
    ]
    text = pl.concat_str(pieces)
    for pattern, replacement in _CLOSE_GAPS:
        text = text.str.replace_all(pattern, replacement)
    return text
