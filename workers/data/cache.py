"""The cache: files fetched once and trusted for their checksum alone, and arrays that took long to make.

Whatever is kept is written beside its place and renamed, so that several processes may fill one cache at once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import DataError
from workers.data import Progress

ANSWER_S = 10.0
"""Seconds that a mirror has until its answer begins: the look-up of its name and every address included."""

FILE_S = 300.0
"""Seconds that one file may take from one mirror."""

CHUNK_BYTES = 1 << 16

Arrays = dict[str, NDArray[Any]]

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A published file that never changes: its name below each mirror, its size, and its SHA-256 in hex."""

    name: str
    nbytes: int
    sha256: str


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache: $ADAMSERVE_CACHE_DIR, or adamserve/ in an absolute $XDG_CACHE_HOME, or ~/.cache/adamserve."""
    if own := environ.get("ADAMSERVE_CACHE_DIR"):
        return Path(own)
    if (shared := Path(environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return shared / "adamserve"
    try:
        return Path.home() / ".cache" / "adamserve"
    except RuntimeError as error:
        problem = f"no cache folder: {error}"
        raise DataError(problem, field="ADAMSERVE_CACHE_DIR", fix="set it to a folder") from None


def kept(
    kind: str, digest: str, make: Callable[[], Arrays], read: Callable[[Arrays], Made], progress: Progress
) -> Made:
    """Return what `read` makes of arrays of the cache.

    They are made anew where there are none of that `kind` and `digest`, or where `read` raises KeyError or DataError.
    `progress` is told where the cache cannot be written, which is done without.
    """
    place = cache_dir() / "data" / kind / f"{digest}.npz"
    try:
        with place.open("rb") as file, np.load(file) as arrays:
            return read(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DataError):
        made = make()
    try:
        _put(place, lambda beside: np.savez(beside, **made))  # type: ignore[arg-type]
    except OSError as error:
        progress(f"{place} cannot be kept: {error.strerror}")
    return read(made)


def fetch(
    file: RemoteFile,
    folder: Path,
    mirrors: Sequence[str],
    *,
    progress: Progress,
    fix: str,
    answer_s: float = ANSWER_S,
    file_s: float = FILE_S,
) -> Path:
    """Return a file of the cache, fetched from the first mirror that has it if it is missing or altered.

    A cached file of another checksum is never used, and is replaced only once a good one is there.

    Args:
        folder: the data set's folder in the cache; made where it is missing.
        mirrors: base URLs, each with a final slash, tried in this order.
        fix: for the error: what helps where no mirror does.
        answer_s, file_s: deadlines for each mirror, as `ANSWER_S` and `FILE_S`.

    Raises:
        DataError: no mirror gave the file, with each one's reason; or the cache cannot be written.
    """
    place = folder / file.name
    with _usable(place):
        if place.exists():
            if _fault(place.read_bytes(), file) is None:
                return place
            progress(f"{place} is damaged and is fetched again")
    failures = []
    for mirror in mirrors:
        host = urlsplit(mirror).netloc
        progress(f"fetching {file.name} ({file.nbytes / 1e6:.1f} MB) from {host}")
        try:
            content = _download(mirror + file.name, file, progress, answer_s, file_s)
            fault = _fault(content, file)
        except (OSError, HTTPException) as error:
            fault = _reason(error)
        if fault is None:
            with _usable(place):
                _put(place, methodcaller("write_bytes", content))
            return place
        failures.append(f"{host}: {fault}")
    raise DataError(f"could not be fetched: {'; '.join(failures)}", field=file.name, fix=fix)


def _download(url: str, file: RemoteFile, progress: Progress, answer_s: float, file_s: float) -> bytes:
    """The body, cut off one chunk past the size that it should have."""
    until = time.monotonic() + file_s
    content = bytearray()
    shown = 0
    with _open(url, answer_s) as answer:
        while len(content) <= file.nbytes and (chunk := answer.read1(CHUNK_BYTES)):
            content += chunk
            if time.monotonic() > until:
                raise TimeoutError(f"{len(content)} of {file.nbytes} bytes after {file_s:g} s")
            if file.nbytes > 1e6 and (quarter := 4 * len(content) // file.nbytes) > shown:
                shown = quarter
                progress(f"fetched {len(content) / 1e6:.1f} of {file.nbytes / 1e6:.1f} MB of {file.name}")
    return bytes(content)


def _open(url: str, answer_s: float) -> HTTPResponse:
    """Begin a request, in a thread: a socket's timeout leaves out the look-up, and starts anew by address."""
    asked: Future[HTTPResponse] = Future()

    def ask() -> None:
        try:
            asked.set_result(urllib.request.urlopen(url, timeout=answer_s))
        except BaseException as error:
            asked.set_exception(error)

    threading.Thread(target=ask, name="fetch", daemon=True).start()
    try:
        return asked.result(timeout=answer_s)
    except TimeoutError:
        asked.add_done_callback(lambda late: None if late.exception() else late.result().close())
        raise TimeoutError(f"no answer within {answer_s:g} s") from None


def _fault(content: bytes, file: RemoteFile) -> str | None:
    """Why this is not the file, or None where it is."""
    if len(content) != file.nbytes:
        found = f"more than {file.nbytes}" if len(content) > file.nbytes else str(len(content))
        return f"expected {file.nbytes} bytes, found {found}"
    found = hashlib.sha256(content).hexdigest()
    return None if found == file.sha256 else f"expected SHA-256 {file.sha256}, found {found}"


def _put(place: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and rename it: it is there whole or not at all."""
    beside = place.with_name(f".{secrets.token_hex(4)}.{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(beside)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _usable(place: Path) -> Iterator[None]:
    """Name the cache's file where the system refuses something, and what helps."""
    try:
        yield
    except OSError as error:
        problem = f"the cache cannot be used: {error.strerror or error}"
        fix = "make it writable, or set ADAMSERVE_CACHE_DIR to another folder"
        raise DataError(problem, field=str(place), fix=fix) from None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__
