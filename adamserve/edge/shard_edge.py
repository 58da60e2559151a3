"""A shard's two ways in from outside the cluster, in the shard's own process."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from adamserve.cluster.actors import Hosts
from adamserve.cluster.exporting import node_address
from adamserve.edge.direct import DirectEndpoint
from adamserve.edge.grpc_server import Endpoint, serve
from adamserve.edge.security import Security
from adamserve.edge.shard_service import SERVICE, ShardCalls, grpc_handler
from adamserve.observe.rpc_counts import Calls


@dataclass(frozen=True, slots=True)
class ShardEndpoint:
    """gRPC and bare connections (`adamserve.cluster.actors.Endpoint`)."""

    grpc: Endpoint
    direct: DirectEndpoint

    @property
    def address(self) -> str:
        """host:port of its gRPC services."""
        return self.grpc.address

    @property
    def direct_address(self) -> str:
        """host:port for bare connections."""
        return self.direct.address

    def serve(self) -> None:
        """Say that the shard is ready."""
        self.grpc.serve()

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s` seconds, and stop."""
        beside = threading.Thread(target=self.direct.drain, args=(grace_s,))
        beside.start()
        self.grpc.drain(grace_s)
        beside.join()


@dataclass(frozen=True, slots=True)
class ShardEdge:
    """Starts a shard's endpoints (`adamserve.cluster.actors.Edge`)."""

    host: str
    security: Security

    def open(self, hosts: Hosts, counts: Calls) -> ShardEndpoint:
        """Listen on any free ports, and count the calls; NOT_SERVING until told otherwise."""
        calls = ShardCalls(hosts, self.security)
        endpoint = serve(self.security.limits, SERVICE, grpc_handler(calls), calls.stalls, counts)
        advertise = node_address(self.host)
        endpoint.listen(self.host, 0, self.security, advertise)
        direct = DirectEndpoint(calls, self.security, counts)
        direct.listen(self.host, advertise)
        return ShardEndpoint(endpoint, direct)
