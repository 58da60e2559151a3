"""One real Ray for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    from adamserve.service.cluster import connected

    with connected(None, num_cpus=8):
        yield
