"""Writes the tables of settings in docs/ from the configuration's own docstrings."""

import inspect
import json
import re
from pathlib import Path

import pydantic

from tfrec_attn.data import schema
from tfrec_attn.settings import config

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {
    "training.md": {
        name: field.default.__class__
        for name, field in config.Config.model_fields.items()
        if name != "schema_"
    },
    "tables.md": {
        "schema.items": schema.EntitySchema,
        "schema.interactions": schema.InteractionSchema,
        "schema.interactions.feedback": schema.FeedbackSchema,
        "schema.items.file": schema.FileFormat,
    },
}
BEGIN, END = "<!-- settings: scripts/config_reference.py -->", "<!-- end of settings -->"


def described(model: type[pydantic.BaseModel]) -> dict[str, str]:
    """The `Attributes:` of a docstring, each as one line."""
    text = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^  (\w+): (.+(?:\n    .+)*)", text, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", words) for name, words in entries}


def allowed(field: dict) -> str:
    """A setting's values in words, from its JSON schema."""
    if "anyOf" in field:
        return " or ".join(
            allowed(one) for one in field["anyOf"] if one != {"type": "null"}
        )
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {allowed(field['items'])}"
    if field.get("type") == "object":
        return f"table of {allowed(field.get('additionalProperties', {}))}"
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    bounds = [f"{signs[key]} {field[key]:g}" for key in signs if key in field]
    return " ".join([field.get("type", "table"), ", ".join(bounds)]).strip()


def section(name: str, model: type[pydantic.BaseModel]) -> str:
    """One table of settings."""
    fields = model.model_json_schema(by_alias=True)["properties"]
    words = described(model)
    lines = [f"**[{name}]** {(model.__doc__ or '').splitlines()[0]}", ""]
    lines += ["| setting | values | default | |", "|---|---|---|---|"]
    for key, field in fields.items():
        default = field.get("default")
        shown = f"`{json.dumps(default)}`" if default not in (None, {}, []) else "–"
        kind = allowed(field)
        shown = "–" if kind == "table" else shown
        cells = f"| `{key}` | {kind} | {shown} | {words[key]} |"
        lines.append(re.sub(r"(?<=`)\|(?=`)", r"\\|", cells))
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """A page with its tables renewed."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    body = "\n\n".join(section(name, model) for name, model in PAGES[page].items())
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


if __name__ == "__main__":
    for page in PAGES:
        path = DOCS / page
        path.write_text(written(page, path.read_text("utf-8")), "utf-8")
