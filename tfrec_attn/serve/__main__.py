"""`python -m tfrec_attn.serve`: serves SavedModels over gRPC and REST.

It speaks the protocol of TensorFlow's model server, for a laptop, tests and CI.
"""

import argparse
import functools
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable

from tfrec_attn.serve.server import flags, log_flags, memory, model_flags

NAME = "tfrec_attn.serve"
_log = logging.getLogger(NAME)
LOAD_GRACE = 30.0


def parser() -> argparse.ArgumentParser:
    """The flags; names are those of tensorflow_model_server where it has them."""
    # An abbreviation would accept a flag that is not served, as another one.
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
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
    model_flags.add_models(parser)
    flags.add(parser)
    model_flags.add_unserved(parser)
    log_flags.add(parser)
    return parser


def port(text: str) -> int:
    """A port number, for argparse."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535: received {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then finishes what runs; 2 if it cannot start."""
    args = parser().parse_args(argv)
    if args.version:
        return show_versions()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # A busy port is said below, in one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        for warning in model_flags.unserved(args):
            _log.warning(warning)
        check_models(args)
        log_flags.check(args)
        return run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2


def show_versions() -> int:
    """Prints what serves, and with what."""
    import tensorflow as tf

    from tfrec_attn import __version__

    print(f"{NAME}: tfrec_attn {__version__}, TensorFlow {tf.__version__}")
    return 0


def check_models(args: argparse.Namespace) -> None:
    """Names the mistake in the flags about models, before anything slow is loaded."""
    if args.model_config_file is None and args.model_base_path is None:
        raise ValueError(
            "Give --model_base_path, or --model_config_file for several models."
        )
    if args.model_config_file is None:
        check_base_path(args.model_base_path)
    elif args.model_base_path or args.model_name:
        # A model server would pass over the others without a word.
        raise ValueError(
            "--model_config_file names the models: leave out --model_base_path and "
            "--model_name, or the file."
        )


def check_base_path(path: pathlib.Path) -> None:
    """Names the mistake in `--model_base_path`."""
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


def run(args: argparse.Namespace) -> int:
    """Opens the ports, then loads and keeps looking for new versions until told to stop."""
    log = log_flags.log(args)
    # TensorFlow loads here, after the flags were read and checked.
    from tfrec_attn.serve.server import sockets as server

    memory.give_back()
    options = flags.options(args)
    models = configured(args, flags.loader(args, options), log)
    running = server.start(models, args.host, args.port, args.rest_api_port, options)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(
        f"{NAME}: gRPC on {args.host}:{running.grpc_port}, "
        f"REST on http://{args.host}:{running.rest_port}",
        flush=True,
    )
    watchers = [
        start(watch, models, running, args.file_system_poll_wait_seconds, stop),
        start(watch_config, models, args, stop),
    ]
    stop.wait()
    _log.info("stopping: running requests are finished first")
    running.stop()
    if log is not None:
        log.close()
    # A load must not run on while the interpreter is torn down under it.
    for watcher in watchers:
        watcher.join(LOAD_GRACE)
    return 0


def configured(args: argparse.Namespace, loader, log=None):
    """The models that the flags ask for, of which none is loaded yet.

    Args:
      args: The flags.
      loader: Whose `of` gives the `load` of a model.
      log: Of the requests; None for none.
    """
    from tfrec_attn.serve.server import (
        lifecycle,
        logged,
        model_server,
        saved_model,
        servable,
    )

    saved_model.limit_threads(
        args.tensorflow_intra_op_parallelism, args.tensorflow_inter_op_parallelism
    )
    replays = max(args.num_request_iterations_for_warmup, 1) * args.enable_model_warmup
    load = functools.partial(saved_model.load, replays=replays)
    interval = args.load_retry_interval_micros / 1e6
    retries = lifecycle.Retries(args.max_num_load_retries, interval)

    def make(name: str, base_path: pathlib.Path, *, policy) -> lifecycle.Model:
        return lifecycle.Model(
            name, base_path, loader.of(name, load), policy=policy, retries=retries
        )

    server: Callable[..., model_server.ModelServer] = model_server.ModelServer
    if log is not None:
        server = functools.partial(logged.LoggedModelServer, log=log)
    models = server(
        make=make,
        early_labels=args.allow_version_labels_for_unavailable_models,
        load_threads=args.num_load_threads,
    )
    try:
        models.configure(configuration(args))
    except servable.ServingError as error:
        raise ValueError(
            f"{args.model_config_file}: {error}. At the start none is: give "
            "--allow_version_labels_for_unavailable_models."
        ) from error
    return models


def configuration(args: argparse.Namespace):
    """The configuration in the file, or the one of the folder that is given."""
    from tfrec_attn.serve.server import model_config

    if args.model_config_file:
        return model_config.read(args.model_config_file)
    # The name of "." and of "models/x/.." is only known once resolved.
    name = args.model_name or args.model_base_path.resolve().name
    if not name:
        raise ValueError(f"{args.model_base_path} has no name: give --model_name.")
    return model_config.single(name, args.model_base_path)


def start(target: Callable, *args) -> threading.Thread:
    """A thread that does not keep the process."""
    thread = threading.Thread(target=target, args=args, name=target.__name__, daemon=True)
    thread.start()
    return thread


def watch(models, running, seconds: float, stop: threading.Event) -> None:
    """Looks for versions every `seconds` until `stop`; 0 looks once."""
    look(models, running)
    if not models.ready:
        later = f"looking again every {seconds:g} s" if seconds > 0 else "not looking again"
        _log.warning("no model is ready yet; %s", later)
    while not stop.wait(seconds or 1.0):
        if seconds > 0:
            look(models, running)
        else:
            # Loads that failed are due again all the same.
            models.settle()
            running.set_ready(models.ready)


def watch_config(models, args: argparse.Namespace, stop: threading.Event) -> None:
    """Reads the configuration file again and again, if asked to, until `stop`."""
    from tfrec_attn.serve.server import model_config
    from tfrec_attn.serve.server.servable import ServingError

    seconds, told = args.model_config_file_poll_wait_seconds, ""
    while args.model_config_file and seconds > 0 and not stop.wait(seconds):
        # What is served stays, whatever the file says.
        try:
            models.apply(model_config.read(args.model_config_file))
            problem = ""
        except (OSError, ValueError, ServingError) as error:
            problem = str(error)
        if problem and problem != told:
            _log.error("the model configuration was not taken: %s", problem)
        told = problem


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
