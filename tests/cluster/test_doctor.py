"""`adamserve doctor`: each finding from made-up machines, and the command on this one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from adamserve.cluster import doctor
from adamserve.cluster.doctor import Severity


@pytest.mark.parametrize(
    ("version", "severity"),
    [((3, 10), Severity.error), ((3, 11), Severity.ok), ((3, 14), Severity.ok), ((4, 0), Severity.ok)],
)
def test_python(version: tuple[int, int], severity: Severity) -> None:
    assert doctor.python(version).severity is severity


REQUIRED = [
    "numpy>=2.1",
    'torch>=2.9; extra == "torch"',
    'ray[default]>=2.55; extra == "service"',
    'torch>=2.9; extra == "service"',
    'adamserve[torch]; extra == "service"',
    'accelerate>=1.10; extra == "accelerate"',
    "pywin32>=1; sys_platform == 'win32'",
]


def test_packages() -> None:
    there = {"numpy": "1.26.4", "torch": "2.13.0+cpu"}
    found = {f.check: f for f in doctor.packages(REQUIRED, there.get)}
    assert list(found) == ["numpy", "torch", "ray"]
    assert (found["numpy"].severity, found["numpy"].fix) == (Severity.error, "pip install 'numpy>=2.1'")
    assert (found["torch"].severity, found["torch"].fix) == (Severity.ok, "")
    assert (found["ray"].severity, found["ray"].found) == (Severity.error, "not installed")


def test_compiler() -> None:
    assert doctor.compiler({"clang": "/usr/bin/clang"}.get).found == "/usr/bin/clang"
    none = doctor.compiler(lambda name: None)
    assert (none.severity, none.fix) == (Severity.warning, "apt-get install gcc")


def test_proxy() -> None:
    assert doctor.proxy({}).severity is Severity.ok
    found = doctor.proxy({"http_proxy": "http://p:3128", "grpc_proxy": "http://q:3128"})
    assert (found.severity, "grpc_proxy=http://q:3128" in found.found) == (Severity.warning, True)
    assert "no_proxy" in found.fix


def test_kernel_cache(tmp_path: Path) -> None:
    assert doctor.kernel_cache(tmp_path / "none" / "yet").severity is Severity.ok
    noexec = next(
        (Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if "noexec" in line),
        None,
    )
    if noexec is not None and noexec.exists():
        assert doctor.kernel_cache(noexec).severity is Severity.warning


@pytest.mark.parametrize(
    ("environ", "severity"),
    [
        ({}, Severity.ok),
        ({"RAY_AUTH_MODE": "disabled"}, Severity.ok),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, Severity.ok),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, Severity.error),
        ({"RAY_AUTH_MODE": "tokn"}, Severity.error),
    ],
)
def test_ray_token(environ: Mapping[str, str], severity: Severity) -> None:
    finding = doctor.ray_token(environ)
    assert finding.severity is severity
    assert "secret" not in str(finding)


@pytest.mark.parametrize(
    ("tokens", "mode", "severity"),
    [(0, 0o600, Severity.error), (1, 0o644, Severity.warning), (1, 0o600, Severity.ok)],
)
def test_ray_token_file(tokens: int, mode: int, severity: Severity, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hush-hush" * tokens)
    path.chmod(mode)
    finding = doctor.ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})
    assert finding.severity is severity
    assert "hush" not in str(finding)


def test_space(tmp_path: Path) -> None:
    assert doctor.space("disk", tmp_path, 1, "free some").severity is Severity.ok
    small = doctor.space("disk", tmp_path, 1 << 62, "free some")
    assert (small.severity, small.fix) == (Severity.warning, "free some")
    assert doctor.space("disk", tmp_path / "no", 1, "free some").severity is Severity.error


@pytest.mark.parametrize(
    ("times", "severity"),
    [
        ((10.0, 10.5, 11.0), Severity.ok),
        ((10.0, 9.5, 11.0), Severity.ok),
        ((10.0, 8.9, 11.0), Severity.warning),
        ((10.0, 12.1, 11.0), Severity.warning),
    ],
)
def test_clock(times: tuple[float, float, float], severity: Severity) -> None:
    assert doctor.skew(*times).severity is severity


def test_a_folder_that_is_not_there_cannot_keep_checkpoints(tmp_path: Path) -> None:
    assert doctor.clock(tmp_path).severity is Severity.ok
    assert doctor.clock(tmp_path / "no").severity is Severity.error


def test_a_taken_port_and_an_absent_prometheus() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert doctor.port(number).severity is Severity.warning
    assert doctor.port(number).severity is Severity.ok
    for url in (f"http://127.0.0.1:{number}", "nonsense"):
        assert [finding.severity for finding in doctor.prometheus(url)] == [Severity.error]
    assert "address" in doctor.port(0, "192.0.2.1").found  # of no machine
    assert doctor.port(0, "::1").check == "port 0"


class Pages(BaseHTTPRequestHandler):
    """What a Prometheus answers."""

    pages: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        found = self.pages.get(self.path.partition("?")[0])
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write((found or "").encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


READY = {"/-/ready": "Prometheus Server is Ready.\n"}
ONE = {"data": {"result": [{"metric": {}, "value": [0, "3"]}]}}


@pytest.mark.parametrize(
    ("pages", "late", "findings"),
    [
        ({}, 0, {"Prometheus": "error"}),
        (READY, 0, {"Prometheus": "error"}),  # something else that says that it is ready
        ({**READY, "/api/v1/query": "<html>"}, 0, {"Prometheus": "error"}),
        (
            {**READY, "/api/v1/query": '{"data": {"result": []}}'},
            0,
            {"Prometheus": "ok", "Prometheus' targets": "warning"},
        ),
        (
            {**READY, "/api/v1/query": json.dumps(ONE)},
            60,
            {"Prometheus": "ok", "Prometheus' clock": "warning", "Prometheus' targets": "ok"},
        ),
    ],
)
def test_prometheus(pages: dict[str, str], late: float, findings: dict[str, str]) -> None:
    handler = type("Handler", (Pages,), {"pages": pages})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        found = list(doctor.prometheus(url, now=lambda: time.time() + late))
        server.shutdown()
        thread.join()
    assert {finding.check: finding.severity.name for finding in found} == findings
    assert all(bool(finding.fix) == (finding.severity > 0) for finding in found)


def test_a_device_that_torch_cannot_use(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch finds one")
    assert doctor.gpu(tmp_path / "none").severity is Severity.ok
    (tmp_path / "version").write_text("NVRM version")
    finding = doctor.gpu(tmp_path / "version")
    assert (finding.severity, "CPU only" in finding.found) == (Severity.warning, torch.version.cuda is None)


def test_the_command_says_the_worst_by_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adamserve", "doctor", "--folder", str(tmp_path), "--format", "json"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = subprocess.run(
            [*command, "--port", str(number)], capture_output=True, text=True, check=False, timeout=60
        )
    findings = {f["check"]: f for f in json.loads(done.stdout)}
    worst = max(Severity[f["severity"]] for f in findings.values())
    assert done.returncode == worst >= Severity.warning
    assert findings[f"port {number}"]["severity"] == "warning"
    assert {"Python", "numpy", "ray", "torch", "C compiler", "Ray token", "disk", "clock", "GPU"} <= set(
        findings
    )
    assert all(bool(f["fix"]) == (f["severity"] != "ok") for f in findings.values())
