"""What the controller does next, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adamserve import optim
from adamserve.cluster.healing import Action, GiveUp, Replace, Restore, Write, plan
from adamserve.cluster.jobs import Job
from adamserve.job import JobConfig
from adamserve.shard import consistency

NOW = 100.0
DEAD = {1: "killed"}
NO_FOLDER = "shard 1 died, and the service keeps no checkpoints to restore it from"
LATE = "a restore before had failed"


def job(
    name: str = "a", *, every_s: float | None = 30.0, kept: bool = True, moved: bool = False, **fields: Any
) -> Job:
    config = JobConfig(
        name=name,
        tensors=(),
        rule=optim.to_dict(optim.SGD()),
        consistency=consistency.to_dict(consistency.Async()),
        checkpoint_every_s=every_s,
    )
    folder = Path(name) if kept else None
    job = Job(config, folder, [], written_at=NOW - 31.0, **fields)
    job.written_clocks = (7,) if moved else ()
    return job


CASES: Mapping[str, tuple[Mapping[int, str], list[Job], list[Action]]] = {
    "nothing to do": ({}, [job()], []),
    "no jobs": ({}, [], []),
    "a dead shard": (DEAD, [], [Replace(1, "killed")]),
    "two, in order": ({2: "b", 0: "a"}, [job()], [Replace(0, "a"), Replace(2, "b")]),
    "a dead shard and no folder": (DEAD, [job(kept=False)], [GiveUp("a", NO_FOLDER), Replace(1, "killed")]),
    "a given up job": (DEAD, [job(kept=False, failed="given up")], [Replace(1, "killed")]),
    "a lost job without a folder": ({}, [job(kept=False, lost={1})], [GiveUp("a", NO_FOLDER)]),
    "a late restore": ({}, [job(lost={1}, late_at=NOW - 5.0)], [Restore("a", 1, LATE)]),
    "a late restore is not yet due": ({}, [job(lost={1}, late_at=NOW - 4.9)], []),
    "a late restore on a dead shard": (DEAD, [job(lost={1})], [Replace(1, "killed")]),
    "a late restore of a given up job": ({}, [job(lost={1}, failed="given up")], []),
    "two late restores": ({}, [job(lost={2, 0})], [Restore("a", 0, LATE), Restore("a", 2, LATE)]),
    "a checkpoint is due": (
        {},
        [job(moved=True), job("b", moved=True)],
        [Write(name, "updates were made, and 31.0 s have passed") for name in "ab"],
    ),
    "a checkpoint is not yet due": ({}, [job(moved=True, tried_at=NOW - 29.0)], []),
    "no checkpoints on their own": ({}, [job(moved=True, every_s=None)], []),
    "no folder for a checkpoint": ({}, [job(moved=True, kept=False)], []),
    "a checkpoint of a given up job": ({}, [job(moved=True, failed="given up")], []),
    "a checkpoint while a shard is dead": (DEAD, [job(moved=True)], [Replace(1, "killed")]),
    "a checkpoint of one job while another is lost": (
        {},
        [job(lost={1}, late_at=NOW, moved=True), job("b", moved=True)],
        [Write("b", "updates were made, and 31.0 s have passed")],
    ),
}


@pytest.mark.parametrize(("dead", "jobs", "actions"), CASES.values(), ids=CASES)
def test_plan(dead: Mapping[int, str], jobs: list[Job], actions: list[Action]) -> None:
    assert plan(NOW, dead, jobs) == actions
