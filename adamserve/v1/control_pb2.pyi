from adamserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobSpec(_message.Message):
    __slots__ = ("name", "tensors", "rule_json", "tensor_rules_json", "consistency", "checkpoint_every_s", "sparse", "max_staleness", "staleness_lr", "delay_compensation")
    class TensorRulesJsonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RULE_JSON_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RULES_JSON_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_S_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_LR_FIELD_NUMBER: _ClassVar[int]
    DELAY_COMPENSATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensors: _containers.RepeatedCompositeFieldContainer[_types_pb2.TensorSpec]
    rule_json: str
    tensor_rules_json: _containers.ScalarMap[str, str]
    consistency: str
    checkpoint_every_s: float
    sparse: str
    max_staleness: int
    staleness_lr: str
    delay_compensation: float
    def __init__(self, name: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_types_pb2.TensorSpec, _Mapping]]] = ..., rule_json: _Optional[str] = ..., tensor_rules_json: _Optional[_Mapping[str, str]] = ..., consistency: _Optional[str] = ..., checkpoint_every_s: _Optional[float] = ..., sparse: _Optional[str] = ..., max_staleness: _Optional[int] = ..., staleness_lr: _Optional[str] = ..., delay_compensation: _Optional[float] = ...) -> None: ...

class GetTopologyRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class GetTopologyResponse(_message.Message):
    __slots__ = ("job", "shards")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    job: JobSpec
    shards: _containers.RepeatedCompositeFieldContainer[_types_pb2.ShardPlace]
    def __init__(self, job: _Optional[_Union[JobSpec, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[_types_pb2.ShardPlace, _Mapping]]] = ...) -> None: ...

