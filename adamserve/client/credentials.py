"""How a client reaches a service, and shows that it may."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from adamserve.errors import InvalidArgument
from adamserve.job import is_loopback, split_host_port
from adamserve.wire.frames import PREFACE, client_tls, local_name, open_local, peer_of

TRANSPORTS = ("auto", "direct", "grpc")

CONNECT_S = 2.0
"""Longest that a bare connection may take to be made."""

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
]


PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables that gRPC takes a proxy from, the first that is set."""


def proxy_of(endpoint: str) -> str:
    """The environment variable by which gRPC would go through a proxy to an endpoint; "" for none.

    To this machine itself no proxy is ever used.
    """
    host, _ = split_host_port(endpoint)
    ignored = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy", "")  # noqa: SIM112 - as gRPC reads them
    ends = [end.strip().lstrip(".") for end in ignored.split(",")]
    if is_loopback(host) or any(end and (host == end or host.endswith("." + end)) for end in ends):
        return ""
    return next((name for name in PROXIES if os.environ.get(name)), "")


File = str | Path | None
"""A file that is read, or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """How to reach a service: plain text without `ca`, TLS with it, mutual TLS with `cert` and `key` too.

    The attributes are `Client`'s arguments of these names, with what its PEM files hold.
    """

    token: str = field(default="", repr=False)
    ca: bytes = field(default=b"", repr=False)
    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    server_name: str = ""
    transport: str = "auto"

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise InvalidArgument(
                f"{self.transport!r} is none", field="transport", fix=f"one of {', '.join(TRANSPORTS)}"
            )

    @classmethod
    def read(
        cls,
        token: str,
        token_file: File,
        ca: File,
        cert: File,
        key: File,
        *,
        server_name: str,
        transport: str,
    ) -> Credentials:
        """As `Client` takes them; InvalidArgument names a file that cannot be read."""
        files = {"token_file": token_file, "ca": ca, "cert": cert, "key": key}
        content = dict.fromkeys(files, b"")
        for name, path in files.items():
            try:
                content[name] = b"" if path is None else Path(path).read_bytes()
            except OSError as error:
                raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field=name) from None
        pem = {name: content[name] for name in ("ca", "cert", "key")}
        if token_file is not None:
            token = content["token_file"].decode().strip()
        return cls(token=token, server_name=server_name, transport=transport, **pem)

    def channel(self, endpoint: str) -> grpc.Channel:
        """A gRPC channel of its own to an endpoint; it connects when it is first used."""
        options = [*OPTIONS, ("grpc.enable_http_proxy", int(bool(proxy_of(endpoint))))]
        if not self.ca:
            return grpc.insecure_channel(endpoint, options)
        name = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        secure = grpc.ssl_channel_credentials(self.ca, self.key or None, self.cert or None)
        return grpc.secure_channel(endpoint, secure, [*options, *name])

    def connect(self, endpoint: str, timeout_s: float) -> socket.socket:
        """A bare connection to an endpoint, its preface sent; OSError where it cannot be made."""
        host, port = split_host_port(endpoint, "endpoint")
        timeout_s = min(CONNECT_S, timeout_s)
        local = _local(endpoint, timeout_s) if not self.ca else None
        connected = local or socket.create_connection((host, port), timeout_s)
        # A full shard ends a Unix connection at once, which the call finds out.
        overlooked = [] if local is None else [ConnectionError]
        try:
            if local is None:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ca:
                tls = client_tls(self.ca, self.cert, self.key)
                connected = tls.wrap_socket(connected, server_hostname=self.server_name or host)
            with suppress(*overlooked):
                connected.sendall(PREFACE)
        except BaseException:
            connected.close()
            raise
        return connected

    @property
    def authorization(self) -> str:
        """What every call carries; "" without a token."""
        return f"Bearer {self.token}" if self.token else ""

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """`authorization` as gRPC takes it."""
        return (("authorization", self.authorization),) if self.token else ()


def _local(endpoint: str, timeout_s: float) -> socket.socket | None:
    """A Unix socket to an endpoint of this machine; None where there is none, or another user has made it."""
    local = open_local()
    if local is None:
        return None
    local.settimeout(timeout_s)
    try:
        local.connect(local_name(endpoint))
        if peer_of(local)[1] in (0, os.getuid()):
            return local
    except OSError:
        pass
    local.close()
    return None
