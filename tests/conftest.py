"""What every test needs: Keras 2 under tf.keras, and two logical CPUs."""

import contextlib
import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

from tests import web
from tfrec_attn import keras_binding

# Before TensorFlow loads.
keras_binding.switch_on()


def pytest_configure():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


@pytest.fixture(autouse=True, scope="module")
def _kept_graphs():
    """What outlives a module, mostly TensorFlow's graphs, is set apart: Python's collector
    would go through all of it again and again, for minutes at the end of the tests."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own, and no way around the servers made here."""
    monkeypatch.setenv("TFREC_ATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Starts a hub with the given files in its one repository."""
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:

        def start(content):
            server = stack.enter_context(web.serving(web.hub_bodies(content)))
            url = "{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            template = url.format(endpoint=server.url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(
                "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
                template,
                raising=False,
            )
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
            return server

        yield start


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The folder of a small shop without texts."""
    from tests import small

    folder = tmp_path_factory.mktemp("tables")
    small.write(folder)
    return folder


@pytest.fixture(scope="session")
def worded(tmp_path_factory):
    """The folder of a small shop whose titles a BERT reads."""
    from tests import worded

    folder = tmp_path_factory.mktemp("worded")
    worded.write(folder)
    return folder


@pytest.fixture
def made():
    """An explanation of an answer that was made up."""
    from tests import answered

    return answered.explanation()
