"""What `adamserve serve` does: start a service, watch it, and stop it on a signal."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adamserve import checkpoint
from adamserve.cluster.config import Options
from adamserve.cluster.ray_runtime import connected, heeded, node_address, same_signals
from adamserve.cluster.running import RunningService, StartService
from adamserve.cluster.service import Service
from adamserve.edge.security import check_bind
from adamserve.errors import CheckpointError, InvalidArgument, NotFound, Unavailable
from adamserve.observe.exporter import Reading
from adamserve.observe.families import RPC_FAMILIES
from adamserve.observe.logs import fields, set_up
from adamserve.observe.monitor import Monitor

log = logging.getLogger("adamserve.rpc")

OBSERVE_EVERY_S = 1.0
"""How often the metrics are shown anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig(Options):
    """What `adamserve serve` takes; see its options."""

    port: int = 50051
    metrics_port: int = 0
    sd_file: Path | None = None
    insecure: bool = False
    address: str | None = None
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) < 65536:
                raise InvalidArgument(f"must be 0 to 65535, got {getattr(self, name)}", field=name)
        if not self.grace_s >= 0:
            raise InvalidArgument(f"must be at least 0 seconds, got {self.grace_s}", field="grace_s")
        check_bind(self.host, self.security, insecure=self.insecure)
        Options.__post_init__(self)


@dataclass(frozen=True, slots=True)
class Ready:
    """How to reach a service that runs.

    Attributes:
        target: host:port of ControlService, for `adamserve.connect`.
        shards: host:port of each ShardService.
        metrics: URL for Prometheus.
        status: URL of the status page.
        discovery: URL where Prometheus discovers every process's metrics (http_sd).
        tls, token: whether clients need an authority's certificate, and a token.
        jobs: taken up from checkpoints.
    """

    target: str
    shards: tuple[str, ...]
    metrics: str
    status: str
    discovery: str
    tls: bool
    token: bool
    jobs: tuple[str, ...]

    def __str__(self) -> str:
        options = (', ca="ca.pem"' if self.tls else "") + (', token_file="token"' if self.token else "")
        lines = [
            "adamserve is ready",
            f"  control  {self.target}",
            *(f"  shard {i}  {address}" for i, address in enumerate(self.shards)),
            f"  metrics  {self.metrics}",
            f"  status   {self.status}",
            f"  targets  {self.discovery}",
            f"  jobs     {', '.join(self.jobs) or 'none yet'}",
            f'  connect  adamserve.connect("{self.target}", job="NAME"{options})',
        ]
        return "\n".join(lines)


def run(config: ServeConfig, on_ready: Callable[[Ready], None]) -> None:
    """Serve until SIGTERM, SIGHUP or SIGINT; then drain, write a checkpoint of every job, and return."""
    stopping = threading.Event()
    if config.log is not None:
        set_up(config.log)
    # While Ray starts, Ctrl-C still ends the process at once.
    with connected(config.address), same_signals():
        for number in heeded():
            signal.signal(number, lambda *_: stopping.set())
        with serving(config) as (ready, observe):
            on_ready(ready)
            log.info("ready", extra=fields(target=ready.target, tls=ready.tls, token=ready.token))
            stopped = False
            while not stopped:
                stopped = stopping.wait(OBSERVE_EVERY_S)  # what has happened by then is told too
                try:
                    observe()
                except Unavailable as error:
                    # A controller that is slow to answer is no reason to stop: its metrics stay as they were.
                    log.warning("%s", error)
            log.info("stopping", extra=fields(grace_s=config.grace_s))
    log.info("stopped")


@contextmanager
def serving(
    config: ServeConfig, *, start: StartService = Service.start
) -> Iterator[tuple[Ready, Callable[[], object]]]:
    """A service, drained and stopped at the end, on the Ray that this process is connected to, or else at its address.

    Args:
        start: starts the service; `adamserve.testing.Service.start` does it without Ray.

    Yields:
        How to reach it, and a function that shows the metrics anew.
    """
    tokens = config.security.tokens
    names = {each.name for each in dataclasses.fields(config)} - {"metrics_port", "sd_file"}
    with (
        start(metrics_host=config.host, **{name: getattr(config, name) for name in names}) as service,
        closing(
            Monitor(
                config.host,
                config.metrics_port,
                advertise=node_address(config.host),
                sd_file=config.sd_file,
                guard=tokens.guard(),
                collect=[Reading(RPC_FAMILIES, lambda: [service.calls()])],
            )
        ) as monitor,
    ):
        taken_up = _resume(service, config.checkpoint_dir)
        monitor.look(service)
        service.serve()
        yield (
            Ready(
                service.target,
                tuple(process.endpoint for process in service.processes()),
                f"http://{monitor.address}/metrics",
                f"http://{monitor.address}/",
                f"http://{monitor.address}/sd",
                bool(config.security.cert),
                bool(tokens.digests),
                taken_up,
            ),
            lambda: monitor.look(service),
        )


def read_pem(path: Path | None, name: str) -> bytes:
    """A PEM file's content; empty without a path.

    Raises:
        InvalidArgument: it cannot be read, or is not PEM.
    """
    if path is None:
        return b""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}", field=name) from None
    if b"-----BEGIN" not in content:
        raise InvalidArgument(f"{path} is not a PEM file", field=name)
    return content


def _resume(service: RunningService, folder: Path | None) -> tuple[str, ...]:
    """Take up every job that has a checkpoint; one of which none verifies does not keep the others waiting."""
    taken_up = []
    for name in checkpoint.list_jobs(folder) if folder is not None else ():
        try:
            service.resume(name)
        except (NotFound, CheckpointError) as error:
            log.error("job cannot be taken up: %s", error, extra=fields(job=name))
        else:
            taken_up.append(name)
    return tuple(taken_up)
