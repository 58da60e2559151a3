"""ControlService: what its calls do to jobs, in the controller's own process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import Message

from adamserve import optim
from adamserve.edge.assembly import Assembly
from adamserve.edge.buffers import Buffers
from adamserve.edge.grpc_server import Call, Endpoint, Messages, Stalls, parse
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Advertised
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
from adamserve.wire.frames import Parts
from adamserve.wire.records import from_message, to_message

SERVICE = control_pb2.DESCRIPTOR.services_by_name["ControlService"]

CHECKPOINT_EVERY_S = 30.0
"""Where a job does not say."""


class Jobs(Protocol):
    """What ControlService asks of the service's controller (`adamserve.cluster.controller.Controller`)."""

    def topology(self, name: str) -> Topology: ...
    def known(self, config: JobConfig) -> bool: ...
    def create(self, config: JobConfig, parameters: Mapping[str, Array]) -> bool: ...
    def report(self, name: str, losses: Sequence[Loss], numbers: Mapping[str, float]) -> None: ...
    def status(self) -> Sequence[Any]: ...
    def status_now(self) -> Sequence[Any]: ...
    def checkpoint(self, name: str) -> int: ...
    def delete(self, name: str, *, purge: bool) -> bool: ...


def open_control(
    jobs: Jobs,
    security: Security,
    host: str,
    port: int,
    counts: Calls,
    *,
    advertise: str = "",
    shards_at: Advertised | None = None,
) -> Endpoint:
    """ControlService, as `Endpoint.listen`, with its calls counted; NOT_SERVING until told otherwise."""
    endpoint = ControlCalls(jobs, security, counts, shards_at).endpoint
    endpoint.listen(host, port, advertise)
    return endpoint


