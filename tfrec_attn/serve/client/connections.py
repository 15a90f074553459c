"""Where a client calls, and as whom: address, protocol, TLS, headers. No TensorFlow."""

import dataclasses
import pathlib
import ssl
from collections.abc import Mapping

import grpc


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files in PEM; without any, the server is checked by the roots that are installed.

    Attributes:
      root: Certificates that the server's must descend from.
      certificate: The client's own, with those it descends from, for a server that asks
        (mTLS).
      key: Of `certificate`.
    """

    root: str | pathlib.Path | None = None
    certificate: str | pathlib.Path | None = None
    key: str | pathlib.Path | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise ValueError(
                "Tls needs certificate and key together, or neither: received "
                f"certificate={self.certificate!r} and key={self.key!r}."
            )
        # What reads them does not say which one it misses.
        for name, path in vars(self).items():
            if path is not None and not pathlib.Path(path).is_file():
                raise ValueError(f"Tls.{name} names a file in PEM: {str(path)!r} is none.")

    def credentials(self) -> grpc.ChannelCredentials:
        """For a gRPC channel."""
        read = lambda path: pathlib.Path(path).read_bytes() if path is not None else None
        return grpc.ssl_channel_credentials(
            read(self.root), read(self.key), read(self.certificate)
        )

    def context(self) -> ssl.SSLContext:
        """For HTTPS."""
        context = ssl.create_default_context(cafile=self.root)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclasses.dataclass(frozen=True)
class Connection:
    """A server and how it is reached.

    Attributes:
      target: "host:port", or a URL for REST.
      protocol: "grpc" or "rest"; None takes what `target` looks like.
      tls: None sends in the clear over gRPC and "http://".
      headers: Sent with every request, for example `{"authorization": "Bearer …"}`.

    Raises:
      ValueError: These do not go together.
    """

    target: str
    protocol: str | None = None
    tls: Tls | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        url = "://" in self.target
        if self.protocol not in (None, "grpc", "rest"):
            raise ValueError(
                f'protocol must be "grpc" or "rest": received {self.protocol!r}.'
            )
        if self.protocol == "grpc" and url:
            raise ValueError(
                f'target must be "host:port" for gRPC: received {self.target!r}. '
                'Drop the scheme, or say protocol="rest".'
            )
        if self.tls is not None and self.target.lower().startswith("http://"):
            raise ValueError(
                f"tls needs an address of HTTPS: received {self.target!r}. Write https://, "
                "or leave tls out."
            )
        for name, value in self.headers.items():
            if not (name.isascii() and value.isascii() and value.isprintable()):
                # The value may be a secret: it is not shown.
                raise ValueError(
                    f"headers must be printable ASCII, name and value: {name!r} is not."
                )

    @property
    def rest(self) -> bool:
        """Whether the protocol is REST."""
        return self.protocol == "rest" or (self.protocol is None and "://" in self.target)

    @property
    def url(self) -> str:
        """The target as a URL, for REST."""
        scheme = "http" if self.tls is None else "https"
        return self.target if "://" in self.target else f"{scheme}://{self.target}"

    @property
    def lower_headers(self) -> tuple[tuple[str, str], ...]:
        """Names in the lower case that gRPC demands and HTTP does not mind."""
        return tuple((name.lower(), value) for name, value in self.headers.items())
