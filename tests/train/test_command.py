"""`adamserve train` as a user runs it: real processes, a real Ray, a real kill -9."""

from __future__ import annotations

import atexit
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import adamserve
from adamserve import checkpoint, testing
from adamserve.cli.options import answer
from adamserve.cli.train import _table
from adamserve.errors import NotFound, Unavailable
from adamserve.shard import consistency
from adamserve.train.config import TrainConfig
from adamserve.train.run import train
from adamserve.values import Outcome
from tests.cluster.conftest import until
from tests.conftest import Command, Refused
from workers.task import NetworkRecipe

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

COMMAND = [sys.executable, "-m", "adamserve"]


def run(*arguments: object, rc: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode == rc, done.stderr + done.stdout
    return done


def record_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


class Running:
    """A training run in the background, its progress lines read as they come."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        atexit.register(self.process.terminate)  # where a test fails before it has ended it
        self.said: list[str] = []

    def lines(self) -> Iterator[str]:
        """What it says from now on; it is kept too."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            yield line

    def until(self, pattern: str) -> re.Match[str]:
        """The first progress line that matches."""
        for line in self.lines():
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no line matches {pattern!r} in {''.join(self.said)}")

    def finish(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        err = "".join(self.lines())  # to its end; stdout is small enough to wait in its pipe
        out = self.process.stdout.read()
        assert self.process.wait(timeout=60) == 0, err
        self.process.stdout.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        record: dict[str, Any] = json.loads(out.splitlines()[-1])
        return record

    def descendants(self, title: str) -> list[int]:
        """Pids below this run whose command line begins with `title`."""
        return descendants(self.process.pid, title)


def descendants(above_all: int, title: str) -> list[int]:
    """Pids below a process whose command line begins with `title`."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
                titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = []
    for pid, name in titles.items():
        above = pid
        while above in parents and above != above_all:
            above = parents[above]
        if above == above_all and name.startswith(title):
            found.append(pid)
    return sorted(found)


def parameters(run_dir: Path) -> dict[str, bytes]:
    folder, manifest = checkpoint.newest(run_dir / "checkpoints" / "train")
    return {name: array.tobytes() for name, array in checkpoint.load_tensors(folder, manifest)["w"].items()}


def test_the_mlp_learns_digits_and_leaves_a_run_folder_and_nothing_else(
    tmp_path: Path, local_ray: None, command: Command
) -> None:
    """README's first command, on a Ray of its own; meanwhile it is a service as any other."""
    running = Running(
        "train", "mlp", "--dataset", "digits", "--run-dir", tmp_path / "run", "--metrics-port", "0", "--format", "json"
    )  # fmt: skip
    port = running.until(r"metrics at http://127\.0\.0\.1:(\d+)/metrics").group(1)
    target = running.until(r"the service is at (\S+)").group(1)
    running.until(r"epoch +[1-9]\.")
    check_metrics(f"http://127.0.0.1:{port}/sd")
    check_service(target, command)
    left = running.descendants("ray::")
    assert len(left) >= 5
    record = running.finish()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline, "a process is left"
    assert record["test_accuracy"] >= 0.97
    assert record == json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["rollbacks"] == []
    here = {node["NodeID"] for node in ray.nodes()}
    assert not here & {shard["node"] for shard in record["shards"]}, "it took the Ray that runs here already"
    assert record["parameters"] == 65 * 1000 + 1001 * 1000 + 1001 * 10
    assert record["clocks"] == [record["steps"] + 1] * 2, "the workers' pushes, and the one from outside"
    assert record["pushes"]["by_shard_and_outcome"] == {"APPLIED": 2 * record["steps"] + 2}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == record["steps"]
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"pushes/s  staleness \d", "".join(running.said))


def check_service(target: str, command: Command) -> None:
    """It can be watched and trained from outside."""
    shown = command("top", target, "--once").out
    assert re.search(r"\btrain\b", shown), shown
    assert "worker-1" in shown
    with adamserve.connect(target, job="train", pusher="outside") as client:
        parameters, stamps = client.pull()
        zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
        assert client.push(zeros, stamps).outcome is Outcome.APPLIED
        assert {pusher.name for pusher in client.status().pushers} == {"outside", "worker-0", "worker-1"}


def check_metrics(discovery: str) -> None:
    """Every process of the run is found, and tells what it does."""
    with urllib.request.urlopen(discovery, timeout=10) as answer:
        groups = json.load(answer)
    assert [group["labels"] for group in groups] == [
        {"process": "driver"},
        {"process": "shard", "shard": "0"},
        {"process": "shard", "shard": "1"},
        {"process": "worker", "worker": "0"},
        {"process": "worker", "worker": "1"},
    ]
    samples: dict[str, str] = {}
    for address in [target for group in groups for target in group["targets"]]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        samples |= dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['adamserve_worker_steps_total{job="train",worker="1"}']) > 0
    for part in ("pull", "compute", "push"):
        name = f'adamserve_worker_seconds_total{{job="train",part="{part}",worker="0"}}'
        assert 0 < float(samples[name]) < 60
    assert float(samples['adamserve_clock{job="train",shard="1"}']) > 0
    assert float(samples['adamserve_pushes_total{job="train",outcome="APPLIED",shard="0"}']) > 0
    assert np.isfinite(float(samples['adamserve_loss{job="train"}']))


