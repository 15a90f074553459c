"""What a call says of the items it wants, as arrays."""

import numpy as np
import pytest

from tfrec_attn.serve.client.inputs import Users

BOTH, ONE = Users.of(["a", "b"]), Users.of("a")


def test_boosts_are_conditions_and_numbers():
    found = BOTH.boosts([{"kind=a": 2, "price<=3": -0.5}, None])
    assert found["boost"].tolist() == [[b"kind=a", b"price<=3"], [b"", b""]]
    assert found["boost_by"].tolist() == [[2, -0.5], [0, 0]]
    assert found["boost_by"].dtype == np.float32
    assert ONE.boosts({"kind=a": 1.5})["boost_by"].tolist() == [[1.5]]
    assert ONE.boosts(()) == BOTH.boosts([{}, {}]) == {}


def test_shares_are_from_0_to_1():
    assert BOTH.shares("diversity", 0.5)["diversity"].tolist() == [0.5, 0.5]
    assert BOTH.shares("diversity", [0.25, 0])["diversity"].tolist() == [0.25, 0]
    assert ONE.shares("diversity", 0.0) == {}
    with pytest.raises(ValueError, match=r"diversity must be from 0 to 1: received 1.5"):
        ONE.shares("diversity", 1.5)
    with pytest.raises(ValueError, match="one entry for each of them"):
        BOTH.boosts({"kind=a": 1})
