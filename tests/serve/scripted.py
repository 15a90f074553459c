"""A server of both protocols that does what it is told, and no TensorFlow.

It doubles whole numbers: signature "twice", `x` to `y`. Run as a program it takes two
ports and serves until it is killed.
"""

import concurrent.futures
import contextlib
import http.server
import json
import ssl
import sys
import threading

import grpc
import numpy as np

from tfrec_attn.serve import tensors, wire

SHAPE = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
INFO = {"dtype": "DT_INT64", "tensor_shape": SHAPE, "name": "n"}
SIGNATURES = {"twice": {"inputs": {"x": INFO}, "outputs": {"y": INFO}}}
METADATA = {
    "model_spec": {"name": "m", "version": "3"},
    "metadata": {"signature_def": {"signature_def": SIGNATURES}},
}


class Scripted:
    """What both front ends share.

    Attributes:
      script: Codes to refuse the next calls with, in order; then calls are answered.
      asked: What came: a path or a message's model_spec.
      headers: Those of the last call.
      release: Calls wait for it where `hold` is set.
    """

    def __init__(self):
        self.script, self.asked, self.headers = [], [], {}
        self.hold, self.drip = False, False
        self.release = threading.Event()

    def next(self, asked, headers):
        """The code to refuse with, or None."""
        self.asked.append(asked)
        self.headers = dict(headers)
        if self.hold:
            self.release.wait()
        return self.script.pop(0) if self.script else None


def described():
    saved = wire.SignatureDefMap()
    twice = saved.signature_def["twice"]
    for info in (twice.inputs["x"], twice.outputs["y"]):
        info.dtype = 9
        info.tensor_shape.dim.add(size=-1)
    answer = wire.GetModelMetadataResponse()
    answer.model_spec.version.value = 3
    answer.metadata["signature_def"].value = saved.SerializeToString()
    return answer


def doubled(request):
    answer = wire.PredictResponse()
    x = tensors.read(request.inputs["x"])
    tensors.write(x * 2, answer.outputs["y"], packed=False)
    return answer


def grpc_server(scripted, port=0, credentials=None):
    """A started server and its port."""

    def method(request_class, respond):
        def answer(request, context):
            code = scripted.next(request.model_spec, context.invocation_metadata())
            if code is not None:
                context.abort(grpc.StatusCode[code], "as told")
            return respond(request)

        return grpc.unary_unary_rpc_method_handler(
            answer, request_class.FromString, lambda message: message.SerializeToString()
        )

    methods = {
        "Predict": method(wire.PredictRequest, doubled),
        "GetModelMetadata": method(wire.GetModelMetadataRequest, lambda _: described()),
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    service = "tensorflow.serving.PredictionService"
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, methods)]
    )
    address = f"localhost:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    return server, port


def rest_server(scripted, port=0, context=None):
    """A started server and its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self.respond(lambda _: METADATA)

        def do_POST(self):
            double = lambda body: {"outputs": (np.array(body["inputs"]["x"]) * 2).tolist()}
            self.respond(double)

        def respond(self, respond):
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = scripted.next(self.path, self.headers.items())
            answer = {"error": "as told"} if status else respond(json.loads(sent or "{}"))
            text = json.dumps(answer).encode()
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            while scripted.drip and not scripted.release.wait(0.01):
                self.wfile.write(b" ")
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", port), Handler)
    server.handle_error = lambda *_: None
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, server.server_port


@contextlib.contextmanager
def serving(protocol, tls=None):
    """A server of one protocol; yields its script and its target.

    Args:
      protocol: "grpc" or "rest".
      tls: A `trustme.CA`, of which clients must show a certificate too.
    """
    scripted = Scripted()
    if protocol == "grpc":
        server, port = grpc_server(scripted, credentials=tls and of_grpc(tls))
        stop = lambda: server.stop(0).wait()
    else:
        server, port = rest_server(scripted, context=tls and of_http(tls))
        stop = lambda: (server.shutdown(), server.server_close())
    try:
        yield scripted, f"localhost:{port}"
    finally:
        scripted.release.set()
        stop()


def of_grpc(ca):
    own = ca.issue_cert("localhost")
    pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
    return grpc.ssl_server_credentials([pair], ca.cert_pem.bytes(), True)


def of_http(ca):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


if __name__ == "__main__":
    # A gRPC server stops when it is no longer referenced.
    running = grpc_server(Scripted(), int(sys.argv[1]))
    rest_server(Scripted(), int(sys.argv[2]))
    print("ready", flush=True)
    threading.Event().wait()
