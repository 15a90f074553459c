"""Going on from a trained model with today's tables: its settings, and how it grows."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfrec_attn.run.knowledge import EVENTS, ROWS, Past
from tfrec_attn.settings import config as config_lib
from tfrec_attn.training import checkpoints

logger = logging.getLogger(__name__)

# Of a run that went on: the weights it began with, and which of them are not of its own.
START, KNOWN = "start", "start-known"
# In a version folder, where a server does not look.
KEPT = Path("assets.extra") / "run"
# What a model is, which cannot change while its weights are kept.
SHAPE = ("model.", "scorer.", "text.", "schema.", "bert.tuning", "bert.size", "examples.h")


def base(path: Path) -> Path:
    """The folder of what `--from` names: a run, or a version that was exported.

    Raises:
      ValueError: When it is neither, or not whole.
    """
    # A run has its metrics last of all.
    whole = ["metrics.json", "checkpoints/best.index", ROWS, EVENTS]
    if (path / "saved_model.pb").exists():
        path = path / KEPT
        whole.remove("metrics.json")
    kept = path / "config.toml"
    prepared = kept.exists() and config_lib.load(kept).data.prepared
    if prepared:
        whole.remove(EVENTS)
    if missing := [name for name in whole if not (path / name).exists()]:
        raise ValueError(
            "--from names the folder of a finished run, or of a version that export wrote: "
            f"{path} lacks {missing[0]}. Train it to its end, with this version of the "
            "package."
        )
    if prepared and Past.of(path, grows=True).until is None:
        raise ValueError(
            f"{path} was trained on a prepared folder without a time column: which events "
            "it had is not known. Prepare and train anew."
        )
    return path


def settings(path: Path, overrides: Iterable[str]) -> config_lib.Config:
    """Of what `--from` names, changed by a command line."""
    kept = base(path) / "config.toml"
    data = config_lib.load(kept).data
    # Tables by name are the same every day; what was prepared was of its day, and how its
    # shards were divided is said anew.
    anew = data.source or data.prepared
    if data.prepared:
        overrides = ["train.own_shards=false", *overrides]
    return config_lib.load(kept, overrides, without=["data"] if anew else [])


def require_same_shape(run: Path, config: config_lib.Config) -> None:
    """Checks that the settings of a run that goes on leave the model what it was.

    Raises:
      ValueError: Names the first setting that does not.
    """
    was, now = (
        config_lib.flat(one.model_dump(mode="json", by_alias=True))
        for one in (config_lib.load(run / "config.toml"), config)
    )
    if was["bert.tuning"] == "frozen":
        # What is tuned from now on begins as it would anywhere.
        was |= {name: now[name] for name in ("bert.tuning", "bert.size")}
    for name in sorted(was.keys() | now.keys()):
        if name.startswith(SHAPE) and was.get(name) != now.get(name):
            raise ValueError(
                f"{name} was {was.get(name)!r} in {run} and is {now.get(name)!r}: a model "
                "that goes on stays what it is. Leave the setting out, or train anew."
            )
    if now["split.name"].startswith("cold"):
        raise ValueError(
            f"split.name={now['split.name']!r} holds out what training has not seen, and a "
            "model that goes on has seen it. Take global-time, leave-last-out or random."
        )


def grow(model, run: Path, out: Path) -> None:
    """Writes the weights that a model begins with: those of a run, and behind its rows of
    items, users and categories, as where it has no weights, the model's own.

    Args:
      model: Of the tables of today, as its seed makes it.
      run: The one to go on from.
      out: The new run's folder.

    Raises:
      ValueError: When a weight of the run has no place in the model.
    """
    kept, place = checkpoints.weights(model), out / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = tf.train.load_checkpoint(kept.write(f"{folder}/fresh"))
        old = tf.train.load_checkpoint(str(run / "checkpoints" / "best"))
        shapes = old.get_variable_to_shape_map()
        values, known = {}, {}
        for name in fresh.get_variable_to_shape_map():
            values[name] = fresh.get_tensor(name)
            if not name.endswith("VARIABLE_VALUE"):
                known[name] = values[name]
                continue
            mine, its = list(np.shape(values[name])), shapes.get(name, [0])
            known[name] = np.zeros_like(values[name])
            if name not in shapes:
                continue
            if mine[1:] != its[1:] or mine[:1] < its[:1]:
                raise ValueError(
                    f"{run}: {name} is {its}, and the model has room for {mine}."
                )
            rows = slice(its[0]) if its else ...
            values[name] = np.array(values[name])
            values[name][rows] = old.get_tensor(name)
            known[name][rows] = 1
        # What is looked for comes last.
        for name, tensors in ((KNOWN, known), (START, values)):
            with checkpoints.named(place / name):
                tf.raw_ops.SaveV2(
                    prefix=str(place / name),
                    tensor_names=list(tensors),
                    shape_and_slices=[""] * len(tensors),
                    tensors=list(tensors.values()),
                )


def grown(out: Path) -> bool:
    """Whether a run has the weights that it begins with."""
    return (out / "checkpoints" / f"{START}.index").exists()


def keep_better(model, out: Path, before: float, trained: float) -> float:
    """Makes the weights that a run began with those that are kept of it, where they were
    better.

    Args:
      model: As it was trained.
      out: The run's folder.
      before, trained: The validation metric of both.

    Returns:
      The better one.
    """
    if before > trained:
        kept, place = checkpoints.weights(model), out / "checkpoints"
        checkpoints.read(kept, place / START).assert_consumed()
        model.refresh()
        checkpoints.copy(place / START, place / "best")
        logger.warning(
            "The model that this training went on from is better on the validation fold, "
            "%.4f to %.4f: its weights are kept.",
            before,
            trained,
        )
    return max(before, trained)


class Origin:
    """The weights that a training went on from. No list, in which Keras would find the
    variables once more.

    Args:
      variables: What trains.
      starts: Their values at first.
      known: 1 where a weight was there before, 0 where it is new, of the same shapes.
    """

    def __init__(self, variables, starts, known):
        # Tensors: of arrays a graph would hold copies, and a graph holds 2 GB at most.
        self._of = {
            variable.ref(): (tf.constant(start), tf.constant(there))
            for variable, start, there in zip(variables, starts, known, strict=True)
        }

    def way(self, variable):
        """From where a variable was to where it is; 0 of what is new."""
        start, known = self._of[variable.ref()]
        return (variable - start) * known

    def distance(self):
        """Squared, over all variables."""
        ways = (self.way(reference.deref()) for reference in self._of)
        return tf.add_n([tf.reduce_sum(tf.square(way)) for way in ways])

    def pulled(self, variables, gradients, factor: float):
        """Gradients of a loss, to which `factor` times the squared distance is added, of
        the variables that have one: what a stage leaves as it is has none.

        References:
          - L2-SP: Li et al., 2018, arXiv:1802.01483, equation 2; new weights are free.
        """
        return [
            g if g is None else tf.convert_to_tensor(g) + 2 * factor * self.way(v)
            for v, g in zip(variables, gradients, strict=True)
        ]


def begin(model, out: Path) -> None:
    """Gives a model the weights that its run began with.

    Raises:
      ValueError: When the run was stopped before it had them.
    """
    if not grown(out):
        raise ValueError(
            f"{out} was stopped before it had begun: say --from and the tables once more, "
            "and --resume."
        )
    kept = checkpoints.weights(model)
    place = out / "checkpoints"
    read = lambda name: checkpoints.read(kept, place / name).assert_consumed()
    variables = model.trainable_variables
    read(KNOWN)
    known = [variable.numpy() for variable in variables]
    read(START)
    model.refresh()
    model.origin = Origin(variables, [variable.numpy() for variable in variables], known)
