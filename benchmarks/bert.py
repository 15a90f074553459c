r"""How fast texts are encoded and BERT is trained, beside sentence-transformers and PEFT.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python benchmarks/bert.py --config configs/movielens-100k.toml \
        --peer .venv-peers/bin/python

The texts are those of a config's items, the weights those of its backbone, both sides have
two cores and take turns; ratios are taken within a turn. Without `--peer` its rows are
missing.

- `encode`: all texts, from strings to the mean of their pieces. Ours also makes the mean of
  each word; the peer's batches have so many texts.
- `train`: 20 steps of 32 pairs of texts, in-batch softmax over cosines times 20, dropout, a
  norm of the gradients of at most 1, AdamW: of all weights, and of LoRA of rank 8 on
  queries and values. The peer's trainer draws the same pairs in another order.

With a peer, the exit code is 1 where embeddings, or the losses of the first batch without
dropout, differ by more than 1e-4.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import turns

STEPS, PAIRS, RANK, SCALE, RATE = 20, 32, 8, 20.0, 2e-5
BATCHES = (32, 128, 512)
TOLERANCE = 1e-4
TUNINGS = ("all", "lora")


def corpus(arguments) -> dict:
    """The texts of a config's items, their backbone and its longest text."""
    from tfrec_attn import backbones
    from tfrec_attn.data import catalog
    from tfrec_attn.run import pipeline
    from tfrec_attn.settings import config

    flags = {"data.items": arguments.items, "data.interactions": arguments.interactions}
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value]
    settings, tables = pipeline.read(config.load(arguments.config, given + arguments.set))
    texts = catalog.make(tables.items, settings.schema_.items.columns or {}, None).texts
    folder = backbones.backbone(settings.text.backbone)
    return {
        "folder": str(folder),
        "texts": list(texts),
        "max_length": settings.text.max_length,
    }


