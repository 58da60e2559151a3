from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_FLOAT64: _ClassVar[Encoding]
    ENCODING_BFLOAT16: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_INT8_BLOCK: _ClassVar[Encoding]
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_FLOAT64: Encoding
ENCODING_BFLOAT16: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_INT8_BLOCK: Encoding

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "stride")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: Encoding
    stride: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[Encoding, str]] = ..., stride: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("tensor", "start", "length", "encoding", "sum32", "data", "rows")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SUM32_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    start: int
    length: int
    encoding: Encoding
    sum32: int
    data: bytes
    rows: bytes
    def __init__(self, tensor: _Optional[str] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., sum32: _Optional[int] = ..., data: _Optional[bytes] = ..., rows: _Optional[bytes] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("incarnation", "clock")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    clock: int
    def __init__(self, incarnation: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("tensor", "start", "stop")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    start: int
    stop: int
    def __init__(self, tensor: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class ShardPlace(_message.Message):
    __slots__ = ("index", "endpoint", "stamp", "restored_clock", "spans", "direct_endpoint")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    RESTORED_CLOCK_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    DIRECT_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    index: int
    endpoint: str
    stamp: Stamp
    restored_clock: int
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    direct_endpoint: str
    def __init__(self, index: _Optional[int] = ..., endpoint: _Optional[str] = ..., stamp: _Optional[_Union[Stamp, _Mapping]] = ..., restored_clock: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., direct_endpoint: _Optional[str] = ...) -> None: ...
