"""A shard's two ways in, in the shard's own process: gRPC and bare connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adamserve.edge.direct import DirectEndpoint
from adamserve.edge.grpc_server import Endpoint
from adamserve.edge.security import Security
from adamserve.edge.shard_service import SERVICE, Hosts, ShardCalls
from adamserve.errors import InvalidArgument, Unavailable
from adamserve.job import host_port, split_host_port
from adamserve.observe.rpc_counts import Calls


@dataclass(frozen=True, slots=True)
class ShardEndpoint:
    """Both ways in, while they are open, each with its host:port."""

    grpc: Endpoint
    direct: DirectEndpoint
    address: str
    direct_address: str

    def serve(self) -> None:
        """Say that the shard is ready."""
        self.grpc.serve()

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        beside = threading.Thread(target=self.direct.drain, args=(grace_s,))
        beside.start()
        self.grpc.drain(grace_s)
        beside.join()

    def cut(self) -> None:
        """End every call and connection at once."""
        self.grpc.cut()
        self.direct.drain(0.0)


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports that shards may listen on, both ends included; each shard takes two. Several shards may share a node."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Read "LOW-HIGH", or raise InvalidArgument."""
        low, dash, high = text.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and 0 < int(low) < int(high) < 65536):
            raise InvalidArgument(
                f"{text!r} is not a range of ports",
                field="shard_ports",
                fix="write LOW-HIGH, such as 7000-7099",
            )
        return cls(int(low), int(high))

    def listen(self, listen: Callable[[int], None]) -> None:
        """Call `listen` with one port after the other until it is bound; Unavailable where none can be."""
        for port in range(self.low, self.high + 1):
            try:
                return listen(port)
            except Unavailable:
                continue
        raise Unavailable(
            f"no port from {self.low} to {self.high} is free on this node",
            field="shard_ports",
            fix="give a wider range: two ports for each shard of a node",
        )


@dataclass(frozen=True, slots=True)
class Advertised:
    """Where clients are told that the shards are: one host, with each shard's own ports, or host:port for each."""

    places: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Advertised:
        """Read "HOST" or "HOST:PORT,HOST:PORT,...", or raise InvalidArgument."""
        places = tuple(place.strip() for place in text.split(","))
        if len(places) > 1 or cls(places).by_shard:
            for place in places:
                split_host_port(place, "advertise")
        elif not places[0]:
            raise InvalidArgument(
                "is empty", field="advertise", fix="give a host, or host:port for each shard"
            )
        return cls(places)

    @property
    def by_shard(self) -> bool:
        """Whether each shard has an entry, with its port."""
        bare = self.places[0].rpartition("]")[2] if self.places[0].startswith("[") else self.places[0]
        return ":" in bare

    def place(self, shard: int, endpoint: str, direct: str) -> tuple[str, str]:
        """A shard's endpoint and its bare one as clients are told them; "" where there is none for them."""
        if self.by_shard:
            return self.places[shard], ""
        host = self.places[0].strip("[]")
        return host_port(host, split_host_port(endpoint)[1]), host_port(host, split_host_port(direct)[1])


@dataclass(frozen=True, slots=True)
class ShardEdge:
    """Opens a shard's ways in, on some ports or any free ones; it travels to the shards' processes."""

    security: Security
    ports: Ports | None = None

    def open(self, hosts: Hosts, counts: Calls, host: str) -> ShardEndpoint:
        """Listen on two ports of `host`, and count the calls; NOT_SERVING until told otherwise."""
        calls = ShardCalls(hosts, self.security)
        grpc = Endpoint(SERVICE, calls.answer, self.security, calls.stalls, counts)
        direct = DirectEndpoint(calls, self.security, counts)
        calls.look_for = direct.look_for
        for endpoint in (grpc, direct):
            if self.ports is None:
                endpoint.listen(host, 0)
            else:
                self.ports.listen(partial(endpoint.listen, host))
        return ShardEndpoint(grpc, direct, grpc.address, direct.address)
