"""Whose a folder and a job are: one service a folder, and a job that exists is not made into another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamserve import optim, testing
from adamserve.checkpoint import FolderLock
from adamserve.client.credentials import Credentials
from adamserve.cluster.controller import Controller
from adamserve.edge.security import Security
from adamserve.errors import Conflict, InvalidArgument, Unavailable
from adamserve.job import JobConfig, difference
from adamserve.shard import consistency
from adamserve.values import TensorSpec

HOLD = """
import pathlib, sys
from adamserve.checkpoint import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_service_on_one_folder_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    """It names the first one's process; afterwards the folder is free, and the updates are there."""
    w = {"w": np.zeros(2, np.float32)}
    with testing.Service(checkpoint_dir=tmp_path) as first:
        with first.client("job") as client:
            client.create(w, optim.SGD(lr=1.0, momentum=0.0))
            client.push({"w": np.ones(2, np.float32)}, client.pull()[1])
        with pytest.raises(Conflict, match=rf"held by the service of process {os.getpid()} on .*own"):
            testing.Service(checkpoint_dir=tmp_path)
        first.checkpoint("job")
    with testing.Service(checkpoint_dir=tmp_path) as second:
        second.resume("job")
        with second.client("job") as client:
            assert client.pull()[0]["w"].tolist() == [-1.0, -1.0]


def test_a_service_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    threading.Timer(0.3, first.release).start()
    FolderLock(tmp_path, wait_s=10.0).release()


def test_a_killed_process_holds_no_folder(tmp_path: Path) -> None:
    held = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"process {process.pid} "):
            FolderLock(tmp_path, wait_s=0.0)
        process.send_signal(signal.SIGKILL)
    FolderLock(tmp_path, wait_s=0.0).release()


def test_a_service_that_does_not_start_holds_no_folder(tmp_path: Path) -> None:
    def place(index: int) -> Any:
        raise Unavailable("no process can be started")

    with pytest.raises(Unavailable, match="no process") as kept:
        Controller(place, shards=1, checkpoint_dir=tmp_path, security=Security(), credentials=Credentials())
    FolderLock(tmp_path, wait_s=0.0).release()
    assert kept.traceback, "which keeps what it was raised from; the lock is not among it"


def test_a_folder_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InvalidArgument, match=r"checkpoint_dir: .* cannot be written: Not a directory"
    ) as refused:
        testing.Service(checkpoint_dir=tmp_path / "file" / "below")
    assert refused.value.field == "checkpoint_dir"


CONFIG = JobConfig(
    name="job",
    tensors=(TensorSpec("a", (2,)), TensorSpec("b", (3,))),
    rule=optim.to_dict(optim.Adam(lr=0.1)),
    consistency=consistency.to_dict(consistency.parse("async")),
)

DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, ""),
    "the order of tensors": ({"tensors": CONFIG.tensors[::-1]}, ""),
    "what checkpoints keep": ({"checkpoints_kept": 7, "extra": {"epoch": 1}}, ""),
    "a shape": (
        {"tensors": (TensorSpec("a", (4,)), CONFIG.tensors[1])},
        "tensor 'a' is float32 (2,), stride 1, not float32 (4,), stride 1",
    ),
    "a dtype": (
        {"tensors": (TensorSpec("a", (2,), "float64"), CONFIG.tensors[1])},
        "tensor 'a' is float32 (2,), stride 1, not float64 (2,), stride 1",
    ),
    "a tensor less": ({"tensors": CONFIG.tensors[:1]}, "tensor 'b' is float32 (3,), stride 1, not absent"),
    "a tensor more": (
        {"tensors": (*CONFIG.tensors, TensorSpec("c", ()))},
        "tensor 'c' is absent, not float32 (), stride 1",
    ),
    "a rate": ({"rule": optim.to_dict(optim.Adam(lr=0.01))}, "rule: lr is 0.1, not 0.01"),
    "a rule": ({"rule": optim.to_dict(optim.SGD(lr=0.1))}, "rule: rule is 'Adam', not 'SGD'"),
    "a tensor's rule": (
        {"tensor_rules": {"b": optim.to_dict(optim.Adam(lr=0.1, beta1=0.5))}},
        "rule of 'b': beta1 is 0.9, not 0.5",
    ),
    "a mode": (
        {"consistency": consistency.to_dict(consistency.parse("bsp"))},
        "consistency: mode is 'async', not 'bsp'",
    ),
    "an option of the mode": (
        {"consistency": consistency.to_dict(consistency.parse("async", max_staleness=3))},
        "consistency: max_staleness is None, not 3",
    ),
    "rows": ({"sparse": "lazy"}, "sparse is 'exact', not 'lazy'"),
}


@pytest.mark.parametrize(("changes", "says"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_conflict_says_what_differs_with_both_values(changes: dict[str, Any], says: str) -> None:
    assert difference(CONFIG, replace(CONFIG, **changes)) == says
