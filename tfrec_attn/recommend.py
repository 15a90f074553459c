"""`python -m tfrec_attn.recommend`: the best items of every user of a table, as Parquet.

Answers are those of the server, which is not needed. What a run that was stopped has
written stays: the same command goes on after it.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tfrec_attn import claims, item_flags

NAME = "tfrec_attn.recommend"
logger = logging.getLogger(NAME)


def parser() -> argparse.ArgumentParser:
    """The flags of the command; what it does not know goes to Beam."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="what export wrote; its latest version")
    add("--users", type=Path, required=True, help="table of users: a file or a folder")
    add("--out", type=Path, required=True, help="folder of the answers")
    item_flags.add(parser)
    add("--user-column", default="user_id", help="column of the ids (default: user_id)")
    add("--columns", nargs="*", help="other columns to take (default: all)")
    add("--users-per-shard", type=int, default=100_000, help="default: %(default)s")
    add("--batch", type=int, default=128, help="users of a call (default: %(default)s)")
    add("--bad-rows", choices=("stop", "set-aside"), default="stop", help="of the users")
    add("--runner", help="a Beam runner, with Beam's own flags beside (default: none)")
    return parser


def run(args: argparse.Namespace, beam_options: list[str]) -> dict[str, int]:
    """Answers all users; returns what was answered, counted.

    Raises:
      ValueError: A flag, the version, the users or the folder are not as they must be.
      OSError: A file cannot be read or written.
    """
    from tfrec_attn.bulk import intake, shards, version

    _check(args, beam_options)
    wanted = item_flags.Wanted.of(args).told()
    path = version.folder(args.model)
    asked = {
        "version": version.digest(path),
        "users": intake.digest(args.users),
        **dict.fromkeys(item_flags.NAMES),
        **wanted,
        "user_column": args.user_column,
        "columns": args.columns if args.columns is None else sorted(args.columns),
        "users_per_shard": args.users_per_shard,
        "bad_rows": args.bad_rows,
    }
    folder = shards.Shards(args.out)
    folder.claim(asked)
    # Of two that write to it, one would remove the other's users.
    with claims.alone(args.out):
        return _answered(args, folder, asked, path, beam_options)


def _answered(
    args: argparse.Namespace, folder, asked: dict[str, Any], path: Path, options: list[str]
) -> dict[str, int]:
    from tfrec_attn.bulk import version

    manifest, loaded = folder.manifest(), None
    if manifest is None or not folder.ready(folder.open(manifest["shards"])):
        loaded = version.Version(path)
        manifest = _taken(args, folder, asked, loaded)
        folder.begin(manifest)
    todo = folder.open(manifest["shards"])
    if done := manifest["shards"] - len(todo):
        logger.info("%d of %d shards are there", done, manifest["shards"])
    if todo and args.runner:
        _on_runner(args, path, todo, options)
    elif todo:
        _here(args, folder, todo, manifest["rows"], loaded or version.Version(path))
    folder.close()
    return {**folder.summary(manifest["shards"]), "bad_rows": manifest["rejected"]}


def _taken(args, folder, asked: dict[str, Any], loaded) -> dict[str, Any]:
    """The manifest, once the users are checked and lie in their shards."""
    import polars as pl

    from tfrec_attn.bulk import intake
    from tfrec_attn.bulk.asked import Reading

    loaded.require(item_flags.Wanted.of(args))
    reading = Reading(
        args.user_column, loaded.profile, loaded.times, args.columns, loaded.rules
    )
    count, rejected = intake.split(
        args.users,
        reading,
        folder,
        args.users_per_shard,
        set_aside=args.bad_rows == "set-aside",
    )
    files = [folder.users(number) for number in range(count)]
    rows = [pl.scan_parquet(file).select(pl.len()).collect().item() for file in files]
    return {**asked, "shards": count, "rows": rows, "rejected": rejected}


def _here(args, folder, todo: list[int], rows: list[int], loaded) -> None:
    """One shard after another in this process, with a bar over all users."""
    wanted = item_flags.Wanted.of(args)
    done = sum(rows) - sum(rows[number] for number in todo)
    with tqdm(total=sum(rows), initial=done, unit="user") as bar:
        for number in todo:
            loaded.shard(folder, number, wanted, args.batch, bar.update)


def _on_runner(args, path: Path, todo: list[int], options: list[str]) -> None:
    try:
        from tfrec_attn.bulk import beam
    except ImportError as error:
        raise ValueError("--runner needs pip install 'tfrec-attn[beam]'.") from error
    logger.info("%d shards on %s", len(todo), args.runner)
    given = [f"--runner={args.runner}", *options]
    wanted = item_flags.Wanted.of(args)
    beam.run(path, args.out, todo, wanted=wanted, batch=args.batch, options=given)


def _check(args: argparse.Namespace, beam_options: list[str]) -> None:
    for name in ("k", "users_per_shard", "batch"):
        if (value := getattr(args, name)) < 1:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is at least 1: received {value}.")
    if beam_options and not args.runner:
        raise ValueError(
            f"Unknown argument {beam_options[0]!r}. Beam's own flags need --runner."
        )


def main(argv: list[str] | None = None) -> int:
    """Prints the counts as JSON; 2 with the reason where not all is answered."""
    args, beam_options = parser().parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    try:
        counts = run(args, beam_options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
