"""Real files for the data set tests: MNIST's own where they are there, and tiny ones of the same format."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from workers.data.cache import RemoteFile
from workers.data.mnist import FILES

TEST_DATA = Path(os.environ.get("ADAMSERVE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as an IDX file's bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def tiny_mnist(train: int = 12, test: int = 5) -> dict[str, bytes]:
    """By official name, four gzipped files of a few images; pixel values run through 0 to 255."""
    arrays = []
    for n in (train, test):
        arrays += [np.arange(n * 784).reshape(n, 28, 28) % 256, np.arange(n) % 10]
    contents = [gzip.compress(idx(array), mtime=0) for array in arrays]
    return {file.name: content for file, content in zip(FILES, contents, strict=True)}


def described(name: str, content: bytes) -> RemoteFile:
    return RemoteFile(name, len(content), hashlib.sha256(content).hexdigest())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def mnist_dir() -> Path:
    """The folder with real MNIST files; skips the test where there is none."""
    folder = TEST_DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST files in {folder}; set ADAMSERVE_TEST_DATA")
    return folder


class Mirror:
    """A web server on 127.0.0.1: serves `files` by path, and keeps the paths asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self.cut_after: int | None = None
        """Break each answer off after this many bytes."""
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/mnist/")
                mirror.asked.append(path)
                if path not in mirror.files:
                    self.send_error(404)
                    return
                content = mirror.files[path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # whoever has seen enough hangs up
                    self.wfile.write(content[: mirror.cut_after])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], Mirror]]:
    """Start a mirror for some files; it is asked directly, whatever proxy the machine has."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    mirrors: list[Mirror] = []

    def start(files: dict[str, bytes]) -> Mirror:
        mirrors.append(Mirror(files))
        return mirrors[-1]

    yield start
    for mirror in mirrors:
        mirror.close()
