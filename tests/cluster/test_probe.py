"""A worker finds out before its first step which shard it cannot reach, and why."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adamserve import optim
from adamserve.client.credentials import Credentials
from adamserve.cluster.probe import probe
from adamserve.edge.security import Security
from adamserve.errors import Unavailable
from tests.cluster.conftest import Start
from tests.edge.test_security import Authority


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes no connection and refuses none, as behind a firewall that drops packets."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue is full from now on
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_shards_that_answer(start: Start) -> None:
    service = start(shards=3)
    probe(service.target, service.processes(), service.credentials, node="here")


def test_a_service_that_is_gone(start: Start) -> None:
    address = closed_port()
    with pytest.raises(
        Unavailable, match=f"node here cannot reach the service at {address}: Connection refused"
    ):
        probe(address, start().processes(), Credentials(), node="here")


@pytest.mark.parametrize("port", ["endpoint", "direct"])
def test_a_port_that_refuses(start: Start, port: str) -> None:
    service = start(shards=2)
    shards = service.processes()
    address = closed_port()
    moved = replace(shards[1], endpoint=address) if port == "endpoint" else replace(shards[1], direct=address)
    shards[1] = replace(moved, node="there")
    with pytest.raises(
        Unavailable, match=f"node here cannot reach shard 1 on node there at {address}: Connection refused"
    ):
        probe(service.target, shards, Credentials(), node="here")


def test_a_port_that_does_not_answer(start: Start, silent: str) -> None:
    service = start(shards=2)
    shards = service.processes()
    shards[0] = replace(shards[0], endpoint=silent)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=f"shard 0 on node local at {silent}: no answer in time"):
        probe(service.target, shards, Credentials(), node="here", within_s=0.5)
    assert time.monotonic() - began < 4.0


def test_tls(start: Start, tmp_path: Path) -> None:
    authority, foreign = (Authority(tmp_path, name) for name in ("own", "foreign"))
    cert, key = authority.issue("server")
    security = Security(
        cert=cert.read_bytes(),
        key=key.read_bytes(),
        client_ca=authority.path.read_bytes(),
        authority=authority.path.read_bytes(),
    )
    service = start(security=security)
    probe(service.target, service.processes(), service.credentials, node="here")
    with service.client("job") as client:
        client.create({"w": np.zeros(3, np.float32)}, optim.SGD(lr=1.0))
        client.pull()
    strange = replace(service.credentials, ca=foreign.path.read_bytes())
    with pytest.raises(Unavailable, match="TLS failed: CERTIFICATE_VERIFY_FAILED"):
        probe(service.target, service.processes(), strange, node="here")
