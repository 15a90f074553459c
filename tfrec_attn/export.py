"""`python -m tfrec_attn.export`: a trained run to `saved_models/<name>/<version>/`."""

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Users whose answers are held against the model's before a version appears;
# benchmarks/parity.py takes all of them, through a server.
CHECKED = 64


# Users whose queries tell how many lists of a clustered index are to be searched.
ASKED = 1000


def run(
    run_folder: Path,
    base: Path,
    *,
    version: int | None = None,
    items: Path | None = None,
    others: Sequence[Path] = (),
    backbone: Path | None = None,
    sets: Sequence[str] = (),
    attributes: Sequence[Path] = (),
    remove: Path | None = None,
    part: tuple[int, int] | None = None,
    signatures: Sequence[str] = (),
    vectors: Path | None = None,
) -> Path:
    """Exports, after the reloaded model has given the trained model's answers.

    Args:
      run_folder: That `train` wrote.
      base: The model's folder.
      version: The next free one by default.
      items: A table of items that the run has not seen, to be recommended too.
      others: Further runs, whose weights are averaged with its own.
      backbone: A BERT folder in place of the run's own, see `runs.load`.
      sets: Settings of `[index]` in place of the run's, `index.field=value`.
      attributes: Tables of the columns of `index.filters`; see `offers.attributes`.
      remove: A file of the ids of items that are not recommended any more.
      part: `(n, N)`: only the n-th of N parts of the items is recommended.
      signatures: Which of them; all by default.
      vectors: A Parquet file to be written, of the ids and the pooled vectors of the items
        that are recommended.

    Raises:
      ValueError: When a run is not finished, the version exists, there is something wrong
        with what is given, the answers differ, or TF Serving could not run the graph.
    """
    import tensorflow as tf

    from tfrec_attn import card, evaluate, offers
    from tfrec_attn.run import averages, runs
    from tfrec_attn.serve import export, lint, parity
    from tfrec_attn.settings import config as config_lib

    version = export.free_version(base, version)
    if others and backbone:
        raise ValueError(
            "Give --average or --backbone: averaged runs have BERTs of their own."
        )
    model, prepared = runs.load(run_folder, items, backbone)
    config = config_lib.changed(prepared.config, sets, "index")
    prepared = dataclasses.replace(prepared, config=config)
    told = offers.attributes(prepared, [*attributes])
    offered = offers.offered(prepared, remove, part)
    if others:
        train = prepared.config.train
        measure = lambda: evaluate.evaluate(
            model, prepared, "validation", most=train.validation_queries
        )[train.monitor].mean()
        averages.average(model, [run_folder, *others], measure)
    want = parity.trained(model, prepared, rows=_users(prepared, CHECKED), offered=offered)
    graph = served(model, prepared, attributes=told, offered=offered)

    def check(reloaded):
        request = export.request(graph, want.users, want.k)
        if config.index.clusters:
            # Lists may lack an answer, and are all searched for what is named.
            request["candidates"] = tf.ragged.constant(want.items).to_tensor("")
        answer = reloaded.signatures[export.DEFAULT](**request)
        valid = answer["valid"].numpy()
        pick = lambda name: [v[m] for v, m in zip(answer[name].numpy(), valid, strict=True)]
        found = [[item.decode() for item in ids] for ids in pick("item_id")]
        wrong = parity.compare(want, found, pick("score")).wrong
        if wrong:
            raise ValueError(
                f"The exported model does not answer as the trained one, so it is not "
                f"published: {len(wrong)} of {len(want.users)} users differ; {wrong[0]}"
            )

    def keep(folder, reloaded):
        faults = lint.lint(folder, loaded=reloaded)
        if faults:
            raise ValueError(
                "TF Serving could not run the exported model, so it is not published: "
                + "; ".join(faults)
            )
        named = f"{base.resolve().name}, version {version}"
        text = card.text(named, prepared, run_folder, int(offered.sum()))
        (folder / card.FILE).write_text(text + "\n", "utf-8")
        # With another BERT it is no model that the run's settings describe.
        if backbone is None:
            runs.keep_for_later(model, run_folder, folder)

    made = export.write(graph, base, version, only=signatures, check=check, keep=keep)
    if vectors:
        offers.write_vectors(vectors, prepared, graph.index.first, offered)
    return made


def _users(prepared, most: int) -> np.ndarray:
    """Rows of some users, spread over all."""
    return np.unique(np.linspace(0, len(prepared.users) - 1, most).astype(int))


def _part(text: str) -> tuple[int, int]:
    """`2/4` as (2, 4), for argparse."""
    number, slash, of = text.partition("/")
    right = slash and number.isdecimal() and of.isdecimal()
    if not right or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"n/N, with n from 1 to N: received {text!r}")
    return int(number), int(of)


def served(model, prepared, *, attributes=None, offered=None):
    """The graph to export: the model, its index and what is known of every user.

    Args:
      model, prepared: From `runs.load`.
      attributes: Catalog of the columns that requests choose by.
      offered: `[I]` bool, what may be recommended; all by default.
    """
    from tfrec_attn import backbones
    from tfrec_attn.model import bert
    from tfrec_attn.model.tokenizer import WordPiece
    from tfrec_attn.serve import parity
    from tfrec_attn.serve.graph import nearest
    from tfrec_attn.serve.graph.index import Index
    from tfrec_attn.serve.graph.served import Served, TextEncoder

    config = prepared.config
    encoder = None
    if "text" in prepared.item_features:
        folder = backbones.backbone(config.text.backbone)
        encoder = TextEncoder(
            WordPiece(folder),
            model.live.bert if model.live else bert.load(folder),
            config.text.max_length,
        )
    first = nearest.Exact
    if config.index.clusters:
        first = functools.partial(
            nearest.clustered,
            count=config.index.clusters,
            recall=config.index.recall,
            queries=parity.queries(model, prepared, _users(prepared, ASKED)),
            size=min(config.index.shortlist or config.index.max_k, len(prepared.items)),
        )
    past = prepared.events(np.arange(len(prepared.tables.interactions)))
    return Served(
        Index(
            model, shortlist=config.index.shortlist, tokens=config.index.tokens, first=first
        ),
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
        attributes=attributes,
        offered=offered,
        diverse=config.index.diversity,
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
    add(
        "--set",
        action="append",
        default=[],
        metavar="index.FIELD=VALUE",
        help="setting of [index] in place of the run's; may be repeated",
    )
    add(
        "--attributes",
        type=Path,
        nargs="+",
        default=[],
        metavar="TABLE",
        help="items tables with the columns of index.filters, the run's by default; of an "
        "item that several tell of, the last one is right",
    )
    add(
        "--remove", type=Path, help="file of item ids, one a line: not recommended any more"
    )
    add(
        "--part",
        type=_part,
        metavar="n/N",
        help="recommend the n-th of N parts of the items, for a catalogue behind N servers",
    )
    add("--vectors", type=Path, help="Parquet file to write, of ids and pooled vectors")
    add(
        "--signatures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="those that are exported, all by default; serving_default always is",
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
            sets=args.set,
            attributes=args.attributes,
            remove=args.remove,
            part=args.part,
            vectors=args.vectors,
            signatures=args.signatures,
        )
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.export: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
