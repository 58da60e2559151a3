"""The files that start containers agree with each other and with the project. No container is started."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamserve import __version__
from adamserve.edge.security import Tokens
from tests.deploy import commands

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")))
MANIFESTS = sorted(ROOT.glob("deploy/**/*.yaml"))


def words_of(service: dict[str, Any]) -> list[list[str]]:
    """The commands of a service that can be read."""
    words = [*service.get("entrypoint", []), *map(str, service.get("command", []))]
    return list(
        commands.in_shell(words[2] if words[:2] == ["bash", "-c"] else subprocess.list2cmdline(words))
    )


def texts(node: Any) -> Iterator[str]:
    """Every string in a document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from (text for value in node.values() for text in texts(value))
    elif isinstance(node, list):
        yield from (text for value in node for text in texts(value))


def option(words: list[str], name: str) -> str:
    [value] = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return value


def test_the_images_carry_the_project_version() -> None:
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    named = {
        text
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        for text in texts(document)
        if re.match(r"adamserve:\d", text)
    }
    assert built == named == {f"adamserve:{__version__}"}
    assert set(re.findall(r"-t adamserve:([\d.]+\d)", DOCKERFILE)) == {__version__}
    wheel = f"adamserve-{__version__}-py3-none-any.whl"
    assert wheel in (ROOT / "deploy/ray/cluster.yaml").read_text(encoding="utf-8")


def test_ray_has_the_locked_version_everywhere() -> None:
    [locked] = re.findall(r"^ray==(.*)$", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    named = re.findall(r"rayVersion: (\S+)", "".join(path.read_text() for path in MANIFESTS))
    assert set(named) == {locked}


def test_each_service_is_built_to_a_stage_that_the_dockerfile_has() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "gpu"} <= set(stages)
    assert {s["build"]["target"] for s in SERVICES.values() if "build" in s} <= set(stages)
    assert {s["build"]["dockerfile"] for s in SERVICES.values() if "build" in s} == {"deploy/Dockerfile"}


def test_what_is_copied_exists_and_reaches_the_build_context() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore  # everything stays out, secrets and runs too, but for:
    kept = [line[1:] for line in ignore if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert {name.split("/")[0] for name in names} == set(kept)


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if words_of(service)])
def test_every_option_of_a_service_is_one_that_its_command_takes(name: str) -> None:
    assert [problem for words in words_of(SERVICES[name]) if (problem := commands.problem(words))] == []


def test_the_health_check_of_the_service_is_a_command_of_ours() -> None:
    assert commands.problem(SERVICES["adamserve"]["healthcheck"]["test"][1:]) == ""


def test_the_services_whose_commands_are_read() -> None:
    assert {name for name, service in SERVICES.items() if words_of(service)} == {
        "ray-head",
        "ray-worker",
        "adamserve",
    }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_option_in_a_manifest_is_one_that_its_command_takes(path: Path) -> None:
    found = [
        words
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        for text in texts(document)
        if re.search(r"(^|[;&] *|exec )(adamserve (serve|train)|ray start) ", text)
        for words in commands.in_shell(text)
    ]
    expected = {"serve.yaml": 2, "rayjob.yaml": 1, "cluster.yaml": 2}
    assert len(found) == expected.get(path.name, 0)
    assert [problem for words in found if (problem := commands.problem(words))] == []


def test_prometheus_asks_the_service_that_serves_the_metrics() -> None:
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    [scrape] = yaml.safe_load(text)["scrape_configs"]
    [_, serve] = words_of(SERVICES["adamserve"])
    assert option(serve, "--host") == "0.0.0.0"
    port = option(serve, "--metrics-port")
    assert [discovery["url"] for discovery in scrape["http_sd_configs"]] == [f"http://adamserve:{port}/sd"]
    assert {f"127.0.0.1:{p}:{p}" for p in (port, option(serve, "--port"))} == set(
        SERVICES["adamserve"]["ports"]
    )


def test_prometheus_reads_the_files_that_are_mounted() -> None:
    mounted = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert option(SERVICES["prometheus"]["command"], "--config.file") in mounted
    assert {
        "/etc/prometheus/rules.yml",
        option(SERVICES["prometheus"]["command"], "--storage.tsdb.path"),
    } <= mounted


def test_secrets_are_made_once_and_only_their_owner_gets_to_them(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "secrets", tmp_path / "scripts")

    def made() -> dict[str, str]:
        subprocess.run([tmp_path / "scripts" / "secrets"], check=True, timeout=10, capture_output=True)
        return {
            str(path.relative_to(tmp_path)): path.read_text()
            for path in sorted((tmp_path / "deploy" / "secrets").iterdir())
        }

    first = made()
    assert set(first) == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in first.values())
    assert len(set(first.values())) == len(first)
    Tokens.read(tmp_path / "deploy/secrets/adamserve_token")
    folder = tmp_path / "deploy" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    (folder / "ray_token").unlink()
    again = made()
    assert again.pop("deploy/secrets/ray_token") != first.pop("deploy/secrets/ray_token")
    assert again == first


def test_secrets_stay_out_of_git() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "deploy/secrets/ray_token"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0
