"""The profiler service: what TensorBoard and `tf.profiler` ask a running server.

The server writes nothing where a caller says: the trace goes back in the answer, and the
caller's side puts it into its log folder.
Source: tensorflow `tsl/profiler/protobuf/profiler_service.proto`.
"""

import pathlib
import tempfile
import threading
from typing import Any

import grpc
import tensorflow as tf

from tfrec_attn.serve import declared
from tfrec_attn.serve.server.servable import ServingError, invalid

# tensorflow has no Python classes for these; of their fields only those that are used.
_classes = declared.classes(
    "tfrec_attn.serve.profiler",
    {
        "ProfileRequest": "duration_ms 1 uint64",
        "ToolData": "name 1 string; data 2 bytes",
        "ProfileResponse": "tool_data 6 ToolData*; empty_trace 7 bool",
    },
)
ProfileRequest = _classes["ProfileRequest"]
ProfileResponse = _classes["ProfileResponse"]
SERVICE = "tensorflow.ProfilerService"
_TOOL = "xplane.pb"
_LONGEST_MS = 600_000


def profile(request: Any, over: threading.Event | None = None) -> Any:
    """ProfilerService.Profile: traces what TensorFlow does for `duration_ms`.

    Args:
      request: A `ProfileRequest`.
      over: Ends it early where set.

    Returns:
      A `ProfileResponse` with the trace.

    Raises:
      ServingError: INVALID_ARGUMENT for more than ten minutes, ALREADY_EXISTS while
        another trace is taken.
    """
    if request.duration_ms > _LONGEST_MS:
        raise invalid(
            f"A trace takes at most {_LONGEST_MS} ms: received {request.duration_ms}."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.profiler.experimental.start(folder)
        except tf.errors.AlreadyExistsError as error:
            raise ServingError(grpc.StatusCode.ALREADY_EXISTS, error.message) from error
        try:
            (over or threading.Event()).wait(request.duration_ms / 1e3)
        finally:
            tf.profiler.experimental.stop()
        traces = list(pathlib.Path(folder).rglob(f"*.{_TOOL}"))
        response = ProfileResponse(empty_trace=not traces)
        for trace in traces:
            response.tool_data.add(name=_TOOL, data=trace.read_bytes())
        return response
