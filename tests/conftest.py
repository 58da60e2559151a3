"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "adamserve", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("adamserve")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data files; a test that needs it is skipped where it is absent."""
    root = Path(os.environ.get("ADAMSERVE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"real data files are not at {root}; set ADAMSERVE_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One real Ray for all tests that need one."""
    from adamserve.service.cluster import connected

    with connected(None, num_cpus=8):
        yield
