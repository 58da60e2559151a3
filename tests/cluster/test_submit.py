"""`adamserve submit` against a real Ray with its job server and its token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from adamserve.cli import main
from adamserve.cluster import submit
from adamserve.errors import InvalidArgument, Unavailable

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

TOKEN = "0123456789abcdef" * 4

CLUSTER = """
import socket, sys
from ray.cluster_utils import Cluster

with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
    port, agent = one.getsockname()[1], other.getsockname()[1]
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 4, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port,
    "dashboard_agent_listen_port": agent,  # jobs go through it, and another Ray here may have its usual port
})
print(cluster.head_node.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

FOLLOWED = """
import json, sys, time
from dataclasses import asdict
from adamserve.errors import Unavailable
from adamserve.cluster import submit

client = submit.connect(sys.argv[1])
ids = [submit.submit(client, entrypoint) for entrypoint in sys.argv[2:]]
slow = submit.submit(client, "echo begun; sleep 600")
found, text = [], []
for name in ids:
    found.append(asdict(submit.follow(client, name, text.append, 60)))
try:
    submit.follow(client, slow, text.append, 0.5)
except Unavailable as error:
    late = str(error)
running = submit.state(client, slow)
client.stop_job(slow)
stopped = submit.follow(client, slow, text.append, 60)
print(json.dumps({"jobs": found, "late": late, "running": running.exit_code, "stopped": asdict(stopped),
                  "log": "".join(text)}))
"""


@pytest.fixture(scope="module")
def ray_env() -> dict[str, str]:
    """How a shell on the cluster, or beside it, is set up; with the cluster's token."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }


@pytest.fixture(scope="module")
def url(ray_env: dict[str, str]) -> Iterator[str]:
    """The URL of the job server of a cluster that wants a token."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=ray_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().strip()}"
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adamserve", "submit", *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_a_training_runs_on_the_cluster_and_its_log_comes_here(
    url: str, ray_env: dict[str, str], tmp_path: Path
) -> None:
    words = (
        "--max-steps",
        5,
        "--workers",
        1,
        "--shards",
        1,
        "--run-dir",
        tmp_path / "a run",
        "--format",
        "json",
    )
    done = run("--address", url, "--format", "json", "mlp", *words, env=ray_env)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["exit_code"], job["address"]) == ("SUCCEEDED", 0, url)
    record = json.loads((tmp_path / "a run" / "run.json").read_text())
    assert record["steps"] == 5
    assert [json.loads(line)["steps"] for line in done.stderr.splitlines() if line.startswith("{")] == [5]
    assert TOKEN not in done.stderr + done.stdout


def test_the_exit_code_is_the_jobs(url: str, ray_env: dict[str, str], tmp_path: Path) -> None:
    """The options are fine; what fails is on the cluster."""
    done = run("--", "--resume", "--run-dir", tmp_path, env={**ray_env, "RAY_API_SERVER_ADDRESS": url})
    assert done.returncode == 2
    assert "there is no checkpoint that verifies" in done.stdout, done.stdout
    assert " FAILED after " in done.stderr


def test_no_wait_says_the_name_and_leaves_the_job_running(
    url: str, ray_env: dict[str, str], tmp_path: Path
) -> None:
    done = run("--address", url, "--no-wait", "mlp", "--run-dir", tmp_path / "run", env=ray_env)
    assert done.returncode == 0, done.stderr
    entrypoint = f"adamserve train mlp --run-dir {tmp_path / 'run'} --address auto"
    assert stopped(url, ray_env, done.stdout.strip()) == f"{entrypoint} True\n"


