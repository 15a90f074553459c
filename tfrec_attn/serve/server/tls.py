"""The server's side of TLS on gRPC, from an SSLConfig.

Source: tensorflow/serving `model_servers/server.cc`, BuildServerCredentials.
"""

import pathlib
import ssl
import tempfile
from typing import Any

import grpc

from tfrec_attn.serve.server import config_files


def credentials(path: pathlib.Path, source: str) -> grpc.ServerCredentials:
    """What a secure port needs; the fields of the file hold PEM texts.

    Raises:
      ValueError: The file is no SSLConfig, or gRPC could not use its key and certificates.
    """
    config = config_files.read("SSLConfig", path, source)
    problem = _problem(config)
    if problem:
        raise ValueError(f"{source}: {path}: {problem}")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def _problem(config: Any) -> str | None:
    """What is wrong with it. gRPC would only say that it cannot bind the port."""
    for field in ("server_key", "server_cert", "custom_ca"):
        text = getattr(config, field)
        if not text and field != "custom_ca":
            return f"{field} is missing: it must hold the PEM text."
        if text and "-----BEGIN " not in text:
            return f"{field} must hold the PEM text itself, not the path of a file."
    if config.client_verify and not config.custom_ca:
        return "client_verify needs custom_ca, the authority that signs the clients."
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Python reads key and certificate from files only.
        with tempfile.NamedTemporaryFile() as file:
            file.write(f"{config.server_key}\n{config.server_cert}".encode())
            file.flush()
            context.load_cert_chain(file.name)
    except ssl.SSLError as error:
        return f"server_key and server_cert are no pair of key and certificate: {error}."
    try:
        if config.custom_ca:
            context.load_verify_locations(cadata=config.custom_ca)
    except (ssl.SSLError, ValueError) as error:
        return f"custom_ca is no certificate: {error}."
    return None
