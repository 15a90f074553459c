"""How well the feedback head tells the labels of held-out events apart."""

from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics import classification_report, roc_auc_score

from tfrec_attn.data import examples
from tfrec_attn.evaluation import ranking
from tfrec_attn.labels import LABELS
from tfrec_attn.run.prepared import InMemory

LIKED = ("buy", "like")


def measure(model, prepared: InMemory, fold: str) -> dict[str, Any]:
    """Asks the head for the label of each event of a fold, of whatever label.

    Args:
      model: A trained `recommender.Recommender`.
      prepared: The run's data.
      fold: `validation` or `test`.

    Returns:
      `skipped`, the reason, where there is nothing to measure. Else `events`,
      `most_frequent` (the share of the label that is most frequent: the accuracy of a
      guess), `auc` (each label against the rest, their
      mean, and `LIKED` against the rest; only of labels that some events have and some
      have not) and `report`, scikit-learn's `classification_report`.
    """
    if not prepared.config.loss.feedback:
        return {"skipped": "loss.feedback = 0: the head is not trained."}
    label, probability = predict(model, prepared, fold)
    counts = np.bincount(label, minlength=len(LABELS))
    if np.count_nonzero(counts) < 2:
        return {"skipped": f"All events have the label {LABELS[counts.argmax()]!r}."}
    return {
        "events": len(label),
        "most_frequent": float(counts.max() / counts.sum()),
        "auc": auc(label, probability),
        "report": classification_report(
            label,
            probability.argmax(1),
            labels=range(len(LABELS)),
            target_names=LABELS,
            output_dict=True,
            zero_division=0,
        ),
    }


def auc(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve of `[N]` labels and `[N, labels]` probabilities."""
    found = {
        f"{name} against the rest": float(roc_auc_score(label == i, probability[:, i]))
        for i, name in enumerate(LABELS)
        if 0 < np.count_nonzero(label == i) < len(label)
    }
    found["mean of these"] = float(np.mean(list(found.values())))
    liked = np.isin(LABELS, LIKED)
    if 0 < liked[label].sum() < len(label):
        score = probability[:, liked].sum(1)
        found[f"{' or '.join(LIKED)} against the rest"] = float(
            roc_auc_score(liked[label], score)
        )
    return found


def predict(model, prepared: InMemory, fold: str) -> tuple[np.ndarray, np.ndarray]:
    """`[N]` labels of a fold's events and `[N, labels]` probabilities of the head."""
    past = prepared.events(prepared.split.known(fold))
    asked = prepared.events(getattr(prepared.split, fold))
    queries = examples.make(past, asked, length=prepared.config.examples.history)
    matrices = model.encode_items(prepared.config.index.tokens)
    found = []
    for index in ranking.chunks(len(queries), ranking.LARGEST_BATCH):
        user = ranking.users(model, matrices, queries, index)
        items = matrices.candidates(queries.targets.item[index])
        found.append(tf.nn.softmax(model.label(user, *items)).numpy())
    return asked.feedback.astype(int), np.concatenate(found)
