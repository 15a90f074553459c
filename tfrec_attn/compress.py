"""`python -m tfrec_attn.compress {distill,prune,quantize}`: a smaller text encoder, and
what that gains and loses."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrec_attn.settings import sections

NAME = "tfrec_attn.compress"
# Of the texts that a student learns on, so many are kept to see how near it is on others.
HELD_OUT = 0.1
# Speed is the median of some turns, in which each encoder reads so many texts.
TURNS, TIMED = 3, 2000

logger = logging.getLogger(NAME)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = argparse.ArgumentParser(prog=NAME, description=__doc__)
    methods = p.add_subparsers(dest="method", required=True)
    about = {
        "distill": "fewer blocks, which learn to say what all of them say",
        "prune": "fewer attention heads, those of the largest weights",
        "quantize": "int8 weights",
    }
    flags = {name: methods.add_parser(name, help=h) for name, h in about.items()}
    for add in (one.add_argument for one in flags.values()):
        add("--run", type=Path, help="run folder: its BERT, its items' texts, its model")
        add("--backbone", help="or a BERT alone, as text.backbone names it")
        add("--texts", type=Path, help="and a file of texts, one a line, it is measured on")
        add("--to", type=Path, required=True, help="the BERT folder to write")
    flags["prune"].add_argument("--heads", type=int, required=True, help="left in a block")
    add = flags["distill"].add_argument
    add("--layers", type=int, required=True, help="blocks of the student")
    add("--epochs", type=int, default=20, help="passes over the texts [20]")
    add("--batch-size", type=int, default=32, help="texts of a step [32]")
    add("--learning-rate", type=float, default=5e-4, help="peak of AdamW's schedule [5e-4]")
    add("--seed", type=int, default=0, help="of the order of texts [0]")
    return p


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compresses, writes the folder, and measures both encoders.

    Returns:
      What the command prints.

    Raises:
      ValueError: When the BERT cannot be compressed so, or the folder is taken.
    """
    from tfrec_attn import backbones
    from tfrec_attn.model import bert as bert_lib
    from tfrec_attn.model import texts
    from tfrec_attn.run import runs
    from tfrec_attn.training import fit

    if args.to.exists() and (not args.to.is_dir() or any(args.to.iterdir())):
        raise ValueError(f"--to names a new folder: {args.to} is there already.")
    sources = bool(args.run), bool(args.backbone), bool(args.texts)
    if sources not in ((True, False, False), (False, True, True)):
        raise ValueError("Give --run, or --backbone and --texts.")
    ranked = None
    if args.run:
        ranked, prepared = ranks(args.run)
        folder = runs.encoder(args.run)
        length = prepared.config.text.max_length
        # Items without a training event stay unseen by what is learned, too.
        corpus = prepared.items.texts[prepared.frequency > 0]
    else:
        folder, length = backbones.backbone(args.backbone), sections.Text().max_length
        corpus = args.texts.read_text("utf-8").splitlines()
    corpus = sorted({text for text in corpus if text.strip()})
    if len(corpus) < 2:
        raise ValueError(
            f"An encoder is measured on two different texts or more: got {len(corpus)}. "
            "Give others by --texts, or a run whose items have texts."
        )
    tokens = texts.tokenize(folder, corpus, length)
    fit.deterministic(0)
    original, begin = bert_lib.load(folder), time.perf_counter()
    made, shown = compressed(args, original, folder, tokens.ids)
    bert_lib.save(made, args.to, like=folder)
    seconds = time.perf_counter() - begin
    encoders = {"before": original, "after": bert_lib.load(args.to)}
    result: dict[str, Any] = {
        "method": args.method,
        "to": str(args.to),
        "seconds": round(seconds, 1),
        "texts": len(shown),
        "cosine": round(likeness(original, encoders["after"], tokens, shown), 4),
        **costs(encoders, tokens.ids),
    }
    if ranked is not None:
        after, _ = ranks(args.run, args.to)
        change = after - ranked
        result["before"]["ndcg@10"] = round(float(ranked.mean()), 4)
        result["after"]["ndcg@10"] = round(float(after.mean()), 4)
        error = change.std() / len(change) ** 0.5
        result["change"] = {
            "ndcg@10": round(float(change.mean()), 4),
            "standard_error": round(float(error), 4),
        }
    return result


