"""ControlService: jobs, in the controller's own process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import numpy as np

from adamserve import optim
from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import Endpoint, Stalls, answers, parse, serve
from adamserve.edge.security import Security
from adamserve.errors import InvalidArgument, LimitExceeded, NotFound, Unavailable
from adamserve.job import JobConfig, Topology
from adamserve.observe.rpc_counts import Calls
from adamserve.regret import Loss
from adamserve.shard import consistency
from adamserve.shard.geometry import partition
from adamserve.shard.sparse import in_order
from adamserve.v1 import control_pb2, types_pb2
from adamserve.values import Array, TensorSpec
from adamserve.wire import chunks, codec
from adamserve.wire.records import from_message, to_message

SERVICE = "adamserve.v1.ControlService"

CHECKPOINT_EVERY_S = 30.0
"""Where a job does not say."""


class Jobs(Protocol):
    """What ControlService asks of the service's controller, in values."""

    def topology(self, name: str) -> Topology:
        """Where a job's shards are now; NotFound without such a job."""

    def known(self, config: JobConfig) -> bool:
        """Whether a job is there already; Conflict where it differs."""

    def create(self, config: JobConfig, parameters: Mapping[str, Array]) -> bool:
        """Start a job; returns whether it was not there before."""

    def report(self, name: str, losses: Sequence[Loss], numbers: Mapping[str, float]) -> None:
        """Note training losses, and the latest value of each of some other numbers."""

    def status(self) -> Sequence[Any]:
        """How every job stood when it was last looked at."""

    def status_now(self) -> Sequence[Any]:
        """How every job stands."""

    def checkpoint(self, name: str) -> int:
        """Write a checkpoint; returns its number, 0 where none are kept."""

    def delete(self, name: str, *, purge: bool) -> bool:
        """Delete a job; returns whether there was one."""


def open_control(
    jobs: Jobs, security: Security, host: str, port: int, counts: Calls, *, advertise: str = ""
) -> Endpoint:
    """Listen on host:port (0: any free one), and count the calls; NOT_SERVING until told otherwise.

    `advertise` is the host that clients use, where it is another.

    Raises:
        Unavailable: the port cannot be bound.
    """
    servicer = ControlServicer(jobs, security)
    endpoint = serve(security.limits, SERVICE, servicer.handler(), servicer.stalls, counts)
    servicer.is_ready = lambda: endpoint.serving
    endpoint.listen(host, port, security, advertise)
    return endpoint


