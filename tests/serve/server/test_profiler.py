import concurrent.futures
import threading

import grpc
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfrec_attn.serve.server import model_server, profiler
from tfrec_attn.serve.server import sockets as server
from tfrec_attn.serve.server.options import Options
from tfrec_attn.serve.server.servable import ServingError


def test_a_trace_holds_what_ran():
    class Over:
        """Works once the trace has begun, in place of waiting."""

        def wait(self, seconds):
            assert seconds == 60.0
            with tf.profiler.experimental.Trace("a name of ours"):
                tf.constant(1.0).numpy()

    response = profiler.profile(profiler.ProfileRequest(duration_ms=60_000), Over())
    assert not response.empty_trace
    (tool,) = response.tool_data
    assert tool.name == "xplane.pb"
    space = xplane_pb2.XSpace.FromString(tool.data)
    names = {meta.name for plane in space.planes for meta in plane.event_metadata.values()}
    assert "a name of ours" in {name.partition("#")[0] for name in names}


def test_one_trace_at_a_time():
    began = threading.Event()

    class Over(threading.Event):
        def wait(self, timeout=None):
            began.set()
            return super().wait(timeout)

    over, request = Over(), profiler.ProfileRequest(duration_ms=90_000)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(profiler.profile, request, over)
        assert began.wait(20)
        try:
            with pytest.raises(ServingError) as caught:
                profiler.profile(profiler.ProfileRequest(duration_ms=1))
            assert caught.value.code == grpc.StatusCode.ALREADY_EXISTS
        finally:
            over.set()
        assert first.result(20).tool_data


def test_a_trace_without_end_is_refused():
    with pytest.raises(ServingError, match="at most 600000 ms: received 600001") as caught:
        profiler.profile(profiler.ProfileRequest(duration_ms=600_001))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("profiling", [True, False])
def test_it_is_served_where_asked(profiling):
    models = model_server.ModelServer()
    running = server.start(models, "127.0.0.1", 0, 0, Options(profiling=profiling))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            trace = channel.unary_unary(
                f"/{profiler.SERVICE}/Profile",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=profiler.ProfileResponse.FromString,
            )
            request = profiler.ProfileRequest(duration_ms=1)
            if profiling:
                assert trace(request, timeout=20).tool_data
            else:
                with pytest.raises(grpc.RpcError) as caught:
                    trace(request, timeout=20)
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        running.stop(grace=5)
