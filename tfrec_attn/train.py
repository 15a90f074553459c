"""`python -m tfrec_attn.train`: from tables to a trained run folder."""

import argparse
import contextlib
import functools
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tfrec_attn import atomic, claims
from tfrec_attn.settings import config as config_lib
from tfrec_attn.settings import flags
from tfrec_attn.training.preemption import Preempted, Preemption

logger = logging.getLogger("tfrec_attn.train")

STOPPED = "stopped. --resume goes on after the last state that was kept."


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tfrec_attn.train", description=__doc__)
    flags.add(p)
    p.add_argument(
        "--prepared", help="folder that tfrec_attn.prepare made, instead of tables"
    )
    p.add_argument("--out", required=True, help="run folder")
    p.add_argument(
        "--from",
        dest="base",
        type=Path,
        metavar="RUN_OR_VERSION",
        help="goes on from this trained model with today's tables, by its settings",
    )
    p.add_argument("--strategy", choices=("auto", "one", "mirrored", "multiworker"))
    p.add_argument(
        "--data-service",
        metavar="HOST:PORT",
        help="dispatcher of a tf.data service whose workers make the batches",
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last state; alone with --out, by that run's config",
    )
    p.add_argument(
        "--profile",
        metavar="FIRST,LAST",
        help="steps of each stage that TensorFlow's profiler sees, such as 10,20",
    )
    p.add_argument("--wandb", metavar="PROJECT", help="curves on Weights & Biases, too")
    return p


def settings(args: argparse.Namespace) -> config_lib.Config:
    """The config of a command line; flags count as overrides before `--set`.

    Raises:
      ValueError: See `config.load`; when `--from` and `--config` are both given.
    """
    flags.require_no_config(args)
    path = args.config
    if args.resume and not (path or args.items or args.interactions or args.prepared):
        path = Path(args.out) / "config.toml"
        if not path.exists():
            path = None
        if not (path or args.base or args.set):
            raise ValueError(
                f"{args.out} holds no run to go on with, as config.toml is missing: give "
                "the tables or the config beside --resume, as at first."
            )
    made = Path(args.prepared or "", "config.toml")
    if args.prepared and not path and made.exists():
        path = made
    overrides = flags.overrides(
        args,
        data__prepared=args.prepared,
        train__strategy=args.strategy,
        train__data_service=args.data_service,
    )
    # What was prepared for it has the settings of the model already.
    if args.base and not args.prepared:
        from tfrec_attn.run import incremental

        return incremental.settings(args.base, overrides)
    # What is prepared brings its tables.
    without = ["data"] if args.prepared else []
    return config_lib.load(path, overrides, without=without)


def run(
    config: config_lib.Config,
    out: Path,
    *,
    resume: bool = False,
    base: Path | None = None,
    preemption: Preemption | None = None,
    monitors: Any = None,
    tested: bool = True,
) -> dict:
    """Trains, evaluates on the test fold once, and writes all of it to `out`.

    Of several workers each calls it; the chief alone writes and has a result,
    which of the others is empty.

    Args:
      config: All settings.
      out: Run folder.
      resume: Whether to go on with the training that `out` holds.
      base: A run or a version to go on from.
      preemption: What asks for an early end.
      monitors: What else watches; see `monitors.Monitors`.
      tested: Whether the test fold is asked at all. Who chooses among runs must not see it.

    Raises:
      ValueError: When `out` holds a training and `resume` is False, or `resume` is True
        and the settings or the tables are not those that the training was begun with, or
        another process is at work in `out`.
    """
    from tfrec_attn.run import runs
    from tfrec_attn.training import distribution

    # Before anything else that TensorFlow does: workers meet here.
    strategy = distribution.strategy(config.train.strategy)
    preemption = preemption or Preemption()
    # As workers meet, TensorFlow takes SIGTERM for a service of its own.
    preemption.listen()
    begun = runs.claim(out, resume=resume)
    # Of several workers none may leave before the others do.
    together = not distribution.alone(strategy)
    with (
        claims.alone(out) if distribution.is_chief(strategy) else contextlib.nullcontext(),
        preemption.waiting() if together else contextlib.nullcontext(),
        distribution.advice_of_loss(strategy),
        distribution.own_folder(strategy, out) as place,
    ):
        atomic.sweep(place)
        result = _run(
            config,
            place,
            strategy,
            begun=begun,
            resume=resume,
            base=base,
            preemption=preemption,
            monitors=monitors,
            tested=tested,
        )
    return result if distribution.is_chief(strategy) else {}


