"""The flags by which a command line names a config, its tables and its settings."""

import argparse
import json

FLAGS = {
    "items": "table of items, instead of data.items in the config",
    "users": "table of users",
    "interactions": "table of interactions: a file, or a folder of shards",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--config", help="TOML file; see configs/")
    for name, use in FLAGS.items():
        parser.add_argument(f"--{name}", help=use)
    parser.add_argument("--bad-rows", choices=("stop", "set-aside"))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.field=value",
        help="changes one setting; may be repeated",
    )


def require_no_config(args: argparse.Namespace) -> None:
    """Checks that `--from`, which brings settings, stands without `--config`.

    Raises:
      ValueError: Both are given.
    """
    if args.base and args.config:
        raise ValueError(
            "--from brings the settings of the model that it names: change them by --set, "
            f"and leave out --config. Received: --config {args.config}."
        )


def overrides(args: argparse.Namespace, **more: str | None) -> list[str]:
    """What they change of a config, `--set` last.

    Args:
      args: Of a parser that has them.
      more: Values of further settings, `section__field`; None changes nothing.
    """
    flags = {f"data.{name}": getattr(args, name) for name in (*FLAGS, "bad_rows")}
    flags |= {name.replace("__", "."): value for name, value in more.items()}
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value]
    return given + args.set
