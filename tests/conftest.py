"""What all tests share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import adamserve
from adamserve import optim
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready
from tests.served import STALL_S, Connect, served, zeros

settings.register_profile(
    "adamserve", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("adamserve")

# Threads of torch that wait for each other would otherwise keep a core busy that another process could use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Ray's processes are otherwise so polite that tests beside them starve them.
os.environ.setdefault("RAY_worker_niceness", "0")

GROUPS = (("deploy/", "docs/", "test_benchmarks.py", "train/", "workers/test_reproduce.py"), ("cluster/",))
"""Tests that start services, browsers or benchmarks. Those of a group run one after the other in one process."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadgroup`, those groups; each other test goes to whichever process is free.

    Beside pytest 9.2, pytest-xdist 3.8 takes no notice of its own `xdist_group` mark.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    def scope(nodeid: str) -> str:
        name = nodeid.removeprefix("tests/")
        return next((group[0] for group in GROUPS if name.startswith(group)), nodeid)

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope
    return scheduler


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data files; a test that needs it is skipped where it is absent."""
    root = Path(os.environ.get("ADAMSERVE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"real data files are not at {root}; set ADAMSERVE_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def thirdparty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package tests/thirdparty, to be put on PYTHONPATH."""
    target = tmp_path_factory.mktemp("thirdparty")
    source = Path(__file__).parent / "thirdparty"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-index", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, *alone, str(target), str(source)], timeout=100, check=True)
    return target


@dataclass(frozen=True)
class Ended:
    """What came of a command line."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command line of `adamserve` in this process, which takes no interpreter's start; it ends with `code`."""
    from adamserve.cli import main
    from adamserve.observe.logs import LOGGERS

    def run(*arguments: object, code: int = 0) -> Ended:
        monkeypatch.setattr(sys, "argv", ["adamserve", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert (end.value.code or 0) == code, out + err
        return Ended(code, out, err)

    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield run
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def refused(command: Command) -> Refused:
    """Gives a command line something that it cannot do: it says so in one line, which is returned, with exit code 2."""

    def said(*arguments: object, alone: bool = True) -> str:
        """Args: alone: nothing else is written before that line, such as how far a download is."""
        ended = command(*arguments, code=2)
        lines = [line for line in ended.err.splitlines() if line.startswith("adamserve: ")]
        assert (len(lines), ended.out) == (1, ""), ended
        assert not alone or ended.err == f"{lines[0]}\n", ended
        assert ended.err.endswith(f"{lines[0]}\n"), ended
        return lines[0].removeprefix("adamserve: ")

    return said


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One real Ray for all tests that need one."""
    from adamserve.cluster.ray_runtime import connected

    with connected(None, num_cpus=8):
        yield


@pytest.fixture(scope="session")
def cluster(local_ray: None) -> str:
    """Its address, for commands that would otherwise start a Ray of their own, which takes longer than they do."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    """A service of two shards for tests that break nothing; each has a job of its own."""
    from adamserve.edge.security import Limits, Security

    security = Security(limits=Limits(stall_s=STALL_S, jobs=1000))
    with served(shards=2, checkpoint_dir=tmp_path_factory.mktemp("served"), security=security) as ready:
        yield ready


@pytest.fixture
def transport() -> str:
    """How clients' tensors travel; tests that want both override it. Never "auto", which would hide a failure."""
    return "direct"


@pytest.fixture
def connect(service: Ready, transport: str) -> Iterator[Connect]:
    """Connects clients to one job; all of them are closed at the end."""
    made: list[Client] = []
    job = f"job-{uuid.uuid4().hex[:12]}"

    def begin(**options: Any) -> Client:
        options.setdefault("timeout_s", 20.0)
        options.setdefault("transport", transport)
        client = adamserve.connect(service.target, options.pop("job", job), **options)
        made.append(client)
        return client

    yield begin
    for client in made:
        client.close()


@pytest.fixture
def counting(connect: Connect) -> Client:
    """A client of a job whose parameters count what was pushed: SGD with rate 1 from zeros."""
    client = connect(pusher="a")
    client.create(zeros(), optim.SGD(lr=1.0, momentum=0.0))
    return client
