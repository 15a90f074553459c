"""An exported version in this process: users to answers, by the code that serves it.

Letters: B users of a call, K answers.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn.bulk import shards
from tfrec_attn.bulk.asked import RULES
from tfrec_attn.bulk.shards import Shards
from tfrec_attn.item_flags import Wanted, summed
from tfrec_attn.serve import tensors, versions
from tfrec_attn.serve.client import inputs
from tfrec_attn.serve.server import saved_model
from tfrec_attn.serve.server.servable import DEFAULT_SIGNATURE, Servable, ServingError
from tfrec_attn.serve.signatures import Signature, TensorSpec

OUTPUTS = (
    "item_id",
    "score",
    "valid",
    "known_user",
    "unknown_history",
    "truncated_history",
)
# What an export keeps of its run.
KEPT = Path("assets.extra") / "run" / "columns.json"
# A row a user, the lists best first.
SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "item_id": pl.List(pl.String),
    "score": pl.List(pl.Float32),
    "known_user": pl.Boolean,
    "unknown_history": pl.Int32,
    "truncated_history": pl.Boolean,
}


def folder(path: Path) -> Path:
    """The version folder that a path names: itself, or the latest below it.

    Raises:
      ValueError: There is none.
    """
    if versions.versions(path.parent).get(_number(path)) == path:
        return path
    if found := versions.versions(path):
        return found[max(found)]
    raise ValueError(
        f"{path} holds no exported version: --model takes a folder that tfrec_attn.export "
        "wrote, such as saved_models/mine, or one of its versions, saved_models/mine/1."
    )


def _number(path: Path) -> int:
    return int(path.name) if path.name.isascii() and path.name.isdigit() else -1


def digest(path: Path) -> str:
    """sha256 over the files of a version that its answers come from."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not name.startswith("assets.extra/"):
            with file.open("rb") as content:
                part = hashlib.file_digest(content, "sha256").hexdigest()
            total.update(f"{name} {part}\n".encode())
    return total.hexdigest()


class Version:
    """A loaded version.

    Args:
      path: Its folder.

    Raises:
      ValueError: It has no signature that recommends.
    """

    def __init__(self, path: Path):
        self.path = path
        self.servable = saved_model.load(path, int(path.name), replays=0)
        asked = self.servable.signature_defs.get(DEFAULT_SIGNATURE)
        outputs = set(asked.outputs) if asked else set()
        if not (
            asked and {"user_id", "k"} <= set(asked.inputs) and outputs >= set(OUTPUTS)
        ):
            raise ValueError(
                f"{path}: {DEFAULT_SIGNATURE} of this model recommends nothing."
            )
        signature = Signature(_specs(asked.inputs), _specs(asked.outputs))
        self.signatures = {DEFAULT_SIGNATURE: signature}

    @property
    def profile(self) -> list[str]:
        """Columns of the users that the model reads."""
        names = self.signatures[DEFAULT_SIGNATURE].inputs
        return sorted(n.removeprefix("user_") for n in names if _of_profile(n))

    @property
    def times(self) -> list[str]:
        """Those of them that are times, as far as the version says so."""
        kept = self.path / KEPT
        if not kept.exists():
            return []
        users = json.loads(kept.read_text("utf-8"))["users"]
        return [name for name in self.profile if users.get(name, {}).get("kind") == "time"]

    @property
    def rules(self) -> list[str]:
        """Of `asked.RULES` those that it reads."""
        inputs = self.signatures[DEFAULT_SIGNATURE].inputs
        return [name for name in RULES if name in inputs]

    def require(self, wanted: Wanted) -> None:
        """Checks that the version can be asked this.

        Raises:
          ValueError: Names the flag that it refuses.
        """
        wanted.require_read(self.rules)
        nobody = pl.DataFrame({"user_id": [""]})
        try:
            _run(self.servable, self.signatures, nobody, wanted)
        except ServingError as error:
            raise ValueError(wanted.explained(str(error)) or str(error)) from error

    def answers(
        self,
        users: pl.DataFrame,
        wanted: Wanted,
        batch: int,
        tell: Callable[[int], object],
    ) -> pl.DataFrame:
        """The best items of each user, a row a user in their order; see `SCHEMA`.

        Args:
          users: See `asked.read`.
          wanted: Of the items of every user.
          batch: Users of a call.
          tell: Is told of users that are done.

        Raises:
          ValueError: The model refuses a user, or answers fewer than `k` to anyone.
        """
        found = [pl.DataFrame(schema=SCHEMA)]
        for part in users.iter_slices(batch):
            found.append(_table(part, self._ask(part, wanted), wanted.k))
            tell(len(part))
        return pl.concat(found)

    def shard(
        self,
        folder: Shards,
        number: int,
        wanted: Wanted,
        batch: int,
        tell: Callable[[int], object],
    ) -> None:
        """Answers the users of a shard; see `answers`."""
        users = pl.read_parquet(folder.users(number))
        shards.write(self.answers(users, wanted, batch, tell), folder.answers(number))

    def _ask(self, users: pl.DataFrame, wanted: Wanted) -> dict[str, np.ndarray]:
        try:
            return _run(self.servable, self.signatures, users, wanted)
        except (ServingError, ValueError) as error:
            for one in users.iter_slices(1) if len(users) > 1 else [users]:
                self._name(one, wanted)
            raise ValueError(str(error)) from error

    def _name(self, user: pl.DataFrame, wanted: Wanted) -> None:
        """Raises with file, line and user where the model refuses that one."""
        try:
            _run(self.servable, self.signatures, user, wanted)
        except (ServingError, ValueError) as error:
            file, line, name = user.row(0)[:3]
            raise ValueError(f"{file}:{line}, user {name!r}: {error}") from error


