import logging
import os
import shutil

import grpc
import numpy as np
import pytest
import toys
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tfrec_attn.serve import tensors
from tfrec_attn.serve.model_server import Model, ModelServer, versions
from tfrec_attn.serve.servable import Servable, ServingError


def touch(base, name, content="model"):
    (base / name).mkdir(parents=True, exist_ok=True)
    (base / name / "saved_model.pb").write_text(content)


def stub(path, version):
    """Loads nothing; a file that says "broken" fails."""
    if (path / "saved_model.pb").read_text() == "broken":
        raise OSError("broken on purpose")
    return Servable(version, {}, {}, None)


@pytest.fixture
def model(tmp_path):
    return Model("m", tmp_path, stub)


def states(model):
    return {version: state.state for version, state in model.states.items()}


def test_version_folders_are_numbers_with_a_model_in_them(tmp_path):
    for name in ("1", "00000123", "x", "7.tmp", "-2"):
        touch(tmp_path, name)
    (tmp_path / "9").mkdir()
    assert set(versions(tmp_path)) == {1, 123}
    assert versions(tmp_path / "none") == {}


def test_nothing_is_served_before_a_version_is_there(model, tmp_path):
    model.poll()
    with pytest.raises(ServingError, match=r"Servable not found for request: Latest\(m\)"):
        model.servable(None)
    assert not model.ready
    touch(tmp_path, "3")
    model.poll()
    assert model.ready
    assert model.servable(None).version == model.servable(3).version == 3
    with pytest.raises(ServingError, match=r"Specific\(m, 4\)"):
        model.servable(4)


def test_the_highest_version_replaces_the_one_before(model, tmp_path):
    touch(tmp_path, "9")
    model.poll()
    held = model.servable(None)
    touch(tmp_path, "10")
    model.poll()
    assert model.servable(None).version == 10
    assert states(model) == {10: "AVAILABLE", 9: "END"}
    assert held.version == 9
    # Taking the newest away goes back; taking all away leaves the last in service.
    shutil.rmtree(tmp_path / "10")
    model.poll()
    assert model.servable(None).version == 9
    shutil.rmtree(tmp_path / "9")
    model.poll()
    assert model.servable(None).version == 9


def test_a_version_that_fails_leaves_the_old_one_and_is_tried_again_when_changed(
    model, tmp_path, caplog
):
    touch(tmp_path, "1")
    model.poll()
    touch(tmp_path, "2", "broken")
    with caplog.at_level(logging.ERROR):
        model.poll()
        model.poll()
    assert caplog.text.count("model m version 2 did not load: broken on purpose") == 1
    assert model.servable(None).version == 1
    assert states(model) == {2: "END", 1: "AVAILABLE"}
    assert "broken on purpose" in model.states[2].message
    touch(tmp_path, "2")
    os.utime(tmp_path / "2" / "saved_model.pb", (1e9, 1e9))
    model.poll()
    assert model.servable(None).version == 2


@pytest.fixture(scope="module")
def server(toy):
    found = ModelServer([Model("toy", toy)])
    found.poll()
    return found


def request(name="toy", signature="", version=None, a=(2.0, 3.0), b=(5.0, 7.0), **more):
    made = predict_pb2.PredictRequest(**more)
    made.model_spec.name = name
    made.model_spec.signature_name = signature
    if version is not None:
        made.model_spec.version.value = version
    for key, values in (("a", a), ("b", b)):
        tensors.write(np.array(values, np.float32), made.inputs[key], packed=True)
    return made


def test_predict_says_what_answered(server):
    response = server.predict(request())
    assert response.model_spec.name == "toy"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    # One by one, not packed: what a model server sends and thin clients read.
    assert list(response.outputs["product"].float_val) == [10.0, 21.0]
    assert response.outputs["product"].tensor_content == b""


@pytest.mark.parametrize(
    ("made", "code", "message"),
    [
        (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (request(name=""), "INVALID_ARGUMENT", "ModelSpec has no name specified"),
        (request(name="x"), "NOT_FOUND", r"Servable not found for request: Latest\(x\)"),
        (request(version=2), "NOT_FOUND", r"request: Specific\(toy, 2\)"),
        (request(signature="x"), "FAILED_PRECONDITION", 'key "x" not found'),
        (request(output_filter=["x"]), "INVALID_ARGUMENT", "alias not found"),
        (request(signature="total"), "INVALID_ARGUMENT", r"Sent extra: \{b\}"),
    ],
)
def test_predict_refuses_with_the_protocols_codes(server, made, code, message):
    with pytest.raises(ServingError, match=message) as caught:
        server.predict(made)
    assert caught.value.code == grpc.StatusCode[code]


def test_a_label_is_unknown(server):
    made = request()
    made.model_spec.version_label = "canary"
    with pytest.raises(ServingError, match="Unrecognized servable version label: canary"):
        server.predict(made)


def test_a_tensor_that_cannot_be_read(server):
    made = request()
    made.inputs["a"].tensor_content = b"123"
    with pytest.raises(ServingError, match='tensor parsing error: "a"') as caught:
        server.predict(made)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def ask_metadata(**fields):
    made = get_model_metadata_pb2.GetModelMetadataRequest(**fields)
    made.model_spec.name = "toy"
    return made


def test_metadata_is_what_was_saved(server):
    response = server.metadata(ask_metadata(metadata_field=["signature_def"]))
    assert (response.model_spec.name, response.model_spec.version.value) == ("toy", 1)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    definition = found.signature_def["serving_default"]
    assert set(definition.inputs) == {"a", "b"}
    assert definition.method_name == "tensorflow/serving/predict"
    with pytest.raises(ServingError, match="at least one metadata_field"):
        server.metadata(ask_metadata())
    with pytest.raises(ServingError, match="Metadata field x is not supported"):
        server.metadata(ask_metadata(metadata_field=["x"]))


def test_status(server):
    made = get_model_status_pb2.GetModelStatusRequest()
    made.model_spec.name = "toy"
    (status,) = server.status(made).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, 30, 0)
    made.model_spec.version.value = 2
    with pytest.raises(ServingError, match="Could not find version 2 of model toy"):
        server.status(made)
    made = get_model_status_pb2.GetModelStatusRequest()
    made.model_spec.name = "x"
    with pytest.raises(ServingError, match="Could not find any versions of model x"):
        server.status(made)


def test_a_folder_that_is_no_model(tmp_path):
    toys.save_toy(tmp_path / "1")
    touch(tmp_path, "2", "no protocol buffer")
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    shutil.rmtree(tmp_path / "3" / "variables")
    model = Model("m", tmp_path)
    model.poll()
    assert model.states[3].state == "END"
    shutil.rmtree(tmp_path / "3")
    model.poll()
    assert model.states[2].state == "END"
    shutil.rmtree(tmp_path / "2")
    model.poll()
    assert model.servable(None).version == 1
