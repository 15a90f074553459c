"""`python -m tfrec_attn.export`: a trained run to `saved_models/<name>/<version>/`."""

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np


def run(run_folder: Path, base: Path, *, version: int | None = None) -> Path:
    """Exports, after the reloaded model has given the trained model's answers.

    Raises:
      ValueError: When the run is not finished, the version exists, or the answers differ.
    """

    from tfrec_attn import assets, runs
    from tfrec_attn.model import bert
    from tfrec_attn.model.tokenizer import WordPiece
    from tfrec_attn.serve import export

    model, prepared = runs.load(run_folder)
    config = prepared.config
    encoder = None
    if "text" in prepared.item_features:
        folder = assets.backbone(config.text.backbone)
        encoder = export.TextEncoder(WordPiece(folder), bert.load(folder))
    past = prepared.events(np.arange(len(prepared.tables.interactions)))
    features = {
        name: value
        for name, value in prepared.user_features.items()
        if name in model.users.tensors
    }
    served = export.Served(
        export.Index(model, shortlist=config.index.shortlist),
        items=prepared.items,
        users=prepared.users,
        user_features=features,
        history={
            "row_lengths": np.bincount(past.user, minlength=len(prepared.users)),
            "item": past.item,
            "feedback": past.feedback.astype(np.int32),
            "time": past.time,
        },
        length=config.examples.history,
        max_length=config.text.max_length,
        encoder=encoder,
    )
    users = prepared.users.ids[:64]
    asked = export.request(served, users)
    trained = served.recommend(**asked)

    def check(reloaded):
        answer = reloaded.signatures["serving_default"](**asked)
        for name, value in trained.items():
            same = (
                np.allclose(value, answer[name], atol=1e-5)
                if value.dtype.is_floating
                else (np.array_equal(value, answer[name]))
            )
            if not same:
                raise ValueError(
                    f"The reloaded model's {name} differs from the trained model's."
                )

    return export.write(served, base, version=version, check=check)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="tfrec_attn.export", description=__doc__)
    parser.add_argument("--run", required=True, help="folder that tfrec_attn.train wrote")
    parser.add_argument(
        "--to", required=True, help="model folder, e.g. saved_models/movielens"
    )
    parser.add_argument("--version", type=int, help="the next free one by default")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        path = run(Path(args.run), Path(args.to), version=args.version)
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.export: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
