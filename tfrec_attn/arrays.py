"""Arrays of rows that differ in their other lengths."""

import numpy as np


def stacked(first: np.ndarray, second: np.ndarray, fill=0) -> np.ndarray:
    """`[N, ..]` over `[M, ..]` with as many further axes, `fill` where one is shorter."""
    shape = np.max([first.shape[1:], second.shape[1:]], 0).astype(int)
    both = np.full((len(first) + len(second), *shape), fill, np.result_type(first, second))
    for rows, part in ((slice(len(first)), first), (slice(len(first), None), second)):
        both[(rows, *map(slice, part.shape[1:]))] = part
    return both
