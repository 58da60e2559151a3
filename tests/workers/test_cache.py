"""What is kept is read again; what was cut short is made again, and what cannot be written is done without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workers.data import cache

ARRAYS: cache.Arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `kept` keeps."""
    monkeypatch.setenv("ADAMSERVE_CACHE_DIR", str(tmp_path))
    return tmp_path / "data" / "some" / "digest.npz"


def kept(
    arrays: cache.Arrays = ARRAYS, *, said: Callable[[str], None] = lambda message: None
) -> cache.Arrays:
    """The cache's arrays `a` and `b`, or these, as they were made."""

    def read(found: cache.Arrays) -> cache.Arrays:
        return {name: found[name] for name in ARRAYS}

    return cache.kept("some", "digest", lambda: arrays, read, said)


def test_what_is_kept_is_read_again(place: Path) -> None:
    said: list[str] = []
    assert kept(said=said.append).keys() == ARRAYS.keys()
    found = kept({}, said=said.append)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    assert (said, [each.name for each in place.parent.iterdir()]) == ([], ["digest.npz"])


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_a_file_cut_short_is_made_again(place: Path, left: int) -> None:
    kept()
    place.write_bytes(place.read_bytes()[:left])
    other = {"a": np.arange(5), "b": np.zeros(1)}
    assert len(kept(other)["a"]) == len(kept()["a"]) == 5


def test_other_arrays_are_made_again(place: Path) -> None:
    place.parent.mkdir(parents=True)
    np.savez(place, c=np.arange(3))
    assert len(kept()["a"]) == len(kept({})["a"]) == 3


def test_where_nothing_can_be_kept_it_is_said_and_no_more(place: Path) -> None:
    file = place.parent.parent
    file.write_text("")
    said: list[str] = []
    assert len(kept(said=said.append)["a"]) == 3
    [line] = said
    assert line.startswith(f"{place} cannot be kept: ")
    assert file.read_text() == ""