class CreateJobRequest(_message.Message):
    __slots__ = ("start", "chunks")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    start: JobSpec
    chunks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Chunk]
    def __init__(self, start: _Optional[_Union[JobSpec, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[_types_pb2.Chunk, _Mapping]]] = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: bool = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("job", "pusher", "losses", "numbers")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    job: str
    pusher: str
    losses: _containers.RepeatedCompositeFieldContainer[Loss]
    numbers: _containers.ScalarMap[str, float]
    def __init__(self, job: _Optional[str] = ..., pusher: _Optional[str] = ..., losses: _Optional[_Iterable[_Union[Loss, _Mapping]]] = ..., numbers: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Loss(_message.Message):
    __slots__ = ("loss", "comparator_loss")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    COMPARATOR_LOSS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    comparator_loss: float
    def __init__(self, loss: _Optional[float] = ..., comparator_loss: _Optional[float] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class JobState(_message.Message):
    __slots__ = ("job", "failed", "consistency", "rule", "rate", "loss", "best_loss", "losses_not_finite", "regret", "regret_steps", "numbers", "checkpoint", "checkpoint_age_s", "checkpoint_seconds", "unsaved_updates", "clock_skew", "updates_per_s", "down", "rollbacks", "shards", "events")
    class NumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    REGRET_FIELD_NUMBER: _ClassVar[int]
    REGRET_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UNSAVED_UPDATES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SKEW_FIELD_NUMBER: _ClassVar[int]
    UPDATES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    ROLLBACKS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    job: str
    failed: str
    consistency: str
    rule: str
    rate: float
    loss: float
    best_loss: float
    losses_not_finite: int
    regret: float
    regret_steps: int
    numbers: _containers.ScalarMap[str, float]
    checkpoint: int
    checkpoint_age_s: float
    checkpoint_seconds: float
    unsaved_updates: int
    clock_skew: int
    updates_per_s: float
    down: _containers.RepeatedScalarFieldContainer[int]
    rollbacks: _containers.RepeatedCompositeFieldContainer[Rollback]
    shards: _containers.RepeatedCompositeFieldContainer[ShardStatistics]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, job: _Optional[str] = ..., failed: _Optional[str] = ..., consistency: _Optional[str] = ..., rule: _Optional[str] = ..., rate: _Optional[float] = ..., loss: _Optional[float] = ..., best_loss: _Optional[float] = ..., losses_not_finite: _Optional[int] = ..., regret: _Optional[float] = ..., regret_steps: _Optional[int] = ..., numbers: _Optional[_Mapping[str, float]] = ..., checkpoint: _Optional[int] = ..., checkpoint_age_s: _Optional[float] = ..., checkpoint_seconds: _Optional[float] = ..., unsaved_updates: _Optional[int] = ..., clock_skew: _Optional[int] = ..., updates_per_s: _Optional[float] = ..., down: _Optional[_Iterable[int]] = ..., rollbacks: _Optional[_Iterable[_Union[Rollback, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[ShardStatistics, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ("shard", "incarnation", "clock_before", "clock_after", "checkpoint", "seconds", "reason", "at")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_BEFORE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_AFTER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    incarnation: int
    clock_before: int
    clock_after: int
    checkpoint: int
    seconds: float
    reason: str
    at: float
    def __init__(self, shard: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock_before: _Optional[int] = ..., clock_after: _Optional[int] = ..., checkpoint: _Optional[int] = ..., seconds: _Optional[float] = ..., reason: _Optional[str] = ..., at: _Optional[float] = ...) -> None: ...

class ShardStatistics(_message.Message):
    __slots__ = ("shard", "stamp", "pushes", "staleness", "apply_seconds", "bytes_in", "bytes_out", "state_bytes", "live", "kernel", "trainers", "silent", "lease_expiries", "seen", "waiting", "push_seconds", "queue_seconds", "pushers", "events")
    class PushesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class StalenessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    APPLY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRIES_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSHERS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    stamp: _types_pb2.Stamp
    pushes: _containers.ScalarMap[str, int]
    staleness: _containers.ScalarMap[int, int]
    apply_seconds: Times
    bytes_in: int
    bytes_out: int
    state_bytes: int
    live: _containers.RepeatedScalarFieldContainer[str]
    kernel: str
    trainers: int
    silent: int
    lease_expiries: int
    seen: Seen
    waiting: int
    push_seconds: Times
    queue_seconds: Times
    pushers: _containers.RepeatedCompositeFieldContainer[PusherStatistics]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, shard: _Optional[int] = ..., stamp: _Optional[_Union[_types_pb2.Stamp, _Mapping]] = ..., pushes: _Optional[_Mapping[str, int]] = ..., staleness: _Optional[_Mapping[int, int]] = ..., apply_seconds: _Optional[_Union[Times, _Mapping]] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., state_bytes: _Optional[int] = ..., live: _Optional[_Iterable[str]] = ..., kernel: _Optional[str] = ..., trainers: _Optional[int] = ..., silent: _Optional[int] = ..., lease_expiries: _Optional[int] = ..., seen: _Optional[_Union[Seen, _Mapping]] = ..., waiting: _Optional[int] = ..., push_seconds: _Optional[_Union[Times, _Mapping]] = ..., queue_seconds: _Optional[_Union[Times, _Mapping]] = ..., pushers: _Optional[_Iterable[_Union[PusherStatistics, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Times(_message.Message):
    __slots__ = ("bounds", "counts", "total")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    total: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., total: _Optional[float] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("gradient_norm", "step", "step_bound")
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEP_BOUND_FIELD_NUMBER: _ClassVar[int]
    gradient_norm: float
    step: float
    step_bound: float
    def __init__(self, gradient_norm: _Optional[float] = ..., step: _Optional[float] = ..., step_bound: _Optional[float] = ...) -> None: ...

class PusherStatistics(_message.Message):
    __slots__ = ("name", "seq", "pushed_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PUSHED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    seq: int
    pushed_at: float
    def __init__(self, name: _Optional[str] = ..., seq: _Optional[int] = ..., pushed_at: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("at", "kind", "shards", "pusher", "reason", "count")
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    at: float
    kind: str
    shards: _containers.RepeatedScalarFieldContainer[int]
    pusher: str
    reason: str
    count: int
    def __init__(self, at: _Optional[float] = ..., kind: _Optional[str] = ..., shards: _Optional[_Iterable[int]] = ..., pusher: _Optional[str] = ..., reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobState]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobState, _Mapping]]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job", "purge")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PURGE_FIELD_NUMBER: _ClassVar[int]
    job: str
    purge: bool
    def __init__(self, job: _Optional[str] = ..., purge: bool = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: bool
    def __init__(self, deleted: bool = ...) -> None: ...
