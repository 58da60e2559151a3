"""The network contract: where a service listens, on which ports, and whom it answers."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adamserve
from adamserve import optim, testing
from adamserve.cluster.config import ServiceConfig, listening
from adamserve.cluster.ray_runtime import connected
from adamserve.edge.security import Security, Tokens
from adamserve.edge.shard_edge import Ports, ShardEdge
from adamserve.errors import InvalidArgument, NotFound, Unauthenticated, Unavailable
from adamserve.observe.rpc_counts import Calls
from adamserve.shard.host import ShardHost
from tests.cluster.conftest import Start
from tests.edge.test_security import Authority

WHERE = {
    "nothing asked, one node": (None, True, False, ("127.0.0.1", "127.0.0.1", False)),
    "loopback, one node": ("::1", True, False, ("::1", "::1", False)),
    "nothing asked, several nodes": (None, False, False, (None, None, True)),
    "several nodes, insecure": (None, False, True, (None, None, False)),
    "loopback for clients, several nodes": ("127.0.0.1", False, False, ("127.0.0.1", None, True)),
    "everywhere": ("0.0.0.0", True, False, ("0.0.0.0", None, True)),
    "everywhere, insecure": ("0.0.0.0", False, True, ("0.0.0.0", None, False)),
}


@pytest.mark.parametrize(("host", "alone", "insecure", "expected"), WHERE.values(), ids=WHERE)
def test_where_a_service_listens(
    host: str | None, alone: bool, insecure: bool, expected: tuple[str | None, str | None, bool]
) -> None:
    where = listening(host, alone=alone, insecure=insecure)
    assert (where.host, where.shard_host, where.closed) == expected
    assert where.reason


def test_an_address_of_ray_client_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"ray://head:10001.*Ray Client"), connected("ray://head:10001"):
        raise AssertionError("connected")


# ---- ports


@pytest.mark.parametrize(
    "text", ["", "7000", "7000-", "-7000", "7000-7000", "7010-7000", "0-9", "1-65536", "a-b"]
)
def test_what_is_no_range_of_ports_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="LOW-HIGH"):
        Ports.parse(text)


def _nowhere(job: str) -> ShardHost:
    raise NotFound("no job", field="job")


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Six ports, of which the second is taken."""
    with ExitStack() as stack:
        while True:
            with socket.create_server(("127.0.0.1", 0)) as server:
                low = server.getsockname()[1]
            try:
                for port in range(low, low + 6):
                    socket.create_server(("127.0.0.1", port)).close()
                stack.enter_context(socket.create_server(("127.0.0.1", low + 1)))
                break
            except OSError:
                continue
        yield Ports(low, low + 5)


def test_shards_of_a_node_share_a_range_of_ports(ports: Ports) -> None:
    with ExitStack() as stack:
        edge, taken = ShardEdge(Security(), ports), []
        for _ in range(2):
            endpoint = edge.open(_nowhere, Calls(), "127.0.0.1")
            stack.callback(endpoint.cut)
            taken += [int(a.rpartition(":")[2]) for a in (endpoint.address, endpoint.direct_address)]
        assert taken == [ports.low, ports.low + 2, ports.low + 3, ports.low + 4]
        with pytest.raises(Unavailable, match=f"no port from {ports.low} to {ports.high} is free"):
            edge.open(_nowhere, Calls(), "127.0.0.1")


# ---- whom it answers


def calls(target: str, **options: Any) -> bool:
    """Whether a client is answered; both by ControlService and by the shards."""
    with adamserve.connect(target, job="job", timeout_s=10.0, **options) as client:
        try:
            client.create({"w": np.zeros(2, np.float32)}, optim.SGD(lr=1.0))
            client.pull()
        except Unauthenticated:
            return False
        return True


@pytest.fixture
def users(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens"
    path.write_text("theirs\n")
    return Tokens.read(path)


@pytest.mark.parametrize(
    ("with_tokens", "closed", "answered"),
    [
        (False, False, {"nothing", "user", "secret"}),
        (False, True, {"secret"}),
        (True, False, {"user", "secret"}),
        (True, True, {"user", "secret"}),
    ],
)
def test_the_service_s_own_secret_stands_beside_the_users_tokens(
    start: Start, users: Tokens, with_tokens: bool, closed: bool, answered: set[str]
) -> None:
    tokens = users if with_tokens else Tokens()
    service = start(security=Security(tokens=tokens), closed=closed)
    tried = {"nothing": {}, "user": {"token": "theirs"}, "secret": {"token": service.credentials.token}}
    assert {name for name, options in tried.items() if calls(service.target, **options)} == answered


def test_the_secret_is_shown_nowhere() -> None:
    secret = "very-secret"
    security = Security(tokens=Tokens().beside(secret, required=True))
    config = ServiceConfig(secret=secret, security=security)
    shown = f"{config!r} {config} {security.credentials(secret)!r} {security.tokens!r}"
    assert secret not in shown
    assert pickle.loads(pickle.dumps(config)) == config, "it travels to the shards' processes"


# ---- TLS as Ray has it


def test_tls_is_ray_s_where_ray_has_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key = authority.issue("node")
    environ = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(cert),
        "RAY_TLS_SERVER_KEY": str(key),
        "RAY_TLS_CA_CERT": str(authority.path),
    }
    assert Security().as_ray({}) == Security()
    given = Security(cert=b"own", key=b"own")
    assert given.as_ray(environ).on_this_node(environ) == given
    driver = Security().as_ray(environ)
    assert (driver.cert, driver.key) == (b"", b""), "each node has its own"
    node = driver.on_this_node(environ)
    assert (node.cert, node.key) == (cert.read_bytes(), key.read_bytes())
    assert driver.credentials("secret").ca == authority.path.read_bytes()
    with testing.Service(security=replace(node, node_tls=False)) as service:
        assert calls(service.target, token=service.credentials.token, ca=authority.path)
    with pytest.raises(InvalidArgument, match="RAY_TLS_SERVER_KEY: is not set, but RAY_USE_TLS is"):
        driver.on_this_node({name: value for name, value in environ.items() if not name.endswith("KEY")})
    with pytest.raises(InvalidArgument, match=r"RAY_TLS_CA_CERT: .* cannot be read"):
        Security().as_ray({**environ, "RAY_TLS_CA_CERT": str(tmp_path / "none")})
