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
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from adamserve.cluster.controller import Controller
from adamserve.cluster.placement import Handle, ProcessGone
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.running import RunningService
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Advertised, ShardEdge

__all__ = ["ManualClock", "Service"]

HOST = "127.0.0.1"

WATCH_EVERY_S = 0.05
"""How often the shards are looked at; a killed one is noticed within about this time."""

THREADS = 32
"""Calls that a process answers at once."""

Made = TypeVar("Made")


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


class LocalProcess(Handle[Made]):
    """A process that is a few threads of this one (`adamserve.cluster.placement.Handle`).

    Args:
        name: for errors and threads.
        make: makes its object.
        end: ends what goes on in the object when the process is killed.
    """

    def __init__(
        self, name: str, make: Callable[[], Made], end: Callable[[Made], object] = lambda made: None
    ) -> None:
        self._name = name
        self._end = end
        self._dead = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(thread_name_prefix=f"adamserve-{name}", max_workers=THREADS)
        self._made = self._pool.submit(make)

    def kill(self) -> None:
        """End it as a crash would: no call of it is answered any more, though those under way go on to their ends."""
        with self._lock:
            if self._dead:
                return
            self._dead = True
            self._pool.shutdown(wait=False)
        if self._made.exception() is None:
            self._end(self._made.result())

    def send(self, method: str, *args: Any, **options: Any) -> Future[Any]:
        """As `Handle.send`."""

        def answer() -> Any:
            try:
                return getattr(self._made.result(), method)(*args, **options)
            finally:
                if self._dead:
                    raise self._gone()

        with self._lock:
            if not self._dead:
                return self._pool.submit(answer)
        refused: Future[Any] = Future()
        refused.set_exception(self._gone())
        return refused

    def _gone(self) -> ProcessGone:
        return ProcessGone(f"{self._name} was killed")


class Service(RunningService):
    """A service in this process; a context manager that stops it.

    Args:
        shards: how many.
        checkpoint_dir: where checkpoints go; None keeps none, and a shard that is killed cannot be restored.
        security: as for `adamserve serve`: TLS, tokens and limits.
        closed: refuse clients without a token even where users have none, as a service on several nodes does.
        metrics: whether the shards serve their metrics.
        advertise: as for `Service.start`.
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
        advertise: Advertised | None = None,
        watch_every_s: float | None = WATCH_EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        security, secret = security or Security(), secrets.token_urlsafe()
        security = replace(security, tokens=security.tokens.beside(secret, required=closed))
        edge, metrics_host = ShardEdge(security), HOST if metrics else None
        self._processes: dict[int, LocalProcess[ShardProcess]] = {}
        self._workers: list[LocalProcess[Any]] = []

        def place(index: int) -> LocalProcess[ShardProcess]:
            make = partial(
                ShardProcess, index, shards, host=HOST, edge=edge, node="local", metrics_host=metrics_host
            )
            self._processes[index] = LocalProcess(f"shard {index}", make, ShardProcess.cut)
            return self._processes[index]

        self.controller = Controller(
            place,
            shards=shards,
            checkpoint_dir=checkpoint_dir,
            security=security,
            credentials=security.credentials(secret),
            watch_every_s=watch_every_s,
            now=now,
            shards_at=advertise,
        )
        super().__init__(LocalProcess("the controller", lambda: self.controller))
        self.serve()

    @classmethod
    def start(cls, *, metrics_host: str | None = None, **options: Any) -> Self:
        """As `adamserve.cluster.service.Service.start`; what is about Ray and its nodes is passed over."""
        ours = {name: options[name] for name in ("shards", "checkpoint_dir", "security") if name in options}
        return cls(metrics=metrics_host is not None, **ours)

    def start_worker(self, make: Callable[[], Made], *, gpus: float = 0.0) -> LocalProcess[Made]:
        """As `RunningService.start_worker`."""
        worker = LocalProcess("worker", make)
        self._workers.append(worker)
        return worker

    def share(self, value: Any) -> Any:
        """Every process here sees the same value."""
        return value

    def free_cpus(self) -> int:
        """This machine's."""
        return os.cpu_count() or 1

    def kill(self, shard: int) -> None:
        """End a shard as a crash would; the process that replaces it is another."""
        self._processes[shard].kill()

    def stop(self) -> None:
        """As `RunningService.stop`."""
        for worker in self._workers:
            worker.kill()
        super().stop()
