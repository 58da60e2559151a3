"""`Client` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec, Self, TypeVar

from adamserve.client.client import Client
from adamserve.client.connect import connect
from adamserve.values import Clocks, Constants, Gradient, JobReceipt

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _awaited(
    method: Callable[Concatenate[Client, Parameters], Result],
) -> Callable[Concatenate[AsyncClient, Parameters], Awaitable[Result]]:
    """A method of `Client`, made in a thread and awaited."""

    @wraps(method)
    async def call(self: AsyncClient, /, *args: Parameters.args, **options: Parameters.kwargs) -> Result:
        return await asyncio.to_thread(method, self._client, *args, **options)

    return call


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. One push at a time, as there."""

    def __init__(self, client: Client) -> None:
        self._client = client

    create = _awaited(Client.create)
    join = _awaited(Client.join)
    pull = _awaited(Client.pull)
    push_pull = _awaited(Client.push_pull)
    set = _awaited(Client.set)
    status = _awaited(Client.status)
    jobs = _awaited(Client.jobs)
    checkpoint = _awaited(Client.checkpoint)
    delete = _awaited(Client.delete)
    close = _awaited(Client.close)

    async def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
    ) -> JobReceipt:
        """As `Client.push` that waits; a task of its own does not."""
        return await asyncio.to_thread(
            self._client.push, gradients, clock, lr=lr, rates=rates, constants=constants
        )

    async def report(
        self, loss: float | None = None, comparator_loss: float | None = None, **numbers: float
    ) -> None:
        """As `Client.report`."""
        await asyncio.to_thread(self._client.report, loss, comparator_loss, **numbers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _asynchronous(make: Callable[Parameters, Client]) -> Callable[Parameters, AsyncClient]:
    @wraps(make)
    def made(*args: Parameters.args, **options: Parameters.kwargs) -> AsyncClient:
        return AsyncClient(make(*args, **options))

    return made


connect_async = _asynchronous(connect)
