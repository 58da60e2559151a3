"""The hand-made wire format is protobuf's, and the codecs keep what they promise."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from adamserve.errors import AdamServeError, InvalidArgument
from adamserve.v1 import shard_pb2, types_pb2
from adamserve.wire import chunks, codec, status

NAMES = st.text(max_size=20)
COUNTS = st.integers(0, 2**40)


@given(NAMES, COUNTS, COUNTS, st.sampled_from([*codec.BY_NUMBER]), st.binary(max_size=300))
def test_a_chunk_by_hand_is_a_chunk_by_protobuf(
    tensor: str, start: int, length: int, kind: int, data: bytes
) -> None:
    total = codec.sum32(data)
    message = b"".join(chunks.Chunk(tensor, start, length, kind, total, memoryview(data)).parts())
    parsed = shard_pb2.PushRequest.FromString(message)
    assert parsed == shard_pb2.PushRequest(
        chunks=[
            types_pb2.Chunk(tensor=tensor, start=start, length=length, encoding=kind, sum32=total, data=data)  # type: ignore[arg-type]
        ]
    )
    for each in (message, parsed.SerializeToString()):
        rest, [chunk] = chunks.split(each)
        assert rest == b""
        assert chunk == chunks.Chunk(tensor, start, length, kind, total, memoryview(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_split_as_protobuf_reads_them_or_refused(message: bytes) -> None:
    try:
        rest, pieces = chunks.split(message)
    except InvalidArgument:
        return
    try:
        expected = shard_pb2.PushRequest.FromString(message)
    except DecodeError:
        return  # what is left over is refused by protobuf in its turn
    assert [(c.tensor, c.start, c.length, bytes(c.data)) for c in pieces] == [
        (c.tensor, c.start, c.length, c.data) for c in expected.chunks
    ]
    left = shard_pb2.PushRequest.FromString(rest)
    assert (left.start, left.commit) == (expected.start, expected.commit)


def test_an_embedded_message_is_found_and_taken_out() -> None:
    push = shard_pb2.PushRequest(start=shard_pb2.PushStart(job="a", seq=3)).SerializeToString()
    pull = shard_pb2.PushPullRequest(pull=shard_pb2.PullRequest(job="b")).SerializeToString()
    message = b"".join([pull, *chunks.embedded(1, [push])])
    assert shard_pb2.PushPullRequest.FromString(message).push.start.seq == 3
    found, rest = chunks.inside(message, 1)
    assert (bytes(found), rest) == (push, pull)


def test_a_message_of_countless_fields_is_refused_before_they_are_read() -> None:
    """A byte or two a field: 64 MiB of them would keep the interpreter for minutes."""
    field = types_pb2.Chunk(length=1).SerializeToString()
    chunks.split(field * chunks.MAX_FIELDS)
    with pytest.raises(InvalidArgument, match="more than 65536 fields"):
        chunks.split(field * (chunks.MAX_FIELDS + 1))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_floats_round_to_nearest_even(name: str, bits: list[int]) -> None:
    """Against torch's conversion, which numpy's arithmetic here does not share."""
    import torch

    values = np.array(bits, "<u4").view("<f4")
    data, _ = codec.items_of(values, name)
    if name == "float32":
        assert bytes(data) == values.tobytes()
        return
    expected = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
    [parts] = list(codec.encode("w", values, 7, name))
    _, [chunk] = chunks.split(b"".join(parts))
    out = np.empty(values.size, np.float32)
    codec.decode(chunk, out)
    np.testing.assert_array_equal(out, expected)
    assert (chunk.start, chunk.length) == (7, values.size)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bfloat16_without_torch_is_the_same(bits: list[int]) -> None:
    import sys

    import torch

    values, narrow = np.array(bits, "<u4").view("<f4"), np.empty(len(bits), "<u2")
    kept = sys.modules.pop("torch")
    try:
        codec.convert(values, "bfloat16", narrow)
    finally:
        sys.modules["torch"] = kept
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    nan = np.isnan(values)
    np.testing.assert_array_equal(narrow[~nan], expected[~nan])
    assert np.isnan((narrow[nan].astype("<u4") << 16).view("<f4")).all()


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=600))
def test_int8_is_right_to_half_a_scale(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    items, scales = codec.quantize(values)
    out = np.empty_like(values)
    codec.dequantize(items, scales, out)
    half = np.repeat(scales, codec.BLOCK)[: values.size] * 0.5
    # One rounding of the division and one of the product.
    assert np.all(np.abs(out - values) <= half * (1 + 1e-5) + 1e-38)


def test_a_wrong_checksum_size_or_encoding_is_refused() -> None:
    out = np.empty(2, np.float32)
    data = memoryview(np.ones(2, "<f4").tobytes())
    total = codec.sum32(data)
    codec.decode(chunks.Chunk("w", 0, 2, 1, total, data), out)
    for chunk, says in (
        (chunks.Chunk("w", 0, 2, 1, total + 1, data), "w: the checksum of elements 0 to 2"),
        (chunks.Chunk("w", 0, 3, 1, total, data), "w: 3 elements of float32 take 12 bytes, got 8"),
        (chunks.Chunk("w", 0, 2, 9, total, data), "w: 9 is not an encoding"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            codec.decode(chunk, out)


class _Call:
    def __init__(self, code: object, trailers: object) -> None:
        self._code, self._trailers = code, trailers

    def code(self) -> object:
        return self._code

    def details(self) -> str:
        return "said"

    def trailing_metadata(self) -> object:
        return self._trailers


@settings(max_examples=50)
@given(st.sampled_from([*status.CODES]), st.text(max_size=50), st.text(max_size=20), st.text(max_size=20))
def test_an_error_comes_back_as_it_went(
    kind: type[AdamServeError], problem: str, field: str, fix: str
) -> None:
    error = kind(problem, field=field, fix=fix)
    back = status.error_of(_Call(status.code_of(error), ((status.DETAILS, status.details(error)),)))
    assert (type(back), back.problem, back.field, back.fix) == (kind, problem, field, fix)


def test_the_details_are_google_rpc_s() -> None:
    status_pb2 = pytest.importorskip("google.rpc.status_pb2")
    details = pytest.importorskip("google.rpc.error_details_pb2")
    found = status_pb2.Status.FromString(
        status.details(InvalidArgument("is wrong", field="lr", fix="mend it"))
    )
    info, bad = details.ErrorInfo(), details.BadRequest()
    assert found.details[0].Unpack(info)
    assert found.details[1].Unpack(bad)
    assert (found.code, info.reason, info.domain, info.metadata["fix"]) == (
        3,
        "InvalidArgument",
        "adamserve",
        "mend it",
    )
    assert [(v.field, v.description) for v in bad.field_violations] == [("lr", "is wrong")]


@given(st.binary(max_size=100))
def test_garbled_details_fall_back_to_the_status(trailer: bytes) -> None:
    import grpc

    back = status.error_of(_Call(grpc.StatusCode.NOT_FOUND, ((status.DETAILS, trailer),)))
    assert isinstance(back, AdamServeError)


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", "<f4"), ("bfloat16", "<f4"), ("bfloat16", bfloat16), ("float16", "<f2")]
)
@pytest.mark.parametrize("size", [1024, 2049, 4096, 4097, 100_003, 131_072, 140_001])
@pytest.mark.parametrize("special", [None, 0, -1], ids=["finite", "first", "last"])
def test_the_compiled_loops_do_what_numpy_does(
    name: str, dtype: np.dtype[Any] | str, size: int, special: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bit and the checksum, from any address; NaN and infinity are seen wherever they stand."""
    assert codec.library() is not None, "these tests want a C compiler"
    rng = np.random.default_rng(size)
    bits = rng.integers(0, 2**32, size, np.uint32)
    values = np.where((bits >> 23 & 0xFF) < 0xFE, bits, 1).astype("<u4").view("<f4")
    if name == "float16":
        values = rng.standard_normal(size, np.float32)
    if special is not None:
        values[special] = rng.choice([np.nan, np.inf, -np.inf])
    data, total = codec.items_of(values, name)
    chunk = chunks.Chunk("w", 0, size, codec.ENCODINGS[name].number, total, memoryview(b"abc" + data)[3:])
    around = np.zeros(size + 4, dtype)
    out = around[3:-1]
    found = codec.decode(chunk, out)
    monkeypatch.setattr(codec, "library", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    plain, plain_total = codec.items_of(values, name)
    expected = np.empty(size, dtype)
    assert (bytes(data), total, found) == (bytes(plain), plain_total, codec.decode(chunk, expected))
    assert (
        around.tobytes() == np.zeros(3, dtype).tobytes() + expected.tobytes() + np.zeros(1, dtype).tobytes()
    )
    if np.dtype(dtype).itemsize == 2:
        assert out.tobytes() == bytes(data)
    assert found is (special is None)
    with pytest.raises(InvalidArgument, match="checksum"):
        codec.decode(chunk._replace(sum32=total ^ 1), expected)


@pytest.mark.parametrize(("name", "edge"), [("float16", 65520.0), ("bfloat16", 2.0**128 - 2.0**119)])
def test_fits_is_whether_rounding_keeps_every_number_finite(name: str, edge: float) -> None:
    below = np.nextafter(np.float32(edge), np.float32(0))
    for value in (below, np.float32(edge), np.float32(np.inf), np.float32(np.nan), -below, np.float32(-edge)):
        values = np.array([1.0, value], np.float32)
        data, total = codec.items_of(values, name)
        out = np.empty(2, np.float32)
        number = codec.ENCODINGS[name].number
        assert codec.fits(values, name) is codec.decode(chunks.Chunk("w", 0, 2, number, total, data), out)
