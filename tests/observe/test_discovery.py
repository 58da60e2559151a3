"""What Prometheus discovers: the exact document, all of it each time, in a file that is never half written."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import pytest

from adamserve.errors import InvalidArgument
from adamserve.observe.discovery import Directory
from adamserve.observe.exporter import Exporter
from tests.deploy.prometheus import promtool


def test_the_document_is_that_of_the_prometheus_docs() -> None:
    directory = Directory()
    assert json.loads(directory.page()[1]) == []
    directory.put("driver", {0: "10.0.0.1:9464"})
    directory.put("shard", {1: "10.0.0.3:4001", 0: "10.0.0.2:4000"})
    directory.put("worker", {0: "10.0.0.2:4002"})
    assert json.loads(directory.page()[1]) == [
        {"targets": ["10.0.0.1:9464"], "labels": {"process": "driver"}},
        {"targets": ["10.0.0.2:4000"], "labels": {"process": "shard", "shard": "0"}},
        {"targets": ["10.0.0.3:4001"], "labels": {"process": "shard", "shard": "1"}},
        {"targets": ["10.0.0.2:4002"], "labels": {"process": "worker", "worker": "0"}},
    ]


def test_over_http_it_is_json_in_utf8_and_open_to_all() -> None:
    directory = Directory()
    directory.put("driver", {0: "127.0.0.1:1"})
    exporter = Exporter(
        "127.0.0.1",
        0,
        {"/": lambda: ("text/html", "")},
        lambda given: False,
        open_pages={"/sd": directory.page},
    )
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/sd", timeout=10) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/json"
            assert json.loads(answer.read().decode("utf-8"))[0]["targets"] == ["127.0.0.1:1"]
    finally:
        exporter.close()


def test_what_dies_leaves_and_what_comes_back_returns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "targets.json"
    directory = Directory(path)

    def listed() -> list[str]:
        found = json.loads(path.read_text())
        assert found == json.loads(directory.page()[1])
        return [target for group in found for target in group["targets"]]

    assert listed() == []
    directory.put("shard", {0: "h:1", 1: "h:2"})
    directory.put("worker", {0: "h:3", 1: "h:4"})
    directory.put("shard", {1: "h:2"})  # 0 is down
    directory.drop("worker", 1)
    directory.drop("worker", 7)
    assert listed() == ["h:2", "h:3"]
    directory.put("shard", {0: "h:5", 1: "h:2"})
    directory.put("worker", {0: "h:3", 1: "h:6"})
    assert listed() == ["h:5", "h:2", "h:3", "h:6"]
    directory.close()
    assert listed() == []
    assert [each.name for each in path.parent.iterdir()] == ["targets.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    directory = Directory(path)
    done = threading.Event()

    def change() -> None:
        for number in range(300):
            directory.put("worker", {i: f"host-{i}:{number}" for i in range(number % 50)})
        done.set()

    changing = threading.Thread(target=change)
    changing.start()
    reads = 0
    while not done.is_set() or not reads:
        json.loads(path.read_text())
        reads += 1
    changing.join()


def test_a_file_that_cannot_be_kept_is_refused_at_once_and_later_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"sd_file: .*/file/x.json cannot be written"):
        Directory(tmp_path / "file" / "x.json")
    with pytest.raises(
        InvalidArgument, match=r"sd_file: Prometheus reads no file named 'x.txt' \(call it NAME"
    ):
        Directory(tmp_path / "x.txt")
    path = tmp_path / "folder" / "x.json"
    directory = Directory(path)
    path.unlink()
    path.mkdir()  # nothing can replace it
    directory.put("shard", {0: "h:1"})
    assert "cannot be written" in caplog.text
    path.rmdir()
    directory.put("shard", {0: "h:1"})  # nothing new, but the file is not as it should be
    assert json.loads(path.read_text())[0]["targets"] == ["h:1"]


def test_promtool_reads_the_file(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "targets.json")
    directory.put("driver", {0: "127.0.0.1:9464"})
    directory.put("shard", {0: "127.0.0.1:4000"})
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs: [{job_name: adamserve, file_sd_configs: [{files: [targets.json]}]}]\n")
    done = promtool("check", "config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    found = promtool("check", "service-discovery", "--timeout=3s", config, "adamserve")
    assert found.returncode == 0, found.stdout + found.stderr
    shown = {each["labels"]["instance"]: each["labels"] for each in json.loads(found.stdout)}  # in any order
    assert {address: (labels["process"], labels.get("shard")) for address, labels in shown.items()} == {
        "127.0.0.1:9464": ("driver", None),
        "127.0.0.1:4000": ("shard", "0"),
    }
