"""A tf.data service gives what the trainer itself would make."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_batches import ITEM, made
from tfrec_attn.data import batches, service, shares

COUNT = 4


@pytest.fixture(scope="module")
def dispatcher():
    serve = tf.data.experimental.service
    made = serve.DispatchServer(serve.DispatcherConfig(port=0))
    return made, made.target.removeprefix("grpc://")


@pytest.fixture(scope="module", autouse=True)
def workers(dispatcher):
    serve, (_, address) = tf.data.experimental.service, dispatcher
    start = lambda: serve.WorkerServer(serve.WorkerConfig(dispatcher_address=address))
    return [start()], start


def test_a_graph_gathers_what_numpy_does():
    examples = made()
    for given in (np.arange(len(examples))[None], np.array([[0, -1], [2, 1]])):
        found = service.graph(examples)(tf.constant(given))
        want = batches.gather(examples, given.reshape(-1))
        assert set(found) == set(want)
        for name, value in found.items():
            assert value.dtype == want[name].dtype
            assert value.shape[:2] == given.shape
            np.testing.assert_array_equal(
                value.numpy().reshape(want[name].shape), want[name], err_msg=name
            )


@pytest.mark.parametrize("replicas", [1, 2])
def test_one_worker_gives_the_same_batches(dispatcher, replicas):
    examples, at = made(count=1), shares.places(3, replicas=replicas)
    given = {"seed": 1, "epoch": 1, "at": at}
    want = batches.training(examples, 3, **given)
    found = service.training(examples, 3, address=dispatcher[1], **given)
    assert found.element_spec == want.element_spec
    count = COUNT * replicas
    for one, other in zip(found.take(count), want.take(count), strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_two_workers_give_each_example_once_an_epoch(dispatcher, workers):
    running, start = workers
    running.append(start())
    examples = made(count=1)
    per_epoch = batches.steps(examples, 1)
    stream = service.training(examples, 1, address=dispatcher[1], seed=0)
    found = [batch["target"].numpy().tolist() for batch in stream.take(3 * per_epoch)]
    for epoch in range(3):
        part = found[epoch * per_epoch :][:per_epoch]
        assert sorted(itertools.chain(*itertools.chain(*part))) == sorted(ITEM)


def test_arrays_that_cannot_be_sent_are_named(monkeypatch):
    monkeypatch.setattr(service, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"at most 100 bytes. Received: .* Leave"):
        service.training(made(), 1, address="nowhere:1", seed=0)