def _run(
    servable: Servable,
    signatures: dict[str, Signature],
    users: pl.DataFrame,
    wanted: Wanted,
) -> dict[str, np.ndarray]:
    filled = inputs.fill(signatures, DEFAULT_SIGNATURE, _given(users, wanted))
    return servable.run(DEFAULT_SIGNATURE, filled, OUTPUTS)


def _given(users: pl.DataFrame, wanted: Wanted) -> dict[str, np.ndarray]:
    """What a client would send for these users."""
    asked = inputs.Users(tuple(users["user_id"]), single=False)
    none = [None] * len(users)
    told = lambda name: users[name].to_list() if name in users.columns else none
    profile = {
        name: tensors.as_array(users[name].fill_null("").to_list())
        for name in users.columns
        if _of_profile(name)
    }
    return {
        "k": np.full(len(users), wanted.k, np.int32),
        **_rules(asked, told, wanted),
        **asked.inputs(
            told("history"),
            (),
            told("time"),
            told("history_feedback"),
            told("history_time"),
        ),
        **profile,
    }


def _rules(
    asked: inputs.Users, told: Callable[[str], list], wanted: Wanted
) -> dict[str, np.ndarray]:
    """What users want of the items: what all want, and what their rows say beside it.
    Candidates and diversity of a row stand in place of those of all."""
    both = lambda name: [[*getattr(wanted, name), *(row or ())] for row in told(name)]
    instead = lambda name, of_all: [of_all if row is None else row for row in told(name)]
    pairs = zip(told("boost"), told("boost_by"), strict=True)
    boosts = [
        summed([*wanted.boost.items(), *zip(names or (), by or (), strict=True)])
        for names, by in pairs
    ]
    found = asked.lists("candidates", instead("candidates", wanted.candidates))
    for name in ("exclude", "require", "forbid"):
        found |= asked.lists(name, both(name))
    diversity = asked.shares("diversity", instead("diversity", wanted.diversity))
    return {**found, **asked.boosts(boosts), **diversity}


def _table(users: pl.DataFrame, found: dict[str, np.ndarray], k: int) -> pl.DataFrame:
    width = found["item_id"].shape[1]
    if width < k:
        raise ValueError(
            f"--k {k} is more than the version answers, which is {width} (index.max_k, or "
            "all of its items). Lower --k, or export with a larger index.max_k."
        )
    pick = lambda name: [
        row[real].tolist() for row, real in zip(found[name], found["valid"], strict=True)
    ]
    items = [[one.decode() for one in row] for row in pick("item_id")]
    about = {name: found[name] for name in OUTPUTS[3:]}
    columns = {
        "user_id": users["user_id"],
        "item_id": items,
        "score": pick("score"),
    } | about
    return pl.DataFrame(columns, schema=SCHEMA)


def _of_profile(name: str) -> bool:
    return name.startswith("user_") and name != "user_id"


def _specs(infos) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            tensors.kind_of(info.dtype).dtype,
            tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for name, info in infos.items()
    }
