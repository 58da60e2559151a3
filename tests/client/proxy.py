"""A TCP proxy that misbehaves by a script: the faults that networks have, at chosen bytes."""

from __future__ import annotations

import random
import select
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from adamserve.client.credentials import Credentials

FAULTS = ("cut request", "drop answer", "cut answer", "delay", "refuse", "hold back")


@dataclass
class Proxy:
    """Listens on a port of its own and passes bytes on to `target`, one fault in each connection that is given one.

    A faulty connection ends after a random number of bytes: in the middle of a request (cut request), of an answer (cut
    answer), with the request delivered and the answer thrown away (drop answer), after a delay, at once (refuse), or
    only after the connection that came next has been let through (hold back: connections arrive out of order, and a
    late one delivers a push that its sender has long sent again).

    Attributes:
        target: host:port to pass on to.
        seed: of the script.
        share: of the connections that get a fault.
        happened: faults so far, by kind.
    """

    target: str
    seed: int
    share: float = 0.75
    happened: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._next_came = threading.Event()
        self.quiet = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        host, port = self._server.getsockname()
        return f"{host}:{port}"

    @property
    def faults(self) -> int:
        return sum(self.happened.values())

    def close(self) -> None:
        self._closed.set()
        self._next_came.set()
        self._server.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._next_came.set()
            with self._lock:
                faulty = not self.quiet.is_set() and self._random.random() < self.share
                fault = self._random.choice(FAULTS) if faulty else ""
                after = int(2 ** self._random.uniform(5, 17))
            threading.Thread(target=self._pass, args=(client, fault, after), daemon=True).start()

    def _note(self, fault: str) -> None:
        with self._lock:
            self.happened[fault] += 1

    def _pass(self, client: socket.socket, fault: str, after: int) -> None:
        """Pass bytes both ways until either side ends, or the fault's moment comes."""
        with client, suppress(OSError):
            if fault == "refuse":
                self._note(fault)
                return
            host, port = self.target.split(":")
            with socket.create_connection((host, int(port))) as server:
                sent = received = 0
                while not self._closed.is_set():
                    for source in select.select([client, server], [], [], 0.5)[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        if source is client:
                            if fault == "cut request" and sent + len(data) > after:
                                server.sendall(data[: after - sent])
                                self._note(fault)
                                return
                            if fault in ("delay", "hold back") and sent + len(data) > after:
                                self._note(fault)
                                self._next_came.clear()
                                self._next_came.wait(0.05 if fault == "delay" else 0.3)
                                fault = ""
                            server.sendall(data)
                            sent += len(data)
                            continue
                        # HTTP/2 greets with some hundred bytes; answers come after them. A direct one only answers.
                        if fault == "drop answer" and sent > after:
                            self._note(fault)
                            return
                        if fault == "cut answer" and received + len(data) > after:
                            client.sendall(data[: max(0, after - received)])
                            self._note(fault)
                            return
                        client.sendall(data)
                        received += len(data)


class Proxied(Credentials):
    """Sends every connection to an endpoint through that endpoint's proxy.

    Args:
        proxies: takes every proxy that is made, by endpoint.
        seed: of the first one's script; the next has the next.
        transport: as for every client.
    """

    def __init__(self, proxies: dict[str, Proxy], seed: int, transport: str) -> None:
        super().__init__(transport=transport)
        object.__setattr__(self, "proxies", proxies)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "lock", threading.Lock())

    def channel(self, endpoint: str) -> Any:
        return super().channel(self._proxy(endpoint))

    def connect(self, endpoint: str, timeout_s: float) -> socket.socket:
        return super().connect(self._proxy(endpoint), timeout_s)

    def _proxy(self, endpoint: str) -> str:
        kept: Any = self
        with kept.lock:
            if endpoint not in kept.proxies:
                kept.proxies[endpoint] = Proxy(endpoint, kept.seed + len(kept.proxies))
            return str(kept.proxies[endpoint].address)
