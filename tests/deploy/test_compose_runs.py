"""The commands of docker-compose.yml, run as plain processes on this machine: what containers would run, without them.

Takes half a minute: a Ray cluster of three nodes, the service and its health checks, a trainer, and an orderly stop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamserve import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
PORTS = ("6379", "8265", "50051", "9464")


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


@dataclass
class Machine:
    """This machine in the place of the containers' network.

    Attributes:
        home: in the place of the user's home, and of the volumes below it.
        ports: this machine's, in the place of the services'.
        started: what runs.
    """

    home: Path
    ports: dict[str, int] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, service: str, words: list[str]) -> list[str]:
        """A command with this machine's names, files and ports."""
        found = []
        for word in words:
            text = re.sub(r"\b(ray-head|adamserve)(?=:\d)", "127.0.0.1", word)
            text = text.replace("/run/secrets", str(self.home / "deploy" / "secrets"))
            text = text.replace("/examples", str(ROOT / "examples"))
            text = re.sub(r"\b(6379|8265|50051|9464)\b", lambda match: str(self.ports[match[0]]), text)
            found.append(re.sub(r"\b52365\b", lambda match: str(self.ports[f"agent of {service}"]), text))
        return found

    def environment(self, service: str) -> dict[str, str]:
        own = SERVICES[service].get("environment", {})
        values = dict(zip(own, self.words(service, list(own.values())), strict=True))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **values, "PATH": path, "RAY_TMPDIR": str(self.home)}

    def start(self, service: str) -> subprocess.Popen[bytes]:
        command = self.words(service, [*SERVICES[service]["entrypoint"], *SERVICES[service]["command"]])
        with (self.home / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.home, env=self.environment(service), stdout=log, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process

    def healthy(self, service: str) -> subprocess.CompletedProcess[str]:
        """One run of a service's health check."""
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return subprocess.run(
            self.words(service, command), cwd=self.home, env=self.environment(service),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def wait_until_healthy(self, service: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 90
        while (done := self.healthy(service)).returncode:
            assert process.poll() is None, self.log(service)
            assert time.monotonic() < deadline, f"{done.stdout}{done.stderr}{self.log(service)}"

    def log(self, service: str) -> str:
        return (self.home / f"{service}.log").read_text()

    def end(self) -> None:
        """Kill what was started here, and nothing else: all of it has this folder in its environment."""
        mark = f"RAY_TMPDIR={self.home}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue
        for process in self.started:
            process.wait(timeout=10)


@pytest.fixture
def machine() -> Iterator[Machine]:
    home = Path(tempfile.mkdtemp(prefix="am-"))  # a short name: Ray puts sockets there
    (home / "checkpoints").mkdir()
    (home / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "secrets", home / "scripts")
    subprocess.run([home / "scripts" / "secrets"], check=True, capture_output=True, timeout=10)
    names = (*PORTS, "agent of ray-head", "agent of ray-worker")
    machine = Machine(home, dict(zip(names, free_ports(len(names)), strict=True)))
    yield machine
    machine.end()
    shutil.rmtree(home, ignore_errors=True)


def test_what_compose_would_start_trains_and_stops_in_order(machine: Machine) -> None:
    assert machine.healthy("ray-worker").returncode != 0
    assert machine.healthy("adamserve").returncode != 0
    for service in ("ray-head", "ray-worker", "adamserve"):
        process = machine.start(service)
        machine.wait_until_healthy(service, process)

    demo = machine.words(
        "demo", [*SERVICES["demo"]["entrypoint"], *SERVICES["demo"]["command"], "--epochs=2"]
    )
    done = subprocess.run(
        [sys.executable, *demo[1:]], cwd=machine.home, env=machine.environment("demo"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout

    target = f"127.0.0.1:{machine.ports['50051']}"
    [job] = json.loads(
        _status(machine, target, "--token-file", machine.home / "deploy/secrets/adamserve_token").stdout
    )
    assert job["job"] == "demo"
    assert len({shard["stamp"]["clock"] for shard in job["shards"]}) == 1
    assert job["shards"][0]["stamp"]["clock"] == 2 * 23  # batches an epoch
    assert "no token" in _status(machine, target).stderr

    process.terminate()  # as `docker compose down` does
    assert process.wait(timeout=60) == 0, machine.log("adamserve")
    _, manifest = checkpoint.newest(machine.home / "checkpoints" / "demo")
    assert {shard.stamp.clock for shard in manifest.shards} == {2 * 23}


def _status(machine: Machine, target: str, *options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adamserve", "status", target, "--format", "json", *map(str, options)],
        env=machine.environment("demo"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