class ControlCalls:
    """The methods of ControlService."""

    def __init__(
        self, jobs: Jobs, security: Security, counts: Calls, shards_at: Advertised | None = None
    ) -> None:
        self._jobs = jobs
        self._shards_at = shards_at
        self._tokens = security.tokens
        self._limits = security.limits
        self._stalls = Stalls(security.limits.stall_s)
        self._answers: Mapping[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "GetTopology": (control_pb2.GetTopologyRequest, self._topology),
            "Report": (control_pb2.ReportRequest, self._report),
            "GetStatus": (control_pb2.GetStatusRequest, self._status),
            "Checkpoint": (control_pb2.CheckpointRequest, self._checkpoint),
            "DeleteJob": (control_pb2.DeleteJobRequest, self._delete),
        }
        self.endpoint = Endpoint(SERVICE, self.answer, security, self._stalls, counts)

    def answer(self, method: str, messages: Messages, call: Call) -> Iterator[Parts]:
        """Answer one call, as control.proto says."""
        if method == "CreateJob":
            created = self._create(iter(messages), call)
            yield [control_pb2.CreateJobResponse(created=created).SerializeToString()]
            return
        kind, answer = self._answers[method]
        [message] = messages
        request: Any = parse(kind, message)
        self._tokens.check(call.invocation_metadata(), request.job)
        yield [answer(request).SerializeToString()]

    def _topology(self, request: control_pb2.GetTopologyRequest) -> Message:
        try:
            topology = self._jobs.topology(request.job)
        except NotFound:
            if self.endpoint.serving:
                raise
            raise Unavailable("the service is taking its jobs up", field="job", fix="try again") from None
        spans = partition(topology.config.tensors, len(topology.places)).shards
        places = []
        for shard, place in enumerate(topology.places):
            told = place.endpoint, place.direct
            endpoint, direct = self._shards_at.place(shard, *told) if self._shards_at is not None else told
            places.append(
                types_pb2.ShardPlace(
                    index=shard,
                    endpoint=endpoint,
                    direct_endpoint=direct,
                    stamp=types_pb2.Stamp(incarnation=place.incarnation),
                    restored_clock=place.restored_clock,
                    spans=map(asdict, spans[shard]),
                )
            )
        return control_pb2.GetTopologyResponse(job=_job_spec(topology.config), shards=places)

    def _create(self, messages: Iterator[bytes | memoryview], call: Call) -> bool:
        """Start a job; one that is there already is answered before its parameters have come."""
        with self._stalls.watching(call) as moved:
            first = parse(control_pb2.CreateJobRequest, next(messages, b""))
            if not first.HasField("start") or first.chunks:
                raise InvalidArgument("the first message holds start, and no chunks", field="start")
            self._tokens.check(call.invocation_metadata(), first.start.name)
            config = self._config(first.start)
            if self._jobs.known(config):
                return False
            if (jobs := len(self._jobs.status())) >= self._limits.jobs:
                raise LimitExceeded(f"the service has {jobs} jobs", field="jobs")
            assembly = Assembly(partition(config.tensors, 1), 0, Buffers(), values=True)
            for message in messages:
                moved()
                rest, pieces = chunks.split(message)
                if rest:
                    raise InvalidArgument("only chunks follow the first message", field="start")
                for chunk in pieces:
                    assembly.add(chunk)
        arrays, parameters = assembly.arrays(), {}
        for spec in config.tensors:
            if spec.numel and spec.name not in arrays:
                raise InvalidArgument("its initial values are missing", field=spec.name)
            values = in_order(spec, arrays[spec.name]) if spec.numel else np.empty(0, spec.dtype)
            parameters[spec.name] = values
        return self._jobs.create(config, parameters)

    def _report(self, request: control_pb2.ReportRequest) -> Message:
        for name in request.numbers:
            self._limits.check_name(name, "numbers")
        losses = [from_message(Loss, loss) for loss in request.losses]
        self._jobs.report(request.job, losses, dict(request.numbers))
        return control_pb2.ReportResponse()

    def _status(self, request: control_pb2.GetStatusRequest) -> Message:
        jobs = [job for job in self._jobs.status_now() if request.job in ("", job.job)]
        if request.job and not jobs:
            raise NotFound(f"the service has no job {request.job!r}", field="job", fix="create it first")
        return control_pb2.GetStatusResponse(jobs=[to_message(job, control_pb2.JobState) for job in jobs])

    def _checkpoint(self, request: control_pb2.CheckpointRequest) -> Message:
        return control_pb2.CheckpointResponse(number=self._jobs.checkpoint(request.job))

    def _delete(self, request: control_pb2.DeleteJobRequest) -> Message:
        return control_pb2.DeleteJobResponse(deleted=self._jobs.delete(request.job, purge=request.purge))

    def _config(self, spec: control_pb2.JobSpec) -> JobConfig:
        """A job's configuration, checked, every constant written out."""
        limits = self._limits
        if not spec.tensors:
            raise InvalidArgument("the job has none", field="tensors")
        if len(spec.tensors) > limits.tensors:
            raise LimitExceeded(f"{len(spec.tensors)} tensors, at most {limits.tensors}", field="tensors")
        tensors = []
        for tensor in spec.tensors:
            limits.check_name(tensor.name, "tensors.name")
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
            consistency=consistency.to_dict(_mode(spec)),
            tensor_rules={name: optim.to_dict(other) for name, other in sorted(others.items())},
            sparse=spec.sparse or "exact",
            checkpoint_every_s=spec.checkpoint_every_s or CHECKPOINT_EVERY_S,
        )


ASYNC = ("max_staleness", "staleness_lr", "delay_compensation")
"""Options of the mode "async"."""


def _json(text: str, field: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument("is not JSON", field=field) from None
    if not isinstance(found, dict):
        raise InvalidArgument("is not a JSON object", field=field)
    return found


def _job_spec(config: JobConfig) -> control_pb2.JobSpec:
    return control_pb2.JobSpec(
        name=config.name,
        tensors=[{**asdict(spec), "dtype": codec.ENCODINGS[spec.dtype].number} for spec in config.tensors],
        rule_json=json.dumps(config.rule),
        tensor_rules_json={name: json.dumps(rule) for name, rule in config.tensor_rules.items()},
        consistency=str(consistency.from_dict(config.consistency)),
        checkpoint_every_s=config.checkpoint_every_s or 0.0,
        sparse=config.sparse,
        **{
            name: value
            for name in ASYNC
            if (value := config.consistency.get(name)) not in (None, "none", 0.0)
        },
    )


def _mode(spec: control_pb2.JobSpec) -> consistency.Consistency:
    """A job's consistency mode, with its options where they are set."""
    options = {name: getattr(spec, name) for name in ASYNC[1:] if getattr(spec, name)}
    if spec.HasField("max_staleness"):
        options["max_staleness"] = spec.max_staleness
    return consistency.parse(spec.consistency or "async", **options)
