"""A real Prometheus watches a real training run: every query is answered, and alerts come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import adamserve
from adamserve import optim
from adamserve.observe import alerts, dashboards
from adamserve.observe.files import DEPLOY
from tests.cluster.test_serve import Served
from tests.deploy.prometheus import ask, binary
from tests.train.test_command import Running

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

DEADLINE_S = 90.0


def until(what: Callable[[], Any], why: str) -> Any:
    """Ask again and again, until the answer is not empty or the time is up."""
    ends, tick = time.monotonic() + DEADLINE_S, threading.Event()
    while not (found := what()):
        assert time.monotonic() < ends, why
        tick.wait(0.2)
    return found


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, int]]:
    """A convex job that goes on for as long as it is watched, and the port of its metrics."""
    folder = tmp_path_factory.mktemp("watched")
    running = Running(
        "train", "logreg", "--l2", "0.01", "--regret", "--lr", "0.001", "--lr-schedule", "inverse_sqrt",
        "-o", "beta1_decay=0.999", "-o", "eps=0", "--epochs", "100000", "--lease-s", "3", "--checkpoint-every-s", "5",
        "--metrics-port", "0", "--run-dir", folder / "run", "--format", "json",
    )  # fmt: skip
    port = int(running.until(r"metrics at http://127\.0\.0\.1:(\d+)/metrics").group(1))
    reader = threading.Thread(target=lambda: [None for _ in running.lines()])
    reader.start()
    yield running, port
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=120) == 0
    reader.join()
    for pipe in (running.process.stdout, running.process.stderr):
        assert pipe is not None
        pipe.close()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A service with a trainer outside of it that pushes all the time, and the file that lists its processes."""
    targets = tmp_path_factory.mktemp("served") / "targets.json"
    served = Served("--sd-file", str(targets), "--checkpoint-dir", str(targets.parent / "checkpoints"))
    over = threading.Event()

    def push() -> None:
        w = np.zeros(50, np.float32)
        with adamserve.connect(served.target, job="line") as client:
            client.create({"w": w}, optim.AdaMax(lr=0.01))
            while not over.wait(0.05):
                found, clock = client.pull()
                client.push({"w": found["w"] - 1}, clock)
                client.report(loss=float(((found["w"] - 1) ** 2).sum()))

    pushing = threading.Thread(target=push)
    pushing.start()
    yield targets
    over.set()
    pushing.join()
    assert served.stop() == 0


