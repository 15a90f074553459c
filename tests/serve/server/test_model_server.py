import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import model_config
from tfrec_attn.serve.server.lifecycle import Model, Retries
from tfrec_attn.serve.server.model_server import ModelServer
from tfrec_attn.serve.server.servable import Servable, ServingError


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


def test_before_the_first_look_is_over_a_caller_is_told_to_come_again(toy):
    early = ModelServer([Model("toy", toy)])
    with pytest.raises(ServingError, match="still being loaded") as caught:
        early.predict(request())
    # Connections are refused with this code where the server is not up yet: clients that
    # try again after the one do so after the other.
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    early.poll()
    assert early.predict(request()).model_spec.version.value == 1


HEADED = "model_spec { name: 'heads' signature_name: '%s' }"
EXAMPLE = "features { feature { key: 'x' value { float_list { value: 2 } } } }"
INPUT = f"input {{ example_list {{ examples {{ {EXAMPLE} }} }} }}"


@pytest.fixture(scope="module")
def heads_server(heads):
    found = ModelServer([Model("heads", heads)])
    found.poll()
    return found


def test_the_calls_on_examples(heads_server):
    text = f"{HEADED % 'classify'} {INPUT}"
    asked = text_format.Parse(text, classification_pb2.ClassificationRequest())
    (row,) = heads_server.classify(asked).result.classifications
    assert [(each.label, each.score) for each in row.classes] == [("less", -2), ("more", 2)]
    asked = text_format.Parse(
        f"{HEADED % 'regress'} {INPUT}", regression_pb2.RegressionRequest()
    )
    assert [each.value for each in heads_server.regress(asked).result.regressions] == [3]
    task = f"tasks {{ {HEADED % 'regress'} method_name: 'tensorflow/serving/regress' }}"
    asked = text_format.Parse(f"{task} {INPUT}", inference_pb2.MultiInferenceRequest())
    (result,) = heads_server.multi_inference(asked).results
    assert result.regression_result.regressions[0].value == 3


@pytest.mark.parametrize(
    ("call", "made", "message"),
    [
        ("classify", classification_pb2.ClassificationRequest(), "Missing ModelSpec"),
        ("regress", regression_pb2.RegressionRequest(), "Missing ModelSpec"),
        ("multi_inference", inference_pb2.MultiInferenceRequest(), "no name specified"),
    ],
)
def test_a_call_without_a_model_is_refused(heads_server, call, made, message):
    with pytest.raises(ServingError, match=message) as caught:
        getattr(heads_server, call)(made)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


class Bases:
    """Folders of versions, and a server of models that load nothing."""

    def __init__(self, path):
        self.path = path

    def add(self, name, *versions, content="model"):
        for version in versions:
            folder = self.path / name / str(version)
            folder.mkdir(parents=True)
            (folder / "saved_model.pb").write_text(content)

    def server(self, **settings):
        """A server without models that has started."""

        def load(path, version):
            if (path / "saved_model.pb").read_text() == "broken":
                raise OSError("broken on purpose")
            return Servable(version, {}, {}, None)

        def make(name, path, policy):
            return Model(name, path, load, policy=policy, retries=Retries(0))

        server = ModelServer(make=make, **settings)
        server.poll()
        return server

    def config(self, *models):
        """A configuration of models, each a name and more fields in text format."""
        made = model_config.Config()
        made.model_config_list.SetInParent()
        for name, more in models:
            entry = made.model_config_list.config.add(
                name=name, base_path=str(self.path / name), model_platform="tensorflow"
            )
            text_format.Merge(more, entry)
        return made


@pytest.fixture
def bases(tmp_path):
    return Bases(tmp_path)


ALL = "model_version_policy { all {} }"


def labelled(label, version):
    return f"version_labels {{ key: '{label}' value: {version} }}"


def found(server, name, **version):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = name
    if "label" in version:
        spec.version_label = version["label"]
    return server.find(spec).version


def test_a_configuration_loads_models_and_retires_the_others(bases):
    bases.add("a", 1, 2)
    bases.add("b", 5)
    server = bases.server()
    server.apply(bases.config(("a", ""), ("b", "")))
    assert (found(server, "a"), found(server, "b")) == (2, 5)
    bases.add("c", 7)
    server.apply(bases.config(("b", ""), ("c", "")))
    assert (found(server, "b"), found(server, "c")) == (5, 7)
    with pytest.raises(ServingError, match=r"request: Latest\(a\)"):
        found(server, "a")
    assert server.ready
    # Its state is still told, as of everything that was ever served.
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "a"
    (status,) = server.status(asked).model_version_status
    assert (status.version, status.state) == (2, 50)
    server.apply(bases.config(("a", ALL)))
    assert found(server, "a") == 2


def test_a_changed_policy_is_taken_at_once(bases):
    bases.add("a", 1, 2)
    server = bases.server()
    server.apply(bases.config(("a", "")))
    server.apply(bases.config(("a", "model_version_policy { specific { versions: 1 } }")))
    assert found(server, "a") == 1


