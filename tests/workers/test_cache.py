"""What is kept is read again; what was cut short is made again, and what cannot be written is done without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workers.data import cache

ARRAYS: cache.Arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}


def kept(
    path: Path, arrays: cache.Arrays = ARRAYS, *, said: Callable[[str], None] = lambda message: None
) -> cache.Arrays:
    """The cache's arrays `a` and `b`, or these, as they were made."""

    def read(found: cache.Arrays) -> cache.Arrays:
        return {name: found[name] for name in ARRAYS}

    return cache.kept(path, lambda: arrays, read, said)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.npz"
    said: list[str] = []
    assert kept(path, said=said.append).keys() == ARRAYS.keys()
    found = kept(path, {}, said=said.append)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert (said, [each.name for each in path.parent.iterdir()]) == ([], ["some.npz"])


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_a_file_cut_short_is_made_again(tmp_path: Path, left: int) -> None:
    path = tmp_path / "some.npz"
    kept(path)
    path.write_bytes(path.read_bytes()[:left])
    other = {"a": np.arange(5), "b": np.zeros(1)}
    assert len(kept(path, other)["a"]) == len(kept(path)["a"]) == 5


def test_other_arrays_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, c=np.arange(3))
    assert len(kept(path)["a"]) == len(kept(path, {})["a"]) == 3


def test_where_nothing_can_be_kept_it_is_said_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert len(kept(tmp_path / "file" / "some.npz", said=said.append)["a"]) == 3
    [line] = said
    assert line.startswith(f"{tmp_path / 'file' / 'some.npz'} cannot be kept: ")
    assert (tmp_path / "file").read_text() == ""
