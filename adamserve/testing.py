"""A service inside the test's own process: real shards, controller, gRPC and direct endpoints over loopback; no Ray.

    with testing.Service(shards=2, checkpoint_dir=tmp_path) as service, service.client("job") as client:
        client.create({"w": np.zeros(3, np.float32)}, optim.SGD(lr=1.0))
        ...
        service.kill(1)     # as kill -9 would: connections end, what the shard held is gone

It is the service that `adamserve serve` runs but for Ray, so clients cannot tell the two apart. It starts in
milliseconds. By default a thread watches the shards and heals the dead within moments. With `watch_every_s=None`
nothing happens until `service.controller.step()` is called, and with a `ManualClock` no time passes until the test says
so.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, Self

from adamserve.cluster.controller import Controller
from adamserve.cluster.placement import Answer, Given, ProcessGone
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.running import RunningService
from adamserve.edge.control_service import open_control
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import ShardEdge
from adamserve.observe.rpc_counts import Calls

__all__ = ["LocalPlacement", "LocalShard", "ManualClock", "Service"]

HOST = "127.0.0.1"

WATCH_EVERY_S = 0.05
"""How often the shards are looked at; a killed one is noticed within about this time."""


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def __call__(self) -> float:
        """Seconds since its beginning."""
        return self._seconds

    def advance(self, seconds: float) -> None:
        """Move on."""
        self._seconds += seconds


class LocalShard:
    """A shard process that is a few threads of this one (`adamserve.cluster.placement.ShardHandle`)."""

    def __init__(self, process: ShardProcess, index: int) -> None:
        self._process = process
        self._index = index
        self._dead = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix=f"adamserve-shard-{index}")

    def kill(self) -> None:
        """End it as a crash would: its connections end, its state is gone, and no call of it is answered any more."""
        with self._lock:
            if self._dead:
                return
            self._dead = True
            self._pool.shutdown(wait=False)
        self._process.cut()

    def call(
        self,
        method: Callable[Concatenate[ShardProcess, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Future[Answer]:
        """As `ShardHandle.call`."""

        def answer() -> Answer:
            try:
                result = method(self._process, *args, **options)
            except Exception:
                self._check_alive()
                raise
            self._check_alive()
            return result

        with self._lock:
            if not self._dead:
                return self._pool.submit(answer)
        refused: Future[Answer] = Future()
        refused.set_exception(self._gone())
        return refused

    def _check_alive(self) -> None:
        if self._dead:
            raise self._gone()

    def _gone(self) -> ProcessGone:
        return ProcessGone(f"shard {self._index} was killed")


class LocalWorker:
    """A worker process that is a few threads of this one (`adamserve.cluster.pool.WorkerHandle`)."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._control = ThreadPoolExecutor(max_workers=2, thread_name_prefix="adamserve-worker-control")
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adamserve-worker")
        self._made = self._control.submit(make)

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method that is soon done."""
        return self._control.submit(lambda: getattr(self._made.result(), method)(*args))

    def work(self, method: str, *args: Any) -> Future[Any]:
        """Call a method that takes long, while others can be called."""
        return self._work.submit(lambda: getattr(self._made.result(), method)(*args))

    def end(self) -> None:
        """Take no more calls; those under way go on to their ends."""
        self._control.shutdown(wait=False)
        self._work.shutdown(wait=False)


class LocalPool:
    """Starts workers in this process (`adamserve.cluster.pool.Pool`)."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._started: list[LocalWorker] = []

    def start(self) -> LocalWorker:
        """Start a worker."""
        self._started.append(LocalWorker(self._make))
        return self._started[-1]

    def share(self, value: Any) -> Any:
        """Every worker sees the same value."""
        return value

    def end(self) -> None:
        """End its workers."""
        for worker in self._started:
            worker.end()


