"""What a service and its processes log: the same form everywhere, ids as fields, and no secret anywhere."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import adamserve
from adamserve import optim
from adamserve.errors import Unauthenticated
from adamserve.v1 import shard_pb2, types_pb2
from tests.cluster.test_serve import Served
from tests.conftest import Refused
from tests.edge.test_bad_input import COMMIT, chunk
from tests.edge.test_security import Authority
from tests.train.test_command import descendants

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

TOKEN, NARROW, WRONG = "t0p-s3cret-token", "narr0w-s3cret-token", "wr0ng-s3cret-token"
DEADLINE_S = 180.0


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its files, session by session; its sockets' paths have to be short."""
    folder = Path(tempfile.mkdtemp(prefix="as-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def written(folder: Path) -> dict[Path, str]:
    """Every log file of Ray."""
    files = [path for path in folder.rglob("logs/**/*") if path.is_file()]
    return {path: path.read_text(errors="replace") for path in files}


def events(lines: str) -> list[dict[str, Any]]:
    """The JSON lines among others."""
    return [json.loads(line) for line in lines.splitlines() if line.startswith('{"at"')]


def of_processes(folder: Path) -> list[dict[str, Any]]:
    return [
        event for path, text in written(folder).items() if path.suffix == ".err" for event in events(text)
    ]


def test_a_service_logs_the_same_form_everywhere_and_no_secret(ray_folder: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    cert, key = authority.issue("server")
    tokens, own, wrong = (tmp_path / name for name in ("tokens", "own", "wrong"))
    tokens.write_text(f"{TOKEN}\nother {NARROW}\n")
    own.write_text(TOKEN)
    wrong.write_text(WRONG)
    served = Served(
        "--log-format", "json", "--log-level", "debug", "--tls-cert", str(cert), "--tls-key", str(key),
        "--token-file", str(tokens), "--shards", "1", "--checkpoint-dir", str(tmp_path / "checkpoints"),
    )  # fmt: skip
    ca = authority.path
    said = [json.dumps(served.ready)]
    with adamserve.connect(
        served.target, job="digits", pusher="me", token_file=own, ca=ca, lease_s=2.0, timeout_s=30
    ) as client:
        client.create({"w": np.zeros(6, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        _, clock = client.pull()
        client.push({"w": np.ones(6, np.float32)}, clock)
        refuse_ten(client, served.ready["shards"][0], ca.read_bytes())
        for token in (WRONG, NARROW, ""):
            with (
                adamserve.connect(served.target, job="digits", token=token, ca=ca, timeout_s=10) as stranger,
                pytest.raises(Unauthenticated),
            ):
                stranger.pull()
            asking = urllib.request.Request(
                served.ready["status"], headers={"Authorization": f"Bearer {token}"}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asking, timeout=10)
            refused.value.close()
        page = served.ready["status"]
        for command, where, file, code in (
            ("status", served.target, own, 0),
            ("status", served.target, wrong, 2),
            ("status", page, own, 0),
            ("status", page, wrong, 2),
            ("top", served.target, own, 0),
        ):
            options = ["--token-file", str(file), *(["--once"] if command == "top" else [])]
            options += ["--tls-ca", str(ca)] if where == served.target else []
            done = subprocess.run(
                [sys.executable, "-m", "adamserve", command, where, *options],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            said += [done.stdout, done.stderr]
        [process] = [event for event in of_processes(ray_folder) if event["event"] == "shard has started"]
        assert process["shard"] == 0
        [shard] = descendants(served.process.pid, "ray::ShardActor")
        os.kill(shard, signal.SIGKILL)
        wait_for(lambda: len(client.status().rollbacks) == 1)
    served.process.send_signal(signal.SIGTERM)
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, err
    said += [out, err]

    driver = [json.loads(line) for line in err.splitlines()]  # nothing but JSON
    assert [e["event"] for e in driver if e["logger"] == "adamserve.rpc"] == ["ready", "stopping", "stopped"]
    [served_job] = [e for e in driver if e["event"] == "job is served"]
    assert (served_job["job"], served_job["rule"]) == ("digits", "SGD")
    refused_pushes = [e for e in driver if e["event"].startswith("invalid: w: elements 0 to 6 hold NaN")]
    assert sum(event.get("times", 1) for event in refused_pushes) == 10
    assert all((e["job"], e["shard"], e["pusher"]) == ("digits", 0, "me") for e in refused_pushes)
    assert any(e["event"].startswith("rollback: restored from checkpoint") for e in driver)
    inside = of_processes(ray_folder)
    names = {"shard has started", "job is open", "job was created", "checkpoint was written"}
    assert names <= {event["event"] for event in inside}
    assert all(
        event["job"] == "digits" for event in inside if event["event"] in names - {"shard has started"}
    )

    secrets = [TOKEN, NARROW, WRONG, *key.read_text().splitlines()[1:-1]]
    secrets += [base64.b64encode(token.encode()).decode() for token in (TOKEN, NARROW, WRONG)]
    files = written(ray_folder)
    assert len(files) > 5
    for secret in secrets:
        assert not any(secret in text for text in said)
        assert [str(path) for path, text in files.items() if secret in text] == []


def refuse_ten(client: adamserve.Client, endpoint: str, ca: bytes) -> None:
    """Push NaN past the client's own check."""
    with grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(ca)) as channel:
        push: Any = channel.stream_unary("/adamserve.v1.ShardService/Push")
        pulled = types_pb2.Stamp(incarnation=1, clock=1)
        start = shard_pb2.PushStart(
            job="digits", pusher="me", session=client._session.member.session, seq=2, pulled=pulled
        )
        messages = [shard_pb2.PushRequest(start=start).SerializeToString(), chunk([np.nan] * 6), COMMIT]
        for _ in range(10):
            with pytest.raises(grpc.RpcError, match="NaN or infinity"):
                push(iter(messages), timeout=20, metadata=[("authorization", f"Bearer {TOKEN}")])


def wait_for(what: Any) -> None:
    ends, tick = time.monotonic() + DEADLINE_S, threading.Event()
    while not what():
        assert time.monotonic() < ends
        tick.wait(0.1)


def test_a_training_logs_json_alone_and_its_workers_too(ray_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adamserve", "train", "logreg", "--epochs", "2", "--run-dir", str(tmp_path / "run"),
         "--log-format", "json", "--format", "json"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    driver = [json.loads(line) for line in done.stderr.splitlines()]
    progress = [event for event in driver if event["event"] == "progress"]
    assert progress[-1]["epochs"] == 2
    assert [event["job"] for event in driver if event["event"] == "job is served"] == ["train"]
    ended = sorted(e["pusher"] for e in of_processes(ray_folder) if e["event"] == "worker has ended")
    assert ended == ["worker-0", "worker-1"]
    assert json.loads(done.stdout)["status"] == "completed"


@pytest.mark.parametrize("verb", ["serve", "train"])
def test_a_wrong_level_is_one_line(verb: str, refused: Refused) -> None:
    said = "--log-level: must be debug, info, warning, error, got 'loud'"
    assert refused(verb, "--log-level", "loud") == said
