"""What is kept is read again; what was cut short, or cannot be written, is done without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workers.data import cache

ARRAYS: cache.Arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.npz"
    said: list[str] = []
    assert cache.read(path) is None
    cache.keep(path, ARRAYS, said.append)
    found = cache.read(path)
    assert found is not None
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert (said, [each.name for each in path.parent.iterdir()]) == ([], ["some.npz"])


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_a_file_cut_short_is_none(tmp_path: Path, left: int) -> None:
    path = tmp_path / "some.npz"
    cache.keep(path, ARRAYS, lambda message: None)
    path.write_bytes(path.read_bytes()[:left])
    assert cache.read(path) is None


def test_where_nothing_can_be_kept_it_is_said_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    cache.keep(tmp_path / "file" / "some.npz", ARRAYS, said.append)
    [line] = said
    assert line.startswith(f"{tmp_path / 'file' / 'some.npz'} cannot be kept: ")
    assert (tmp_path / "file").read_text() == ""
