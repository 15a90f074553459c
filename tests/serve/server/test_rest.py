import json

import pytest

from tfrec_attn.serve.server import model_config, rest
from tfrec_attn.serve.server.lifecycle import Model, Retries
from tfrec_attn.serve.server.model_server import ModelServer


@pytest.fixture(scope="module")
def models(toy):
    found = ModelServer([Model("toy", toy)])
    found.poll()
    return found


def post(models, body, path="/v1/models/toy:predict"):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = rest.respond(models, "POST", path, text)
    return answer.status, json.loads(answer.body)


def get(models, path):
    answer = rest.respond(models, "GET", path, b"")
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (
            {"instances": [{"a": 2, "b": 5}, {"a": 3, "b": 7}]},
            {"predictions": [10.0, 21.0]},
        ),
        ({"inputs": {"a": [2, 3], "b": [5, 7]}}, {"outputs": [10.0, 21.0]}),
        (
            {
                "signature_name": "several",
                "instances": [{"a": 2, "z": 5}, {"a": 3, "z": 7}],
            },
            {
                "predictions": [
                    {"a": 2.0, "count": 2, "z_less_a": 3.0},
                    {"a": 3.0, "count": 2, "z_less_a": 4.0},
                ]
            },
        ),
        (
            {"signature_name": "several", "inputs": {"a": [2], "z": [5]}},
            {"outputs": {"a": [2.0], "count": [1, 1], "z_less_a": [3.0]}},
        ),
        ({"signature_name": "total", "inputs": [2, 3.5]}, {"outputs": 5.5}),
        ({"signature_name": "total", "inputs": {"a": [2, 3.5]}}, {"outputs": 5.5}),
        (
            {"signature_name": "texts", "instances": ["ab", {"b64": "w7w="}]},
            {
                "predictions": [
                    {"raw_bytes": {"b64": "YWI="}, "upper": "AB"},
                    {"raw_bytes": {"b64": "w7w="}, "upper": "ü"},
                ]
            },
        ),
        (
            {
                "signature_name": "whole",
                "inputs": {"n": [9007199254740992], "flag": [True]},
            },
            {"outputs": {"next": [9007199254740993], "not": [False]}},
        ),
    ],
)
def test_predict(models, body, want):
    assert post(models, body) == (200, want)


def test_predict_by_version_and_an_encoded_name(models, toy):
    body = {"instances": [{"a": 2, "b": 5}]}
    want = (200, {"predictions": [10.0]})
    assert post(models, body, "/v1/models/toy/versions/1:predict") == want
    assert post(models, body, "/v1/models/t%6Fy/versions/1:predict") == want
    other = ModelServer([Model("a b", toy)])
    other.poll()
    assert post(other, body, "/v1/models/a%20b:predict") == want


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models/x:predict", 404, "Servable not found for request: Latest(x)"),
        (
            "/v1/models/toy/versions/7:predict",
            404,
            "Servable not found for request: Specific(toy, 7)",
        ),
        (
            "/v1/models/toy/labels/canary:predict",
            400,
            "Unrecognized servable version label: canary",
        ),
        (
            "/v1/models/toy/versions/99999999999999999999:predict",
            400,
            "Failed to convert version: 99999999999999999999 to numeric.",
        ),
        ("/v1/models/toy:guess", 400, "Malformed request: POST /v1/models/toy:guess"),
        ("/v1/models/toy", 400, "Malformed request: POST /v1/models/toy"),
        ("/v1/models/toy/versions/x:predict", 400, "Malformed request: POST "),
        ("/v2/models/toy:predict", 404, "Nothing is served at /v2/models/toy:predict."),
    ],
)
def test_a_wrong_address(models, path, status, message):
    got, body = post(models, {"instances": [{"a": 2, "b": 5}]}, path)
    assert (got, list(body)) == (status, ["error"])
    assert body["error"].startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"signature_name": "x", "inputs": 1}, 'Serving signature name: "x" not found'),
        (b"{", "JSON Parse error"),
        ({"instances": [{"a": 2}]}, "keys must be equal to: a,b"),
        ({"inputs": {"a": [2, 3], "b": [5, 7, 9]}}, "Incompatible shapes: [2] vs. [3]"),
        (
            {"signature_name": "total", "instances": [1, 2]},
            "total has no shape information",
        ),
        (
            {"signature_name": "several", "instances": [{"a": 2, "z": 5}]},
            "inconsistent batch size",
        ),
    ],
)
def test_a_wrong_body_is_a_400(models, body, message):
    status, got = post(models, body)
    assert status == 400
    assert message in got["error"]


