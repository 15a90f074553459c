"""Toy models on disk and live servers over them, once a session."""

import pytest
import shop
import toys


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A model folder with version 1 of the toy."""
    base = tmp_path_factory.mktemp("models") / "toy"
    toys.save_toy(base / "1")
    return base


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """A model folder with version 1 of the toy that reads examples."""
    base = tmp_path_factory.mktemp("models") / "heads"
    toys.save_heads(base / "1")
    return base


@pytest.fixture(scope="session")
def toy_live(toy):
    """A running server over the toy."""
    with toys.live(toy, "toy") as (running, _):
        yield running


@pytest.fixture(scope="session")
def recommender_live(tmp_path_factory):
    """A running server over the fake recommender."""
    base = tmp_path_factory.mktemp("models") / "movielens"
    toys.save_recommender(base / "1")
    with toys.live(base, "movielens") as (running, _):
        yield running


@pytest.fixture(scope="session")
def shop_base(tmp_path_factory):
    """The model folder that `shop_live` serves."""
    return tmp_path_factory.mktemp("models") / "shop"


@pytest.fixture(scope="session")
def shop_live(shop_base, tmp_path_factory):
    """The shop's model, its data, and a running server of what was exported of it."""
    from tfrec_attn import export
    from tfrec_attn.serve.export import write
    from tfrec_attn.serve.graph import served

    folder = tmp_path_factory.mktemp("shop")
    model, prepared = shop.untrained(folder, shortlist=11, max_k=13)
    # Neither 1 nor 0: an answer that forgets it, or has it twice, is another one.
    model.share.assign(0.5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(served, "BLOCK", 7)  # as a large catalogue, several of them
        write(export.served(model, prepared), shop_base, 1)
    with toys.live(shop_base, "shop") as (running, _):
        yield model, prepared, running