def compressed(args: argparse.Namespace, original, folder: Path, ids: np.ndarray):
    """The smaller BERT, and the texts that it has not learned on, as rows of `ids`."""
    from tfrec_attn.model import bert as bert_lib
    from tfrec_attn.model import pruning, quantization

    if args.method == "distill":
        return distilled(args, original, ids)
    made = bert_lib.load(folder)
    if args.method == "prune":
        pruning.prune(made, args.heads)
    else:
        quantization.require_float(made, "quantization", "once is enough")
        quantization.quantize(made.model)
    return made, np.arange(len(ids))


def distilled(args: argparse.Namespace, teacher, ids: np.ndarray):
    """A student of the teacher, and the rows of texts that were kept from it."""
    from tfrec_attn.model import distillation
    from tfrec_attn.training import optimizers

    settings = sections.Train(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=0.0,
    )
    order = np.random.default_rng(args.seed).permutation(len(ids))
    kept, learned = np.split(order, [max(1, round(HELD_OUT * len(ids)))])
    student = distillation.student(teacher, args.layers)
    steps = args.epochs * -(-len(learned) // args.batch_size)

    def told(epoch: int, loss: float) -> None:
        logger.info("epoch %d of %d: loss %.4f", epoch, args.epochs, loss)

    distillation.learn(
        teacher,
        student,
        ids[learned],
        optimizer=optimizers.make(settings, steps, None),
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        after_epoch=told,
    )
    return student, kept


def ranks(folder: Path, backbone: Path | None = None):
    """NDCG@10 of each user of a run's validation fold, texts encoded by its own BERT or
    another, nothing trained anew; and the run's data."""
    from tfrec_attn import evaluate
    from tfrec_attn.run import runs

    model, prepared = runs.load(folder, backbone=backbone)
    most = prepared.config.train.validation_queries
    found = evaluate.evaluate(model, prepared, "validation", most=most)
    return found["ndcg@10"], prepared


def likeness(original, made, tokens, rows: np.ndarray) -> float:
    """Mean cosine of what two BERTs say of texts, by the mean of their pieces."""
    from tfrec_attn.model import bert as bert_lib
    from tfrec_attn.model import texts

    ids = tokens.ids[rows]
    some = tokens._replace(ids=ids, place=tokens.place[rows], words=tokens.words[rows])
    unit = []
    for encoder in (original, made):
        mean = texts.features(bert_lib.encode(encoder, ids), some)["text_mean"]
        unit.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
    return float((unit[0] * unit[1]).sum(1).mean())


def costs(encoders: Mapping[str, Any], ids: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each encoder: the MB of its weights as they are served, texts a second in bulk,
    and milliseconds for a single one. They take turns."""
    from tfrec_attn.model import bert as bert_lib

    ids = ids[np.random.default_rng(0).permutation(len(ids))[:TIMED]]
    real = lambda row: row[row != encoders["before"].pad_id]
    singles = [real(row)[None] for row in ids[:20]]
    bulk: dict[str, list[float]] = {name: [] for name in encoders}
    single: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(TURNS + 1):
        for name, bert in encoders.items():
            begin = time.perf_counter()
            bert_lib.encode(bert, ids)
            # The first turn makes the graph.
            if turn:
                bulk[name].append(len(ids) / (time.perf_counter() - begin))
            for one in singles:
                begin = time.perf_counter()
                bert.traced(one).numpy()
                if turn:
                    single[name].append(1e3 * (time.perf_counter() - begin))
    size = lambda bert: sum(v.dtype.size * v.shape.num_elements() for v in bert.variables)
    return {
        name: {
            "mb": round(size(bert) / 1e6, 1),
            "texts_per_second": round(float(np.median(bulk[name])), 1),
            "one_text_ms": round(float(np.median(single[name])), 2),
        }
        for name, bert in encoders.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the figures as one line of JSON; 2 with the reason where there are none."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        result = run(args)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
