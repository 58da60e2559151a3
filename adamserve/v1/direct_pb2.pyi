from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Call(_message.Message):
    __slots__ = ("method", "authorization", "timeout_ms")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    method: str
    authorization: str
    timeout_ms: int
    def __init__(self, method: _Optional[str] = ..., authorization: _Optional[str] = ..., timeout_ms: _Optional[int] = ...) -> None: ...
