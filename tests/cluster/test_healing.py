"""What the controller does next, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from adamserve.cluster.healing import Action, GiveUp, Replace, Restore, Standing, Write, plan

NOW = 100.0
DEAD = {1: "killed"}
LOST = frozenset({1})
NO_FOLDER = "shard 1 died, and the service keeps no checkpoints to restore it from"
LATE = "a restore before had failed"


def job(**fields: Any) -> Standing:
    return Standing(**{"job": "a", "every_s": 30.0, "tried_at": NOW - 31.0, **fields})


CASES: Mapping[str, tuple[Mapping[int, str], list[Standing], list[Action]]] = {
    "nothing to do": ({}, [job()], []),
    "no jobs": ({}, [], []),
    "a dead shard": (DEAD, [], [Replace(1, "killed")]),
    "two, in order": ({2: "b", 0: "a"}, [job()], [Replace(0, "a"), Replace(2, "b")]),
    "a dead shard and no folder": (DEAD, [job(kept=False)], [GiveUp("a", NO_FOLDER), Replace(1, "killed")]),
    "a given up job": (DEAD, [job(kept=False, failed=True)], [Replace(1, "killed")]),
    "a lost job without a folder": ({}, [job(kept=False, lost=LOST)], [GiveUp("a", NO_FOLDER)]),
    "a late restore": ({}, [job(lost=LOST, late_at=NOW - 5.0)], [Restore("a", 1, LATE)]),
    "a late restore is not yet due": ({}, [job(lost=LOST, late_at=NOW - 4.9)], []),
    "a late restore on a dead shard": (DEAD, [job(lost=LOST)], [Replace(1, "killed")]),
    "a late restore of a given up job": ({}, [job(lost=LOST, failed=True)], []),
    "two late restores": ({}, [job(lost=frozenset({2, 0}))], [Restore("a", 0, LATE), Restore("a", 2, LATE)]),
    "a checkpoint is due": (
        {},
        [job(moved=True), job(job="b", moved=True)],
        [Write(name, "updates were made, and 31.0 s have passed") for name in "ab"],
    ),
    "a checkpoint is not yet due": ({}, [job(moved=True, tried_at=NOW - 29.0)], []),
    "no checkpoints on their own": ({}, [job(moved=True, every_s=None)], []),
    "no folder for a checkpoint": ({}, [job(moved=True, kept=False)], []),
    "a checkpoint of a given up job": ({}, [job(moved=True, failed=True)], []),
    "a checkpoint while a shard is dead": (DEAD, [job(moved=True)], [Replace(1, "killed")]),
    "a checkpoint of one job while another is lost": (
        {},
        [job(lost=LOST, late_at=NOW, moved=True), job(job="b", moved=True)],
        [Write("b", "updates were made, and 31.0 s have passed")],
    ),
}


@pytest.mark.parametrize(("dead", "jobs", "actions"), CASES.values(), ids=CASES)
def test_plan(dead: Mapping[int, str], jobs: list[Standing], actions: list[Action]) -> None:
    assert plan(NOW, dead, jobs) == actions
