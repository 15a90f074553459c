"""Signatures that read examples: classification and regression.

Letters: B examples of a request, C classes.
Sources: tensorflow/serving `servables/tensorflow/` classifier.cc and regressor.cc.
"""

import numpy as np
from google.protobuf import text_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, regression_pb2

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server.servable import Arrays, Servable, invalid

_INPUTS, _OUTPUTS, _CLASSES, _SCORES = "inputs", "outputs", "classes", "scores"


def classified(
    servable: Servable, name: str, sent: np.ndarray
) -> classification_pb2.ClassificationResult:
    """Calls a signature from `inputs` to `classes` [B, C], `scores` [B, C], or both.

    Args:
      servable: Whose signature.
      name: The signature.
      sent: `[B]` serialized examples.

    Raises:
      ServingError: The signature, or what it gave, is no classification.
    """
    definition = servable.signature_defs[name]
    _need_one_input(definition, "classification")
    count = len(definition.outputs)
    if count not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {count}")
    wanted = [output for output in (_CLASSES, _SCORES) if output in definition.outputs]
    if not wanted:
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "'
            f'{_CLASSES}" or "{_SCORES}". Signature was: {_shown(definition)}'
        )
    outputs = servable.run(name, {_INPUTS: sent}, wanted)
    for output, dtype in ((_CLASSES, object), (_SCORES, np.float32)):
        if output in outputs:
            _check_classes(output, outputs[output], np.dtype(dtype), len(sent))
    return _classifications(outputs)


def _check_classes(name: str, values: np.ndarray, dtype: np.dtype, count: int) -> None:
    if values.ndim != 2:
        raise invalid(
            f"Expected Tensor shape: [batch_size num_classes] but got {_shape(values)}"
        )
    if values.dtype != dtype:
        raise invalid(
            f"Expected {name} Tensor of {_type_name(dtype)}. "
            f"Got: {_type_name(values.dtype)}"
        )
    if len(values) != count:
        raise invalid(f"Expected {name} output batch size of {count}. Got: {len(values)}")


def _classifications(outputs: Arrays) -> classification_pb2.ClassificationResult:
    shapes = [values.shape for values in outputs.values()]
    if shapes[0] != shapes[-1]:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {shapes[0][1]} vs. {shapes[-1][1]}"
        )
    labels = outputs.get(_CLASSES, np.full(shapes[0], b"", object))
    scores = outputs.get(_SCORES, np.zeros(shapes[0], np.float32))
    result = classification_pb2.ClassificationResult()
    for row_labels, row_scores in zip(labels.tolist(), scores.tolist(), strict=True):
        row = result.classifications.add()
        for label, score in zip(row_labels, row_scores, strict=True):
            row.classes.add(label=_text(label), score=score)
    return result


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise invalid(f"A class label is no UTF-8: {label!r}") from None


def regressed(
    servable: Servable, name: str, sent: np.ndarray
) -> regression_pb2.RegressionResult:
    """Calls a signature from `inputs` to `outputs` [B] or [B, 1]; else as `classified`."""
    definition = servable.signature_defs[name]
    _need_one_input(definition, "regression")
    if len(definition.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if _OUTPUTS not in definition.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_shown(definition)}")
    values = servable.run(name, {_INPUTS: sent})[_OUTPUTS]
    if values.ndim != 1 and (values.ndim != 2 or values.shape[1] != 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape(values)}"
        )
    if len(values) != len(sent):
        raise invalid(
            "Input batch size did not match output batch size: "
            f"{len(sent)} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise invalid(
            f"Expected output Tensor of DT_FLOAT.  Got: {_type_name(values.dtype)}"
        )
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _need_one_input(definition: meta_graph_pb2.SignatureDef, what: str) -> None:
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if _INPUTS not in definition.inputs:
        raise invalid(f"No {what} inputs found in SignatureDef: {_shown(definition)}")


def _shape(values: np.ndarray) -> str:
    return f"[{','.join(map(str, values.shape))}]"


def _shown(definition: meta_graph_pb2.SignatureDef) -> str:
    return text_format.MessageToString(definition, as_one_line=True)


def _type_name(dtype: np.dtype) -> str:
    return tensors.kind_of(tensors.number_of(dtype)).name