def _run(
    config: config_lib.Config,
    out: Path,
    strategy,
    *,
    begun: bool,
    resume: bool,
    base: Path | None,
    preemption: Preemption | None,
    monitors: Any,
    tested: bool,
) -> dict:
    """One worker's part of `run`, in its own folder."""
    from tfrec_attn import evaluate, metrics
    from tfrec_attn.data import rejects
    from tfrec_attn.evaluation import plots
    from tfrec_attn.run import building, incremental, knowledge, pipeline, runs, streamed
    from tfrec_attn.training import distribution, fit

    past = knowledge.Past.of(out) if begun else None
    if base and not (begun and incremental.grown(out)):
        base = incremental.base(base)
        incremental.require_same_shape(base, config)
        past = past or knowledge.Past.of(base, grows=True)
    read = streamed.prepare if config.data.prepared else pipeline.prepare
    prepared = read(config, out, past)
    if begun:
        runs.require_same(out, prepared)
    else:
        runs.begin(out, prepared)
    for fold in ("validation", "test"):
        if not prepared.queries(fold):
            raise ValueError(
                f"The {fold} fold of split.name={config.split.name!r} has no target: no "
                "event of an item that is new to its user with a label of "
                f"examples.positives={list(config.examples.positives)}. Widen "
                "examples.positives, raise split.share or choose another split."
            )
    logger.info("split %s: %s", prepared.split.name, prepared.split.promise)
    # Here, as whatever has made layers before, as to encode texts, has drawn from the seed.
    fit.deterministic(config.train.seed)
    with strategy.scope():
        model = building.build(prepared, config.train.precision)
    model.warm_up()
    if base and not incremental.grown(out):
        incremental.grow(model, base, out)
    if prepared.goes_on:
        incremental.begin(model, out)
    most = config.train.validation_queries
    validate = distribution.by_chief(
        strategy, lambda: evaluate.evaluate(model, prepared, "validation", most=most)
    )
    weigh = lambda: evaluate.weigh(model, prepared, most=most)
    untrained = metrics.summary(validate())
    if config.train.monitor not in untrained:
        raise ValueError(
            f"train.monitor={config.train.monitor!r} is none of the validation's metrics: "
            f"{', '.join(untrained)}."
        )
    logger.info(
        "before training: %s %.4f", config.train.monitor, untrained[config.train.monitor]
    )
    history = fit.fit(
        model,
        prepared.training(),
        validate,
        lambda: distribution.from_chief(strategy, weigh),
        settings=config.train,
        out=out,
        resume=resume,
        preemption=preemption,
        monitors=monitors,
    )
    # Of the model that is kept: its scorer counts by a share that no epoch had.
    best = metrics.summary(validate())[config.train.monitor]
    if prepared.goes_on:
        before = untrained[config.train.monitor]
        best = incremental.keep_better(model, out, before, best)
    if model.live:
        runs.keep_bert(out, prepared, model.live.bert)
    plots.learning_curves(history, out / "learning_curves.png")
    result: dict[str, Any] = {
        "split": prepared.split.name,
        "digest": prepared.split.digest,
        "epochs": len(history),
        "best_validation": best,
        "truncated_texts": prepared.truncated,
        "rejected_rows": rejects.count_rows(prepared.tables.rejects),
    }
    if tested:
        means = lambda: evaluate.means(model, prepared, "test")
        table = distribution.from_chief(strategy, means)
        print(evaluate.show(table), file=sys.stderr)
        result["test"] = table
    runs.write_json(out / "metrics.json", result)
    return result


def watched(args: argparse.Namespace, preemption: Preemption) -> dict:
    """`run`, of a command line, with what it asks to watch.

    Args:
      args: Of the command.
      preemption: What asks for an early end.

    Raises:
      ValueError: See `run` and `monitors`.
    """
    config, out = settings(args), Path(args.out)
    again = {"resume": args.resume, "base": args.base, "preemption": preemption}
    if not (args.profile or args.wandb):
        return run(config, out, **again)
    from tfrec_attn.run import runs
    from tfrec_attn.training import monitors

    runs.claim(out, resume=args.resume)
    profile = monitors.steps(args.profile) if args.profile else None
    if not args.wandb:
        return run(config, out, monitors=monitors.Monitors(profile), **again)
    with monitors.wandb_run(args.wandb, out, config_lib.flat(config)) as curves:
        shown = functools.partial(monitors.WandB, curves)
        watch = monitors.Monitors(profile, (shown,))
        result = run(config, out, monitors=watch, **again)
        curves.summary.update({"test": result.get("test", {})})
        return result


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    preemption = Preemption()
    try:
        with preemption:
            result = watched(args, preemption)
    except Preempted:
        print(f"\ntfrec_attn.train: SIGTERM: {STOPPED}", file=sys.stderr)
        return 0
    except (OSError, ValueError, FloatingPointError, MemoryError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}."
        print(f"tfrec_attn.train: {message}", file=sys.stderr)
        return 2
    if result:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"\ntfrec_attn.train: {STOPPED}", file=sys.stderr)
        sys.exit(130)
