"""One model of several runs: the mean of their weights."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tfrec_attn.run import runs
from tfrec_attn.settings import config as config_lib

logger = logging.getLogger(__name__)

# By which runs may differ: what they learned by, not what they are.
FREE = {"train", "loss", "regularization"}


def average(model, folders: Sequence[Path], measure: Callable[[], float]) -> None:
    """Gives a model the mean of the weights that several runs kept, and logs what each of
    them and the mean are worth. It is worth more where the runs went on from the same
    weights, and nothing where each began with its own.

    Args:
      model: Of the first run.
      folders: Of all runs.
      measure: Gives the figure of the model as it stands.

    Raises:
      ValueError: When a run is not finished, or is no other training of the same model.

    References:
      - The uniform soup of Wortsman et al., 2022, arXiv:2203.05482, section 2.
    """
    for folder in folders:
        _require_alike(folders[0], folder)
    kept = []
    for folder in folders:
        runs.restore(model, folder)
        logger.info("%s: %.4f", folder, measure())
        kept.append([variable.numpy() for variable in _variables(model)])
    for variable, values in zip(_variables(model), zip(*kept, strict=True), strict=True):
        variable.assign(np.mean(values, 0))
    model.refresh()
    logger.info("the mean of their weights: %.4f", measure())


def _variables(model):
    """What `runs.restore` reads."""
    found = []
    for part in model.learned.values():
        found += part if isinstance(part, list) else getattr(part, "variables", [part])
    return found


def _require_alike(one: Path, other: Path) -> None:
    if not (other / "checkpoints" / "best.index").exists():
        raise ValueError(f"{other} holds no trained model to be averaged.")
    ours, theirs = (
        config_lib.load(folder / "config.toml").model_dump(mode="json", exclude=FREE)
        for folder in (one, other)
    )
    differ = [section for section in ours if ours[section] != theirs[section]]
    columns = [(folder / "columns.json").read_text("utf-8") for folder in (one, other)]
    if json.loads(columns[0]) != json.loads(columns[1]):
        differ.append("tables")
    if differ:
        raise ValueError(
            f"The weights of {other} are no other training of the model of {one}, so they "
            f"have no mean: [{'], ['.join(differ)}] differ. Average runs that differ in "
            f"[{'], ['.join(sorted(FREE))}] alone."
        )
