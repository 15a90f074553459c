"""`python -m tfrec_attn.serve`: serves SavedModels over gRPC and REST.

It speaks the protocol of TensorFlow's model server, for a laptop, tests and CI.
"""

import argparse
import logging
import os
import pathlib
import signal
import sys
import threading

from tfrec_attn import user_keys

NAME = "tfrec_attn.serve"
_log = logging.getLogger(NAME)
LOAD_GRACE = 30.0


def parser() -> argparse.ArgumentParser:
    """The flags; names are those of tensorflow_model_server where it has them."""
    # An abbreviation would accept a flag that is not served, as another one.
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--model_base_path",
        type=pathlib.Path,
        required=True,
        help="folder of versions: 1/, 2/, …; the highest is served",
    )
    add("--model_name", help="default: the name of the folder")
    add("--port", type=port, default=8500, help="gRPC; 0 takes a free port (default: 8500)")
    add(
        "--rest_api_port",
        type=port,
        default=8501,
        help="REST; 0 takes a free port (default: 8501)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 opens it to the network (default: 127.0.0.1)",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between two looks for a new version; 0 looks once (default: 1)",
    )
    add_log_flags(parser)
    return parser


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """What TensorFlow's model server leaves to a collector in its configuration."""
    add = parser.add_argument_group("request log").add_argument
    add(
        "--log-requests",
        type=pathlib.Path,
        metavar="DIR",
        help="write requests and answers there, for tfrec_attn.impressions",
    )
    add(
        "--log-requests-sample",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the requests, above 0 up to 1 (default: 1)",
    )
    add(
        "--log-requests-hash-users",
        action="store_true",
        help=f"write user ids hashed, by a key in a file or in {user_keys.VARIABLE}",
    )
    add("--log-requests-key-file", type=pathlib.Path, metavar="FILE", help="of that key")


def port(text: str) -> int:
    """A port number, for argparse."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535: received {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what runs; 2 if it cannot start."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # A busy port is said below, in one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        check_base_path(args.model_base_path)
        check_log_flags(args)
        return run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2


def check_base_path(path: pathlib.Path) -> None:
    """Names the mistake in `--model_base_path`, before anything slow is loaded."""
    if not path.is_dir():
        raise ValueError(
            f"--model_base_path must be a folder of versions: {path} is none. "
            "Export a model first: python -m tfrec_attn.export."
        )
    if (path / "saved_model.pb").exists():
        raise ValueError(
            f"--model_base_path must hold version folders (1/, 2/, …): {path} is a version "
            f"itself. Give its parent: --model_base_path {path.resolve().parent}."
        )


def check_log_flags(args: argparse.Namespace) -> None:
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


def request_log(args: argparse.Namespace):
    """The log that the flags ask for, or None."""
    from tfrec_attn.serve.request_log import RequestLog

    if args.log_requests is None:
        return None
    hashed = args.log_requests_hash_users
    key = user_keys.UserKey.read(args.log_requests_key_file) if hashed else None
    return RequestLog(args.log_requests, args.log_requests_sample, key)


def run(args: argparse.Namespace) -> int:
    """Opens the ports, then loads and keeps looking for new versions until told to stop."""
    log = request_log(args)
    # TensorFlow loads here, after the flags were read and checked.
    from tfrec_attn.serve import model_server, server
    from tfrec_attn.serve.logged import LoggedModelServer

    # The name of "." and of "models/x/.." is only known once resolved.
    name = args.model_name or args.model_base_path.resolve().name
    served = [model_server.Model(name, args.model_base_path)]
    models = (
        model_server.ModelServer(served)
        if log is None
        else LoggedModelServer(served, log=log)
    )
    running = server.start(models, args.host, args.port, args.rest_api_port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(
        f"{NAME}: gRPC on {args.host}:{running.grpc_port}, "
        f"REST on http://{args.host}:{running.rest_port}",
        flush=True,
    )
    watcher = threading.Thread(
        target=watch,
        args=(models, running, args.file_system_poll_wait_seconds, stop),
        name="watch",
        daemon=True,
    )
    watcher.start()
    stop.wait()
    _log.info("stopping: running requests are finished first")
    running.stop()
    if log is not None:
        log.close()
    # A load must not run on while the interpreter is torn down under it.
    watcher.join(LOAD_GRACE)
    return 0


def watch(models, running, seconds: float, stop: threading.Event) -> None:
    """Looks for versions every `seconds` until `stop`; 0 looks once."""
    look(models, running)
    if not models.ready:
        later = f"looking again every {seconds:g} s" if seconds > 0 else "not looking again"
        _log.warning("no model is ready yet; %s", later)
    while seconds > 0 and not stop.wait(seconds):
        look(models, running)


def look(models, running) -> None:
    """One look for new versions; what the health service says follows."""
    # A folder may vanish between being listed and being read: the next look sees it
    # right, if there is one.
    try:
        models.poll()
    except OSError as error:
        _log.error("could not look for new versions: %s", error)
    running.set_ready(models.ready)


if __name__ == "__main__":
    sys.exit(main())
