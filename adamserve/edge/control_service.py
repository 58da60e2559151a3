"""ControlService: jobs, passed on to the controller."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from adamserve import optim
from adamserve.cluster.actors import own_error
from adamserve.cluster.controller import CALL_TIMEOUT_S, JobStatus, Topology, initial_parts
from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import Stalls, answers, parse
from adamserve.edge.security import Security
from adamserve.errors import InvalidArgument, LimitExceeded, NotFound, Unavailable
from adamserve.job import JobConfig
from adamserve.observe.exporter import Observed
from adamserve.observe.summary import state_of
from adamserve.shard import consistency
from adamserve.shard.geometry import partition
from adamserve.shard.sparse import in_order
from adamserve.v1 import control_pb2, types_pb2
from adamserve.values import Array, TensorSpec
from adamserve.wire import chunks, codec, states

SERVICE = "adamserve.v1.ControlService"

CHECKPOINT_EVERY_S = 30.0
"""Where a job does not say."""


class ControlServicer:
    """The service's one endpoint, over the handle of its controller."""

    def __init__(self, controller: Any, shards: int, security: Security) -> None:
        self._controller = controller
        self._shards = shards
        self._tokens = security.tokens
        self._limits = security.limits
        self.stalls = Stalls(security.limits.stall_s)

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods by name; each takes and returns bytes."""
        unary: dict[str, tuple[Any, Any]] = {
            "GetTopology": (self.topology, control_pb2.GetTopologyRequest),
            "Report": (self.report, control_pb2.ReportRequest),
            "GetStatus": (self.status, control_pb2.GetStatusRequest),
            "Checkpoint": (self.checkpoint, control_pb2.CheckpointRequest),
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
        found: Topology = self._ask("topology", request.job)
        return control_pb2.GetTopologyResponse(job=_job_spec(found.config), shards=_places(found))

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
            known = self._known(config)
            if known:
                return control_pb2.CreateJobResponse(created=False)
            parts = partition(config.tensors, 1)
            assembly = Assembly(parts, 0, Buffers(), parameters=True)
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
        created = self._ask(
            "create", config, [ray.put(part) for part in initial_parts(config, parameters, self._shards)]
        )
        return control_pb2.CreateJobResponse(created=created)

    @answers
    def report(
        self, request: control_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> control_pb2.ReportResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        for loss in request.losses:
            comparator = loss.comparator_loss if loss.HasField("comparator_loss") else None
            self._ask("report", request.job, loss.loss, comparator)
        return control_pb2.ReportResponse()

    @answers
    def status(
        self, request: control_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> control_pb2.GetStatusResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job or None)
        jobs: tuple[JobStatus, ...] = self._ask("status_now")
        if request.job and request.job not in {job.name for job in jobs}:
            raise NotFound(f"the service has no job {request.job!r}", field="job", fix="create it first")
        return control_pb2.GetStatusResponse(
            jobs=[
                states.sent(state_of(Observed(job.name, job, job.account, None)))
                for job in jobs
                if request.job in ("", job.name)
            ]
        )

    @answers
    def checkpoint(
        self, request: control_pb2.CheckpointRequest, context: grpc.ServicerContext
    ) -> control_pb2.CheckpointResponse:
        """As in control.proto."""
        self._tokens.check(context.invocation_metadata(), request.job)
        return control_pb2.CheckpointResponse(number=self._ask("checkpoint", request.job) or 0)

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self._controller, method).remote(*args), timeout=CALL_TIMEOUT_S)
        except RayTaskError as error:
            raise own_error(error) from None
        except (RayActorError, GetTimeoutError):
            raise Unavailable("the controller does not answer", fix="try again") from None

    def _known(self, config: JobConfig) -> bool:
        """Whether the job is there already.

        Raises:
            Conflict: it is, and differs.
        """
        jobs: tuple[JobStatus, ...] = self._ask("status")
        if config.name not in {job.name for job in jobs}:
            if len(jobs) >= self._limits.jobs:
                raise LimitExceeded(f"the service has {len(jobs)} jobs", field="jobs")
            return False
        self._ask("create", config, [])
        return True

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


def _places(found: Topology) -> list[types_pb2.ShardPlace]:
    parts = partition(found.config.tensors, len(found.actors))
    places = []
    for shard, (endpoint, direct) in enumerate(found.endpoints):
        places.append(
            types_pb2.ShardPlace(
                index=shard,
                endpoint=endpoint,
                direct_endpoint=direct,
                stamp=types_pb2.Stamp(incarnation=found.incarnations[shard]),
                restored_clock=found.restored[shard],
                spans=[
                    types_pb2.Span(tensor=s.tensor, start=s.start, stop=s.stop) for s in parts.shards[shard]
                ],
            )
        )
    return places
