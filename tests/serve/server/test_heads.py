import grpc
import numpy as np
import pytest
from tensorflow.core.example import example_pb2

from tfrec_attn.serve.server import heads, saved_model
from tfrec_attn.serve.server.servable import ServingError


@pytest.fixture(scope="module")
def loaded(heads):
    return saved_model.load(heads / "1", 1)


def sent(*values):
    made = np.empty(len(values), object)
    for index, value in enumerate(values):
        example = example_pb2.Example()
        example.features.feature["x"].float_list.value.append(value)
        made[index] = example.SerializeToString()
    return made


@pytest.mark.parametrize("name", ["regress", "regress_column"])
def test_a_number_for_each_example(loaded, name):
    result = heads.regressed(loaded, name, sent(2, 3, 5))
    assert [each.value for each in result.regressions] == [3, 4, 6]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("classify", [[("less", -2), ("more", 2)], [("less", -5), ("more", 5)]]),
        ("classify_scores", [[("", -2), ("", 2)], [("", -5), ("", 5)]]),
        ("classify_classes", [[("less", 0), ("more", 0)]] * 2),
    ],
)
def test_classes_and_scores_for_each_example(loaded, name, want):
    result = heads.classified(loaded, name, sent(2, 5))
    rows = [[(c.label, c.score) for c in row.classes] for row in result.classifications]
    assert rows == want


@pytest.mark.parametrize(
    ("call", "name", "message"),
    [
        ("regressed", "regress_pair", r"\[batch_size, 1\] but got \[3,2\]"),
        ("regressed", "regress_whole", "Tensor of DT_FLOAT.  Got: DT_INT32"),
        ("regressed", "regress_total", "did not match output batch size: 3 vs. 1"),
        ("regressed", "classify", "Expected one output Tensor"),
        ("regressed", "other", "No regression outputs found in SignatureDef: .*else"),
        ("regressed", "two", "Expected one input Tensor"),
        ("regressed", "plain", "No regression inputs found in SignatureDef"),
        ("classified", "classify_flat", r"\[batch_size num_classes\] but got \[3\]"),
        ("classified", "classify_uneven", r"in dim_size\(1\). Got 2 vs. 1"),
        ("classified", "other", 'at least one of "classes" or "scores"'),
        ("classified", "three", "Expected one or two output Tensors, found 3"),
        ("classified", "two", "Expected one input Tensor"),
        ("classified", "plain", "No classification inputs found in SignatureDef"),
    ],
)
def test_a_signature_of_another_form(loaded, call, name, message):
    with pytest.raises(ServingError, match=message) as caught:
        getattr(heads, call)(loaded, name, sent(2, 3, 5))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_examples_that_lack_a_feature(loaded):
    nothing = np.array([b""], object)
    with pytest.raises(ServingError, match=r"Feature: x .* is required") as caught:
        heads.regressed(loaded, "regress", nothing)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
