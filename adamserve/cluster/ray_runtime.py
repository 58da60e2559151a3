"""A Ray to run on: one that this process starts, or one that runs already."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import ray

from adamserve.errors import InvalidArgument, Unavailable
from adamserve.job import is_loopback, split_host_port

NAMESPACE = "adamserve"
"""Ray namespace of every named actor."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""They end a process in its own way."""

PROBE_S = 5.0
"""How long a cluster's address may take to accept a connection."""


def heeded() -> list[signal.Signals]:
    """Those that end this process: SIGHUP is left out where nohup has it ignored."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def connected(
    address: str | None, *, num_cpus: int | None = None, num_gpus: int | None = None
) -> Iterator[None]:
    """Join the Ray cluster at `address`, or start a local one, and leave (or stop) it at the end.

    Ray's token authentication is left as it is set, and so are this process's handlers of SIGINT and SIGTERM, which Ray
    would replace. A local Ray gets no dashboard.

    Args:
        address: "host:port" of a running head, "auto" for one on this machine, or None to start one.
        num_cpus, num_gpus: what a local Ray may hand out; ignored with an address.

    Raises:
        InvalidArgument: the address cannot be read.
        Unavailable: nothing answers there.
    """
    init = partial(ray.init, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    with same_signals():
        if address is None:
            # Without "local" Ray joins whatever cluster was started last on this machine.
            init(address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False)
        else:
            check_address(address)
            try:
                init(address=address)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise Unavailable(
                    f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}",
                    field="address",
                    fix="start one with ray start --head",
                ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def same_signals() -> Iterator[None]:
    """Put this process's own handlers back: Ray's would end it at SIGTERM, whatever it still had to write."""
    main = threading.current_thread() is threading.main_thread()  # no other may set any
    kept = {number: signal.getsignal(number) for number in SIGNALS if main}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if callable(handler):
                signal.signal(number, handler)


def check_address(address: str) -> None:
    """Find out in seconds what Ray takes minutes to say: that nothing listens there."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise InvalidArgument(
            f"{address!r} is Ray Client's, which has no Ray on this machine to place processes and to listen beside",
            field="address",
            fix="run on a node of the cluster with --address auto, or use adamserve submit",
        )
    try:
        host_and_port = split_host_port(address)
    except InvalidArgument:
        raise InvalidArgument(
            f"{address!r} is not an address", field="address", fix="give host:port, or auto"
        ) from None
    try:
        socket.create_connection(host_and_port, timeout=PROBE_S).close()
    except OSError as error:
        raise Unavailable(
            f"nothing answers at {address}: {error.strerror or error}",
            field="address",
            fix="check that the head runs (ray start --head), or leave --address out to start a local Ray",
        ) from None


def node_address(host: str | None) -> str:
    """Where a process of a service at `host` listens: the loopback of its node, or the node's own address."""
    return host if host is not None and is_loopback(host) else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