def test_status(models):
    want = {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert get(models, "/v1/models/toy") == (200, want)
    assert get(models, "/v1/models/toy/versions/1") == (200, want)
    status, body = get(models, "/v1/models/toy/versions/2")
    assert (status, body) == (404, {"error": "Could not find version 2 of model toy"})
    assert get(models, "/v1/models")[1] == {"error": "Missing model name in request."}
    assert get(models, "/v1/models/toy:predict")[0] == 400


def test_metadata(models):
    status, body = get(models, "/v1/models/toy/versions/1/metadata")
    assert status == 200
    assert body["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    definition = body["metadata"]["signature_def"]["signature_def"]["total"]
    # A scalar output: its shape is there, and has no dimension.
    total = definition["outputs"]["total"]
    assert total["tensor_shape"] == {"dim": [], "unknown_rank": False}
    assert definition["inputs"]["a"] == {
        "name": "total_a:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
    }
    assert definition["method_name"] == "tensorflow/serving/predict"


def test_before_a_model_is_ready_metadata_are_no_200(toy, tmp_path):
    models = ModelServer([Model("toy", toy)])
    assert get(models, "/v1/models/toy/metadata")[0] == 503
    assert get(models, "/v1/models/toy")[0] == 404
    lacking = ModelServer([Model("toy", tmp_path)])
    lacking.poll()
    assert get(lacking, "/v1/models/toy/metadata")[0] == 404
    models.poll()
    for path in ("/v1/models/toy/metadata", "/v1/models/toy"):
        assert get(models, path)[0] == 200


def test_a_failed_load_shows_in_the_status(tmp_path, caplog):
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "saved_model.pb").write_text("nothing")
    models = ModelServer([Model("toy", tmp_path, retries=Retries(0))])
    models.poll()
    (version,) = get(models, "/v1/models/toy")[1]["model_version_status"]
    assert (version["version"], version["state"]) == ("4", "END")
    assert version["status"]["error_code"] != "OK"
    assert version["status"]["error_message"]
    assert "version 4 did not load" in caplog.text


def test_our_own_fault_is_a_500_in_the_interfaces_form(caplog):
    status, body = get(None, "/v1/models/toy")
    assert (status, list(body)) == (500, ["error"])
    assert "GET /v1/models/toy failed" in caplog.text


EXAMPLES = {"examples": [{"x": 2.5}, {"x": -0.2}]}


@pytest.mark.parametrize(
    ("verb", "signature", "want"),
    [
        ("regress", "regress", [3.5, 0.8]),
        ("classify", "classify_scores", [[["", -2.5], ["", 2.5]], [["", 0.2], ["", -0.2]]]),
        ("classify", "classify_classes", [[["less", 0.0], ["more", 0.0]]] * 2),
    ],
)
@pytest.mark.parametrize("which", ["", "/versions/1", "/labels/stable"])
def test_examples(heads, verb, signature, want, which):
    models = ModelServer()
    config = model_config.single("heads", heads)
    models.apply(config)
    config.model_config_list.config[0].version_labels["stable"] = 1
    models.apply(config)
    body = {"signature_name": signature, **EXAMPLES}
    answer = post(models, body, f"/v1/models/heads{which}:{verb}")
    assert answer == (200, {"results": want})


def test_examples_that_are_none(heads):
    models = ModelServer([Model("heads", heads)])
    models.poll()
    status, body = post(models, {"examples": [2]}, "/v1/models/heads:classify")
    assert status == 400
    assert body["error"].startswith("Example must be JSON object but got JSON Number")
    status, body = post(models, EXAMPLES, "/v1/models/heads:regress")
    assert status == 400
    assert body["error"] == "No signature was found with the name: serving_default"