def test_a_run_goes_on_when_a_shard_is_killed(tmp_path: Path) -> None:
    running = Running(
        "train",
        "--run-dir",
        tmp_path / "run",
        "--checkpoint-every-s",
        "1",
        "--epochs",
        "14",
        "--format",
        "json",
    )
    running.until(r"epoch +[3-9]\.")
    [_, victim] = running.descendants("ray::ShardActor")
    os.kill(victim, signal.SIGKILL)
    record = running.finish()
    assert record["status"] == "completed"
    [rollback] = record["rollbacks"]
    assert rollback["incarnation"] == 2
    assert 0 < rollback["clock_after"] <= rollback["clock_before"]
    assert sorted(record["incarnations"]) == [1, 2]
    assert record["test_accuracy"] > 0.9


def test_a_run_goes_on_when_a_worker_is_killed(tmp_path: Path) -> None:
    """The one that is started in its place does not wait for the dead one's lease to end."""
    running = Running(
        "train", "--run-dir", tmp_path / "run", "--consistency", "ssp:3", "--epochs", "12", "--lease-s", "60",
        "--format", "json",
    )  # fmt: skip
    running.until(r"epoch +[1-9]\.")
    [_, victim] = running.descendants("ray::WorkerActor")
    os.kill(victim, signal.SIGKILL)
    record = running.finish()
    assert record["worker_restarts"] == 1
    # A kill in the middle of a push may leave it on one shard and not on the other.
    assert 12 * 23 * 2 - 1 <= min(record["clocks"]) <= max(record["clocks"]) == 12 * 23 * 2


def steps_of(client: adamserve.Client) -> int:
    """The job's clock; 0 while there is none."""
    with suppress(NotFound, Unavailable):
        return min(shard.stamp.clock for shard in client.status().shards)
    return 0


def test_ctrl_c_and_resume_end_bit_identical_to_an_uninterrupted_run(tmp_path: Path, cluster: str) -> None:
    """The uninterrupted one has one shard, and no Ray."""
    job: dict[str, Any] = {"epochs": 10_000, "batch": 256, "max_steps": 500}
    whole = TrainConfig(
        recipe=NetworkRecipe(network="logreg"),
        consistency=consistency.parse("bsp"),
        shards=1,
        run_dir=tmp_path / "whole",
        **job,
    )
    train(whole, on_progress=lambda progress: None, stop=threading.Event(), start=testing.Service.start)
    stops = ["--epochs", job["epochs"], "--max-steps", job["max_steps"]]
    parts = ["--run-dir", tmp_path / "parts", *stops, "--format", "json", "--address", cluster]
    running = Running("train", "logreg", "--consistency", "bsp", "--batch", job["batch"], *parts)
    target = running.until(r"the service is at (\S+)").group(1)
    with adamserve.connect(target, job="train", timeout_s=60) as watching:
        until(lambda: steps_of(watching) >= 5, "no step was made", timeout_s=60)
    running.process.send_signal(signal.SIGINT)
    first = running.finish()
    assert first["status"] == "stopped"
    assert 0 < first["clocks"][0] == first["clocks"][1] < 500
    rest = record_of(run("train", "--resume", "--shards", "3", *parts))
    assert rest["clocks"] == [500] * 3
    assert first["steps"] + rest["steps"] == 1000
    assert parameters(tmp_path / "parts") == parameters(tmp_path / "whole")
    with (tmp_path / "parts" / "metrics.csv").open() as file:
        assert sum(1 for _ in file) == 1001


