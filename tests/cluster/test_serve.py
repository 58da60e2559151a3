"""`adamserve serve` as a process, and the examples against it."""

from __future__ import annotations

import atexit
import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import adamserve
from adamserve import optim
from tests.conftest import Refused

ROOT = Path(__file__).parents[2]
COMMAND = [str(Path(sys.executable).with_name("adamserve")), "serve"]
READY_S = 60

pytestmark = pytest.mark.ray


class Served:
    """A running `adamserve serve`, and what it said when it was ready."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--format", "json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.process.terminate)  # where a test fails before it has ended it
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=READY_S)[1]
        self.ready: dict[str, Any] = json.loads(line)
        self.target: str = self.ready["target"]

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=READY_S)
        assert "Traceback" not in said
        return self.process.returncode


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*options: str) -> Served:
        running.append(Served(*options))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.stop()


@pytest.fixture(scope="module")
def served(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    one = Served("--shards", "2", "--checkpoint-dir", str(folder), "--address", cluster)
    yield one
    one.stop()


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_health_is_reported_by_service(served: Served) -> None:
    expected = {served.target: "adamserve.v1.ControlService"}
    expected |= dict.fromkeys(served.ready["shards"], "adamserve.v1.ShardService")
    assert len(expected) == 3
    for endpoint, name in expected.items():
        with grpc.insecure_channel(endpoint) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for asked in (name, ""):
                answer = stub.Check(health_pb2.HealthCheckRequest(service=asked), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError):
                stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)


def test_reflection_tells_all_that_a_client_needs(served: Served) -> None:
    with grpc.insecure_channel(served.target) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest
        answers = list(
            stub.ServerReflectionInfo(
                iter([ask(list_services=""), ask(file_containing_symbol="adamserve.v1.ControlService")]),
                timeout=10,
            )
        )
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"adamserve.v1.ControlService", "grpc.health.v1.Health"} <= names
    files = [
        FileDescriptorProto.FromString(f) for f in answers[1].file_descriptor_response.file_descriptor_proto
    ]
    methods = {m.name for file in files for service in file.service for m in service.method}
    assert {"CreateJob", "GetTopology", "Report", "GetStatus", "Checkpoint", "DeleteJob"} <= methods


def test_metrics_are_where_the_ready_block_says(served: Served) -> None:
    with urllib.request.urlopen(served.ready["metrics"], timeout=10) as answer:
        assert b"adamserve_build_info" in answer.read()


def test_the_numpy_example_finds_the_line(served: Served) -> None:
    said = run(sys.executable, "examples/numpy_trainer.py", "--target", served.target)
    assert said.startswith("weight [1.0, -2.0, 0.5] bias 3.0")


def test_the_pytorch_example_learns_digits(served: Served) -> None:
    said = run(sys.executable, "examples/pytorch_trainer.py", "--target", served.target)
    assert float(said.split()[-1]) >= 0.97


def test_the_node_example_has_the_python_client_s_bits(served: Served, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    folder = tmp_path / "examples" / "node"
    shutil.copytree(ROOT / "examples" / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    run("npm", "ci", "--silent", "--no-fund", "--no-audit", cwd=folder)
    said = run("node", "client.js", served.target, "node-job", "5", cwd=folder)
    initial = (np.arange(1000) / 7).astype(np.float32)
    with adamserve.connect(served.target, job="python-job", pusher="node", timeout_s=20) as client:
        client.create({"w": initial}, optim.Adam(lr=0.01))
        for step in range(1, 6):
            _, clock = client.pull()
            client.push({"w": (np.arange(1000) % 11 - 5 + step).astype(np.float32)}, clock)
        arrays, _ = client.pull()
    assert bytes.fromhex(said.strip()) == arrays["w"].tobytes()
    assert np.abs(arrays["w"] - initial).max() > 0.01
    with adamserve.connect(served.target, job="node-job", timeout_s=20) as client:
        assert client.pull()[0]["w"].tobytes() == arrays["w"].tobytes()


@pytest.mark.parametrize(
    "how", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGHUP", "SIGINT"]
)
def test_it_drains_and_takes_its_jobs_up_again(
    serve: Callable[..., Served], tmp_path: Path, how: int
) -> None:
    options = ("--checkpoint-dir", str(tmp_path), "--grace-s", "2")
    first = serve(*options)
    with adamserve.connect(first.target, job="kept", pusher="a", timeout_s=20) as client:
        client.create({"w": np.zeros(5, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        for _ in range(3):
            client.push({"w": np.ones(5, np.float32)}, client.pull()[1])
    assert first.stop(how) == 0
    shutil.copytree(tmp_path / "kept", tmp_path / "damaged")
    for path in (tmp_path / "damaged").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "cut" / "00000001").mkdir(parents=True)  # as if killed in a job's first checkpoint
    second = serve(*options, "--host", "::1")  # and somewhere else
    assert second.ready["jobs"] == ["kept"]
    for endpoint in (second.target, *second.ready["shards"]):
        assert endpoint.startswith("[::1]:")
    with urllib.request.urlopen(second.ready["metrics"], timeout=10) as answer:
        assert b"adamserve_build_info" in answer.read()
    with adamserve.connect(second.target, job="kept", pusher="a", timeout_s=20) as client:
        arrays, clock = client.pull()
        assert (arrays["w"].tolist(), clock[0].clock, client.seq) == ([-3.0] * 5, 3, 3)
        client.push({"w": np.ones(5, np.float32)}, clock)
        assert client.pull()[0]["w"].tolist() == [-4.0] * 5
    with adamserve.connect(second.target, job="cut", timeout_s=20) as client:
        assert client.create({"w": np.zeros(5, np.float32)}, optim.SGD())
    assert second.stop(how) == 0


BAD: dict[str, tuple[list[str], str]] = {
    "beyond this machine": (["--host", "0.0.0.0"], "--host: 0.0.0.0 can be reached from other machines"),
    "certificate without key": (["--tls-cert", "CERT"], "--tls-cert: a certificate and its key go together"),
    "no such certificate": (
        ["--tls-cert", "nope.pem", "--tls-key", "CERT"],
        "--tls-cert: nope.pem cannot be read",
    ),
    "not PEM": (["--tls-cert", "EMPTY", "--tls-key", "CERT"], "is not a PEM file"),
    "no token": (["--token-file", "EMPTY"], "holds no token"),
    "port": (["--port", "70000"], "--port: must be 0 to 65535"),
    "shards": (["--shards", "0"], "--shards: must be at least 1"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line(options: list[str], says: str, tmp_path: Path, refused: Refused) -> None:
    cert, empty = tmp_path / "cert.pem", tmp_path / "empty"
    cert.write_text("-----BEGIN CERTIFICATE-----\n")
    empty.write_text("")
    files = {"CERT": str(cert), "EMPTY": str(empty)}
    assert says in refused("serve", *(files.get(o, o) for o in options))
