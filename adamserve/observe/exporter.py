"""A process's metrics (see `adamserve.observe.families`) for Prometheus: one registry and one HTTP port a process."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from adamserve.errors import Unavailable
from adamserve.job import host_port
from adamserve.observe.families import BUILD_INFO, JOB_FAMILIES, JOBS, JOBS_SHOWN, Family, Process, kind_of
from adamserve.observe.state import JobState

log = logging.getLogger("adamserve.metrics")

Source = TypeVar("Source")

THREADS = 8
"""Requests that a process answers at once."""

STALL_S = 5.0
"""Longest that a request may keep one of them waiting for its next bytes."""

REFUSED_S = 0.05
"""How long one of them waits where no connection can be taken."""

LETS_GO_S = 2e-4
"""A scrape rests as long after each family, so that a push which waits for the interpreter gets it."""

METRICS: Mapping[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Reading(Collector):
    """Families of one kind of source, read from what `sources` returns when they are scraped."""

    def __init__(
        self, families: Mapping[str, Family[Source]], sources: Callable[[], Iterable[Source]]
    ) -> None:
        self._families = families
        self._sources: Callable[[], Iterable[Any]] = sources

    def collect(self) -> Iterator[Metric]:
        """Samples of now."""
        sources = list(self._sources())
        if not sources:
            return
        for name, family in self._families.items():
            metric = METRICS[kind_of(name)](name, family.help, labels=family.labels)
            for source in sources:
                for labels, value in family.read(source):
                    metric.add_metric(labels, *(value if family.histogram else [value]))
            if metric.samples:
                yield metric
            time.sleep(LETS_GO_S)


Page = Callable[[], tuple[str, str]]
"""A further page: its content type and its content."""

Guard = Callable[[str], bool]
"""Whether the value of an `Authorization` header may see the further pages."""


class _Server(WSGIServer):
    """Some threads that wait for connections themselves; none of them keeps the process alive.

    A thread made for each scrape, and the loop that makes it, would take the interpreter from pushes a few times more.
    """

    def __init__(self, host: str, port: int, application: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.set_app(application)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._answer, name=f"adamserve-metrics-{i}", daemon=True)
            for i in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._stopped.set()
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes those who wait
        for thread in self._threads:
            thread.join(timeout=1.0)
        self.server_close()

    def _answer(self) -> None:
        while not self._stopped.is_set():
            try:
                request, address = self.get_request()
            except OSError as error:
                # Stopped; or it was gone before it was taken; or too many files are open.
                log.debug("no connection: %s", error)
                self._stopped.wait(REFUSED_S)
                continue
            try:
                self.finish_request(request, address)
            except OSError as error:
                log.debug("%s went away: %s", address, error)
            except Exception:
                log.exception("a request from %s was not answered", address)
            finally:
                self.shutdown_request(request)


class _Handler(WSGIRequestHandler):
    timeout = STALL_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is no news."""


class Exporter:
    """An HTTP endpoint on host:port (0: any free port) for Prometheus (`/metrics`) and for further pages.

    Args:
        pages: further pages by path, such as "/".
        guard: who may see them; everybody without one. `/metrics` is open in any case.
        process: what this process is.
        collect: what to export beside the jobs that are shown.
        open_pages: pages that are open in any case.

    Attributes:
        port: the port that is listened on.

    Raises:
        Unavailable: the port cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Page] | None = None,
        guard: Guard | None = None,
        *,
        process: Process = "driver",
        collect: Sequence[Collector] = (),
        open_pages: Mapping[str, Page] | None = None,
    ) -> None:
        self._jobs: tuple[JobState, ...] | None = None
        registry = CollectorRegistry()
        for collector in (
            Reading(BUILD_INFO, lambda: [process]),
            Reading(JOBS, lambda: [] if self._jobs is None else [len(self._jobs)]),
            Reading(JOB_FAMILIES, lambda: sorted(self._jobs or (), key=lambda job: job.job)[:JOBS_SHOWN]),
            *collect,
        ):
            registry.register(collector)
        application = _routes(make_wsgi_app(registry), pages or {}, guard, open_pages or {})
        try:
            self._server = _Server(host, port, application)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host_port(host, port)}: {error.strerror or error}",
                field="metrics_port",
                fix="choose another",
            ) from None
        self.port = int(self._server.server_port)

    def show(self, *jobs: JobState) -> None:
        """Show these jobs from now on."""
        self._jobs = jobs

    def close(self) -> None:
        """Stop listening."""
        self._server.stop()


def _routes(
    metrics: Any, pages: Mapping[str, Page], guard: Guard | None, open_pages: Mapping[str, Page]
) -> Any:
    """The WSGI application: metrics, further pages behind their guard, and 404 for the rest."""
    everything = {**pages, **open_pages}

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        page = everything.get(path)
        headers = [("X-Content-Type-Options", "nosniff")]
        kind = "text/plain; charset=utf-8"
        if page is None:
            status, content = "404 Not Found", f"see {' '.join(('/metrics', *everything))}\n"
        elif path in pages and guard is not None and not guard(environ.get("HTTP_AUTHORIZATION", "")):
            status, content = "401 Unauthorized", "a token is needed\n"
            headers.append(("WWW-Authenticate", 'Basic realm="adamserve: any user, the token as password"'))
        else:
            status, (kind, content) = "200 OK", page()
            headers.append(("Cache-Control", "no-store"))
        start(status, [("Content-Type", kind), *headers])
        return [content.encode()]

    return answer