@pytest.fixture(scope="module")
def prometheus(
    training: tuple[Running, int], trainer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a Prometheus with the project's configuration, ten times as quick as the one that is deployed.

    It discovers the training run over HTTP, and the service by its file.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["global"] = every
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    [scrape] = config["scrape_configs"]
    [discovery] = scrape["http_sd_configs"]
    discovery |= {"url": f"http://127.0.0.1:{training[1]}/sd", "refresh_interval": "1s"}
    scrape["file_sd_configs"] = [{"files": [str(trainer)]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return bool(ask(port, "status/buildinfo"))
        except OSError:
            return False

    until(ready, "Prometheus does not answer")
    yield port
    process.terminate()
    process.wait(timeout=30)


def value(port: int, query: str) -> list[Any]:
    """An instant query's result."""
    found: list[Any] = ask(port, "query", query=query)["result"]
    return found


def number(port: int, query: str) -> float:
    [found] = until(lambda: value(port, query), f"no data for {query}")
    return float(found["value"][1])


def targets(port: int) -> list[tuple[str, str, str]]:
    """Process, number and health of every target."""
    found = ask(port, "targets")
    assert found["droppedTargets"] == []
    labels = [(each["labels"], each["health"]) for each in found["activeTargets"]]
    return sorted(
        (known["process"], known.get("shard") or known.get("worker") or "", health)
        for known, health in labels
    )


EVERYTHING = [
    ("driver", "", "up"),
    ("driver", "", "up"),
    ("shard", "0", "up"),
    ("shard", "0", "up"),
    ("shard", "1", "up"),
    ("worker", "0", "up"),
    ("worker", "1", "up"),
]


def test_every_process_is_discovered_and_up(prometheus: int) -> None:
    until(lambda: targets(prometheus) == EVERYTHING, f"found {targets(prometheus)}")


@pytest.mark.parametrize("recording", alerts.RECORDINGS)
def test_every_recording_has_data(prometheus: int, recording: str) -> None:
    until(partial(value, prometheus, recording), "it has no data")


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda d: d.uid)
def test_every_panel_has_data(prometheus: int, dashboard: dashboards.Dashboard) -> None:
    for title, panel in dashboard.panels.items():
        for query in panel.queries.values():
            asked = query.replace("$job", ".*").replace("$__rate_interval", "10s")
            until(partial(value, prometheus, asked), f"{title}: {query} has no data")


def test_loss_and_average_regret_fall_and_stay_below_the_bound(prometheus: int) -> None:
    for metric in ('adamserve_loss{job="train"}', 'adamserve_average_regret{job="train"}'):
        [found] = until(partial(value, prometheus, f"{metric}[10m]"), f"no {metric}")
        first = float(found["values"][0][1])
        until(partial(value, prometheus, f"{metric} < {0.9 * first}"), f"{metric} does not fall from {first}")
    assert value(prometheus, "adamserve_average_regret < adamserve_average_regret_bound")


def test_what_prometheus_has_is_what_happened(prometheus: int) -> None:
    kinds = {
        (found["metric"]["job"], found["metric"]["kind"]): found["value"][1]
        for found in value(prometheus, "max by (job, kind) (adamserve_pushers_alive)")
    }
    assert kinds == {
        ("train", "worker"): "2", ("train", "trainer"): "0", ("line", "worker"): "0", ("line", "trainer"): "1",
    }  # fmt: skip
    codes = value(prometheus, 'count by (carrier, method, code) (adamserve_rpc_handled_total{method="Push"})')
    assert [found["metric"] for found in codes] == [{"carrier": "direct", "method": "Push", "code": "OK"}]
    steps = "adamserve_update_max_norm / adamserve_update_max_norm_bound"
    assert len(value(prometheus, steps)) == 3
    assert value(prometheus, f"{steps} > 1.0001") == []


def alert_states(port: int, name: str) -> list[str]:
    return [a["state"] for a in ask(port, "alerts")["alerts"] if a["labels"]["alertname"] == name]


def was(port: int, name: str, state: str) -> bool:
    """Whether an alert has been in a state: Prometheus keeps its alerts as a series."""
    return bool(value(port, f'max_over_time(ALERTS{{alertname="{name}",alertstate="{state}"}}[10m])'))


@pytest.mark.parametrize(
    ("title", "process", "alert"),
    [
        ("ray::ShardActor", "shard", "AdamserveShardDown"),
        ("ray::WorkerActor", "worker", "AdamservePusherSilent"),
    ],
)
def test_a_kill_is_an_alert_and_what_comes_back_ends_it(
    training: tuple[Running, int], prometheus: int, title: str, process: str, alert: str
) -> None:
    until(lambda: targets(prometheus) == EVERYTHING, "a process is missing")

    def discovered() -> set[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{training[1]}/sd", timeout=10) as answer:
            groups = json.load(answer)
        return {each["targets"][0] for each in groups if each["labels"]["process"] == process}

    def scraped() -> set[str]:
        return {each["labels"]["instance"] for each in ask(prometheus, "targets")["activeTargets"]}

    before = discovered()
    assert before <= scraped()
    assert not was(prometheus, alert, "pending")
    rollbacks = number(prometheus, 'max(adamserve_rollbacks_total{job="train"})')
    victim = training[0].descendants(title)[0]
    if process == "worker":  # it hangs first: a new one may be there before the lease has run out
        os.kill(victim, signal.SIGSTOP)
        until(lambda: was(prometheus, alert, "pending"), f"{alert} did not come")
    os.kill(victim, signal.SIGKILL)
    # What replaces it listens on a port of its own, sooner than Prometheus looks for what has left.
    [dead] = until(lambda: before - discovered(), "the dead process is still discovered")
    until(lambda: was(prometheus, alert, "pending"), f"{alert} did not come")
    until(lambda: dead not in scraped(), "the dead process is still a target")
    until(lambda: targets(prometheus) == EVERYTHING, "what was killed does not come back")
    assert discovered() <= scraped()
    until(lambda: alert_states(prometheus, alert) == [], f"{alert} did not go")
    clock = number(prometheus, 'max(adamserve_clock{job="train"})')
    until(
        lambda: number(prometheus, 'max(adamserve_clock{job="train"})') > clock + 50, "the job does not go on"
    )
    since = number(prometheus, 'max(adamserve_rollbacks_total{job="train"})') - rollbacks
    assert since == (1 if process == "shard" else 0)
