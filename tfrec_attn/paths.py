"""Paths that a user names."""

from pathlib import Path


def looked_in(path: Path) -> str:
    """Where a path that is not there was looked for: the end of a message."""
    if path.is_absolute():
        return ""
    return (
        f" in {Path.cwd()}. A relative path, also one of a run's config.toml, is as of "
        "where a command is begun"
    )
