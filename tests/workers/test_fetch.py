"""A download is whole and of the published checksum, or it leaves no trace in the cache."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adamserve.errors import DataError
from workers.data.cache import cache_dir, fetch
from workers.data.mnist import FILES

from .conftest import Mirror, described, write

Serve = Callable[[dict[str, bytes]], Mirror]

NAME = "images.gz"
CONTENT = bytes(range(256)) * 8
FILE = described(NAME, CONTENT)


def get(folder: Path, *mirrors: str, said: list[str] | None = None, **deadlines: float) -> Path:
    progress = (lambda message: None) if said is None else said.append
    return fetch(FILE, folder, mirrors, progress=progress, fix="give --data-dir", **deadlines)


def test_a_real_file_is_fetched_and_checked(tmp_path: Path, mnist_dir: Path, serve: Serve) -> None:
    file = FILES[2]
    content = (mnist_dir / file.name).read_bytes()
    said: list[str] = []
    place = fetch(
        file, tmp_path / "new" / "folder", [serve({file.name: content}).url], progress=said.append, fix=""
    )
    assert place == tmp_path / "new" / "folder" / file.name
    assert place.read_bytes() == content
    assert said[0].startswith("fetching t10k-images-idx3-ubyte.gz (1.6 MB) from 127.0.0.1:")
    assert said[-1] == "fetched 1.6 of 1.6 MB of t10k-images-idx3-ubyte.gz"
    assert len(said) == 5


ALTERED = {
    "another byte": (CONTENT[:-1] + b"\0", None, f"expected SHA-256 {FILE.sha256}, found "),
    "shorter": (CONTENT[:-1], None, "expected 2048 bytes, found 2047"),
    "empty": (b"", None, "expected 2048 bytes, found 0"),
    "longer": (CONTENT + b"\0", None, "expected 2048 bytes, found more than 2048"),
    "far longer": (bytes(5_000_000), None, "expected 2048 bytes, found more than 2048"),
    "broken off": (CONTENT, 1000, "expected 2048 bytes, found 1000"),
}


@pytest.mark.parametrize(("content", "cut_after", "says"), ALTERED.values(), ids=ALTERED)
def test_a_wrong_download_is_refused_and_nothing_is_kept(
    tmp_path: Path, serve: Serve, content: bytes, cut_after: int | None, says: str
) -> None:
    mirror = serve({NAME: content})
    mirror.cut_after = cut_after
    with pytest.raises(DataError) as caught:
        get(tmp_path, mirror.url)
    assert caught.value.field == NAME
    assert says in caught.value.problem
    assert caught.value.fix == "give --data-dir"
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_is_asked_where_one_fails(tmp_path: Path, serve: Serve) -> None:
    missing, wrong, good = serve({}), serve({NAME: b"not it"}), serve({NAME: CONTENT})
    said: list[str] = []
    assert get(tmp_path, missing.url, wrong.url, good.url, said=said).read_bytes() == CONTENT
    assert [len(mirror.asked) for mirror in (missing, wrong, good)] == [1, 1, 1]
    assert len(said) == 3


def test_every_mirror_s_reason_is_told(tmp_path: Path, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        DataError, match=r"127.0.0.1:\d+: HTTP 404 Not Found; 127.0.0.1:\d+: .*Connection refused"
    ):
        get(tmp_path, serve({}).url, f"http://127.0.0.1:{port}/")


def test_a_mirror_that_never_answers_costs_its_deadline_and_no_more(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(DataError, match=r"timed out|no answer within 0.2 s"):
            get(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/", answer_s=0.2)
        assert time.monotonic() - began < 5


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(DataError, match="2048 of 2048 bytes after 0 s"):
        get(tmp_path, serve({NAME: CONTENT}).url, file_s=0)


def test_what_is_no_web_server_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"220 mail ready\r\n")

        answered = pool.submit(answer)
        with pytest.raises(DataError, match="220 mail ready"):
            get(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/")
        answered.result(timeout=10)


def test_a_whole_file_in_the_cache_needs_no_mirror(tmp_path: Path) -> None:
    assert get(write(tmp_path, {NAME: CONTENT})) == tmp_path / NAME


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[::-1]], ids=["empty", "cut", "altered"])
def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, serve: Serve, content: bytes) -> None:
    said: list[str] = []
    place = get(write(tmp_path, {NAME: content}), serve({NAME: CONTENT}).url, said=said)
    assert place.read_bytes() == CONTENT
    assert said[0] == f"{place} is damaged and is fetched again"


def test_a_damaged_file_in_the_cache_is_never_used_and_never_lost(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(DataError):
        get(write(tmp_path, {NAME: b"someone's"}), serve({}).url)
    assert (tmp_path / NAME).read_bytes() == b"someone's"


def test_processes_may_fill_one_cache_at_once(tmp_path: Path, serve: Serve) -> None:
    mirror = serve({NAME: CONTENT})
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: get(tmp_path, mirror.url), range(8)))
    assert {place.read_bytes() for place in places} == {CONTENT}
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_cache_that_is_no_folder_names_the_way_out(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"the cache cannot be used: .*ADAMSERVE_CACHE_DIR"):
        get(tmp_path / "file" / "below", serve({NAME: CONTENT}).url)


def test_a_cached_name_that_is_a_folder_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(DataError, match="the cache cannot be used: Is a directory"):
        get(tmp_path)


HOME = Path(os.path.expanduser("~"))
PLACES = {
    "its own": ({"ADAMSERVE_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own")),
    "the desktop's": ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/adamserve")),
    "a relative one is passed over": ({"XDG_CACHE_HOME": "xdg"}, HOME / ".cache/adamserve"),
    "empty is unset": ({"ADAMSERVE_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, HOME / ".cache/adamserve"),
    "home": ({}, HOME / ".cache/adamserve"),
}


@pytest.mark.parametrize(("environ", "place"), PLACES.values(), ids=PLACES)
def test_where_the_cache_is(environ: dict[str, str], place: Path) -> None:
    assert cache_dir(environ) == place
