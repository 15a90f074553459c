"""TF Serving's own configuration files, as the messages that it reads them as."""

import pytest
from google.protobuf import text_format

from tests.serving import files, text_protos

BATCHING = ["batching-cpu.config", "batching-gpu.config"]


def test_models_and_their_labels():
    config = text_protos.parse("ModelServerConfig", files.SERVING / "models.config")
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == (files.MODEL, f"/models/{files.MODEL}")
    assert model.model_platform == "tensorflow"
    # A label may only point at a version that the policy keeps loaded.
    kept = set(model.model_version_policy.specific.versions)
    assert {"stable", "canary"} == set(model.version_labels)
    assert set(model.version_labels.values()) <= kept


def test_monitoring():
    config = text_protos.parse("MonitoringConfig", files.SERVING / "monitoring.config")
    assert config.prometheus_config.enable


@pytest.mark.parametrize("name", BATCHING)
def test_batching_keeps_upstreams_rules(name):
    config = text_protos.parse("BatchingParameters", files.SERVING / name)
    sizes = list(config.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert not sizes or sizes[-1] == config.max_batch_size.value
    assert config.num_batch_threads.value >= 1
    assert config.max_enqueued_batches.value >= config.num_batch_threads.value
    # Waiting for a batch must not take a share of the alert's 50 ms that matters.
    assert config.batch_timeout_micros.value <= 5000
    assert config.pad_variable_length_inputs


def test_an_unknown_field_is_an_error(tmp_path):
    file = tmp_path / "batching.config"
    file.write_text("max_batchsize { value: 32 }\n")
    with pytest.raises(text_format.ParseError, match='no field named "max_batchsize"'):
        text_protos.parse("BatchingParameters", file)
