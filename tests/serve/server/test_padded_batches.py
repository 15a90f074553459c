"""What docs/production.md asks of requests before TF Serving may batch them.

TF Serving fills a narrower tensor of a batch up with its own first element
(batching/batching_util.cc, `PadTensor`). With an empty entry in front of every list that
element says "nothing"; without it, ids are repeated into the request.
"""

import numpy as np
import pytest

from tfrec_attn.serve.client import Client

# Lists of three requests, of different widths: history, left out, chosen among.
LISTS = [
    (["i3", "i8", "i4"], ["i1"], []),
    (["i5"], [], ["i0", "i2", "i9", "i11", "i12"]),
    ([], ["i6", "i7"], []),
]


def request(user, history, exclude, candidates, front):
    """The inputs of one user's `serving_default`, `front` before every list."""
    texts = lambda values: np.array([front + values or [""]], object)
    return {
        "user_id": np.array([user], object),
        "history": texts(history),
        "history_feedback": texts(["buy"] * len(history)),
        "history_time": np.array([[0] * len(front) + [7] * len(history) or [0]], np.int64),
        "time": np.array([0], np.int64),
        "k": np.array([4], np.int32),
        "exclude": texts(exclude),
        "candidates": texts(candidates),
        "user_age": np.array([""], object),
        "user_town": np.array([""], object),
    }


def merged(requests):
    """The batch that TF Serving makes of requests where it pads."""
    batch = {}
    for name in requests[0]:
        arrays = [one[name] for one in requests]
        widest = np.max([array.shape for array in arrays], axis=0)[1:]
        filled = [
            np.pad(
                array,
                [(0, 0), *((0, n) for n in widest - array.shape[1:])],
                constant_values=array.flat[0],
            )
            for array in arrays
        ]
        batch[name] = np.concatenate(filled)
    return batch


@pytest.fixture(scope="module")
def answer(shop_live):
    """Item ids and scores by row."""
    with Client(f"127.0.0.1:{shop_live[2].grpc_port}", "shop") as client:

        def ask(given):
            out = client.predict("serving_default", given)
            return list(zip(out["item_id"].tolist(), out["score"].tolist(), strict=True))

        yield ask


def asked(front):
    users = ("u2", "nobody", "u5")
    return [request(user, *lists, front) for user, lists in zip(users, LISTS, strict=True)]


def alone(answer, front=()):
    return [answer(one)[0] for one in asked(list(front))]


def test_an_empty_entry_in_front_changes_nothing(answer):
    assert alone(answer, [""]) == alone(answer)


def test_with_it_a_padded_batch_answers_as_each_request_alone(answer):
    together, each = answer(merged(asked([""]))), alone(answer)
    assert [ids for ids, _ in together] == [ids for ids, _ in each]
    for (_, got), (_, want) in zip(together, each, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_without_it_a_history_is_repeated(answer):
    """The second request's ["i5"] becomes ["i5", "i5", "i5"]: other scores."""
    together, each = answer(merged(asked([])))[1], alone(answer)[1]
    assert np.abs(np.subtract(together[1], each[1])).max() > 1e-3