@pytest.mark.slow
def test_many_shards_leave_room_for_the_workers(tmp_path: Path) -> None:
    done = run(
        "train", "logreg", "--shards", 12, "--max-steps", 2, "--run-dir", tmp_path / "r", "--format", "json"
    )
    assert record_of(done)["clocks"] == [4] * 12


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "ssp:2", "bsp"])
def test_the_mlp_learns_mnist(tmp_path: Path, shared_data: Path, mode: str) -> None:
    done = run(
        "train", "mlp", "--dataset", "mnist", "--data-dir", shared_data / "mnist", "--epochs", "10",
        "--consistency", mode, "--run-dir", tmp_path / "run", "--format", "json",
    )  # fmt: skip
    assert record_of(done)["test_accuracy"] >= 0.95


BAD_INPUT = [
    (
        ["train", "mpl"],
        r"NETWORK: there is no network 'mpl' \(did you mean mlp\? choose cnn or logreg or mlp or vae\)",
    ),
    (["train", "--dataset", "mnits"], r"--dataset: there is no data set 'mnits' \(.*mnist"),
    (["train", "--optimizer", "adm"], r"--optimizer: there is no rule 'adm' \(.*Adam"),
    (["train", "-o", "beta3=1"], r"beta3.*beta1, beta2"),
    (["train", "-o", "beta1"], r"--option: 'beta1' is not NAME=VALUE \(as in"),
    (["train", "--lr", "nan"], r"--lr: must be positive and finite, got nan"),
    (["train", "--frobnicate"], r"No such option: --frobnicate.* \(see .*train --help\)"),
    (["train", "--workers", "two"], r"workers.*integer.* \(see .*train --help\)"),
    (["train", "--workers", "0"], r"--workers: must be at least 1, got 0"),
    (["train", "--shards", "-2"], r"--shards: must be at least 1, got -2"),
    (["train", "--consistency", "ssp"], r"--consistency: 'ssp' is not a consistency mode \(give async"),
    (["train", "--dataset", "mnist", "--data-dir", "/nowhere"], r"/nowhere.*\(.*--data-dir"),
    (
        ["train", "--address", "127.0.0.1:1"],
        r"--address: nothing answers at 127.0.0.1:1: .*\(check that the head runs",
    ),
    (["train", "--address", "here"], r"--address: 'here' is not an address \(give host:port, or auto\)"),
    (["train", "--resume"], r"--run-dir: is needed to resume \(give the folder"),
    (["train", "--resume", "--run-dir", "/nowhere"], r"/nowhere.*no checkpoint"),
    (
        ["train", "--resume", "--run-dir", "x", "--lr", "1"],
        r"--lr: a resumed run keeps its own \(leave it out",
    ),
    (
        ["train", "--resume", "--run-dir", "x", "--sparse", "lazy"],
        r"--sparse: a resumed run keeps its own \(leave it out",
    ),
    (["trainn"], r"No such command 'trainn'"),
    (["checkpoint", "verify", "/nowhere"], r"/nowhere: there is no such folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(a) for a, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(*arguments, alone=False)
    assert re.search(message, line), line


def test_and_nothing_else_is_left_of_it(tmp_path: Path, refused: Refused) -> None:
    assert "/nowhere" in refused(
        "train", "--dataset", "mnist", "--data-dir", "/nowhere", "--run-dir", tmp_path / "run"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_named(tmp_path: Path, shared_data: Path, refused: Refused) -> None:
    for source in (shared_data / "mnist").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    whole = (tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    line = refused(
        "train", "--dataset", "mnist", "--data-dir", tmp_path, "--run-dir", tmp_path / "run", alone=False
    )
    assert "t10k-labels-idx1-ubyte.gz: " in line
    assert not (tmp_path / "run").exists()


def test_the_table_says_none_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as of a run that diverged, or was stopped before its first test."""
    record: dict[str, Any] = {
        "task": "logreg on digits",
        "config": {"workers": 1, "shards": 2, "rule": {"rule": "Adam", "lr": 0.1}},
        "status": "stopped", "test_accuracy": None, "test_loss": None, "train_loss": 0.25, "steps": 3,
        "pushes": {"per_s": None}, "staleness": {"mean": 0.5}, "rollbacks": [], "regret": {"average_regret": None},
        "seconds": {"training": 1.0}, "run_dir": "runs/x",
    }  # fmt: skip
    answer("table", record, _table(record))
    shown = capsys.readouterr().out
    for name, value in (
        ("test accuracy", "none"),
        ("test loss", "none"),
        ("training loss", "0.2500"),
        ("R(T)/T", "none"),
    ):
        [line] = [line for line in shown.splitlines() if name in line]
        assert value in line


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "holds a run already (give a new folder, or --resume)" in refused("train", "--run-dir", tmp_path)
    assert (tmp_path / "run.json").read_text() == "{}"