def test_ctrl_c_leaves_the_job_running_and_says_how_to_end_it(
    url: str, ray_env: dict[str, str], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "adamserve",
        "submit",
        "--address",
        url,
        "mlp",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(
        command, env=ray_env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 130, rest
    name = first.split()[1].removesuffix(":")
    assert f"{name} goes on; to end it: ray job stop --address {url} {name}" in rest
    assert stopped(url, ray_env, name).endswith(" True\n")


def test_a_run_that_is_stopped_leaves_a_checkpoint(url: str, ray_env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["mlp", "--epochs", "10000", "--workers", "1", "--shards", "1", "--run-dir", str(folder)]
    command = [sys.executable, "-m", "adamserve", "submit", "--address", url, *words]
    with subprocess.Popen(
        command, env=ray_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().split()[1].removesuffix(":")
        for line in process.stdout:
            if "loss" in line and "nan" not in line:  # a step is done
                break
        assert stopped(url, ray_env, name).endswith(" True\n")
        rest = process.stdout.read()
        assert process.wait(timeout=100) != 0
    assert f"{name} STOPPED after" in rest
    done = subprocess.run(
        [sys.executable, "-m", "adamserve", "checkpoint", "verify", str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + rest


def stopped(url: str, env: dict[str, str], name: str) -> str:
    """Stop a job; its command, and whether it was running."""
    script = f"""
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient({url!r})
print(client.get_job_info({name!r}).entrypoint, client.stop_job({name!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_jobs_are_followed_to_their_ends_and_no_longer_than_asked(url: str, ray_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWED, url, "echo one; exit 7", "kill -9 $$"],
        env=ray_env, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    ended = [(job["status"], job["exit_code"]) for job in found["jobs"]]
    assert ended == [("FAILED", 7), ("FAILED", 1)]
    assert "has not ended after 0.5 s, and goes on" in found["late"]
    assert found["running"] is None
    assert (found["stopped"]["status"], found["stopped"]["exit_code"]) == ("STOPPED", 1)
    assert {"one", "begun"} <= set(found["log"].splitlines())


@pytest.mark.parametrize(
    "token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}], ids=["none", "another"]
)
def test_a_cluster_wants_its_token(url: str, ray_env: dict[str, str], token: dict[str, str]) -> None:
    without = {name: value for name, value in ray_env.items() if not name.startswith("RAY_AUTH")}
    done = run("--address", url, "mlp", env={**without, **token})
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "wants its token (set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)" in done.stderr
    )


REFUSED = {
    "no such option": (["mlp", "--datset", "digits"], "No such option: --datset"),
    "no number": (["mlp", "--lr", "fast"], "Invalid value for '--lr'"),
    "no such network": (["mpl"], "NETWORK: there is no network 'mpl' (did you mean mlp?"),
    "no such data set": (["mlp", "--dataset", "digit"], "--dataset: there is no data set 'digit'"),
    "a constant out of range": (["mlp", "-o", "beta2=7"], "beta2: must be a number in [0, 1], got 7"),
    "no epochs": (["mlp", "--epochs", "0"], "--epochs: must be at least 1, got 0"),
    "another address": (
        ["mlp", "--address", "auto"],
        "--address: is the cluster's that the job is submitted to",
    ),
    "its own option": (["mlp", "--no-wait"], "--no-wait: is an option of submit itself (give it before"),
    "no time": (["--timeout-s", "0", "mlp"], "--timeout-s: must be a positive number of seconds, got 0.0"),
}


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_a_bad_option_is_named_before_anything_is_submitted(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(sys, "argv", ["adamserve", "submit", "--address", address, *words])
        with pytest.raises(SystemExit) as end:
            main()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("address", [None, "", "auto", "127.0.0.1:6379", "ray://head:10001", "http://head"])
def test_what_is_no_url_of_a_job_server_is_refused(address: str | None) -> None:
    with pytest.raises(InvalidArgument, match="give http://HOST:8265") as caught:
        submit.connect(address)
    assert caught.value.field == "address"


def test_an_address_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    done = run("--address", address, "mlp")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--address: Ray's job server at {address}: nothing answers there" in done.stderr


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which `connect` sets; put back at the end
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
            submit.connect(f"http://127.0.0.1:{server.getsockname()[1]}", answer_s=0.5)
    assert time.monotonic() - began < 5


def test_a_server_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Unavailable, match="Version check returned 404"):
            submit.connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
