"""ARCHITECTURE.md lists the functions that a push goes through; a push is watched to see whether it does."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from adamserve import optim, testing

MODULES = 18

WAITING = "adamserve.edge.direct DirectEndpoint._answer"
"""Where a connection's thread is already when a push comes."""


def listed() -> list[str]:
    """The table's functions, as "module qualified.name", from the client down."""
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split("### The way of a push")[1].split("\n\n|")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in f"|{section}".splitlines()[2:]]
    return [
        f"adamserve.{module.strip(' `').replace('/', '.')} {name}"
        for module, functions in rows
        for name in re.findall(r"`(\S+)`", functions)
    ]


def entered() -> list[str]:
    """Every function of ours that two pushes enter, thread by thread."""
    log: list[tuple[int, str]] = []
    watching = False

    def note(frame: FrameType, event: str, _: Any) -> None:
        if watching and event == "call" and str(frame.f_globals.get("__name__")).startswith("adamserve."):
            log.append((threading.get_ident(), f"{frame.f_globals['__name__']} {frame.f_code.co_qualname}"))

    before = threading.getprofile(), sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with (
            testing.Service(watch_every_s=None) as service,
            service.client("job", pusher="a", transport="direct", lease_s=1e3) as client,
        ):
            gradient = {"w": np.ones(1000, np.float32)}
            client.create({"w": np.zeros(1000, np.float32)}, optim.Adam())
            client.push(gradient, client.pull()[1])
            _, stamps = client.pull()
            watching = True
            for _ in range(2):
                client.push(gradient, stamps)
            watching = False
    finally:
        threading.setprofile(before[0])
        sys.setprofile(before[1])
    here = threading.get_ident()
    return [name for thread, name in log if thread == here] + [name for thread, name in log if thread != here]


def test_a_push_goes_the_way_that_is_written_down() -> None:
    way, log = listed(), entered()
    assert way[0] == "adamserve.client.client Client.push"
    assert way[-1] == "adamserve.optim.engine.kernels kernel"
    assert len({name.split()[0] for name in way}) <= MODULES
    assert WAITING in log
    rest = iter(log)
    for name in way:
        if name != WAITING:
            assert name in rest, f"{name} is not entered after those above it"
