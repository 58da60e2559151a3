"""Where clients are told that the shards are, and what they are told where they cannot get there."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest

import adamserve
from adamserve import optim, testing
from adamserve.cluster.config import ServiceConfig
from adamserve.edge.shard_edge import Advertised
from adamserve.errors import InvalidArgument, Unavailable

W = {"w": np.zeros(8, np.float32)}

PLACES = {
    "shards.example": ("shards.example:7000", "shards.example:7001"),
    "10.0.0.7": ("10.0.0.7:7000", "10.0.0.7:7001"),
    "[2001:db8::1]": ("[2001:db8::1]:7000", "[2001:db8::1]:7001"),
    "one.example:1,two.example:2": ("two.example:2", ""),
    "one.example:1, [2001:db8::2]:443": ("[2001:db8::2]:443", ""),
}


@pytest.mark.parametrize("text", PLACES)
def test_a_shard_is_told_where_clients_see_it(text: str) -> None:
    assert Advertised.parse(text).place(1, "127.0.0.1:7000", "127.0.0.1:7001") == PLACES[text]


REFUSED = {
    "": "is empty",
    "one:1,two": "'two' has no port",
    "one:70000": "'70000' is no port",
    "http://one:1": "begins with http://",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=REFUSED[text]) as refused:
        Advertised.parse(text)
    assert refused.value.field == "advertise"


def test_each_shard_has_an_address() -> None:
    with pytest.raises(InvalidArgument, match="advertise: has 2 addresses for 3 shards"):
        ServiceConfig(shards=3, advertise=Advertised.parse("a:1,b:2"))


def test_an_advertised_host_is_what_clients_use() -> None:
    with (
        testing.Service(shards=2, advertise=Advertised.parse("localhost")) as service,
        adamserve.connect(service.target, "job", timeout_s=20.0, transport="grpc") as client,
    ):
        client.create(W, optim.SGD(lr=1.0))
        assert client.pull()[0]["w"].tolist() == [0.0] * 8
        assert {link.endpoint.partition(":")[0] for link in client._session.links} == {"localhost"}


def test_shards_that_cannot_be_reached_are_named_within_seconds() -> None:
    """With the address that was tried, and both options; also for a reader, who joins none."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    with (
        testing.Service(shards=1, advertise=Advertised.parse(nobody)) as service,
        adamserve.connect(service.target, "job", timeout_s=60.0) as client,
    ):
        client.create(W, optim.SGD(lr=1.0))
        began = time.monotonic()
        with pytest.raises(Unavailable, match=rf"shard 0 cannot be reached at {nobody} .*--advertise"):
            client.pull(training=False)
        assert time.monotonic() - began < 8.0, "5 on a machine of its own"
        with pytest.raises(Unavailable, match=r"cannot be reached at .*--shard-ports"):
            client.pull()
