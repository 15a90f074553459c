"""`python -m tfrec_attn.export`: a trained run to `saved_models/<name>/<version>/`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Users whose answers are held against the model's before a version appears;
# benchmarks/parity.py takes all of them, through a server.
CHECKED = 64


def run(
    run_folder: Path,
    base: Path,
    *,
    version: int | None = None,
    items: Path | None = None,
    others: Sequence[Path] = (),
    backbone: Path | None = None,
) -> Path:
    """Exports, after the reloaded model has given the trained model's answers.

    Args:
      run_folder: That `train` wrote.
      base: The model's folder.
      version: The next free one by default.
      items: A table of items that the run has not seen, to be recommended too.
      others: Further runs, whose weights are averaged with its own.
      backbone: A BERT folder in place of the run's own, see `runs.load`.

    Raises:
      ValueError: When a run is not finished, the version exists, there is something
        wrong with `items`, `others` or `backbone`, or the answers differ.
    """
    from tfrec_attn import averages, evaluate, runs
    from tfrec_attn.serve import export, parity

    version = export.free_version(base, version)
    if others and backbone:
        raise ValueError(
            "Give --average or --backbone: averaged runs have BERTs of their own."
        )
    model, prepared = runs.load(run_folder, items, backbone)
    if others:
        train = prepared.config.train
        measure = lambda: evaluate.evaluate(
            model, prepared, "validation", most=train.validation_queries
        )[train.monitor].mean()
        averages.average(model, [run_folder, *others], measure)
    rows = np.unique(np.linspace(0, len(prepared.users) - 1, CHECKED).astype(int))
    want = parity.trained(model, prepared, rows=rows)
    graph = served(model, prepared)

    def check(reloaded):
        answer = reloaded.signatures["serving_default"](
            **export.request(graph, want.users, want.k)
        )
        valid = answer["valid"].numpy()
        pick = lambda name: [v[m] for v, m in zip(answer[name].numpy(), valid, strict=True)]
        items = [[item.decode() for item in ids] for ids in pick("item_id")]
        wrong = parity.compare(want, items, pick("score")).wrong
        if wrong:
            raise ValueError(
                f"The exported model does not answer as the trained one, so it is not "
                f"published: {len(wrong)} of {len(rows)} users differ; {wrong[0]}"
            )

    def keep(folder):
        # With another BERT it is no model that the run's settings describe.
        if backbone is None:
            runs.keep_for_later(model, run_folder, folder)

    return export.write(graph, base, version, check=check, keep=keep)


def served(model, prepared):
    """The graph to export: the model, its index and what is known of every user."""
    from tfrec_attn import backbones
    from tfrec_attn.model import bert
    from tfrec_attn.model.tokenizer import WordPiece
    from tfrec_attn.serve.index import Index
    from tfrec_attn.serve.served import Served, TextEncoder

    config = prepared.config
    encoder = None
    if "text" in prepared.item_features:
        folder = backbones.backbone(config.text.backbone)
        encoder = TextEncoder(
            WordPiece(folder),
            model.live.bert if model.live else bert.load(folder),
            config.text.max_length,
        )
    past = prepared.events(np.arange(len(prepared.tables.interactions)))
    return Served(
        Index(model, shortlist=config.index.shortlist, tokens=config.index.tokens),
        items=prepared.items,
        users=prepared.users,
        words=prepared.words,
        user_features={
            name: value
            for name, value in prepared.user_features.items()
            if name in model.users.tensors
        },
        history={
            "row_lengths": np.bincount(past.user, minlength=len(prepared.users)),
            "item": past.item,
            "feedback": past.feedback.astype(np.int32),
            "time": past.time,
        },
        length=config.examples.history,
        max_k=config.index.max_k,
        encoder=encoder,
    )


def main(argv=None) -> int:
    """Prints the folder of the new version; 2 if there is none."""
    parser = argparse.ArgumentParser(prog="tfrec_attn.export", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder that tfrec_attn.train wrote")
    add("--to", type=Path, required=True, help="model folder, e.g. saved_models/movielens")
    add("--version", type=int, help="the next free one by default")
    add("--items", type=Path, help="table of new items, to be recommended by what they are")
    add(
        "--average",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs that went on from the same weights, averaged with those of --run",
    )
    add(
        "--backbone",
        type=Path,
        help="BERT folder in place of the run's, as tfrec_attn.compress makes it",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # TensorFlow renames inner inputs that nobody sees, and says so at length.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        path = run(
            args.run,
            args.to,
            version=args.version,
            items=args.items,
            others=args.average,
            backbone=args.backbone,
        )
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.export: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
