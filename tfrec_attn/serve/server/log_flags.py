"""Flags of `tfrec_attn.serve` about the log of requests, which `request_log` writes."""

import argparse
import pathlib

from tfrec_attn import user_keys


def add(parser: argparse.ArgumentParser) -> None:
    """What TensorFlow's model server leaves to a collector in its configuration."""
    group = parser.add_argument_group("request log").add_argument
    group(
        "--log-requests",
        type=pathlib.Path,
        metavar="DIR",
        help="write requests and answers there, for tfrec_attn.impressions",
    )
    group(
        "--log-requests-sample",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the requests, above 0 up to 1 (default: 1)",
    )
    group(
        "--log-requests-hash-users",
        action="store_true",
        help=f"write user ids hashed, by a key in a file or in {user_keys.VARIABLE}",
    )
    group("--log-requests-key-file", type=pathlib.Path, metavar="FILE", help="of that key")


def check(args: argparse.Namespace) -> None:
    """Flags about a log need the log."""
    given = {
        "--log-requests-sample": args.log_requests_sample != 1,
        "--log-requests-hash-users": args.log_requests_hash_users,
        "--log-requests-key-file": args.log_requests_key_file,
    }
    for flag in (flag for flag, value in given.items() if value):
        if args.log_requests is None:
            raise ValueError(f"{flag} needs --log-requests DIR, which is not given.")
    if args.log_requests_key_file and not args.log_requests_hash_users:
        raise ValueError("--log-requests-key-file needs --log-requests-hash-users.")


def log(args: argparse.Namespace):
    """The log that the flags ask for, or None."""
    from tfrec_attn.serve.server.request_log import RequestLog

    if args.log_requests is None:
        return None
    hashed = args.log_requests_hash_users
    key = user_keys.UserKey.read(args.log_requests_key_file) if hashed else None
    return RequestLog(args.log_requests, args.log_requests_sample, key)
