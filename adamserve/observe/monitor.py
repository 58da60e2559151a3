"""Everything that shows how a service stands, wired once: metrics, status page, discovery, and news in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client.registry import Collector

from adamserve.job import host_port
from adamserve.observe.discovery import Directory
from adamserve.observe.exporter import Exporter, Guard
from adamserve.observe.news import News
from adamserve.observe.page import Board, pages
from adamserve.observe.state import JobState


class Watched(Protocol):
    """What the monitor asks a service."""

    def seen(self) -> Sequence[JobState]:
        """How every job stood when the controller last looked."""

    def metrics(self) -> Mapping[int, str]:
        """host:port of each living shard's metrics, by shard."""


class Monitor:
    """Shows the jobs of a service as `look` last saw them.

    Args:
        host, port: where metrics and pages are served; port None serves none, 0 takes any free one.
        advertise: how others reach `host`; "" for `host` itself.
        sd_file: file to keep for Prometheus' file_sd; None keeps none.
        guard, collect: as the `Exporter` takes them.

    Attributes:
        directory: where the metrics of all processes are listed.
        address: host:port of metrics and pages; empty where none are served.

    Raises:
        Unavailable: the port cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        *,
        advertise: str = "",
        sd_file: Path | None = None,
        guard: Guard | None = None,
        collect: Sequence[Collector] = (),
    ) -> None:
        self._board, self._news, self.directory = Board(), News(), Directory(sd_file)
        self._exporter: Exporter | None = None
        self.address = ""
        if port is not None:
            open_pages = {"/sd": self.directory.page}
            self._exporter = Exporter(
                host, port, pages(self._board), guard, collect=collect, open_pages=open_pages
            )
            self.address = host_port(advertise or host, self._exporter.port)
            self.directory.put("driver", {0: self.address})

    def look(self, service: Watched) -> Sequence[JobState]:
        """Show how the jobs stand now, and return it."""
        jobs = service.seen()
        self._news.show(*jobs)
        self._board.show(*jobs)
        if self._exporter is not None:
            self._exporter.show(*jobs)
        self.directory.put("shard", service.metrics())
        return jobs

    def close(self) -> None:
        """Stop serving, and leave no file behind."""
        self.directory.close()
        if self._exporter is not None:
            self._exporter.close()
