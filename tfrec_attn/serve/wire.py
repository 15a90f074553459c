"""The serving protocol's messages, without TensorFlow.

The official Python classes (`tensorflow_serving.apis`) import TensorFlow: three seconds
and half a gigabyte for a client that only sends a few strings. On the wire a message is
its field numbers and types, so the few messages that a client needs are declared here
with the official numbers; the tests compare the bytes with those of the official classes.
"""

from tfrec_attn.serve import declared

_MESSAGES = {
    "Dim": "size 1 int64; name 2 string",
    "TensorShape": "dim 2 Dim*; unknown_rank 3 bool",
    "Tensor": "dtype 1 int32; tensor_shape 2 TensorShape; tensor_content 4 bytes; "
    "float_val 5 float*; double_val 6 double*; int_val 7 int32*; string_val 8 bytes*; "
    "int64_val 10 int64*; bool_val 11 bool*; half_val 13 int32*; uint32_val 16 uint32*; "
    "uint64_val 17 uint64*",
    "Int64Value": "value 1 int64",
    "ModelSpec": "name 1 string; version 2 Int64Value; signature_name 3 string; "
    "version_label 4 string",
    "PredictRequest": "model_spec 1 ModelSpec; inputs 2 map Tensor; "
    "output_filter 3 string*",
    "PredictResponse": "outputs 1 map Tensor; model_spec 2 ModelSpec",
    "GetModelMetadataRequest": "model_spec 1 ModelSpec; metadata_field 2 string*",
    "Any": "type_url 1 string; value 2 bytes",
    "GetModelMetadataResponse": "model_spec 1 ModelSpec; metadata 2 map Any",
    "TensorInfo": "name 1 string; dtype 2 int32; tensor_shape 3 TensorShape",
    "SignatureDef": "inputs 1 map TensorInfo; outputs 2 map TensorInfo; "
    "method_name 3 string",
    "SignatureDefMap": "signature_def 1 map SignatureDef",
}

_built = declared.classes("tfrec_attn.serve.wire", _MESSAGES)
GetModelMetadataRequest = _built["GetModelMetadataRequest"]
GetModelMetadataResponse = _built["GetModelMetadataResponse"]
ModelSpec = _built["ModelSpec"]
PredictRequest = _built["PredictRequest"]
PredictResponse = _built["PredictResponse"]
SignatureDefMap = _built["SignatureDefMap"]
Tensor = _built["Tensor"]