class LocalPlacement:
    """Starts shards in this process (`adamserve.cluster.placement.Placement`).

    Args:
        shards: how many the service has.
        security: how their endpoints listen.
        metrics: whether each serves its metrics.
    """

    def __init__(self, shards: int, security: Security, *, metrics: bool = False) -> None:
        self._shards = shards
        self._edge = ShardEdge(security)
        self._metrics = metrics
        self._started: dict[int, LocalShard] = {}

    def start(self, index: int) -> LocalShard:
        """Start a shard."""
        process = ShardProcess(
            index,
            self._shards,
            host=HOST,
            edge=self._edge,
            node="local",
            metrics_host=HOST if self._metrics else None,
        )
        self._started[index] = LocalShard(process, index)
        return self._started[index]

    def kill(self, index: int) -> None:
        """End the process of a shard; the one that replaces it is another."""
        self._started[index].kill()


class Service(RunningService):
    """A service in this process; a context manager that stops it.

    Args:
        shards: how many.
        checkpoint_dir: where checkpoints go; None keeps none, and a shard that is killed cannot be restored.
        security: as for `adamserve serve`: TLS, tokens and limits.
        closed: refuse clients without a token even where users have none, as a service on several nodes does.
        metrics: whether the shards serve their metrics.
        watch_every_s: how often a thread looks after the shards; None for no thread, so that only
            `controller.step()` does.
        now: the clock that checkpoints and retries go by, in seconds.

    Attributes:
        controller: the service's controller.
    """

    def __init__(
        self,
        *,
        shards: int = 1,
        checkpoint_dir: Path | None = None,
        security: Security | None = None,
        closed: bool = False,
        metrics: bool = False,
        watch_every_s: float | None = WATCH_EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        security, secret = security or Security(), secrets.token_urlsafe()
        security = replace(security, tokens=security.tokens.beside(secret, required=closed))
        self.credentials = security.credentials(secret)
        self.shards = shards
        self._placement = LocalPlacement(shards, security, metrics=metrics)
        self._pools: list[LocalPool] = []
        self._calls = Calls()
        self.controller = Controller(
            self._placement,
            shards=shards,
            checkpoint_dir=checkpoint_dir,
            watch_every_s=watch_every_s,
            now=now,
        )
        try:
            self._endpoint = open_control(self.controller, security, HOST, 0, self._calls)
        except Exception:
            self.controller.stop()
            raise
        self.target = self._endpoint.address
        self._endpoint.serve()

    @classmethod
    def start(
        cls,
        *,
        shards: int = 1,
        checkpoint_dir: Path | None = None,
        security: Security | None = None,
        metrics_host: str | None = None,
        **placing: Any,
    ) -> Self:
        """As `adamserve.cluster.service.Service.start`; what is about Ray and its nodes is passed over."""
        return cls(
            shards=shards,
            checkpoint_dir=checkpoint_dir,
            security=security,
            metrics=metrics_host is not None,
        )

    def serve(self) -> None:
        """Nothing to do: it serves from the start."""

    def workers(self, make: Callable[[], Any], *, gpus: float = 0.0) -> LocalPool:
        """Where workers are started, each a few threads of this process."""
        self._pools.append(LocalPool(make))
        return self._pools[-1]

    def free_cpus(self) -> int:
        """This machine's."""
        return os.cpu_count() or 1

    def calls(self) -> Calls:
        """As `RunningService.calls`."""
        return self._calls

    def kill(self, shard: int) -> None:
        """End a shard as a crash would."""
        self._placement.kill(shard)

    def drain(self, grace_s: float = 0.0) -> None:
        """As `RunningService.drain`."""
        self._endpoint.drain(grace_s)
        self.controller.drain(grace_s)

    def stop(self) -> None:
        """As `RunningService.stop`."""
        for pool in self._pools:
            pool.end()
        self._endpoint.cut()
        self.controller.stop()

    def _ask(
        self,
        method: Callable[Concatenate[Controller, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Answer:
        return method(self.controller, *args, **options)
