"""Which items are wanted, on a command line: the flags of `ask` and of `recommend`."""

import argparse
import dataclasses
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

# What a version reads only where its export had the setting.
SETTINGS = {
    **dict.fromkeys(("require", "forbid", "boost"), "index.filters"),
    "diversity": "index.diversity",
}
# Of the served graph; see `serve.graph.lookup.check`.
_REFUSAL = re.compile(r"\[(require|forbid|boost) must be (.*): received\] \[(.*)\]")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of the items; see `Client.recommend`.

    Attributes:
      k: How many.
      exclude: Ids of items to leave out.
      candidates: Ids of items to choose among; none means all.
      require, forbid: Conditions that must hold, and that must not.
      boost: What is added to the score where a condition holds.
      diversity: From 0 to 1.
    """

    k: int
    exclude: list[str] = dataclasses.field(default_factory=list)
    candidates: list[str] = dataclasses.field(default_factory=list)
    require: list[str] = dataclasses.field(default_factory=list)
    forbid: list[str] = dataclasses.field(default_factory=list)
    boost: dict[str, float] = dataclasses.field(default_factory=dict)
    diversity: float = 0.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Wanted":
        """Of a command line. In what order flags of one name stand says nothing.

        Raises:
          ValueError: A flag is not as it must be.
        """
        if not 0 <= args.diversity <= 1:
            raise ValueError(
                f"--diversity must be from 0 to 1: received {args.diversity}. 0 leaves the "
                "order as it is."
            )
        return cls(
            args.k,
            exclude=_texts("--exclude", args.exclude),
            candidates=_texts("--candidate", args.candidate),
            require=_texts("--require", args.require),
            forbid=_texts("--forbid", args.forbid),
            boost=summed(sorted(map(_boost, args.boost))),
            diversity=args.diversity,
        )

    def told(self) -> dict[str, Any]:
        """By name what is asked; what is not is left out."""
        every = dataclasses.asdict(self)
        return {name: value for name, value in every.items() if value or name == "k"}

    def require_read(self, inputs: Collection[str]) -> None:
        """Checks that a version can be asked this.

        Args:
          inputs: Names of what its signature reads.

        Raises:
          ValueError: It does not read one of them.
        """
        for name, value in self.told().items():
            if name in SETTINGS and name not in inputs:
                raise ValueError(
                    f"--{name} needs a version that was exported with {SETTINGS[name]}, "
                    f"and this one was not: received {_shown(value)}. Export one "
                    "(docs/exporting.md), or leave the flag out."
                )

    def explained(self, refusal: str) -> str | None:
        """The flag that a version refuses, in words; None where it refuses something else.

        Args:
          refusal: The version's own words.
        """
        found = _REFUSAL.search(refusal)
        if found is None or not getattr(self, found[1]):
            return None
        return (
            f"--{found[1]} must be {found[2]}: received {found[3]!r}. Name one of these "
            "columns, or export a version with others by --set index.filters."
        )


NAMES = tuple(field.name for field in dataclasses.fields(Wanted))


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `Wanted.of` reads."""
    add = parser.add_argument
    some: dict[str, Any] = {"action": "append", "default": []}
    add("--k", type=int, default=10, help="how many items (default: 10)")
    add("--exclude", **some, metavar="ITEM", help="an item to leave out; repeat")
    add("--candidate", **some, metavar="ITEM", help="choose among these only; repeat")
    condition = {**some, "metavar": "CONDITION"}
    add("--require", **condition, help="as genres=Drama|Comedy, year>=1990; repeat")
    add("--forbid", **condition, help="a condition that must not hold; repeat")
    add(
        "--boost",
        **some,
        nargs=2,
        metavar=("CONDITION", "LOGIT"),
        help="what is added to the score where it holds, as in genres=Drama 0.7; repeat",
    )
    add("--diversity", type=float, default=0.0, help="unlike items, 0 to 1 (default: 0)")


def summed(boosts: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Boosts by condition; of one that comes again all count."""
    total: dict[str, float] = {}
    for condition, by in boosts:
        total[condition] = total.get(condition, 0.0) + by
    return total


def _texts(flag: str, values: list[str]) -> list[str]:
    if "" in values:
        raise ValueError(
            f"{flag} must not be empty: received ''. Name what it asks for, or leave the "
            "flag out."
        )
    return sorted(set(values))


def _boost(pair: list[str]) -> tuple[str, float]:
    condition, by = pair
    try:
        value = float(by)
    except ValueError:
        value = math.nan
    if not condition or not math.isfinite(value):
        raise ValueError(
            "--boost must be a condition and a number, as in --boost genres=Drama 0.7: "
            f"received {condition!r} {by!r}."
        )
    return condition, value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | dict) else str(value)
