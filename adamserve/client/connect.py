"""`adamserve.connect`, the way in."""

from __future__ import annotations

from pathlib import Path

from adamserve.client.client import Client
from adamserve.client.credentials import Credentials
from adamserve.errors import InvalidArgument
from adamserve.values import PusherKind


def connect(
    target: str,
    job: str,
    *,
    pusher: str = "",
    kind: PusherKind = "trainer",
    credentials: Credentials | None = None,
    token: str = "",
    token_file: str | Path | None = None,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    server_name: str = "",
    transport: str = "auto",
    timeout_s: float = 120.0,
    lease_s: float = 10.0,
    wire_dtype: str = "float32",
    max_in_flight: int = 4,
) -> Client:
    """Connect to a service that `adamserve serve` started. Nothing is sent until the first call.

    Args:
        target: host:port of its ControlService.
        job: the job's name; `Client.create` starts one.
        pusher: this pusher's name, unique in the job and the same after a restart; "" makes one up.
        kind: where the pusher runs: "worker", started by `adamserve.train`, or "trainer", anywhere else.
        credentials: all from `token` to `transport` in one value, in place of them.
        token, token_file: bearer token, or the file that holds it.
        ca: PEM file of the authorities that sign the server's certificate; without it the connection is plain text.
        cert, key: PEM files of this client's own certificate, for mutual TLS.
        server_name: name to expect in the server's certificate in place of the host.
        transport: how tensors travel: "direct" over bare connections to the shards, the fastest; "grpc", for networks
            that let nothing else through; "auto", direct where a connection can be made.
        timeout_s: longest that a call may take, all its tries together.
        lease_s: seconds after which the shards stop counting a client that fell silent.
        wire_dtype: how float32 gradients travel: "float32", "bfloat16", "float16" (parameters too), or "int8"
            (gradients only, with error feedback).
        max_in_flight: pushes under way at the same time.

    Raises:
        InvalidArgument: an argument is wrong, or a file cannot be read; names it.
    """
    if token_file is not None:
        token = _read("token_file", token_file).decode().strip()
    given = Credentials(
        token=token,
        ca=_read("ca", ca),
        cert=_read("cert", cert),
        key=_read("key", key),
        server_name=server_name,
        transport=transport,
    )
    if credentials is not None and given != Credentials():
        raise InvalidArgument("stand beside a part of them", field="credentials", fix="put all into them")
    return Client(
        target,
        job,
        pusher=pusher,
        kind=kind,
        credentials=credentials or given,
        timeout_s=timeout_s,
        lease_s=lease_s,
        wire_dtype=wire_dtype,
        max_in_flight=max_in_flight,
    )


def _read(name: str, path: str | Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field=name) from None
