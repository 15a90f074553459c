"""Whether answers come in pairs of equal ones: the comparison of smoke.sh.

The file holds what `tfrec_attn.ask --json` printed, one answer after the other; the first
is compared with the second, the third with the fourth. Scores of other processors and
kernels differ in the last digits, so items of nearly equal scores may change places.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4


def main(path: str) -> int:
    """Prints what differs, and how far scores are apart; 1 if an answer is another one."""
    answers = list(read(Path(path).read_text("utf-8")))
    pairs = list(zip(answers[::2], answers[1::2], strict=True))
    differences = [difference(*pair) for pair in pairs]
    wrong = [pair for pair, off in zip(pairs, differences, strict=True) if off > TOLERANCE]
    for first, second in wrong:
        print(f"{first}\n  is not\n{second}")
    print(
        f"{len(pairs) - len(wrong)} of {len(pairs)} answers are the same; "
        f"scores differ by {max(differences):.1e} at most."
    )
    return int(bool(wrong))


def read(text: str) -> Iterator[dict[str, Any]]:
    """The JSON values of a text, one after the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip()


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference between two scores of an item; infinite where one is no
    number, for other items, or where anything else of the answers differs."""
    (text, score), (other_text, other_score) = parts(first), parts(second)
    if text != other_text:
        return math.inf
    apart = [abs(score[item] - other_score[item]) for item in score]
    if any(map(math.isnan, apart)):
        return math.inf
    return max(apart, default=0.0)


def parts(answer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """An answer without its scores, and the scores by item."""
    items = answer["items"]
    texts = {item["id"]: item["text"] for item in items}
    return answer | {"items": texts}, {item["id"]: item["score"] for item in items}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
