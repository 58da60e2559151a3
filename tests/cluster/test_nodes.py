"""Two Ray nodes, each in a network of its own, with one wire between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ADDRESSES = ("10.77.19.1", "10.77.19.2")
PORTS = "7000-7019"
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Nodes:
    """The names of both networks; the head's is the first."""

    names: tuple[str, str]

    def run(self, index: int, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.names[index], *command],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=200,
            check=check,
        )

    def train(self, folder: Path) -> subprocess.CompletedProcess[str]:
        return self.run(0, *self._train(folder), check=False)

    def training(self, folder: Path) -> subprocess.Popen[str]:
        """The same, while it goes on."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[0], *self._train(folder)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _train(self, folder: Path) -> tuple[str, ...]:
        return (
            *(sys.executable, "-m", "adamserve", "train", "--address", f"{ADDRESSES[0]}:6379"),
            *("--shard-ports", PORTS, "--run-dir", str(folder), "--max-steps", "5", "--format", "json"),
        )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    names = tuple(f"adamserve-{os.getpid()}-{i}" for i in (0, 1))
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip(
                "-n",
                names[0],
                "link",
                "add",
                "wire",
                "type",
                "veth",
                "peer",
                "name",
                "wire",
                "netns",
                names[1],
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no networks of our own here: {error}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
        made = Nodes((names[0], names[1]))
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={_short(stack)}")
        for index, options in enumerate((head, (f"--address={ADDRESSES[0]}:6379",))):
            command = (RAY, "start", *options, f"--node-ip-address={ADDRESSES[index]}", "--num-cpus=2")
            stack.callback(_end, names[index])
            made.run(index, *command, "--object-store-memory=100000000", "--disable-usage-stats")
        yield made


def _short(stack: ExitStack) -> str:
    """A folder whose name leaves room for the names of Ray's sockets."""
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))


def _end(name: str) -> None:
    """End every process in a network."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def test_training_on_both(nodes: Nodes, tmp_path: Path) -> None:
    done = nodes.train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["clocks"] == [10, 10]
    endpoints = {shard["endpoint"].rpartition(":")[0] for shard in record["shards"]}
    assert endpoints == set(ADDRESSES), "each shard listens on its own node's address"
    assert all(7000 <= int(shard["direct"].rpartition(":")[2]) <= 7019 for shard in record["shards"])
    assert record["target"].startswith(f"{ADDRESSES[0]}:")


def test_a_blocked_port_is_found_out_before_the_first_step(nodes: Nodes, tmp_path: Path) -> None:
    """As a firewall does, the second node drops what comes for its shard, and says nothing."""
    name = nodes.names[1]
    ip("-n", name, "rule", "add", "pref", "10", "lookup", "local")
    ip("-n", name, "rule", "del", "pref", "0")
    ip("-n", name, "rule", "add", "pref", "5", "iif", "wire", "ipproto", "tcp", "dport", PORTS, "blackhole")
    with nodes.training(tmp_path / "run") as training:
        assert training.stderr is not None
        for line in training.stderr:
            if "trying every shard from every worker" in line:
                began = time.monotonic()
            if "stopping the service, for" in line:
                assert "cannot reach shard" in line
                assert time.monotonic() - began < 5
            last = line
        assert training.wait(timeout=60) == 2
    assert f"node {ADDRESSES[0]} cannot reach shard" in last
    assert f"at {ADDRESSES[1]}:70" in last
    assert "no answer in time; a firewall may drop the packets" in last
    assert "--shard-ports" in last
