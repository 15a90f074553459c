"""What the sockets are told, as `server.start` takes it."""

import dataclasses
import os

import grpc

from tfrec_attn.serve.server.metrics import Metrics

# TF Serving's numbers: threads for each processor, seconds of a REST call.
THREADS = 4 * (os.cpu_count() or 1)
REST_TIMEOUT = 30.0
# Ours: TF Serving has no limits of these.
WAITING = 256
REST_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sockets, limits and what is told about them.

    Attributes:
      grpc_socket_path: A Unix socket that gRPC listens on too; empty for none.
      grpc_max_threads: gRPC calls that run at once.
      grpc_channel_arguments: Of the gRPC server, name and value.
      grpc_health: Whether the health service is there.
      credentials: TLS on gRPC; None for none.
      rest_threads: REST calls that run at once.
      rest_timeout: Seconds in which a REST request must arrive, and then be answered.
      rest_bytes: The longest body of a REST request.
      cors: Whether browsers may call from pages of other origins.
      waiting: Calls that may wait to run, for each of the two protocols.
      profiling: Whether gRPC also serves the profiler.
      metrics: Where calls are counted.
      metrics_path: Where the metrics are served; None for nowhere.
    """

    grpc_socket_path: str = ""
    grpc_max_threads: int = THREADS
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = ()
    grpc_health: bool = True
    credentials: grpc.ServerCredentials | None = None
    rest_threads: int = THREADS
    rest_timeout: float = REST_TIMEOUT
    rest_bytes: int = REST_BYTES
    cors: bool = False
    waiting: int = WAITING
    profiling: bool = False
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    metrics_path: str | None = None