class ControlServicer:
    """The methods of the service's one endpoint."""

    def __init__(self, jobs: Jobs, security: Security) -> None:
        self._jobs = jobs
        self._tokens = security.tokens
        self._limits = security.limits
        self.stalls = Stalls(security.limits.stall_s)
        self.is_ready: Callable[[], bool] = lambda: True

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods by name; each takes and returns bytes."""
        unary: dict[str, tuple[Any, Any]] = {
            "GetTopology": (self.topology, control_pb2.GetTopologyRequest),
            "Report": (self.report, control_pb2.ReportRequest),
            "GetStatus": (self.status, control_pb2.GetStatusRequest),
            "Checkpoint": (self.checkpoint, control_pb2.CheckpointRequest),
            "DeleteJob": (self.delete, control_pb2.DeleteJobRequest),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                behaviour, request_deserializer=kind.FromString, response_serializer=_serialize
            )
            for name, (behaviour, kind) in unary.items()
        }
        methods["CreateJob"] = grpc.stream_unary_rpc_method_handler(
            self.create, response_serializer=_serialize
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    @answers
    def topology(
        self, request: control_pb2.GetTopologyRequest, context: grpc.ServicerContext
    ) -> control_pb2.GetTopologyResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        try:
            topology = self._jobs.topology(request.job)
        except NotFound:
            if self.is_ready():
                raise
            raise Unavailable("the service is taking its jobs up", field="job", fix="try again") from None
        return control_pb2.GetTopologyResponse(job=_job_spec(topology.config), shards=_places(topology))

    @answers
    def create(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> control_pb2.CreateJobResponse:
        """As in control.proto. A job that is there already is answered before its parameters have come."""
        with self.stalls.watching(context) as moved:
            first = parse(control_pb2.CreateJobRequest, next(messages, b""))
            if not first.HasField("start") or first.chunks:
                raise InvalidArgument("the first message holds start, and no chunks", field="start")
            self._tokens.check(context.invocation_metadata(), first.start.name)
            config = self._config(first.start)
            if self._known(config):
                return control_pb2.CreateJobResponse(created=False)
            parts = partition(config.tensors, 1)
            assembly = Assembly(parts, 0, Buffers(), values=True)
            for message in messages:
                moved()
                rest, pieces = chunks.split(message)
                if rest:
                    raise InvalidArgument("only chunks follow the first message", field="start")
                for chunk in pieces:
                    assembly.add(chunk)
        arrays = assembly.arrays()
        for spec in config.tensors:
            if spec.numel and spec.name not in arrays:
                raise InvalidArgument("its initial values are missing", field=spec.name)
        parameters: Mapping[str, Array] = {
            spec.name: in_order(spec, arrays[spec.name]) if spec.numel else np.empty(0, spec.dtype)
            for spec in config.tensors
        }
        return control_pb2.CreateJobResponse(created=self._jobs.create(config, parameters))

    @answers
    def report(
        self, request: control_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReportResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        for name in request.numbers:
            self._check_name(name, "numbers")
        losses = [from_message(Loss, loss) for loss in request.losses]
        self._jobs.report(request.job, losses, dict(request.numbers))
        return control_pb2.ReportResponse()

    @answers
    def status(
        self, request: control_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> control_pb2.GetStatusResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job or None)
        jobs = self._jobs.status_now()
        if request.job and request.job not in {job.job for job in jobs}:
            raise NotFound(f"the service has no job {request.job!r}", field="job", fix="create it first")
        return control_pb2.GetStatusResponse(
            jobs=[to_message(job, control_pb2.JobState) for job in jobs if request.job in ("", job.job)]
        )

    @answers
    def checkpoint(
        self, request: control_pb2.CheckpointRequest, context: grpc.ServicerContext
    ) -> control_pb2.CheckpointResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        return control_pb2.CheckpointResponse(number=self._jobs.checkpoint(request.job))

    @answers
    def delete(
        self, request: control_pb2.DeleteJobRequest, context: grpc.ServicerContext
    ) -> control_pb2.DeleteJobResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        return control_pb2.DeleteJobResponse(deleted=self._jobs.delete(request.job, purge=request.purge))

    def _known(self, config: JobConfig) -> bool:
        """Whether the job is there already.

        Raises:
            Conflict: it is, and differs.
            LimitExceeded: it is not, and there are as many as may be.
        """
        if self._jobs.known(config):
            return True
        if (jobs := len(self._jobs.status())) >= self._limits.jobs:
            raise LimitExceeded(f"the service has {jobs} jobs", field="jobs")
        return False

    def _config(self, spec: control_pb2.JobSpec) -> JobConfig:
        """A job's configuration, checked, every constant written out."""
        limits = self._limits
        if not spec.tensors:
            raise InvalidArgument("the job has none", field="tensors")
        if len(spec.tensors) > limits.tensors:
            raise LimitExceeded(f"{len(spec.tensors)} tensors, at most {limits.tensors}", field="tensors")
        tensors = []
        for tensor in spec.tensors:
            self._check_name(tensor.name, "tensors.name")
            dtype = codec.encoding_name(tensor.dtype, field=tensor.name)
            tensors.append(TensorSpec(tensor.name, tuple(tensor.shape), dtype, tensor.stride or 1))
        partition(tensors, 1)
        rule, others = optim.rules_of(
            _json(spec.rule_json, "rule_json"),
            {name: _json(text, name) for name, text in spec.tensor_rules_json.items()},
        )
        names = {tensor.name for tensor in tensors}
        for name in others:
            if name not in names:
                raise NotFound("has a rule, but the job has no such tensor", field=name)
        nbytes = sum(tensor.nbytes for tensor in tensors) * (1 + len(rule.slot_names))
        if nbytes > limits.job_bytes:
            raise LimitExceeded(f"parameters and slots take {nbytes} bytes", field="tensors")
        return JobConfig(
            name=spec.name,
            tensors=tuple(tensors),
            rule=optim.to_dict(rule),
            consistency=consistency.to_dict(consistency.parse(spec.consistency or "async")),
            tensor_rules={name: optim.to_dict(other) for name, other in sorted(others.items())},
            sparse=spec.sparse or "exact",
            checkpoint_every_s=spec.checkpoint_every_s or CHECKPOINT_EVERY_S,
        )

    def _check_name(self, name: str, field: str) -> None:
        if not 0 < len(name.encode()) <= self._limits.name_bytes:
            raise InvalidArgument(
                f"has {len(name.encode())} bytes", field=field, fix=f"use 1 to {self._limits.name_bytes}"
            )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _json(text: str, field: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument("is not JSON", field=field) from None
    if not isinstance(found, dict):
        raise InvalidArgument("is not a JSON object", field=field)
    return found


def _job_spec(config: JobConfig) -> control_pb2.JobSpec:
    options = dict(config.consistency)
    mode = consistency.from_dict(options)
    return control_pb2.JobSpec(
        name=config.name,
        tensors=[
            types_pb2.TensorSpec(
                name=tensor.name,
                shape=tensor.shape,
                stride=tensor.stride,
                dtype=codec.ENCODINGS[tensor.dtype].number,  # type: ignore[arg-type] # an enum's number,
            )
            for tensor in config.tensors
        ],
        rule_json=json.dumps(config.rule),
        tensor_rules_json={name: json.dumps(rule) for name, rule in config.tensor_rules.items()},
        consistency=str(mode),
        checkpoint_every_s=config.checkpoint_every_s or 0.0,
        sparse=config.sparse,
    )


def _places(topology: Topology) -> list[types_pb2.ShardPlace]:
    parts = partition(topology.config.tensors, len(topology.places))
    places = []
    for shard, place in enumerate(topology.places):
        places.append(
            types_pb2.ShardPlace(
                index=shard,
                endpoint=place.endpoint,
                direct_endpoint=place.direct,
                stamp=types_pb2.Stamp(incarnation=place.incarnation),
                restored_clock=place.restored_clock,
                spans=[
                    types_pb2.Span(tensor=s.tensor, start=s.start, stop=s.stop) for s in parts.shards[shard]
                ],
            )
        )
    return places
