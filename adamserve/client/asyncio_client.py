"""`Client` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Self, TypeVar

from adamserve.client.client import Client
from adamserve.client.threads import Thread

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _awaited(
    method: Callable[Concatenate[Client, Parameters], Result],
) -> Callable[Concatenate[AsyncClient, Parameters], Awaitable[Result]]:
    """A method of `Client`, made in the client's own thread for its kind, and awaited."""
    pushes = method.__name__ in ("join", "pull", "push", "push_pull", "set", "wait")

    @wraps(method)
    async def call(self: AsyncClient, /, *args: Parameters.args, **options: Parameters.kwargs) -> Result:
        thread = self._pushing if pushes else self._asking
        return await asyncio.wrap_future(thread.submit(method, self._client, *args, **options))

    return call


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. One push at a time, as there.

    A client has two threads of its own, for what waits its turn at the shards and for the rest, so that clients do not
    wait for each other's. A call whose await is cancelled goes on, and the next one comes after it. To go on beside a
    push, make a task of it: a handle's `result` would hold the loop up.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pushing, self._asking = Thread("adamserve-async-push"), Thread("adamserve-async")

    create = _awaited(Client.create)
    join = _awaited(Client.join)
    pull = _awaited(Client.pull)
    push = _awaited(Client.push)
    push_pull = _awaited(Client.push_pull)
    set = _awaited(Client.set)
    report = _awaited(Client.report)
    status = _awaited(Client.status)
    jobs = _awaited(Client.jobs)
    checkpoint = _awaited(Client.checkpoint)
    delete = _awaited(Client.delete)
    wait = _awaited(Client.wait)

    async def close(self) -> None:
        """As `Client.close`."""
        await asyncio.wrap_future(self._pushing.submit(self._client.close))
        for thread in (self._pushing, self._asking):
            thread.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _asynchronous(make: Callable[Parameters, Client]) -> Callable[Parameters, AsyncClient]:
    def connect_async(*args: Parameters.args, **options: Parameters.kwargs) -> AsyncClient:
        """As `adamserve.connect`, for asyncio."""
        return AsyncClient(make(*args, **options))

    return connect_async


connect_async = _asynchronous(Client)
