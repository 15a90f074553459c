"""`python -m tfrec_attn.search`: the settings that do best on the validation fold.

Each trial is a run folder below `--out`; the test fold is not asked. The same command goes
on where it was stopped, until there are `--trials` of them.
"""

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import tomli_w

from tfrec_attn import atomic, claims
from tfrec_attn.atomic import PARTIAL
from tfrec_attn.settings import config as config_lib
from tfrec_attn.training import trials
from tfrec_attn.training.space import Space

NAME = "tfrec_attn.search"
# What is searched: written first.
MARK = "search.json"
PRUNERS = ("median", "asha", "none")
logger = logging.getLogger(NAME)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="TOML file of the settings that stay")
    add("--space", type=Path, required=True, help="TOML file of those that are tried")
    add("--out", type=Path, required=True, help="folder of the search")
    add("--trials", type=int, required=True, help="how many in all")
    add("--set", action="append", default=[], metavar="section.field=value", help="repeat")
    add("--pruner", choices=PRUNERS, default="median", help="ends hopeless trials early")
    add("--seed", type=int, default=0, help="of what is tried (default: 0)")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Searches; returns the best trial.

    Raises:
      ValueError: A flag, the config or the space is not as it must be, the folder is of
        another search, or no trial came to its end.
      OSError: A file cannot be read or written.
    """
    if args.trials < 1:
        raise ValueError(f"--trials is at least 1: received {args.trials}.")
    space = Space.read(args.space)
    config = config_lib.load(args.config, args.set)
    for override in space.each_alone():
        config_lib.load(args.config, [*args.set, override])
    try:
        import optuna
    except ImportError as error:
        raise ValueError("Needs pip install 'tfrec-attn[search]'.") from error
    _claim(args.out)
    # Of two that go on with it, one would take the other's trial for a stopped one.
    with claims.alone(args.out):
        _begin(args, config, space)
        _search(args, space)
    study = _study(args)
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        reasons = [trial.user_attrs.get("reason", "pruned") for trial in study.trials]
        raise ValueError(f"No trial came to its end; the first: {reasons[0]}")
    best = study.best_trial
    shutil.copyfile(
        trials.folder_of(args.out, best.number) / "config.toml", args.out / "best.toml"
    )
    return {
        "trials": len(study.trials),
        "best": best.number,
        config.train.monitor: best.value,
        "settings": best.params,
        "config": str(args.out / "best.toml"),
    }


def _search(args: argparse.Namespace, space: Space) -> None:
    """Trains the trials that are left."""
    study = _study(args)
    for _ in range(args.trials - _over(study)):
        trial = study.ask()
        _try(study, trial, args.out, space)
        trials.write(study, args.out)


def _try(study, trial, out: Path, space: Space) -> None:
    import optuna

    states = optuna.trial.TrialState
    try:
        value = trials.figure(trial, out, space)
    except optuna.TrialPruned as error:
        study.tell(trial, state=states.PRUNED)
        logger.info("trial %d: ended %s, %s", trial.number, error, trial.params)
    except (ValueError, FloatingPointError, MemoryError) as error:
        trial.set_user_attr("reason", str(error).splitlines()[0])
        study.tell(trial, state=states.FAIL)
        logger.warning("trial %d: failed, %s: %s", trial.number, trial.params, error)
    else:
        study.tell(trial, value)
        logger.info("trial %d: %.4f, %s", trial.number, value, trial.params)


def _claim(out: Path) -> None:
    """Makes the folder, or checks that it is one of a search."""
    begun = {MARK, "config.toml", "_lock"}
    foreign = lambda path: path.name not in begun and not path.name.startswith(PARTIAL)
    if out.exists() and (
        not out.is_dir()
        or (not (out / MARK).exists() and any(foreign(path) for path in out.iterdir()))
    ):
        raise ValueError(f"{out} holds something else: name another folder by --out.")
    out.mkdir(parents=True, exist_ok=True)


def _begin(args: argparse.Namespace, config: config_lib.Config, space: Space) -> None:
    """Writes what is searched, or checks that the folder is of the same search."""
    plain = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked = {
        **{f"config {name}": value for name, value in config_lib.flat(plain).items()},
        **{f"space {name}": value for name, value in space.values.items()},
        "--pruner": args.pruner,
        "--seed": args.seed,
    }
    mark = args.out / MARK
    if mark.exists():
        was = json.loads(mark.read_text("utf-8"))
        claims.require_same(was, asked, f"{args.out} holds another search", claims.AS_BEGUN)
    atomic.write(mark, json.dumps(asked, indent=2) + "\n")
    atomic.write(args.out / "config.toml", tomli_w.dumps(plain))


def _study(args: argparse.Namespace):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "asha": optuna.pruners.SuccessiveHalvingPruner(),
        "none": optuna.pruners.NopPruner(),
    }[args.pruner]
    storage = f"sqlite:///{args.out.resolve() / 'study.db'}"
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    # Its state is not kept: with one seed a resumed search would draw the same again.
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
    return study


def _over(study) -> int:
    """How many trials are over, failed ones with a reason too. Those that were stopped are
    put in line to be tried again."""
    from optuna.trial import TrialState

    all_of_them = study.get_trials()
    again = {trial.user_attrs.get("again") for trial in all_of_them}
    over = 0
    for trial in all_of_them:
        stopped = trial.state in (TrialState.RUNNING, TrialState.FAIL)
        if trial.state == TrialState.WAITING:
            continue
        if not stopped or "reason" in trial.user_attrs:
            over += 1
        elif trial.number not in again:
            logger.info("trial %d was stopped and is tried again", trial.number)
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
    return over


def main(argv: list[str] | None = None) -> int:
    """Prints the best trial as JSON; 2 with the reason where there is none."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        result = run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print((args.out / "trials.md").read_text("utf-8"), file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
