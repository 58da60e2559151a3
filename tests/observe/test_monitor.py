"""One look at a service, and metrics, page, discovery and log all say how it stands."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from adamserve import optim, testing
from adamserve.errors import InvalidArgument
from adamserve.observe.monitor import Monitor

HOST = "127.0.0.1"


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def targets(text: str) -> dict[str, str]:
    """What discovery lists: addresses by process and number."""
    found = {}
    for group in json.loads(text):
        labels = group["labels"]
        number = labels.get(labels["process"], "")
        [found[f"{labels['process']} {number}".strip()]] = group["targets"]
    return found


def test_everything_shows_the_last_look(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sd_file = tmp_path / "targets.json"
    caplog.set_level(logging.INFO)
    with (
        testing.Service(
            shards=2, checkpoint_dir=tmp_path / "kept", metrics=True, watch_every_s=None
        ) as service,
        closing(Monitor(HOST, 0, sd_file=sd_file)) as monitor,
        service.client("job", pusher="a") as client,
    ):
        assert "adamserve_jobs" not in get(monitor.address, "/metrics")
        client.create({"w": np.zeros(4, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        client.push({"w": np.ones(4, np.float32)}, client.pull()[1])
        client.report(0.5)
        client.status()  # which sends what is queued
        service.controller.step()
        [job] = monitor.look(service)
        assert (job.job, job.loss, [stamp.clock for stamp in job.clocks]) == ("job", 0.5, [1, 1])
        assert 'adamserve_loss{job="job"} 0.5' in get(monitor.address, "/metrics")
        assert "loss <b>0.5</b>" in get(monitor.address, "/")
        assert [shown["job"] for shown in json.loads(get(monitor.address, "/status.json"))] == ["job"]
        shards = {f"shard {i}": address for i, address in service.metrics().items()}
        assert len(shards) == 2
        listed = {"driver": monitor.address, **shards}
        assert targets(get(monitor.address, "/sd")) == targets(sd_file.read_text()) == listed
        monitor.directory.put("worker", {0: "10.0.0.1:1", 1: "10.0.0.2:1"})
        monitor.directory.drop("worker", 0)
        service.kill(1)
        service.controller.step()
        monitor.look(service)
        assert targets(sd_file.read_text()).keys() == {"driver", "shard 0", "shard 1", "worker 1"}
        assert targets(sd_file.read_text())["shard 1"] != shards["shard 1"], "it is another process"
        for path in ("/metrics", "/status.json"):
            assert "rollback" in get(monitor.address, path)
    assert json.loads(sd_file.read_text()) == []
    with pytest.raises(urllib.error.URLError):
        get(monitor.address, "/metrics")
    told = [record.getMessage().split(":")[0] for record in caplog.records if record.name == "adamserve.jobs"]
    assert told == ["job is served", "rollback"]


def test_a_guard_keeps_the_pages_and_not_the_metrics() -> None:
    with closing(Monitor(HOST, 0, guard=lambda given: False)) as monitor:
        assert "adamserve_build_info" in get(monitor.address, "/metrics")
        assert get(monitor.address, "/sd")
        for path in ("/", "/status.json"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(monitor.address, path)


def test_without_a_port_the_log_alone_tells(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with (
        testing.Service(watch_every_s=None) as service,
        closing(Monitor(HOST, None)) as monitor,
        service.client("job") as client,
    ):
        client.create({"w": np.zeros(4, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        monitor.look(service)
        assert monitor.address == ""
    assert "job is served" in caplog.text


def test_a_file_that_prometheus_would_not_read_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"sd_file: .*call it NAME.json"):
        Monitor(HOST, None, sd_file=Path("targets.txt"))
