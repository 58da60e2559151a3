"""What is wrong with a deployment file, as lines for people. Each check takes a file's text and gives its problems."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.crds import CRDS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
KUBERNETES = "1.34"
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
"""An image with a whole version, or with a digest besides."""


def _said(tool: str, *arguments: str, text: str) -> list[str]:
    """What a tool says of a text on its standard input; nothing if it has no complaint."""
    done = subprocess.run(
        [BIN / tool, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    return (done.stdout + done.stderr).splitlines() if done.returncode else []


def yaml_style(text: str) -> list[str]:
    """yamllint, as `make lint` runs it."""
    return _said("yamllint", "--strict", "--format=parsable", "-", text=text)


def dockerfile(text: str) -> list[str]:
    """hadolint, and: bases pinned, not run as root, by number."""
    problems = _said("hadolint", "--no-color", "-", text=text)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?", text, re.MULTILINE)
    names = {name for _, name in stages}
    problems += [
        f"FROM {base}: not pinned" for base, _ in stages if base not in names and not PINNED.fullmatch(base)
    ]
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        problems.append(f"USER {users[-1] if users else 'root'}: not a number above 0")
    return problems


def compose(text: str) -> list[str]:
    """The Compose specification's schema, and what this project wants of each service."""
    problems = _said(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "--default-filetype",
        "yaml",
        "-",
        text=text,
    )
    document = yaml.safe_load(text)
    for name, service in document.get("services", {}).items():
        problems += [f"services.{name}: {problem}" for problem in _service(service, document)]
    return problems


def _service(service: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    if not PINNED.fullmatch(service.get("image", "")):
        yield f"image {service.get('image')} is not pinned"
    for port in service.get("ports", []):
        if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)):
            yield f"port {port} is not bound to loopback"
    if not re.fullmatch(r"[1-9]\d*:\d+", service.get("user", "")):
        yield f"user {service.get('user')} is root, or no number"
    if service.get("privileged") or "ALL" not in service.get("cap_drop", []):
        yield "keeps capabilities"
    if "healthcheck" not in service and service.get("restart") != "no":
        yield "no healthcheck"
    if "build" in service and not re.fullmatch(r"[1-9]\d*gb", service.get("shm_size", "")):
        yield "no shm_size in whole gb: Ray's object store lives there"
    for secret in service.get("secrets", []):
        if secret not in document.get("secrets", {}):
            yield f"secret {secret} is not declared"
    for key, value in service.get("environment", {}).items():
        if re.search(r"(TOKEN|PASSWORD|SECRET)(_FILE|__FILE|_PATH)?$", key) and not str(value).startswith(
            "/run/secrets/"
        ):
            yield f"environment {key} holds a secret itself"
    words = service.get("command", []) if isinstance(service.get("command"), list) else []
    for path in re.findall(
        r"/run/secrets/(\w+)",
        " ".join([*map(str, words), *map(str, service.get("environment", {}).values())]),
    ):
        if path not in service.get("secrets", []):
            yield f"/run/secrets/{path} is not among its secrets"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith((".", "/")):
            if not (ROOT / source).exists():
                yield f"volume {source}: there is no such file"
        elif source not in document.get("volumes", {}):
            yield f"volume {source} is not declared"


def kubernetes(text: str) -> list[str]:
    """Kubernetes' own schemas, or its custom resource's, and what this project wants of each pod."""
    problems = []
    for document in yaml.safe_load_all(text):
        name = f"{document['kind']} {document['metadata'].get('name', '')}".strip()
        schema = CRDS.get((document["apiVersion"], document["kind"]))
        if schema is None:
            problems += [f"{name}: {problem}" for problem in _core(document)]
        else:
            found = jsonschema.Draft202012Validator(schema).iter_errors(document)
            problems += [f"{name}: {error.json_path}: {error.message}" for error in found]
        for where, template in _templates(document, ""):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
            problems += [f"{name}: {where}: {problem}" for problem in (*_core(pod), *_pod(pod["spec"]))]
    return problems


def _core(document: Mapping[str, Any]) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def _templates(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod template in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "template" and "spec" in value:
                yield (
                    f"{where}.template",
                    {"spec": value["spec"], "metadata": {"name": "pod", **value.get("metadata", {})}},
                )
            else:
                yield from _templates(value, f"{where}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _templates(value, f"{where}[{i}]")


def _pod(spec: Mapping[str, Any]) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser", 0) > 0:
        yield "may run as root"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        name = container["name"]
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != [
            "ALL"
        ]:
            yield f"container {name} keeps privileges"
        if not PINNED.fullmatch(container["image"]):
            yield f"container {name}: image {container['image']} is not pinned"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"container {name} has no memory limit"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"container {name} mounts {mount['name']}, which is no volume"
        for variable in container.get("env", []):
            if variable["name"].endswith(("TOKEN", "PASSWORD")) and "value" in variable:
                yield f"container {name}: {variable['name']} holds a secret itself"


def ray_cluster(text: str) -> list[str]:
    """Ray's own schema of a cluster launcher's file, as it stands and as the launcher completes it."""
    config = yaml.safe_load(text)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = jsonschema.Draft7Validator(schema).iter_errors(config)
    problems = [f"{error.json_path}: {error.message}" for error in found]
    if not problems:
        try:
            validate_config(prepare_config(config))
        except (ValueError, RuntimeError, click.ClickException, jsonschema.ValidationError) as error:
            problems.append(str(error).splitlines()[0])
    commands = (*config.get("head_start_ray_commands", []), *config.get("worker_start_ray_commands", []))
    for command in commands:
        if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
            problems.append(f"starts Ray without a token: {command}")
    return problems
