"""`adamserve dashboard render` as a person without Grafana runs it: from a real Prometheus, of a real service."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

import adamserve
from adamserve import optim
from adamserve.observe.dashboards import DASHBOARDS
from tests.browser import visit
from tests.cluster.test_serve import Served
from tests.conftest import Refused
from tests.deploy.prometheus import ask, binary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

DEADLINE_S = 60.0


def render(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adamserve", "dashboard", "render", *map(str, options)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def until(what: Callable[[], Any], why: str) -> Any:
    ends, tick = time.monotonic() + DEADLINE_S, threading.Event()
    while not (found := what()):
        assert time.monotonic() < ends, why
        tick.wait(0.1)
    return found


@pytest.fixture(scope="module")
def watched(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has seen a job whose loss falls, and one whose pusher reports nothing."""
    prometheus = binary("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    served = Served("--shards", "2", "--checkpoint-dir", str(folder / "checkpoints"), "--address", cluster)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "adamserve",
                "honor_labels": True,
                "http_sd_configs": [{"url": served.ready["discovery"], "refresh_interval": "1s"}],
            },
            {"job_name": "slow", "scrape_interval": "60s", "static_configs": [{"targets": ["127.0.0.1:1"]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [prometheus, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip

    def seen(query: str) -> bool:
        try:
            return bool(ask(port, "query", query=query)["result"])
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            return False

    try:
        w = np.ones(1000, np.float32)
        with (
            adamserve.connect(served.target, job="falling", pusher="me", timeout_s=20) as client,
            adamserve.connect(served.target, job="silent", pusher="me", timeout_s=20) as silent,
        ):
            for one in (client, silent):
                one.create({"w": w}, optim.Adam(lr=0.1))
            loss = 1.0
            ends = time.monotonic() + DEADLINE_S
            of_each_process = (
                'count_over_time(adamserve_loss{job="falling"}[1m]) >= 5',
                'count(count_over_time(adamserve_clock{shard="1"}[1m]) >= 5) == 2',
            )
            while not all(map(seen, of_each_process)):
                assert time.monotonic() < ends, "Prometheus has not seen the job"
                loss *= 0.97
                for one in (client, silent):
                    _, clock = one.pull()
                    one.push({"w": w}, clock)
                client.report(loss)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
        served.stop()


def test_every_panel_is_drawn_and_those_without_data_say_so(watched: str, tmp_path: Path) -> None:
    done = render("--prometheus", watched, "--last", "2m", "--out", tmp_path, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    panels = {(panel["dashboard"], panel["panel"]): panel for panel in found["panels"]}
    assert list(panels) == [(board.uid, title) for board in DASHBOARDS for title in board.panels]
    assert found["step_s"] == 1.0  # adamserve's target is scraped each second, the other one does not count
    for panel in panels.values():
        assert matplotlib.image.imread(panel["file"]).shape[:2] == (340, 640), panel
        assert not any("$" in query for query in panel["queries"])
    loss = panels["adamserve-convergence", "Training loss"]
    assert loss["lines"] == 2  # the loss and the best loss of one job
    assert panels["adamserve-convergence", "Average regret"]["lines"] == 0
    assert any("[4000ms]" in query for query in panels["adamserve-overview", "Pushes applied"]["queries"])
    assert panels["adamserve-overview", "Pushes applied"]["lines"] == 2
    html = Path(found["html"]).read_text()
    assert html.count("<b>No data.</b>") == sum(not panel["lines"] for panel in panels.values())


def test_the_document_needs_nothing_else(watched: str, tmp_path: Path) -> None:
    done = render("--prometheus", watched, "--last", "2m", "--out", tmp_path, "--dashboard", "overview")
    assert (done.returncode, done.stderr) == (0, "")
    [overview] = [board for board in DASHBOARDS if board.uid == "adamserve-overview"]
    lines = done.stdout.splitlines()
    assert len(lines) == len(overview.panels) + 1
    assert "2 lines" in lines[0]
    document = (tmp_path / "index.html").as_uri()
    seen = visit(document, "[...document.images].map(image => image.naturalWidth)")
    assert seen.answer == [640] * len(overview.panels)
    assert (seen.requests, seen.errors) == ([document], [])


def test_one_job_alone(watched: str, tmp_path: Path) -> None:
    done = render(
        "--prometheus", watched, "--last", "2m", "--out", tmp_path, "--job", "silent", "--format", "json"
    )
    panels = {panel["panel"]: panel for panel in json.loads(done.stdout)["panels"]}
    assert panels["Training loss"]["lines"] == 0
    assert panels["Pushes applied"]["lines"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--prometheus", "127.0.0.1:9090"],
            "--prometheus: '127.0.0.1:9090' is no URL (give one such as http",
        ),
        (["--prometheus", "http://127.0.0.1:1"], "--prometheus: http://127.0.0.1:1 does not answer: "),
        (["--last", "soon"], "--last: 'soon' is no duration (give one such as 30m"),
        (["--from", "tomorrow"], "--from: 'tomorrow' is no time (give one such as"),
        (["--from", "2000", "--to", "1000"], "--from: is not before --to"),
        (["--dashboard", "none"], "--dashboard: there is none called 'none' (one of overview, "),
        (
            ["--job", "none"],
            "--job: Prometheus has seen no job 'none' in that time (it has seen falling, silent)",
        ),
        (["--timeout-s", "0"], "--timeout-s: must be a positive number of seconds"),
        (["--out", "/proc/none"], "--out: /proc/none cannot be written"),
    ],
)
def test_what_goes_wrong_is_one_line(
    watched: str, tmp_path: Path, options: list[str], says: str, refused: Refused
) -> None:
    assert says in refused("dashboard", "render", "--prometheus", watched, "--out", tmp_path, *options)


def test_a_query_that_prometheus_refuses_names_its_panel(watched: str) -> None:
    from adamserve.errors import InvalidArgument
    from adamserve.observe.render.prometheus import Prometheus, Window
    from adamserve.values import Deadline

    with pytest.raises(InvalidArgument, match=r"overview: Loss: .* refuses the query: .*parse error"):
        Prometheus(watched, Deadline.after(20)).lines("rate(", Window(0.0, 60.0, 1.0), "overview: Loss")
