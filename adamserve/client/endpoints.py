"""A service's address as users write it: checked at once, and what stands between it and them."""

from __future__ import annotations

import os

from adamserve.errors import InvalidArgument
from adamserve.job import is_loopback

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Environment variables that gRPC takes a proxy from, the first that is set."""


def split(target: str, field: str = "target") -> tuple[str, int]:
    """The host and the port of "host:port"; an IPv6 address stands in brackets, which are taken off.

    Raises:
        InvalidArgument: it is not that; says what is wrong.
    """
    fix = "give host:port, as adamserve serve prints it"
    if "://" in target:
        scheme = target.partition("://")[0]
        raise InvalidArgument(f"{target!r} begins with {scheme}://", field=field, fix=fix)
    host, colon, port = target.rpartition(":")
    if not colon or not host or host == "[]":
        raise InvalidArgument(f"{target!r} has no port", field=field, fix=fix)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidArgument(f"{target!r} has several colons", field=field, fix=f"write [{host}]:{port}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidArgument(f"{port!r} is no port", field=field, fix="a number from 1 to 65535")
    return host.strip("[]"), int(port)


def proxy_of(endpoint: str) -> str:
    """The environment variable by which gRPC would go through a proxy to an endpoint; "" for none.

    To this machine itself no proxy is ever used.
    """
    host, _ = split(endpoint)
    ignored = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy", "")  # noqa: SIM112 - as gRPC reads them
    ends = [end.strip().lstrip(".") for end in ignored.split(",")]
    if is_loopback(host) or any(end and (host == end or host.endswith("." + end)) for end in ends):
        return ""
    return next((name for name in PROXIES if os.environ.get(name)), "")
