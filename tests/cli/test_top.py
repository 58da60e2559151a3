"""`adamserve top` as an operator runs it: in a terminal, in a pipe, once, and stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from adamserve import optim, testing
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready
from tests.cluster.conftest import until
from tests.conftest import Command, Refused
from tests.served import Connect

COMMAND = [sys.executable, "-m", "adamserve", "top"]

OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes standard input the controlling terminal, so that Ctrl-C typed there is a SIGINT."""


@pytest.fixture
def pushing(service: Ready, connect: Connect) -> Client:
    """A client that has pushed once, which the status page shows already."""
    client = connect(pusher="me")
    client.create({"w": np.zeros(3, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    push(client)
    client.status()  # which sends the loss

    def is_shown() -> bool:
        with urllib.request.urlopen(f"{service.status}status.json", timeout=10) as answer:
            return any(job["job"] == client.job and job["pushers"] for job in json.load(answer))

    until(is_shown, "the page does not show the job")
    return client


def push(client: Client) -> int:
    """One push; returns the clock after it."""
    _, clock = client.pull()
    client.report(1.0)
    return client.push({"w": np.ones(3, np.float32)}, clock).clock.newest


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *command[1:]],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def until(self, seen: Callable[[str], bool], deadline_s: float = 60.0) -> str:
        """Everything shown since the last call, once it is as wished."""
        ends, self.shown = time.monotonic() + deadline_s, ""
        while not seen(self.shown):
            ready, _, _ = select.select([self.ours], [], [], max(0.0, ends - time.monotonic()))
            assert ready, self.shown
            self.shown += os.read(self.ours, 1 << 16).decode(errors="replace")
        return self.shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*command: str) -> Terminal:
        opened.append(Terminal(*command))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_terminal_is_redrawn_and_ctrl_c_ends_it(
    service: Ready, pushing: Client, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal(*COMMAND, service.target, "--job", pushing.job, "--interval", "0.2")
    texts = (
        "\033[?1049h",
        pushing.job,
        "rule SGD at rate 1",
        "loss 1 ",
        "staleness in updates",
        "1 pusher",
        "me",
    )
    screen.until(lambda shown: all(text in shown for text in texts))
    while (clock := push(pushing)) < 7777:
        if clock == 50:
            screen.until(lambda shown: " 50 " in shown)
            break
    os.write(screen.ours, b"\x03")
    assert screen.process.wait(timeout=30) == 0
    assert "\033[?1049l" in screen.until(lambda shown: "\033[?1049l" in shown)


@pytest.mark.parametrize("by", ["target", "status"])
def test_lines_of_json_come_one_a_look(service: Ready, pushing: Client, by: str) -> None:
    command = [*COMMAND, getattr(service, by), "--job", pushing.job, "--interval", "0.1", "--format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    clock = push(pushing)
    later = first
    while not any(shard["stamp"]["clock"] >= clock for shard in later["jobs"][0]["shards"]):
        later = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert [job["job"] for job in later["jobs"]] == [pushing.job]
    assert later["at"] > first["at"]
    assert later["jobs"][0]["pushers"][0]["seq"] == clock


def test_once_prints_plain_text_in_a_pipe(service: Ready, pushing: Client, command: Command) -> None:
    shown = command("top", service.target, "--job", pushing.job, "--once").out
    assert "\033" not in shown
    assert "state healthy" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_whoever_has_seen_enough_may_close_the_pipe(service: Ready, pushing: Client) -> None:
    top = " ".join([*COMMAND, service.target, "--job", pushing.job, "--interval", "0.1"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {top} | head -1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("adamserve, ")


def test_a_service_that_has_gone_is_said_where_it_was(terminal: Callable[..., Terminal]) -> None:
    with testing.Service() as service:
        screen = terminal(*COMMAND, service.target, "--interval", "0.1", "--timeout-s", "1")
        screen.until(lambda shown: "No job yet." in shown)
    screen.until(lambda shown: "not answering: " in shown)
    os.write(screen.ours, b"\x03")
    assert screen.process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["127.0.0.1:1", "--interval", "0"], "--interval: must be at least 0.1 seconds, got 0.0"),
        (["127.0.0.1:1", "--interval", "nan"], "--interval: must be at least 0.1 seconds, got nan"),
        (["127.0.0.1:1", "--timeout-s", "1"], "gave up after 1 s: UNAVAILABLE"),
    ],
)
def test_what_goes_wrong_is_one_line(options: list[str], says: str, refused: Refused) -> None:
    assert says in refused("top", *options)
