import numpy as np
import pytest
import tensorflow as tf
import toys
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
    session_service_pb2,
)

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import saved_model
from tfrec_attn.serve.server.servable import ServingError

A = np.array([2, 3, 5], np.float32)
B = np.array([7, 11, 13], np.float32)
EXAMPLE = "features { feature { key: 'x' value { float_list { value: 2 } } } }"
INPUT = f"input {{ example_list {{ examples {{ {EXAMPLE} }} }} }}"


def predict_request(**arrays):
    request = predict_pb2.PredictRequest()
    for name, values in arrays.items():
        tensors.write(values, request.inputs[name], packed=False)
    return request


def test_warm_up_requests_are_replayed(tmp_path, caplog):
    toys.save_toy(tmp_path / "1")
    toys.warm_up_with(tmp_path / "1", *[predict_request(a=A, b=B)] * 3)
    with caplog.at_level("INFO"):
        saved_model.load(tmp_path / "1", 1)
    assert "replayed 3 warm-up requests" in caplog.text
    toys.warm_up_with(tmp_path / "1", predict_request(a=A, b=B), predict_request(a=A))
    with pytest.raises(ServingError, match=r"Missing but required: \{b\}"):
        saved_model.load(tmp_path / "1", 1)
    # Switched off, not even a wrong one is run.
    assert saved_model.load(tmp_path / "1", 1, replays=0).version == 1
    toys.warm_up_with(tmp_path / "1", *[predict_request(a=A, b=B)] * 1001)
    with pytest.raises(ValueError, match="more than 1000 warm-up requests"):
        saved_model.load(tmp_path / "1", 1)


@pytest.fixture(scope="module")
def headed(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "1"
    toys.save_heads(path)
    return path


@pytest.mark.parametrize(
    ("kind", "request_class", "good"),
    [
        (
            "classify_log",
            classification_pb2.ClassificationRequest,
            f"model_spec {{ signature_name: 'classify' }} {INPUT}",
        ),
        (
            "regress_log",
            regression_pb2.RegressionRequest,
            f"model_spec {{ signature_name: 'regress' }} {INPUT}",
        ),
        (
            "multi_inference_log",
            inference_pb2.MultiInferenceRequest,
            "tasks { model_spec { name: 'm' signature_name: 'regress' } "
            f"method_name: 'tensorflow/serving/regress' }} {INPUT}",
        ),
    ],
)
def test_every_kind_of_call_is_replayed(headed, caplog, kind, request_class, good):
    request = text_format.Parse(good, request_class())
    toys.warm_up_with(headed, request, kind=kind)
    with caplog.at_level("INFO"):
        saved_model.load(headed, 1, replays=2)
    assert "replayed 1 warm-up requests" in caplog.text
    wrong = request_class.FromString(request.SerializeToString())
    wrong.ClearField("input")
    toys.warm_up_with(headed, wrong, kind=kind)
    with pytest.raises(ServingError, match="Input is empty"):
        saved_model.load(headed, 1)


def test_each_request_is_run_as_often_as_asked(headed, monkeypatch):
    from tfrec_attn.serve.server import warm_up

    runs = []
    monkeypatch.setitem(warm_up._CALLS, "predict_log", lambda *call: runs.append(call))
    toys.warm_up_with(headed, predict_request(a=A), predict_request(b=B))
    saved_model.load(headed, 1, replays=3)
    assert [sorted(request.inputs) for _, request in runs] == [["a"]] * 3 + [["b"]] * 3


def test_what_cannot_be_replayed_fails(headed):
    request = session_service_pb2.SessionRunRequest()
    toys.warm_up_with(headed, request, kind="session_run_log")
    with pytest.raises(ServingError, match="for warmup: session_run_log"):
        saved_model.load(headed, 1)
    (headed / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"?" * 99)
    with pytest.raises(tf.errors.DataLossError):
        saved_model.load(headed, 1)
