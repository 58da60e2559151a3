"""The ways in: `connect`, and `connect_async` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from adamserve import optim
from adamserve.client.client import Client
from adamserve.client.link import Credentials
from adamserve.errors import InvalidArgument
from adamserve.observe.state import JobState
from adamserve.values import Array, Clocks, JobReceipt


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, parameters: Mapping[str, Array], rule: optim.Rule, **options: Any) -> bool:
        """As `Client.create`."""
        return await asyncio.to_thread(self._client.create, parameters, rule, **options)

    async def pull(self, **options: Any) -> tuple[Mapping[str, Array], Clocks]:
        """As `Client.pull`."""
        return await asyncio.to_thread(self._client.pull, **options)

    async def push(self, gradients: Mapping[str, Array], clock: Clocks, **options: Any) -> JobReceipt:
        """As `Client.push`."""
        return await asyncio.to_thread(lambda: self._client.push(gradients, clock, **options))

    async def push_pull(
        self, gradients: Mapping[str, Array], clock: Clocks, **options: Any
    ) -> tuple[JobReceipt, Mapping[str, Array], Clocks]:
        """As `Client.push_pull`."""
        return await asyncio.to_thread(self._client.push_pull, gradients, clock, **options)

    async def report(self, loss: float, comparator_loss: float | None = None) -> None:
        """As `Client.report`."""
        await asyncio.to_thread(self._client.report, loss, comparator_loss)

    async def status(self) -> JobState:
        """As `Client.status`."""
        return await asyncio.to_thread(self._client.status)

    async def checkpoint(self) -> int:
        """As `Client.checkpoint`."""
        return await asyncio.to_thread(self._client.checkpoint)

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def connect(
    target: str,
    job: str,
    *,
    pusher: str = "",
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
    credentials = Credentials(
        token=token,
        ca=_read("ca", ca),
        cert=_read("cert", cert),
        key=_read("key", key),
        server_name=server_name,
        transport=transport,
    )
    return Client(
        target,
        job,
        pusher=pusher,
        credentials=credentials,
        timeout_s=timeout_s,
        lease_s=lease_s,
        wire_dtype=wire_dtype,
        max_in_flight=max_in_flight,
    )


def connect_async(target: str, job: str, **options: Any) -> AsyncClient:
    """As `connect`, for asyncio."""
    return AsyncClient(connect(target, job, **options))


def _read(name: str, path: str | Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field=name) from None
