"""Services in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adamserve import testing

Start = Callable[..., testing.Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services over one folder for checkpoints, each in the place of the one before, which ends at once."""
    with ExitStack() as stack:
        owners: list[testing.Service] = []

        def begin(**options: Any) -> testing.Service:
            options.setdefault("checkpoint_dir", tmp_path)
            if options["checkpoint_dir"] is not None:
                for owner in owners:
                    owner.stop()
                owners.clear()
            service = stack.enter_context(testing.Service(**options))
            if options["checkpoint_dir"] is not None:
                owners.append(service)
            return service

        yield begin


def until(true: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Wait for something that another thread brings about."""
    ends, tick = time.monotonic() + timeout_s, threading.Event()
    while not true():
        assert time.monotonic() < ends, what
        tick.wait(0.01)