def test_a_label_leads_to_its_version(bases):
    bases.add("a", 1, 2)
    server = bases.server()
    server.apply(bases.config(("a", ALL)))
    stable, canary = labelled("stable", 1), labelled("canary", 2)
    server.apply(bases.config(("a", f"{ALL} {stable} {canary}")))
    assert found(server, "a", label="stable") == 1
    assert found(server, "a", label="canary") == 2
    # Moved and taken away by the next configuration.
    server.apply(bases.config(("a", f"{ALL} {labelled('stable', 2)}")))
    assert found(server, "a", label="stable") == 2
    with pytest.raises(ServingError, match="Unrecognized servable version label: canary"):
        found(server, "a", label="canary")
    with pytest.raises(ServingError, match="version label: stable") as caught:
        found(server, "other", label="stable")
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_label_needs_a_version_that_is_available(bases):
    bases.add("a", 1, 2)
    server = bases.server()
    server.apply(bases.config(("a", "")))
    wrong = bases.config(("a", labelled("stable", 1)), ("b", ""))
    with pytest.raises(
        ServingError,
        match="assign label to version 1 of model a, which is not currently available",
    ) as caught:
        server.apply(wrong)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    # Nothing of it was taken.
    assert found(server, "a") == 2
    with pytest.raises(ServingError, match="version label: stable"):
        found(server, "a", label="stable")


def test_early_labels_are_taken_but_not_moved_to_what_is_not_there(bases):
    bases.add("a", 1)
    server = bases.server(early_labels=True)
    server.apply(bases.config(("a", labelled("next", 2))))
    with pytest.raises(ServingError, match=r"Specific\(a, 2\)"):
        found(server, "a", label="next")
    with pytest.raises(ServingError, match="label to version 3 of model a"):
        server.apply(bases.config(("a", labelled("next", 3))))
    bases.add("a", 2)
    server.poll()
    assert found(server, "a", label="next") == 2


def reload_request(config):
    return model_management_pb2.ReloadConfigRequest(config=config)


def test_reload_over_the_protocol(bases):
    bases.add("a", 1)
    server = bases.server()
    assert server.reload(reload_request(bases.config(("a", "")))).status.error_code == 0
    assert found(server, "a") == 1
    # Without models: everything goes.
    server.reload(reload_request(bases.config()))
    with pytest.raises(ServingError, match="Servable not found"):
        found(server, "a")


def test_reload_says_what_did_not_load_and_keeps_the_rest(bases):
    bases.add("a", 1)
    bases.add("b", 3, content="broken")
    server = bases.server()
    with pytest.raises(
        ServingError,
        match=r"^1 model\(s\) did not become available: "
        r"\{\{name: b version: 3\} due to error: broken on purpose\}$",
    ) as caught:
        server.reload(reload_request(bases.config(("a", ""), ("b", ""))))
    assert caught.value.code == grpc.StatusCode.UNKNOWN
    assert found(server, "a") == 1
    with pytest.raises(ServingError, match=r"find base path .*/c for servable c"):
        server.reload(reload_request(bases.config(("a", ""), ("c", ""))))


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ("", "INVALID_ARGUMENT", "Only ModelConfigList is currently supported"),
        (
            "custom_model_config {}",
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest",
        ),
        (
            "model_config_list { config { name: 'a' base_path: 'a' } }",
            "INVALID_ARGUMENT",
            r"Expected model a to have an absolute path or URI; got base_path\(\)=a",
        ),
    ],
)
def test_reload_refuses(bases, config, code, message):
    parsed = text_format.Parse(config, model_config.Config())
    with pytest.raises(ServingError, match=message) as caught:
        bases.server().reload(reload_request(parsed))
    assert caught.value.code == grpc.StatusCode[code]


def test_reload_counts_no_metrics(bases):
    made = reload_request(bases.config())
    made.metric_names.append("/tensorflow/serving/request_count")
    with pytest.raises(ServingError, match="metric_names are not served") as caught:
        bases.server().reload(made)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("threads", [0, 3])
def test_a_model_that_cannot_be_looked_at_keeps_no_other_waiting(bases, caplog, threads):
    class Gone(Model):
        def poll(self):
            raise FileNotFoundError("gone while it was read")

    fine = Model(
        "b", bases.path / "b", lambda path, version: Servable(version, {}, {}, None)
    )
    bases.add("b", 1)
    server = ModelServer([Gone("a", bases.path / "a"), fine], load_threads=threads)
    server.poll()
    assert "could not look for versions of a: gone while it was read" in caplog.text
    assert found(server, "b") == 1


def test_models_load_side_by_side(toy, heads):
    server = ModelServer([Model("toy", toy), Model("heads", heads)], load_threads=2)
    server.poll()
    assert server.ready
    assert list(server.predict(request()).outputs["product"].float_val) == [10.0, 21.0]
