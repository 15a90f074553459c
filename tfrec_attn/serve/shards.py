"""One catalogue behind several servers, each of which recommends a part of it."""

import concurrent.futures
import numbers
from collections.abc import Sequence
from typing import Any

from tfrec_attn.serve.client import Client, Recommendations


class Shards:
    """The calls of a `Client` to the parts of a catalogue, `tfrec_attn.export --part n/N`.

    Each part ranks a shortlist of its own, and the scores of all are those of one model.

    Args:
      clients: One a part, all of versions of the same run.
    """

    def __init__(self, clients: Sequence[Client]):
        if not clients:
            raise ValueError("Shards needs a client for each part: received none.")
        self._clients = list(clients)
        self._pool = concurrent.futures.ThreadPoolExecutor(len(clients))

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the clients."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    def recommend(self, user_id: Any, **given: Any) -> Any:
        """The best items of all parts; see `Client.recommend`. Fails where a part fails.

        Raises:
          ValueError: When asked for diversity, which a part alone cannot see.
        """
        if given.get("diversity"):
            raise ValueError(
                "diversity is chosen within one list, and parts have lists of their own. "
                "Ask for more items, and choose among them."
            )
        ask = lambda client: client.recommend(user_id, **given)
        parts = list(self._pool.map(ask, self._clients))
        if isinstance(parts[0], Recommendations):
            return _merged(parts, given.get("k", 10))
        wanted = given.get("k", 10)
        limits = (
            [wanted] * len(parts[0]) if isinstance(wanted, numbers.Integral) else wanted
        )
        return [_merged(rows, k) for *rows, k in zip(*parts, limits, strict=True)]


def _merged(parts: Sequence[Recommendations], k: int) -> Recommendations:
    """The k best of several lists. What was known of the user is the same in all."""
    items = [item for part in parts for item in part.items]
    best = sorted(items, key=lambda item: -item.score)[:k]
    first = parts[0]
    return Recommendations(
        tuple(best), first.known_user, first.unknown_history, first.truncated_history
    )
