"""Write into docs/watching.md what its commands print, with its pictures: from a real service, Prometheus and browser.

    python -m scripts.captures

Every indented block that is followed by a ```text fence is run, and the fence is filled with what it prints.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

import adamserve
from adamserve import optim
from tests.browser import visit
from tests.docs.test_commands import free_ports, prometheus
from tests.train.test_command import descendants

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "watching.md"
LONGEST = 32
"""Lines of an output that are kept."""

WARM_UP_S, AFTER_S = 60.0, 25.0


def trainer(target: str, name: str, ended: threading.Event, pause_s: float) -> None:
    """Least squares by mini-batches; its loss at the best parameters is known."""
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    best = np.linspace(-1, 1, 50)
    with adamserve.connect(target, job="line", pusher=name, timeout_s=60) as client:
        client.create({"w": np.zeros(50)}, optim.Adam(lr=0.02, lr_schedule="inverse_sqrt"))
        while not ended.wait(pause_s):
            try:
                params, clock = client.pull()
                x = rng.normal(size=(32, 50))
                y = x @ best + rng.normal(size=32) * 0.1
                error, at_best = x @ params["w"] - y, x @ best - y
                client.push({"w": 2 * x.T @ error / 32}, clock)
                client.report(float(error @ error / 32), comparator_loss=float(at_best @ at_best / 32))
            except adamserve.RolledBack:
                continue


RUBBISH = """
import numpy as np, sys, adamserve
from adamserve.errors import AdamServeError
c = adamserve.connect(sys.argv[1], job="line", pusher="rubbish", timeout_s=20, lease_s=3)
while True:
    _, clock = c.pull()
    ahead = type(clock)(type(s)(s.incarnation, s.clock + 10_000) for s in clock)
    try:
        c.push({"w": np.ones(50)}, ahead)
    except AdamServeError:
        pass
"""
"""Pushes with a clock that no pull has returned, until it is killed."""


def filled(text: str, run: dict[str, str], log: str) -> str:
    """The page with each command's output after it."""

    def output(match: re.Match[str]) -> str:
        command = " ".join(match[1].split())
        return f"{match[1]}\n```text\n{run[command]}\n```\n"

    text = re.sub(r"((?:^    .*\n)+)\n```text\n[^`]*```\n", output, text, flags=re.MULTILINE)
    return re.sub(r"(What the service above wrote:\n\n)```text\n[^`]*```", rf"\1```text\n{log}\n```", text)


def shortened(text: str) -> str:
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    cut = [line if len(line) <= 400 else line[:400] + " ..." for line in lines]
    return "\n".join(cut[:LONGEST] + (["..."] if len(cut) > LONGEST else []))


def main() -> None:
    """Make the page anew."""
    text = PAGE.read_text()
    wanted = re.findall(r"((?:^    .*\n)+)\n```text\n", text, flags=re.MULTILINE)
    grpc, metrics, watcher = free_ports(3)
    usual = {"50051": grpc, "9464": metrics, "9090": watcher}
    target = f"127.0.0.1:{grpc}"
    ended, tick = threading.Event(), threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "110",
        }
        with (folder / "log").open("w") as log:
            served = subprocess.Popen(
                ["adamserve", "serve", "--port", str(grpc), "--metrics-port", str(metrics), "--shards", "2",
                 "--checkpoint-dir", "checkpoints", "--log-format", "json"],
                cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert served.stdout is not None
        served.stdout.readline()
        with prometheus(folder, watcher, metrics):
            pauses = {"trainer-1": 0.02, "trainer-2": 0.03, "trainer-3": 0.05}
            threads = [
                threading.Thread(target=trainer, args=(target, n, ended, p)) for n, p in pauses.items()
            ]
            for thread in threads:
                thread.start()
            tick.wait(10.0)
            rubbish = subprocess.Popen([sys.executable, "-c", RUBBISH, target], cwd=ROOT)
            tick.wait(10.0)
            rubbish.kill()
            rubbish.wait()
            tick.wait(WARM_UP_S - 20.0)
            os.kill(descendants(served.pid, "ray::ShardActor")[-1], signal.SIGKILL)
            tick.wait(AFTER_S)
            outputs = {}
            for block in wanted:
                command = " ".join(block.split())
                here = command
                for port, free in usual.items():
                    here = re.sub(rf"\b{port}\b", str(free), here)
                done = subprocess.run(
                    here, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                found = shortened(done.stdout + done.stderr)
                for port, free in usual.items():
                    found = re.sub(rf"\b{free}\b", port, found)
                outputs[command] = found.replace(str(folder.resolve()), "/home/me")
            seen = visit(f"http://127.0.0.1:{metrics}/", "new Promise(done => setTimeout(done, 5000))")
            assert seen.errors == []
            (ROOT / "docs" / "status-page.png").write_bytes(seen.screenshot)
            panel = folder / "dashboards" / "overview-training-loss.png"
            (ROOT / "docs" / "panel.png").write_bytes(panel.read_bytes())
            ended.set()
            for thread in threads:
                thread.join()
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=60)
        written = shortened((folder / "log").read_text())
        PAGE.write_text(filled(text, outputs, re.sub(rf"\b{grpc}\b", "50051", written)))


if __name__ == "__main__":
    main()
