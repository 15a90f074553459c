"""Training events a second with a frozen BERT, beside TFRS with BERT inside the tower.

    python benchmarks/frozen.py --config configs/movielens-100k.toml

- `tfrec_attn`: the retrieval of the config, which reads what BERT said once of each text;
  `with encoding`, the time of that is spread over one epoch.
- `TFRS`: the shape of its retrieval tutorial, an embedding of the user id, a tower of the
  item, `tfrs.tasks.Retrieval` and Adagrad. The item's tower is a `TFBertModel`, the mean of
  its states and a map to the same width. Each event of a batch has its text encoded, in
  batches of 64, padded to the longest text of the catalogue.

Both are fitted by Keras on the training fold, in turns, on the cores that there are.
"""

import argparse
import sys
import time

import numpy as np
import turns

STEPS = {"tfrec_attn": 60, "TFRS": 15}
BATCH = 64


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--config", required=True, help="TOML file, as for tfrec_attn.train")
    add("--set", action="append", default=[], metavar="section.field=value")
    add("--turns", type=int, default=5)
    args = parser.parse_args(argv)
    turns.tensorflow()
    from tfrec_attn import backbones
    from tfrec_attn.model import bert
    from tfrec_attn.run import pipeline
    from tfrec_attn.settings import config

    settings = config.load(args.config, args.set)
    prepared = pipeline.prepare(settings)
    folder = backbones.backbone(settings.text.backbone)
    begun = time.perf_counter()
    bert.encode(bert.load(folder), prepared.texts.ids)
    encoding = time.perf_counter() - begun

    rows = {"tfrec_attn": ours(prepared), "TFRS": tutorial(prepared, folder)}
    spent = turns.in_turns(rows, args.turns)
    events = len(prepared.training().targets)
    spent["tfrec_attn, with encoding"] = 1 / (1 / spent["tfrec_attn"] + encoding / events)
    turns.table(
        ("", "events/s [quartiles]", "× TFRS"),
        [
            (name, turns.spread(each, 0), turns.spread(each / spent["TFRS"], 1))
            for name, each in spent.items()
        ],
    )
    return 0


def ours(prepared):
    from tfrec_attn.data import batches
    from tfrec_attn.run import building
    from tfrec_attn.training import optimizers

    settings, examples = prepared.config.train, prepared.training()
    model = building.build(prepared)
    model.stage, steps = "retrieval", STEPS["tfrec_attn"]
    model.compile(optimizer=optimizers.make(settings, steps, None))
    stream = batches.training(examples, settings.batch_size, seed=0)
    share = len(examples.targets) / batches.steps(examples, settings.batch_size)
    return fitted(model, stream, steps, share)


def tutorial(prepared, folder):
    import tensorflow as tf
    import tensorflow_recommenders as tfrs
    import tf_keras

    from tfrec_attn.model import bert as bert_lib

    bert = bert_lib.load(folder).model
    texts, width = prepared.texts, prepared.config.model.dim

    class Tutorial(tfrs.Model):
        def __init__(self):
            super().__init__()
            self.user = tf_keras.layers.Embedding(len(prepared.users) + 1, width)
            self.bert, self.item = bert, tf_keras.layers.Dense(width)
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs, training=False):
            user, ids = inputs
            real = tf.cast(ids != texts.pad_id, tf.int32)
            states = self.bert(ids, attention_mask=real, training=False)[0]
            weight = tf.cast(real, tf.float32)[..., None]
            mean = tf.reduce_sum(states * weight, 1) / tf.reduce_sum(weight, 1)
            return self.task(self.user(user), self.item(mean))

    events = prepared.training().targets
    order = np.random.default_rng(0).permutation(len(events))
    pairs = events.user[order], events.item[order]
    data = tf.data.Dataset.from_tensor_slices(pairs).repeat().batch(BATCH)
    ids = tf.constant(texts.ids, tf.int32)
    data = data.map(lambda user, item: (user, tf.gather(ids, item))).prefetch(2)
    model = Tutorial()
    model.compile(optimizer=tf_keras.optimizers.Adagrad(0.1))
    return fitted(model, data, STEPS["TFRS"], BATCH)


def fitted(model, stream, steps: int, each: float):
    """Gives what fits some steps more and says how many events a second that was."""

    def call():
        begun = time.perf_counter()
        model.fit(stream, steps_per_epoch=steps, verbose=0)
        return steps * each / (time.perf_counter() - begun)

    return call


if __name__ == "__main__":
    sys.exit(main())
