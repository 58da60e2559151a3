"""What stands between a client and its service: bad targets are refused at once, proxies named, silence told."""

from __future__ import annotations

import logging
import socket
import time

import pytest

import adamserve
from adamserve.client import control_link
from adamserve.client.credentials import PROXIES, proxy_of
from adamserve.cluster.serving import Ready
from adamserve.errors import InvalidArgument, Unavailable
from adamserve.job import split_host_port

TARGETS = {
    "127.0.0.1:50051": ("127.0.0.1", 50051),
    "shard-0.adamserve.svc:1": ("shard-0.adamserve.svc", 1),
    "[::1]:65535": ("::1", 65535),
    "[fe80::1%eth0]:80": ("fe80::1%eth0", 80),
}

MALFORMED = {
    "": "has no port",
    "localhost": "has no port",
    ":50051": "has no port",
    "[]:50051": "has no port",
    "localhost:": "'' is no port",
    "localhost:http": "'http' is no port",
    "localhost:0": "'0' is no port",
    "localhost:65536": "'65536' is no port",
    "localhost:-1": "'-1' is no port",
    "localhost:٣": "is no port",
    "::1:50051": r"has several colons \(write \[::1\]:50051",
    "http://localhost:50051": "begins with http://",
    "ray://localhost:10001": "begins with ray://",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_a_host_and_a_port(target: str) -> None:
    assert split_host_port(target) == TARGETS[target]


@pytest.mark.parametrize("target", MALFORMED)
def test_a_malformed_target_is_refused_before_anything_is_sent(target: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidArgument, match=MALFORMED[target]) as refused:
        adamserve.connect(target, "job")
    assert refused.value.field == "target"
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("name", PROXIES)
def test_this_machine_is_reached_without_a_proxy(
    service: Ready, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with adamserve.connect(service.target, "", timeout_s=10.0, transport="grpc") as client:
        assert isinstance(client.jobs(), list)


PROXIED = {
    "another host": ("10.0.0.7:50051", "", "http_proxy"),
    "a name": ("shard.example:50051", "", "http_proxy"),
    "this machine": ("127.0.0.1:50051", "", ""),
    "this machine by IPv6": ("[::1]:50051", "", ""),
    "this machine by name": ("localhost:50051", "", ""),
    "an exception": ("shard.example:50051", "example", ""),
    "an exception with a dot": ("shard.example:50051", "other, .example", ""),
    "the host itself": ("shard.example:50051", "shard.example", ""),
    "another exception": ("shard.example:50051", "ample", "http_proxy"),
}


@pytest.mark.parametrize(("endpoint", "ignored", "expected"), PROXIED.values(), ids=PROXIED)
def test_the_proxy_that_would_be_used(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, ignored: str, expected: str
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", ignored)
    assert proxy_of(endpoint) == expected


def test_a_proxy_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    client = adamserve.connect("192.0.2.1:50051", "job", timeout_s=1.5)
    with pytest.raises(
        Unavailable, match=r"through the proxy of http_proxy=http://127\.0\.0\.1:9 .*no_proxy"
    ):
        client.status()


def test_a_service_that_does_not_answer_is_told_while_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_link, "TELL_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = adamserve.connect(f"127.0.0.1:{port}", "job", timeout_s=2.0)
    with caplog.at_level(logging.WARNING, "adamserve"), pytest.raises(Unavailable, match="gave up after 2 s"):
        client.status()
    [told] = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert told.startswith(f"127.0.0.1:{port} does not answer")
