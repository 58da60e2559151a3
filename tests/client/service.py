"""Shards of one job behind their real endpoints in this process, and as much of a controller as a client needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from google.protobuf.message import Message

from adamserve import optim
from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.control_service import SERVICE
from adamserve.edge.grpc_server import Endpoint, Stalls
from adamserve.edge.publishing import EncodedPublisher
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import ShardEdge, ShardEndpoint
from adamserve.errors import NotFinite, NotFound
from adamserve.observe.rpc_counts import Calls
from adamserve.shard import consistency
from adamserve.shard.consistency import Consistency
from adamserve.shard.geometry import Partition, partition
from adamserve.shard.host import ShardHost
from adamserve.shard.shard import Shard
from adamserve.shard.statistics import ShardStatistics
from adamserve.v1 import control_pb2, types_pb2
from adamserve.values import ShardState, Stamp, TensorSpec
from adamserve.wire import chunks, codec


class Service:
    """One job; `kill` and `restore` do to a shard what a crash and the controller do.

    Args:
        mode: in place of the mode that the job's creator asks for.

    Attributes:
        target: host:port of its ControlService.
        losses, numbers: what was reported; `reports` counts the calls.
        calls: of each shard's endpoints.
    """

    def __init__(
        self, shards: int = 2, security: Security | None = None, mode: Consistency | None = None
    ) -> None:
        self._security = security or Security()
        self._mode = mode
        self.hosts: list[ShardHost | None] = [None] * shards
        self.calls = [Calls() for _ in range(shards)]
        self._incarnations = [1] * shards
        self._restored = [0] * shards
        self._edges: list[ShardEndpoint] = []
        self._job: control_pb2.JobSpec | None = None
        self._cuts: dict[int, ShardState] = {}
        self.losses: list[tuple[float, float | None]] = []
        self.numbers: dict[str, float] = {}
        self.reports = 0
        self.reporting = threading.Event()
        self.reporting.set()
        self._edges = [self._open(shard) for shard in range(shards)]
        self._stalls = Stalls(30.0)
        self._control = Endpoint(SERVICE, self._answer, self._security, self._stalls, Calls())
        self._control.listen("127.0.0.1", 0)
        self.target = self._control.address

    # ---- what befalls it

    def kill(self, shard: int) -> None:
        """End a shard's process: its connections end, and what it held is lost."""
        self.hosts[shard] = None
        self._edges[shard].drain(0.0)

    def restore(self, shard: int) -> None:
        """Start the shard anew from the newest checkpoint, at new endpoints."""
        self._incarnations[shard] += 1
        self._begin(shard, self._cuts[shard])
        self._edges[shard] = self._open(shard)

    def cut(self) -> None:
        """Write a checkpoint."""
        for shard, host in enumerate(self.hosts):
            assert host is not None
            self._cuts[shard] = host.cut(_copied)

    def statistics(self, shard: int = 0) -> ShardStatistics:
        """Of one shard."""
        host = self.hosts[shard]
        assert host is not None
        return host.statistics()

    def kinds(self) -> list[tuple[int, tuple[str, ...]]]:
        """For each shard, how many of the live pushers are trainers, and who is live."""
        return [(s.trainers, s.live) for s in map(self.statistics, range(len(self.hosts)))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._control.drain(0.0)
        for edge in self._edges:
            edge.drain(0.0)

    # ---- shards

    def _open(self, shard: int) -> ShardEndpoint:
        def host(job: str) -> ShardHost:
            found = self.hosts[shard]
            if found is None or self._job is None or job != self._job.name:
                raise NotFound(f"no job {job!r} on shard {shard}", field="job")
            return found

        edge = ShardEdge(self._security).open(host, self.calls[shard], "127.0.0.1")
        edge.serve()
        return edge

    def _begin(self, shard: int, state: ShardState) -> None:
        assert self._job is not None
        state = replace(state, stamp=Stamp(self._incarnations[shard], state.stamp.clock))
        self._restored[shard] = state.stamp.clock
        made = Shard(
            partition=self._parts,
            state=state,
            rule=optim.from_dict(json.loads(self._job.rule_json)),
            consistency=self._mode or consistency.parse(self._job.consistency),
            exact=self._job.sparse != "lazy",
        )
        self.hosts[shard] = ShardHost(made, EncodedPublisher())

    @property
    def _parts(self) -> Partition:
        assert self._job is not None
        specs = [
            TensorSpec(t.name, tuple(t.shape), codec.encoding_name(t.dtype, field=t.name), t.stride or 1)
            for t in self._job.tensors
        ]
        return partition(specs, len(self.hosts))

    # ---- ControlService

    def _answer(self, method: str, messages: Any, call: Any) -> Iterator[list[bytes]]:
        answers: dict[str, Callable[[Any], Message]] = {
            "GetTopology": self._topology,
            "Report": self._report,
            "GetStatus": self._status,
            "Checkpoint": self._checkpoint,
            "DeleteJob": self._delete,
        }
        if method == "CreateJob":
            yield [self._create(iter(messages)).SerializeToString()]
        else:
            yield [answers[method](*messages).SerializeToString()]

    def _topology(self, message: bytes) -> Message:
        self._known(control_pb2.GetTopologyRequest.FromString(message).job)
        parts = self._parts
        places = [
            types_pb2.ShardPlace(
                index=shard,
                endpoint=edge.address,
                direct_endpoint=edge.direct_address,
                stamp=types_pb2.Stamp(incarnation=self._incarnations[shard]),
                restored_clock=self._restored[shard],
                spans=[
                    types_pb2.Span(tensor=s.tensor, start=s.start, stop=s.stop) for s in parts.shards[shard]
                ],
            )
            for shard, edge in enumerate(self._edges)
        ]
        return control_pb2.GetTopologyResponse(job=self._job, shards=places)

    def _create(self, messages: Iterator[bytes]) -> Message:
        start = control_pb2.CreateJobRequest.FromString(next(messages)).start
        if self._job is not None:
            return control_pb2.CreateJobResponse(created=False)
        self._job = start
        assembly = Assembly(partition(self._parts.tensors, 1), 0, Buffers(), values=True)
        for message in messages:
            for chunk in chunks.split(message)[1]:
                assembly.add(chunk)
        arrays = assembly.arrays()
        for shard, spans in enumerate(self._parts.shards):
            held = {s.tensor: arrays[s.tensor][s.start : s.stop].copy() for s in spans if s.numel}
            self._begin(shard, ShardState(shard, Stamp(1, 0), (), {"w": held}))
        self.cut()
        return control_pb2.CreateJobResponse(created=True)

    def _report(self, message: bytes) -> Message:
        request = control_pb2.ReportRequest.FromString(message)
        self.reporting.wait(20.0)
        self.reports += 1
        losses = [
            (s.loss, s.comparator_loss if s.HasField("comparator_loss") else None) for s in request.losses
        ]
        self.losses += losses
        self.numbers.update(request.numbers)
        if any(not np.isfinite(loss) for loss, _ in losses):
            raise NotFinite("must be finite", field="loss")
        return control_pb2.ReportResponse()

    def _status(self, message: bytes) -> Message:
        return control_pb2.GetStatusResponse(
            jobs=[] if self._job is None else [control_pb2.JobState(job=self._job.name)]
        )

    def _checkpoint(self, message: bytes) -> Message:
        self.cut()
        return control_pb2.CheckpointResponse(number=1)

    def _delete(self, message: bytes) -> Message:
        request = control_pb2.DeleteJobRequest.FromString(message)
        deleted = self._job is not None and self._job.name == request.job
        if deleted:
            self._job, self.hosts = None, [None] * len(self.hosts)
        return control_pb2.DeleteJobResponse(deleted=deleted)

    def _known(self, job: str) -> None:
        if self._job is None or self._job.name != job:
            raise NotFound(f"the service has no job {job!r}", field="job")


def _copied(state: ShardState) -> ShardState:
    arrays: Mapping[str, Any] = {
        slot: {name: np.array(values) for name, values in held.items()} for slot, held in state.arrays.items()
    }
    return replace(state, arrays=arrays)
