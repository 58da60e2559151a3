"""Clients of a service in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import adamserve
from adamserve.client.client import Client
from tests.client.service import Service

Serve = Callable[..., Service]
Connect = Callable[..., Client]


@pytest.fixture(params=["direct", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """How tensors travel. Never "auto", which would hide a failure."""
    return str(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens, closed at its end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    """Starts services."""
    return lambda **options: stack.enter_context(Service(**options))


@pytest.fixture
def connect(stack: ExitStack, transport: str) -> Connect:
    """Connects clients to a service's job."""

    def begin(service: Service, pusher: str = "", **options: Any) -> Client:
        options = {"timeout_s": 20.0, "transport": transport, **options}
        return stack.enter_context(adamserve.connect(service.target, "job", pusher=pusher, **options))

    return begin
