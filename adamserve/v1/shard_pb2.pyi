from adamserve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_APPLIED: _ClassVar[Outcome]
    OUTCOME_DUPLICATE: _ClassVar[Outcome]
    OUTCOME_STALE: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_APPLIED: Outcome
OUTCOME_DUPLICATE: Outcome
OUTCOME_STALE: Outcome

class JoinRequest(_message.Message):
    __slots__ = ("job", "pusher", "session", "kind", "lease_s", "last_seq", "shard")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    job: str
    pusher: str
    session: str
    kind: str
    lease_s: float
    last_seq: int
    shard: int
    def __init__(self, job: _Optional[str] = ..., pusher: _Optional[str] = ..., session: _Optional[str] = ..., kind: _Optional[str] = ..., lease_s: _Optional[float] = ..., last_seq: _Optional[int] = ..., shard: _Optional[int] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("stamp", "last_seq", "restored_clock")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    RESTORED_CLOCK_FIELD_NUMBER: _ClassVar[int]
    stamp: _types_pb2.Stamp
    last_seq: int
    restored_clock: int
    def __init__(self, stamp: _Optional[_Union[_types_pb2.Stamp, _Mapping]] = ..., last_seq: _Optional[int] = ..., restored_clock: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("job", "pusher", "session", "shard")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    job: str
    pusher: str
    session: str
    shard: int
    def __init__(self, job: _Optional[str] = ..., pusher: _Optional[str] = ..., session: _Optional[str] = ..., shard: _Optional[int] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushStart(_message.Message):
    __slots__ = ("job", "pusher", "session", "seq", "pulled", "shard", "assign")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    job: str
    pusher: str
    session: str
    seq: int
    pulled: _types_pb2.Stamp
    shard: int
    assign: str
    def __init__(self, job: _Optional[str] = ..., pusher: _Optional[str] = ..., session: _Optional[str] = ..., seq: _Optional[int] = ..., pulled: _Optional[_Union[_types_pb2.Stamp, _Mapping]] = ..., shard: _Optional[int] = ..., assign: _Optional[str] = ...) -> None: ...

class PushConstants(_message.Message):
    __slots__ = ("tensors", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.ScalarMap[str, float]
    def __init__(self, tensors: _Optional[_Iterable[str]] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PushCommit(_message.Message):
    __slots__ = ("lr", "rates", "constants", "updates")
    class RatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class UpdatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LR_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    lr: float
    rates: _containers.ScalarMap[str, float]
    constants: _containers.RepeatedCompositeFieldContainer[PushConstants]
    updates: _containers.ScalarMap[str, int]
    def __init__(self, lr: _Optional[float] = ..., rates: _Optional[_Mapping[str, float]] = ..., constants: _Optional[_Iterable[_Union[PushConstants, _Mapping]]] = ..., updates: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("start", "chunks", "commit")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    start: PushStart
    chunks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Chunk]
    commit: PushCommit
    def __init__(self, start: _Optional[_Union[PushStart, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[_types_pb2.Chunk, _Mapping]]] = ..., commit: _Optional[_Union[PushCommit, _Mapping]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("outcome", "stamp", "staleness", "reason")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    stamp: _types_pb2.Stamp
    staleness: int
    reason: str
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., stamp: _Optional[_Union[_types_pb2.Stamp, _Mapping]] = ..., staleness: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("job", "pusher", "session", "training", "at_least", "encoding", "rows", "shard")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PUSHER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    job: str
    pusher: str
    session: str
    training: bool
    at_least: int
    encoding: _types_pb2.Encoding
    rows: _containers.RepeatedCompositeFieldContainer[RowSet]
    shard: int
    def __init__(self, job: _Optional[str] = ..., pusher: _Optional[str] = ..., session: _Optional[str] = ..., training: bool = ..., at_least: _Optional[int] = ..., encoding: _Optional[_Union[_types_pb2.Encoding, str]] = ..., rows: _Optional[_Iterable[_Union[RowSet, _Mapping]]] = ..., shard: _Optional[int] = ...) -> None: ...

class RowSet(_message.Message):
    __slots__ = ("tensor", "rows")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    rows: bytes
    def __init__(self, tensor: _Optional[str] = ..., rows: _Optional[bytes] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("stamp", "chunks")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    stamp: _types_pb2.Stamp
    chunks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Chunk]
    def __init__(self, stamp: _Optional[_Union[_types_pb2.Stamp, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[_types_pb2.Chunk, _Mapping]]] = ...) -> None: ...

class PushPullRequest(_message.Message):
    __slots__ = ("push", "pull")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    push: PushRequest
    pull: PullRequest
    def __init__(self, push: _Optional[_Union[PushRequest, _Mapping]] = ..., pull: _Optional[_Union[PullRequest, _Mapping]] = ...) -> None: ...

class PushPullResponse(_message.Message):
    __slots__ = ("push", "pull")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    push: PushResponse
    pull: PullResponse
    def __init__(self, push: _Optional[_Union[PushResponse, _Mapping]] = ..., pull: _Optional[_Union[PullResponse, _Mapping]] = ...) -> None: ...
