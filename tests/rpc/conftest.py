"""A real service with real gRPC endpoints, started once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import adamserve
from adamserve import optim
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready, ServeConfig, serving
from adamserve.edge.security import Limits, Security

STALL_S = 2.0

Connect = Callable[..., Client]


@pytest.fixture(scope="session")
def service(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    """Two shards, for tests that break nothing; each has a job of its own."""
    config = ServeConfig(
        name="test-rpc",
        port=0,
        shards=2,
        checkpoint_dir=tmp_path_factory.mktemp("rpc"),
        security=Security(limits=Limits(stall_s=STALL_S, jobs=1000)),
        grace_s=1.0,
    )
    ended = threading.Event()

    def observing() -> None:
        while not ended.wait(0.2):
            observe()

    with serving(config) as (ready, observe):
        observer = threading.Thread(target=observing)
        observer.start()
        yield ready
        ended.set()
        observer.join()


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


def zeros() -> dict[str, Any]:
    """A small tensor, one of several chunks that both shards own, and a scalar in float64."""
    return {"w": np.zeros((4, 5), np.float32), "large": np.zeros((700, 1000), np.float32), "s": np.zeros(())}


def ones(scale: float = 1.0) -> dict[str, Any]:
    return {name: np.full_like(array, scale) for name, array in zeros().items()}
