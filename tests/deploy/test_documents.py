"""Every deployment file passes its checks, and the same checks find planted errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy import checks

ROOT = Path(__file__).parents[2]

Check = Callable[[str], list[str]]

FILES: dict[str, tuple[Check, ...]] = {
    "docker-compose.yml": (checks.compose, checks.yaml_style),
    "deploy/Dockerfile": (checks.dockerfile,),
    "deploy/kuberay/raycluster.yaml": (checks.kubernetes, checks.yaml_style),
    "deploy/kuberay/rayjob.yaml": (checks.kubernetes, checks.yaml_style),
    "deploy/kuberay/serve.yaml": (checks.kubernetes, checks.yaml_style),
    "deploy/kuberay/podmonitor.yaml": (checks.kubernetes, checks.yaml_style),
    "deploy/kuberay/prometheusrule.yaml": (checks.kubernetes,),  # generated: its lines are long
    "deploy/prometheus/prometheus.yml": (checks.yaml_style,),
    "deploy/ray/cluster.yaml": (checks.ray_cluster, checks.yaml_style),
}


def test_no_file_is_forgotten() -> None:
    """What promtool and Grafana's own tests look at is not repeated here."""
    elsewhere = ("deploy/prometheus/rules.yml", "deploy/grafana/", "deploy/README.md", "deploy/secrets/")
    there = [path.relative_to(ROOT) for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert [str(name) for name in there if not str(name).startswith((*FILES, *elsewhere))] == []


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_clean(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [problem for check in FILES[name] for problem in check(text)] == []


PLANTED: dict[str, tuple[str, str, str, str]] = {
    "compose: a key that is none": (
        "docker-compose.yml",
        "  stop_grace",
        "  stop_gracious: 1\n  stop_grace",
        "'stop_gracious' was unexpected",
    ),
    "compose: not of its type": (
        "docker-compose.yml",
        "init: true",
        "init: [1]",
        "[1] is not of type 'boolean', 'string'",
    ),
    "compose: a misspelt condition": (
        "docker-compose.yml",
        "condition: service_healthy",
        "condition: healthy",
        "'healthy' is not one of",
    ),
    "compose: open to the network": (
        "docker-compose.yml",
        "127.0.0.1:9090:9090",
        "9090:9090",
        "services.prometheus: port 9090:9090 is not bound",
    ),
    "compose: a moving tag": (
        "docker-compose.yml",
        "prometheus:v3.5.0",
        "prometheus:latest",
        "image prom/prometheus:latest is not pinned",
    ),
    "compose: root": (
        "docker-compose.yml",
        'user: "472:0"',
        'user: "0:0"',
        "services.grafana: user 0:0 is root",
    ),
    "compose: a small /dev/shm": (
        "docker-compose.yml",
        "shm_size: 2gb",
        "shm_size: 64mb",
        "ray-head: no shm_size",
    ),
    "compose: privileges": (
        "docker-compose.yml",
        "cap_drop: [ALL]",
        "privileged: true",
        "keeps capabilities",
    ),
    "compose: no health": (
        "docker-compose.yml",
        "      test: [CMD, promtool, check, ready]",
        "      tests: [CMD]",
        "'tests' does not match any of",
    ),
    "compose: no such secret": (
        "docker-compose.yml",
        "  ray_token:\n    file",
        "  ray_tokn:\n    file",
        "secret ray_token is not declared",
    ),
    "compose: a secret in sight": (
        "docker-compose.yml",
        "RAY_AUTH_TOKEN_PATH: /run/secrets/ray_token",
        "RAY_AUTH_TOKEN: hunter2",
        "environment RAY_AUTH_TOKEN holds a secret itself",
    ),
    "compose: a secret that is not its own": (
        "docker-compose.yml",
        "secrets: [grafana_password]",
        "secrets: [ray_token]",
        "services.grafana: /run/secrets/grafana_password is not among its secrets",
    ),
    "compose: no such file": (
        "docker-compose.yml",
        "./deploy/prometheus/rules.yml:",
        "./deploy/prometheus/rule.yml:",
        "there is no such file",
    ),
    "compose: no such volume": (
        "docker-compose.yml",
        "- prometheus:/",
        "- promtheus:/",
        "promtheus is not declared",
    ),
    "compose: style": (
        "docker-compose.yml",
        "name: adamserve\n",
        "name:   adamserve\n",
        "too many spaces after colon",
    ),
    "Dockerfile: no version": ("deploy/Dockerfile", "python:3.11.13-slim-bookworm", "python", "DL3006"),
    "Dockerfile: a moving tag": (
        "deploy/Dockerfile",
        "python:3.11.13-slim-bookworm",
        "python:latest",
        "FROM python:latest: not pinned",
    ),
    "Dockerfile: root": (
        "deploy/Dockerfile",
        "USER 10001:10001",
        "USER root",
        "USER root: not a number above 0",
    ),
    "Dockerfile: cd in a command": ("deploy/Dockerfile", "RUN mkdir", "RUN cd runs && mkdir", "DL3003"),
    "Dockerfile: no such instruction": (
        "deploy/Dockerfile",
        "WORKDIR /src",
        "WORKDIRR /src",
        "missing whitespace",
    ),
    "Dockerfile: a shell's error": ("deploy/Dockerfile", "$(grep '^torch=='", "$(grep '^torch==", "SC1"),
    "RayCluster: a field that is none": (
        "deploy/kuberay/raycluster.yaml",
        "minReplicas",
        "minReplica",
        "('minReplica' was unexpected)",
    ),
    "RayCluster: parameters are strings": (
        "deploy/kuberay/raycluster.yaml",
        'num-cpus: "0"',
        "num-cpus: 0",
        "0 is not of type 'string'",
    ),
    "RayCluster: no such mode": (
        "deploy/kuberay/raycluster.yaml",
        "mode: token",
        "mode: on",
        "True is not one of",
    ),
    "RayCluster: a pod's field": (
        "deploy/kuberay/raycluster.yaml",
        "claimName: adamserve",
        "claim: adamserve",
        "'claimName' is a required",
    ),
    "RayCluster: root": (
        "deploy/kuberay/raycluster.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        "may run as root",
    ),
    "RayCluster: no such volume": (
        "deploy/kuberay/raycluster.yaml",
        "- name: checkpoints\n                mount",
        "- name: chkpts\n                mount",
        "container ray-head mounts chkpts, which is no volume",
    ),
    "RayJob: no such way": (
        "deploy/kuberay/rayjob.yaml",
        "K8sJobMode",
        "K8SJobMode",
        "'K8SJobMode' is not one of",
    ),
    "RayJob: no command": (
        "deploy/kuberay/rayjob.yaml",
        "  entrypoint:",
        "  entryPoint:",
        "'entrypoint' is a required",
    ),
    "Service: no number": (
        "deploy/kuberay/serve.yaml",
        "port: 9464",
        'port: "9464"',
        "'9464' is not of type 'integer'",
    ),
    "Deployment: a probe's field": (
        "deploy/kuberay/serve.yaml",
        "grpc:\n              port",
        "grpc:\n              prt",
        "'port' is a required property",
    ),
    "Deployment: no selector": (
        "deploy/kuberay/serve.yaml",
        "  selector:\n    matchLabels",
        "  select:\n    matchLabels",
        "'selector' is a required",
    ),
    "Deployment: a moving tag": (
        "deploy/kuberay/serve.yaml",
        "image: adamserve:0.1.0",
        "image: adamserve",
        "image adamserve is not pinned",
    ),
    "Deployment: privileges": (
        "deploy/kuberay/serve.yaml",
        "allowPrivilegeEscalation: false",
        "privileged: true",
        "keeps privileges",
    ),
    "Deployment: a secret in sight": (
        "deploy/kuberay/serve.yaml",
        "- name: RAY_AUTH_TOKEN\n",
        "- name: A_TOKEN\n              value: hunter2\n            - name: RAY_AUTH_TOKEN\n",
        "A_TOKEN holds a secret itself",
    ),
    "Deployment: no such kind": (
        "deploy/kuberay/serve.yaml",
        "kind: Deployment",
        "kind: Deploymint",
        "find schema for kind Deploymint",
    ),
    "PodMonitor: no duration": (
        "deploy/kuberay/podmonitor.yaml",
        "interval: 5s",
        "interval: 5",
        "5 is not of type",
    ),
    "ScrapeConfig: no URL": (
        "deploy/kuberay/podmonitor.yaml",
        "- url: http://",
        "- url: ",
        "does not match '^https?",
    ),
    "ScrapeConfig: no such action": (
        "deploy/kuberay/podmonitor.yaml",
        "action: drop",
        "action: skip",
        "'skip' is not one of",
    ),
    "PodMonitor: a long port": (
        "deploy/kuberay/podmonitor.yaml",
        "- port: adamserve-http",
        "- port: adamserve-metrics",
        "is too long",
    ),
    "PrometheusRule: neither kind": (
        "deploy/kuberay/prometheusrule.yaml",
        'alert: "AdamserveShardDown"',
        "labels: {}",
        "is not valid under any of the",
    ),
    "PrometheusRule: no duration": (
        "deploy/kuberay/prometheusrule.yaml",
        '"15s"',
        '"15 s"',
        "'15 s' does not match",
    ),
    "Prometheus: style": ("deploy/prometheus/prometheus.yml", "global:", "global:  ", "trailing spaces"),
    "Ray: a key that is none": (
        "deploy/ray/cluster.yaml",
        "max_workers: 2",
        "max_worker: 2",
        "('max_worker' was unexpected",
    ),
    "Ray: not of its type": (
        "deploy/ray/cluster.yaml",
        "max_workers: 2",
        "max_workers: two",
        "'two' is not of type",
    ),
    "Ray: no provider": ("deploy/ray/cluster.yaml", "  type: local", "  typ: local", "type"),
    "Ray: no head": ("deploy/ray/cluster.yaml", "  head_ip: 192.0.2.10\n", "", "head_ip"),
    "Ray: no token": (
        "deploy/ray/cluster.yaml",
        "export RAY_AUTH_MODE=token PATH",
        "export PATH",
        "without a token",
    ),
}


@pytest.mark.parametrize(("name", "old", "new", "says"), PLANTED.values(), ids=PLANTED)
def test_a_planted_error_is_found(name: str, old: str, new: str, says: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert old in text
    problems = [problem for check in FILES[name] for problem in check(text.replace(old, new))]
    assert [problem for problem in problems if says in problem], problems
