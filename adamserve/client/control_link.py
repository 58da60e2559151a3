"""The way to a service's controller: jobs, and how they stand, in values."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from adamserve import optim
from adamserve.client.backoff import Tries
from adamserve.client.credentials import Credentials, proxy_of
from adamserve.errors import AdamServeError, InvalidArgument, Unavailable
from adamserve.job import split_host_port
from adamserve.observe.state import JobState
from adamserve.regret import Loss
from adamserve.shard.sparse import to_places
from adamserve.v1 import control_pb2, control_pb2_grpc, types_pb2
from adamserve.values import Array, Deadline, Span, TensorSpec
from adamserve.wire import codec
from adamserve.wire.records import from_message, to_message
from adamserve.wire.status import error_of

log = logging.getLogger("adamserve.rpc")

TELL_S = 3.0
"""How long a service may be silent before that is said, while it is tried again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one shard of a job is: host:port of its two endpoints, and the clock at which its incarnation began."""

    index: int
    endpoint: str
    direct: str
    incarnation: int
    restored_clock: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """A job's tensors in order and their rules as JSON texts, both by name; its modes, as `Client.create` has them; and
    the places of its shards."""

    tensors: dict[str, TensorSpec]
    rules: dict[str, str]
    modes: dict[str, Any]
    places: tuple[Place, ...]

    def parsed_rules(self) -> dict[str, optim.Rule]:
        """The rules by tensor."""
        made = {text: optim.from_dict(json.loads(text)) for text in set(self.rules.values())}
        return {name: made[text] for name, text in self.rules.items()}


class ControlLink:
    """One client's way to a service's controller. Thread-safe.

    Every call is tried until it is answered, the error is one that time does not mend, or its deadline passes.
    """

    def __init__(self, target: str, credentials: Credentials, timeout_s: float) -> None:
        split_host_port(target)
        self._target = target
        self._channel: Any = credentials.channel(target)
        self._stub = control_pb2_grpc.ControlServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.credentials = credentials
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        self._process = os.getpid()

    def deadline(self) -> Deadline:
        """That of a call which begins now."""
        return Deadline.after(self._timeout_s)

    @property
    def forked(self) -> bool:
        """Whether this is another process than the client's."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Refuse to be used in a process that was forked from the client's: their connections are the same."""
        if self.forked:
            raise InvalidArgument(
                "the client belongs to the process that this one was forked from",
                field="client",
                fix="connect again here, after the fork",
            )

    def topology(self, job: str, deadline: Deadline) -> Topology:
        """What a job is, and where its shards are now."""
        answer = self._call(self._stub.GetTopology, control_pb2.GetTopologyRequest(job=job), deadline)
        spec = answer.job
        tensors = {
            t.name: TensorSpec(
                t.name, tuple(t.shape), codec.encoding_name(t.dtype, field=t.name), t.stride or 1
            )
            for t in spec.tensors
        }
        rules = {name: spec.tensor_rules_json.get(name, spec.rule_json) for name in tensors}
        modes = {
            "consistency": spec.consistency,
            "sparse": spec.sparse,
            "max_staleness": spec.max_staleness if spec.HasField("max_staleness") else None,
            "staleness_lr": spec.staleness_lr or "none",
            "delay_compensation": spec.delay_compensation,
        }
        return Topology(tensors, rules, modes, tuple(map(_place, answer.shards)))

    def create(
        self,
        specs: Sequence[TensorSpec],
        parameters: Mapping[str, Array],
        rule: optim.Rule,
        tensor_rules: Mapping[str, optim.Rule],
        **rest: Any,
    ) -> bool:
        """Start a job, as `Client.create`; `rest` are the other fields of JobSpec."""
        asked = control_pb2.JobSpec(
            tensors=[
                types_pb2.TensorSpec(
                    name=spec.name,
                    shape=spec.shape,
                    dtype=codec.ENCODINGS[spec.dtype].number,  # type: ignore[arg-type] # an enum's number
                    stride=spec.stride,
                )
                for spec in specs
            ],
            rule_json=json.dumps(optim.to_dict(rule)),
            tensor_rules_json={
                name: json.dumps(optim.to_dict(other)) for name, other in tensor_rules.items()
            },
            **rest,
        )

        def messages() -> Iterator[bytes]:
            yield control_pb2.CreateJobRequest(start=asked).SerializeToString()
            for spec in specs:
                kept = to_places(spec, np.ascontiguousarray(parameters[spec.name]))
                for parts in codec.encode(spec.name, kept, 0, spec.dtype):
                    yield b"".join(parts)

        create = self._channel.stream_unary("/adamserve.v1.ControlService/CreateJob")
        return control_pb2.CreateJobResponse.FromString(self._call(create, messages)).created

    def report(self, job: str, pusher: str, losses: Sequence[Loss], numbers: Mapping[str, float]) -> None:
        """Report losses, in the order in which they were met, and the latest values of other numbers."""
        messages = [to_message(loss, control_pb2.Loss) for loss in losses]
        request = control_pb2.ReportRequest(job=job, pusher=pusher, losses=messages, numbers=numbers)
        self._call(self._stub.Report, request)

    def status(self, job: str) -> list[JobState]:
        """How a job stands; with "" every job that the token may see."""
        answer = self._call(self._stub.GetStatus, control_pb2.GetStatusRequest(job=job))
        return [from_message(JobState, state) for state in answer.jobs]

    def checkpoint(self, job: str) -> int:
        """Write a checkpoint now; returns its number, 0 where the service keeps none."""
        return int(self._call(self._stub.Checkpoint, control_pb2.CheckpointRequest(job=job)).number)

    def delete(self, job: str, *, purge: bool) -> bool:
        """Delete a job; returns whether there was one."""
        request = control_pb2.DeleteJobRequest(job=job, purge=purge)
        return bool(self._call(self._stub.DeleteJob, request).deleted)

    def close(self) -> None:
        """Disconnect; calls under way fail."""
        self._closed.set()
        self._channel.close()

    def _call(self, method: Any, request: Any, deadline: Deadline | None = None) -> Any:
        """Make a call until it is answered; its request is a message, or a function that begins a stream of them."""
        self.check_process()
        tries = Tries(deadline or self.deadline())
        error: AdamServeError
        told_at = time.monotonic() + TELL_S
        while True:
            try:
                sent = request() if callable(request) else request
                return method(sent, timeout=tries.seconds, metadata=self.credentials.metadata)
            except grpc.RpcError as failed:
                error = error_of(failed)
            except ValueError:  # the channel was closed meanwhile
                if not self._closed.is_set():
                    raise
                error = Unavailable("the client is closed")
            if not isinstance(error, Unavailable) or self._closed.is_set():
                raise error
            if proxy := proxy_of(self._target):
                problem = f"{error.problem}, through the proxy of {proxy}={os.environ[proxy]}"
                error = Unavailable(problem, field=error.field, fix="or name the host in no_proxy")
            if time.monotonic() > told_at:
                told_at = math.inf
                seconds = round(tries.deadline.remaining())
                log.warning(
                    "%s does not answer, for another %d s it is tried again: %s", self._target, seconds, error
                )
            self._closed.wait(tries.pause_after(error))


def _place(place: types_pb2.ShardPlace) -> Place:
    spans = tuple(Span(span.tensor, span.start, span.stop) for span in place.spans)
    incarnation = place.stamp.incarnation
    return Place(place.index, place.endpoint, place.direct_endpoint, incarnation, place.restored_clock, spans)
