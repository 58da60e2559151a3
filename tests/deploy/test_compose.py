"""The files that start containers agree with each other and with the project. No container is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from adamserve import __version__
from adamserve.cli import app

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILES = {
    name: (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).resolve()
    for name, service in SERVICES.items()
    if "build" in service
}
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES.values(), ids=DOCKERFILES)


def options(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if word.startswith("--"))


def sources(service: dict[str, Any]) -> list[str]:
    return [volume.split(":")[0] for volume in service.get("volumes", [])]


@each_service
def test_ports_are_bound_to_loopback(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert [port for port in service["ports"] if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


@each_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    assert PINNED.fullmatch(service["image"])


def test_the_image_carries_the_project_version() -> None:
    assert SERVICES["train"]["image"] == f"adamserve:{__version__}"


@each_service
def test_mounted_files_exist_and_mounted_volumes_are_declared(service: dict[str, Any]) -> None:
    files = [source for source in sources(service) if source.startswith((".", "/"))]
    assert [source for source in files if not (ROOT / source).exists()] == []
    assert set(sources(service)) - set(files) <= COMPOSE["volumes"].keys()


@each_dockerfile
def test_base_images_are_pinned(path: Path) -> None:
    bases = re.findall(r"^FROM (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert bases
    assert [base for base in bases if not PINNED.fullmatch(base)] == []


@each_dockerfile
def test_what_is_copied_exists_and_reaches_the_build_context(path: Path) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert [name for name in names if name.split("/")[0] not in kept] == []


@each_dockerfile
def test_the_container_does_not_run_as_root(path: Path) -> None:
    users = re.findall(r"^USER (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0"}


def test_every_option_is_one_that_the_command_takes() -> None:
    name, _network, *rest = SERVICES["train"]["command"]
    command = typer.main.get_group(app).commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert options(rest).keys() <= known


def test_prometheus_scrapes_the_service_and_port_that_serve_the_metrics() -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    targets = [
        target
        for scrape in yaml.safe_load(text)["scrape_configs"]
        for config in scrape["static_configs"]
        for target in config["targets"]
    ]
    served = options(SERVICES["train"]["command"])
    assert served["--metrics-host"] == "0.0.0.0"
    assert targets == [f"train:{served['--metrics-port']}"]
    assert f"127.0.0.1:{served['--metrics-port']}:{served['--metrics-port']}" in SERVICES["train"]["ports"]


def test_prometheus_reads_the_file_that_is_scraped_by() -> None:
    mount = "./deploy/prometheus/prometheus.yml:/etc/prometheus/prometheus.yml:ro"
    assert mount in SERVICES["prometheus"]["volumes"]
