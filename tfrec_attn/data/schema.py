"""What the columns of the three tables mean, written in a run's config or inferred.

Every setting may be left out: `None` means "infer it from names and values"
(`tfrec_attn.data.inference`), and what was inferred is printed by `Schema.to_toml` so that
it can be pasted into the config and corrected. An empty string or dict means "none".
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
from pydantic import AfterValidator

from tfrec_attn.labels import LABELS

Kind = Literal["category", "categories", "number", "time", "embedding", "image", "audio"]
# The table's own columns, and what a text becomes.
RESERVED = ("id", "text", "text_mask", "text_mean")

_FIELD = re.compile(r"\{([^{}]*)\}")
_NUMERIC_RULE = re.compile(
    r"\s*(>=|<=|==|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
)


def template_parts(template: str) -> list[str]:
    """Splits a template into literal, field, literal, …, literal.

    `"{title} ({year})"` gives `["", "title", " (", "year", ")"]`.
    """
    parts = _FIELD.split(template)
    for literal in parts[::2]:
        if "{" in literal or "}" in literal:
            raise ValueError(
                f"a text template names columns as {{column}}: got {template!r}, where a "
                "brace has no partner."
            )
    if "" in parts[1::2]:
        raise ValueError(
            f"a text template names columns as {{column}}: got {template!r}, where a pair "
            "of braces is empty."
        )
    return parts


def numeric_rule(rule: str) -> tuple[str, float] | None:
    """`">= 4"` as `(">=", 4.0)`; None for the name of an event."""
    match = _NUMERIC_RULE.fullmatch(rule)
    if match:
        return match[1], float(match[2])
    if rule.strip()[:1] in {"<", ">", "=", "!"}:
        raise ValueError(
            f"a numeric rule is one of >=, >, ==, <=, < and a number: got {rule!r}. "
            'Write for example ">=4", or an event name such as "purchase".'
        )
    return None


def _template(text: str | None) -> str | None:
    template_parts(text or "")
    return text


def _one_line(text: str | None) -> str | None:
    if text and ("\n" in text or '"' in text):
        raise ValueError(f"a separator holds no line end and no quote: got {text!r}.")
    if text == "":
        raise ValueError("a separator must not be empty; leave it out for the usual one.")
    return text


def _encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(
            f'unknown encoding {name!r}; known are "utf-8", "latin-1", "utf-16" and others.'
        ) from None
    return name


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class FileFormat(_Settings):
    """How a file is written where its name does not tell; CSV, TSV and the like only.

    Attributes:
      separator: Between fields. Left out: a comma for .csv, a tab for all other text.
      encoding: Of any text file. A name that Python knows.
      header: Column names of a file that has no header line.
      quoting: Whether "…" encloses a field. False reads quotes as ordinary characters.
    """

    separator: Annotated[str | None, AfterValidator(_one_line)] = None
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    header: tuple[str, ...] = ()
    quoting: bool = True


class EntitySchema(_Settings):
    """The columns of the items or the users table.

    Attributes:
      id: Column of the ids.
      text: Template of the text, such as `"{title} ({year}). {genres}"`. What stands around
        a missing field is left out with it.
      columns: Feature columns and their kinds. Columns not named here are not features.
      separators: What separates the values in one field of a `categories` column; `|` for
        columns that are not named here.
      file: How the file is written.
    """

    id: str | None = None
    text: Annotated[str | None, AfterValidator(_template)] = None
    columns: dict[str, Kind] | None = None
    separators: dict[str, Annotated[str, AfterValidator(_one_line)]] = {}
    file: FileFormat = FileFormat()

    @pydantic.model_validator(mode="after")
    def _names(self) -> Self:
        taken = [name for name in RESERVED if name in (self.columns or {})]
        if taken:
            raise ValueError(
                f"a feature column cannot be called {taken[0]!r}: that is a name of the "
                "model's own. Rename it in the file."
            )
        kinds = self.columns or {}
        for name in self.separators:
            if self.columns is not None and kinds.get(name) != "categories":
                raise ValueError(
                    f"separators is for columns of kind categories: got {name!r}, which is "
                    f"{kinds.get(name, 'not in columns')}."
                )
        return self


class FeedbackSchema(_Settings):
    """How one column becomes a label of `tfrec_attn.labels.LABELS`.

    Attributes:
      column: Column of ratings or event names. "" makes every interaction a "like".
      labels: For each label a rule or several: a comparison (`">=4"`, `"==1"`) or the name
        of an event (`"purchase"`). The first rule that holds decides, in the order written.
    """

    column: str | None = None
    labels: dict[str, str | tuple[str, ...]] | None = None

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        for label, rules in (self.labels or {}).items():
            if label not in LABELS:
                raise ValueError(
                    f"unknown feedback label {label!r}; known: {', '.join(LABELS)}."
                )
            for rule in (rules,) if isinstance(rules, str) else rules:
                numeric_rule(rule)
        return self

    def rules(self) -> list[tuple[str, str]]:
        """(label, rule) pairs in the order in which they are tried."""
        pairs = []
        for label, rules in (self.labels or {}).items():
            pairs += [(label, r) for r in ((rules,) if isinstance(rules, str) else rules)]
        return pairs


class InteractionSchema(_Settings):
    """The columns of the interactions table.

    Attributes:
      user: Column of the users' ids.
      item: Column of the items' ids.
      time: Seconds or milliseconds since 1970, or ISO 8601. "" takes the order of the file.
      time_format: How times are written that are none of these, by the directives of
        strptime such as `%d.%m.%Y %H:%M`; without a zone they are UTC.
      feedback: Left out: inferred.
      weight: Column of the weights, finite and at least 0. Left out: all weights are 1.
      file: How the file is written.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    time_format: str | None = None
    feedback: FeedbackSchema | None = None
    weight: str | None = None
    file: FileFormat = FileFormat()


class Schema(_Settings):
    """What the three tables hold."""

    items: EntitySchema = EntitySchema()
    users: EntitySchema | None = None
    interactions: InteractionSchema = InteractionSchema()

    def to_toml(self, prefix: str = "schema") -> str:
        """The schema as TOML tables below `prefix`, to paste into a run's config."""
        lines: list[str] = [
            f"# Kinds of columns: {', '.join(get_args(Kind))}.",
        ]
        # A default goes without saying; `columns = {}` is none: it says "no features".
        for name, table in self.model_dump(exclude_defaults=True).items():
            lines += _toml_table(f"{prefix}.{name}", table)
        return "\n".join(lines) + "\n"


def _toml_table(path: str, table: Mapping[str, Any]) -> list[str]:
    lines = ["", f"[{path}]"]
    deeper: list[str] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            deeper += _toml_table(f"{path}.{_toml_key(key)}", value)
        else:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    return lines + deeper


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(one) for one in value) + "]"
    # JSON writes a basic TOML string but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
