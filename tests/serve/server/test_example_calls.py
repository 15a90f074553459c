import grpc
import pytest
from google.protobuf import text_format
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    regression_pb2,
)

from tfrec_attn.serve.server import inference, saved_model
from tfrec_attn.serve.server.servable import ServingError


def example(text):
    return text_format.Parse(text, example_pb2.Example())


def feature(name, value):
    floats = f"float_list {{ value: {value} }}"
    return f"features {{ feature {{ key: '{name}' value {{ {floats} }} }} }}"


@pytest.fixture(scope="module")
def loaded(heads):
    return saved_model.load(heads / "1", 7)


def source(*values):
    listed = " ".join(f"examples {{ {feature('x', value)} }}" for value in values)
    return text_format.Parse(f"example_list {{ {listed} }}", input_pb2.Input())


def test_examples_are_serialized_one_by_one():
    sent = inference.examples(source(2, 3, 5))
    values = [
        example_pb2.Example.FromString(each).features.feature["x"].float_list.value[0]
        for each in sent
    ]
    assert (sent.shape, values) == ((3,), [2, 3, 5])


def test_a_context_is_merged_into_each_example():
    made = input_pb2.Input()
    listed = made.example_list_with_context
    listed.context.CopyFrom(example(feature("x", 2)))
    listed.context.MergeFrom(example(feature("y", 3)))
    for text in (feature("x", 5), feature("z", 7)):
        listed.examples.append(example(text))
    merged = [
        {
            name: each.float_list.value[0]
            for name, each in example_pb2.Example.FromString(one).features.feature.items()
        }
        for one in inference.examples(made)
    ]
    # The example's own value goes first.
    assert merged == [{"x": 5, "y": 3}, {"x": 2, "y": 3, "z": 7}]


@pytest.mark.parametrize("text", ["", "example_list {}", "example_list_with_context {}"])
def test_no_examples_are_an_error(text):
    with pytest.raises(ServingError, match="Input is empty") as caught:
        inference.examples(text_format.Parse(text, input_pb2.Input()))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_who_answered_is_said(loaded):
    request = classification_pb2.ClassificationRequest(input=source(2))
    request.model_spec.name = "m"
    request.model_spec.signature_name = "classify"
    spec = inference.classify(loaded, request).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "classify")
    request = regression_pb2.RegressionRequest(input=source(2))
    request.model_spec.signature_name = "regress"
    assert inference.regress(loaded, request).model_spec.signature_name == "regress"


@pytest.mark.parametrize(
    ("call", "request_class"),
    [
        (inference.classify, classification_pb2.ClassificationRequest),
        (inference.regress, regression_pb2.RegressionRequest),
    ],
)
def test_a_signature_that_is_not_there(loaded, call, request_class):
    with pytest.raises(ServingError, match="with the name: serving_default") as caught:
        call(loaded, request_class(input=source(2)))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def task(signature, method, name="m"):
    return inference_pb2.InferenceTask(
        model_spec={"name": name, "signature_name": signature}, method_name=method
    )


def test_several_signatures_see_the_same_examples(loaded):
    request = inference_pb2.MultiInferenceRequest(input=source(2, 3))
    request.tasks.append(task("regress_column", inference.REGRESS))
    request.tasks.append(task("classify_scores", inference.CLASSIFY))
    first, second = inference.multi_inference(loaded, request).results
    assert [each.value for each in first.regression_result.regressions] == [3, 4]
    rows = second.classification_result.classifications
    assert [[each.score for each in row.classes] for row in rows] == [[-2, 2], [-3, 3]]
    assert first.model_spec.signature_name == "regress_column"
    assert second.model_spec.version.value == 7


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        (
            [task("regress", inference.REGRESS, name="")],
            "INVALID_ARGUMENT",
            "Found ModelSpec with an empty model name",
        ),
        (
            [task("regress", inference.REGRESS), task("x", inference.REGRESS, name="n")],
            "INVALID_ARGUMENT",
            "must access the same model name",
        ),
        (
            [task("regress", inference.REGRESS)] * 2,
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress",
        ),
        (
            [task("", inference.REGRESS)],
            "INVALID_ARGUMENT",
            "not found in model graph: serving_default",
        ),
        (
            [task("regress", "tensorflow/serving/predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_tasks_that_are_refused(loaded, tasks, code, message):
    request = inference_pb2.MultiInferenceRequest(input=source(2), tasks=tasks)
    with pytest.raises(ServingError, match=message) as caught:
        inference.multi_inference(loaded, request)
    assert caught.value.code == grpc.StatusCode[code]