def batches(texts: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The pairs of each step: the same for both sides."""
    order = np.random.default_rng(0).permutation(len(texts))
    for step in range(STEPS):
        rows = np.take(order, np.arange(2 * PAIRS) + 2 * PAIRS * step, mode="wrap")
        chosen = [texts[row] for row in rows]
        yield chosen[::2], chosen[1::2]


def ours(given: dict) -> dict[str, Callable]:
    tf = turns.tensorflow()
    from tfrec_attn.model import bert as bert_lib
    from tfrec_attn.model import texts, tuning
    from tfrec_attn.model.towers import masked_mean
    from tfrec_attn.training import optimizers

    folder, length = Path(given["folder"]), given["max_length"]
    frozen = bert_lib.load(folder)

    def encode(count=None):
        tokens = texts.tokenize(folder, given["texts"][:count], length)
        return texts.features(bert_lib.encode(frozen, tokens.ids), tokens)["text_mean"]

    def loss(bert, ids, training):
        hidden = bert(ids, training=training)
        unit = tf.math.l2_normalize(masked_mean(hidden, ids != bert.pad_id), -1)
        cosine = tf.matmul(unit[:PAIRS], unit[PAIRS:], transpose_b=True)
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(PAIRS), SCALE * cosine)
        )

    steps = [texts.tokenize(folder, a + b, length).ids for a, b in batches(given["texts"])]

    def trainer(method):
        bert = bert_lib.load(folder)
        tuning.tune(bert, method, size=RANK)
        weights = bert.trainable_weights
        optimizer = optimizers.AdamW(RATE, global_clipnorm=1.0, weight_decay=0.0)
        optimizer.build(weights)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
        def step(ids):
            with tf.GradientTape() as tape:
                found = loss(bert, ids, True)
            optimizer.apply_gradients(
                zip(tape.gradient(found, weights), weights, strict=True)
            )

        def train():
            begun = time.perf_counter()
            for ids in steps:
                step(ids)
            return (time.perf_counter() - begun) * 1e3

        return train

    return {
        "encode": encode,
        "loss": lambda: loss(frozen, tf.constant(steps[0]), False),
        **{f"train {method}": trainer(method) for method in TUNINGS},
    }


def theirs(given: dict) -> dict[str, Callable]:
    turns.torch()
    import datasets
    import peft
    import sentence_transformers as st
    import transformers

    transformers.utils.logging.set_verbosity_error()
    texts = given["texts"]

    def load():
        model = st.SentenceTransformer(given["folder"], device="cpu")
        model.max_seq_length = given["max_length"]
        return model

    frozen = load().eval()
    pairs = [
        {"anchor": a, "positive": p}
        for step in batches(texts)
        for a, p in zip(*step, strict=True)
    ]

    def trainer(method):
        model = load()
        if method == "lora":
            maps = ["query", "value"]
            model.add_adapter(
                peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=maps)
            )
        arguments = st.SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=PAIRS,
            max_steps=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )

        def train():
            made = st.SentenceTransformerTrainer(
                model,
                arguments,
                train_dataset=datasets.Dataset.from_list(pairs),
                loss=st.losses.MultipleNegativesRankingLoss(model, scale=SCALE),
            )
            return made.train().metrics["train_runtime"] * 1e3

        return train

    def loss():
        """By its own class, without dropout."""
        first = next(batches(texts))
        given = [frozen.tokenize(side) for side in first]
        return st.losses.MultipleNegativesRankingLoss(frozen, scale=SCALE)(
            given, None
        ).item()

    encode = lambda size=32, count=None: frozen.encode(texts[:count], batch_size=size)
    return {
        "encode": lambda count: encode(count=count),
        "loss": loss,
        **{f"encode {size}": functools.partial(encode, size) for size in BATCHES},
        **{f"train {method}": trainer(method) for method in TUNINGS},
    }


SIDES = {"ours": ours, "theirs": theirs}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--config", help="TOML file, as for tfrec_attn.train")
    add("--items", help="items table")
    add("--interactions", help="interactions table")
    add("--set", action="append", default=[], metavar="section.field=value")
    add("--peer", help="Python of the environment with sentence-transformers and PEFT")
    add("--turns", type=int, default=5)
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--corpus", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        given = json.loads(Path(args.corpus).read_text())
        turns.answer(lambda: SIDES[args.side](given))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        given, place = corpus(args), Path(folder) / "corpus.json"
        place.write_text(json.dumps(given))
        start = lambda python, side: turns.start(
            python, "--side", side, "--corpus", str(place)
        )
        us = start(sys.executable, "ours")
        # A side has read its texts when it has answered.
        found = {"ours": (us("encode", 64), us("loss"))}
        if args.peer:
            them = start(args.peer, "theirs")
            found["theirs"] = them("encode", 64), them("loss")
    count, trained = len(given["texts"]), 2 * PAIRS * STEPS
    rows = {("encode", "ours"): lambda: us("time", "encode", 1, 0)}
    rows |= {(f"train {t}", "ours"): lambda t=t: us(f"train {t}") for t in TUNINGS}
    if args.peer:
        rows |= {
            ("encode", f"sentence-transformers, {size} a batch"): (
                lambda size=size: them("time", f"encode {size}", 1, 0)
            )
            for size in BATCHES
        }
        names = dict(zip(TUNINGS, ("sentence-transformers", "PEFT"), strict=True))
        rows |= {(f"train {t}", names[t]): lambda t=t: them(f"train {t}") for t in TUNINGS}
    spent = turns.in_turns(
        dict(sorted(rows.items(), key=lambda row: row[0][0])), args.turns
    )
    per_second = {
        row: (count if row[0] == "encode" else trained) / ms * 1e3
        for row, ms in spent.items()
    }
    print(f"{count} texts.\n")
    turns.table(
        ("", "by", "texts/s [quartiles]", "ours × it"),
        [
            (*row, turns.spread(each, 0), turns.spread(per_second[row[0], "ours"] / each))
            for row, each in per_second.items()
        ],
    )
    if not args.peer:
        return 0
    apart = [np.abs(np.subtract(a, b)).max() for a, b in zip(*found.values(), strict=True)]
    print(f"Embeddings differ by {apart[0]:.1e} at most, losses by {apart[1]:.1e}.")
    return 0 if max(apart) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
