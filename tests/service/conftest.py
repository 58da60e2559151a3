"""A real Ray for the service's tests, started once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from adamserve import optim
from adamserve.cluster.config import ServiceConfig
from adamserve.cluster.lifecycle import initial_parts
from adamserve.cluster.service import launch
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.shard.consistency import Consistency
from adamserve.shard.sparse import spec_of
from adamserve.values import Array


@pytest.fixture(scope="session")
def pair(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service of two shards for tests that break nothing; each has a job of its own."""
    folder = tmp_path_factory.mktemp("pair")
    controller = launch(ServiceConfig(name="test-pair", shards=2, checkpoint_dir=folder))
    yield controller
    ray.get(controller.stop.remote(), timeout=60)


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A job's name that no other test has."""
    return f"job-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def start(local_ray: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts services; all of them are stopped at the end."""
    running: list[Any] = []

    def begin(shards: int = 1, **fields: Any) -> Any:
        fields.setdefault("checkpoint_dir", tmp_path / f"checkpoints-{len(running)}")
        controller = launch(ServiceConfig(name=f"test-{uuid.uuid4().hex}", shards=shards, **fields))
        running.append(controller)
        return controller

    yield begin
    for controller in running:
        ray.get(controller.stop.remote(), timeout=60)


def create(
    controller: Any,
    parameters: Mapping[str, Array],
    *,
    shards: int = 1,
    rule: optim.Rule | None = None,
    mode: Consistency | None = None,
    job: str = "job",
    tables: Collection[str] = (),
    **fields: Any,
) -> JobConfig:
    """Create a job with these parameters."""
    config = JobConfig(
        name=job,
        tensors=tuple(spec_of(name, a, tables) for name, a in parameters.items()),
        rule=optim.to_dict(rule or optim.SGD(lr=1.0, momentum=0.0)),
        consistency=consistency.to_dict(mode or consistency.Async()),
        **fields,
    )
    parts = [ray.put(part) for part in initial_parts(config, parameters, shards)]
    ray.get(controller.create.remote(config, parts), timeout=60)
    return config


def random_parameters(seed: int = 0) -> dict[str, Array]:
    """A few tensors of several ranks and dtypes."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (40, 30), "scalar": (), "empty": (0, 3), "b": (7,), "c": (3, 5, 11, 2)}
    tensors: dict[str, Array] = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    tensors["double"] = rng.normal(size=(13, 3))
    return tensors
