"""Where the processes of a service have their metrics, as Prometheus discovers them.

The document is that of Prometheus' http_sd and file_sd, https://prometheus.io/docs/prometheus/latest/http_sd/: always
all targets that there are. A process that is gone is in it no more.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from adamserve.errors import InvalidArgument
from adamserve.observe.families import PROCESSES, Process

log = logging.getLogger("adamserve.watch")


class Directory:
    """The targets of one service, also in a file for Prometheus' file_sd, replaced atomically. Thread-safe.

    Raises:
        InvalidArgument: the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._written = ""
        self._lock = threading.Lock()
        self._found: dict[Process, dict[int, str]] = {process: {} for process in PROCESSES}
        if path is not None and path.suffix not in (".json", ".yml", ".yaml"):
            raise InvalidArgument(
                f"Prometheus reads no file named {path.name!r}", field="sd_file", fix="call it NAME.json"
            )
        self._write()

    def put(self, process: Process, addresses: Mapping[int, str]) -> None:
        """All processes of a kind that live: host:port by number (0 for the only one)."""
        with self._lock:
            self._found[process] = dict(addresses)
            self._keep()

    def drop(self, process: Process, number: int) -> None:
        """One process is gone."""
        with self._lock:
            self._found[process].pop(number, None)
            self._keep()

    def page(self) -> tuple[str, str]:
        """The document and its type, for `Exporter`."""
        with self._lock:
            return "application/json", self._document()

    def close(self) -> None:
        """Every process is gone."""
        with self._lock:
            for addresses in self._found.values():
                addresses.clear()
            self._keep()

    def _keep(self) -> None:
        """Write the file where it is not as it should be; a disk that is full stops no training."""
        try:
            self._write()
        except InvalidArgument as error:
            log.error("%s; tried again with the next look", error)

    def _document(self) -> str:
        groups = []
        for process, addresses in self._found.items():
            for number, address in sorted(addresses.items()):
                labels = {"process": process} | ({} if process == "driver" else {process: str(number)})
                groups.append({"targets": [address], "labels": labels})
        return json.dumps(groups, indent=1)

    def _write(self) -> None:
        document = self._document()
        if self._path is None or document == self._written:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(document + "\n", encoding="utf-8")
            beside.replace(self._path)
            self._written = document
        except OSError as error:
            raise InvalidArgument(
                f"{self._path} cannot be written: {error.strerror or error}", field="sd_file"
            ) from None
