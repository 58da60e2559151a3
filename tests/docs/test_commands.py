"""Every command in README, docs and deploy's pages runs, or it is said here why it does not."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from adamserve import testing
from adamserve.train.config import TrainConfig
from adamserve.train.run import train
from tests.deploy.commands import problem
from tests.deploy.prometheus import binary
from tests.docs.pages import ROOT, Command, commands, inline, pages
from workers.task import NetworkRecipe

WALK = "A first walk"
"""README's heading over the commands that start a service, watch it, push to it and stop it."""

NOT_HERE = {
    "docker": "there is no Docker engine; tests/deploy/test_compose.py checks the files",
    "kubectl": "there is no Kubernetes",
    "helm": "there is no Kubernetes",
    "grpcurl": "no package of Debian or PyPI has it; tests/cluster/test_serve.py asks the same by reflection",
    "ray": "the cluster launcher logs in to machines; tests start Ray themselves",
    "make": "scripts/check_docs.py knows the targets, and CI calls them",
    "export": "sets variables of the reader's shell",
    "promtool": "tests/deploy runs it on the same files",
    "npm": "tests/cluster/test_serve.py runs the example",
    "node": "tests/cluster/test_serve.py runs the example",
}
"""Commands that no test runs from the pages, by their first word, and why."""

PARSED = {
    "train": "trains for minutes; tests/train/test_command.py runs it",
    "reproduce": "takes minutes to hours; tests/workers/test_reproduce.py runs it",
    "serve": "the walk runs it",
    "submit": "wants Ray's job server",
}
"""Commands of adamserve whose options alone are checked here, and why."""

PLACEHOLDER = re.compile(r"(?<![\w$-])[A-Z]{3,}\b(?!=)")
"""Stands for something of the reader's own: such a command's options alone are checked."""

KNOWN = {"runs/DATE-mlp-digits": "runs/one"}
"""What stands for something that the walk's folder has."""


def kind(command: Command) -> str:
    """What is done about a command: "run", "parse" or "not here"; fails where nobody has said."""
    first, *rest = shlex.split(command.text)
    if first in NOT_HERE:
        return "not here"
    if first == "adamserve":
        if rest and rest[0] in PARSED and command.heading != WALK:
            return "parse"
        if command.page.startswith("deploy/"):
            return "parse"  # it speaks to what has been deployed
        return "parse" if PLACEHOLDER.search(_filled(command.text)) else "run"
    if first in ("python", "curl", "kill"):
        return "run"
    raise AssertionError(f"{command}: does a test run it? Say so in {Path(__file__).relative_to(ROOT)}")


def _filled(text: str) -> str:
    for placeholder, known in KNOWN.items():
        text = text.replace(placeholder, known)
    return text


def every() -> list[Command]:
    return [command for page in pages() for command in commands(page)]


@pytest.mark.parametrize("command", every(), ids=str)
def test_somebody_answers_for_every_command(command: Command) -> None:
    kind(command)


@pytest.mark.parametrize(
    "command",
    [c for c in every() if c.text.startswith("adamserve ")] + [c for p in pages() for c in inline(p)],
    ids=str,
)
def test_options_are_those_of_the_command_line(command: Command) -> None:
    words = shlex.split(command.text.removesuffix("&"))
    assert problem([re.sub(r"^HOST:", "127.0.0.1:", word) for word in words]) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("adamserve train --no-such-option", "no-such-option"),
        ("adamserve no-such-command", "no-such-command"),
        ("adamserve train --epochs many", "valid integer"),
        ("adamserve status", "TARGET"),
        ("adamserve submit --address X mlp --epochs many", "valid integer"),
        ("adamserve checkpoint lst runs", "lst"),
    ],
)
def test_a_planted_mistake_is_found(text: str, says: str) -> None:
    assert re.search(says, problem(shlex.split(text)), re.IGNORECASE)


def test_a_command_that_nobody_has_listed_is_found() -> None:
    page = (
        "# A\n\n    # nothing\n    adamserve doctor   # why\n\ntext\n    text\n\n"
        "```sh\nfrobnicate \\\n  --all\n```\n"
    )
    found = list(commands(ROOT / "README.md", page))
    assert [(c.heading, c.text) for c in found] == [("A", "adamserve doctor"), ("A", "frobnicate --all")]
    with pytest.raises(AssertionError, match="frobnicate --all: does a test run it"):
        kind(found[1])


@contextmanager
def prometheus(folder: Path, port: int, target: int) -> Iterator[None]:
    """A Prometheus that scrapes the walk's service."""
    scrape = {
        "job_name": "adamserve",
        "honor_labels": True,
        "http_sd_configs": [{"url": f"http://127.0.0.1:{target}/sd", "refresh_interval": "1s"}],
    }
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        command = [
            binary("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_the_walk_runs_and_the_other_pages_commands_on_the_way(tmp_path: Path) -> None:
    """One shell types README's walk; what the pages say besides comes before it stops the service.

    The ports are free ones in place of the usual ones. `adamserve doctor` may warn, of a port that is taken.
    """
    running = [command for command in every() if kind(command) == "run"]
    walk = [command.text for command in running if command.heading == WALK]
    others = list(dict.fromkeys(_filled(c.text) for c in running if c.heading != WALK))
    others = [f"{text} || (( $? < 2 ))" if text.startswith("adamserve doctor") else text for text in others]
    assert walk[0].startswith("adamserve serve")
    assert walk[0].endswith("&")
    stop = next(i for i, text in enumerate(walk) if text.startswith("kill "))
    for needed in ("python examples/", "adamserve status", "adamserve top", "curl "):
        assert any(text.startswith(needed) for text in walk[1:stop]), needed
    ready = 'until curl --output /dev/null "$STATUS"; do read -rt 0.2 <> <(:) || :; done 2>/dev/null'
    begin = walk[0].removesuffix("&") + "--port 50051 &"  # where it listens without being told
    lines = [begin, ready, *walk[1:stop], *others, *walk[stop : stop + 1], "wait $!", *walk[stop + 1 :]]
    grpc, metrics, watcher = free_ports(3)
    ports = {"50051": grpc, "9464": metrics, "9090": watcher}
    script = "\n".join(
        [
            "set -uo pipefail",
            "trap 'echo \"FAILED: $BASH_COMMAND\" >&2; kill $(jobs -p) 2>/dev/null; exit 1' ERR",
            'curl() { command curl --fail --silent --show-error "$@"; }',
            *lines,
        ]
    )
    for usual, free in ports.items():
        script = re.sub(rf"\b{usual}\b", str(free), script)
    small = TrainConfig(
        recipe=NetworkRecipe(network="logreg"), epochs=1, max_steps=3, run_dir=tmp_path / "runs" / "one"
    )
    train(small, on_progress=lambda progress: None, stop=threading.Event(), start=testing.Service.start)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STATUS": f"http://127.0.0.1:{metrics}/status.json",
    }
    with prometheus(tmp_path, watcher, metrics):
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=220,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for seen in ("weight [1.0, -2.0, 0.5] bias 3.0", "state healthy", "adamserve_shard_up{"):
        assert seen in done.stdout, seen
    assert (tmp_path / "checkpoints" / "line").is_dir()
