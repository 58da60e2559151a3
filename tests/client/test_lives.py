"""A process ends at once whatever was under way, and leaves nothing behind; what is dropped or forked says so."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import adamserve
from adamserve import optim
from adamserve.client.client import Client
from adamserve.client.threads import Thread
from adamserve.cluster.serving import Ready
from adamserve.errors import AdamServeError, Conflict, InvalidArgument
from adamserve.values import Outcome
from tests.cluster.conftest import until
from tests.served import Connect

W = {"w": np.zeros(4, np.float32)}
ONES = {"w": np.ones(4, np.float32)}
SGD = optim.SGD(lr=1.0, momentum=0.0)

BEGIN = """
import asyncio, os, signal, sys, threading, time
import numpy as np, adamserve
target, job = sys.argv[1:]
client = adamserve.connect(target, job, pusher="script", timeout_s=60.0)
_, clock = client.pull()
ONES = {"w": np.ones(4, np.float32)}


def until_a_push_waits():
    while not any(shard.waiting for shard in client.status().shards):
        pass

"""

ENDS: dict[str, tuple[str, int]] = {
    "an exception while a push is open": (
        """
        push = client.stream(clock)
        push.add("w", ONES["w"])
        print("now", flush=True)
        raise RuntimeError("boom")
        """,
        1,
    ),
    "the end of the script while a push waits for its round": (
        """
        client.push(ONES, clock, wait=False)
        print("now", flush=True)
        """,
        0,
    ),
    "Ctrl-C while a push waits for its round": (
        """
        threading.Timer(0.3, lambda: (print("now", flush=True), os.kill(os.getpid(), signal.SIGINT))).start()
        client.push(ONES, clock)
        """,
        -signal.SIGINT,
    ),
    "sys.exit in a with statement": (
        """
        with client.stream(clock) as push:
            push.add("w", ONES["w"])
            print("now", flush=True)
            sys.exit(3)
        """,
        3,
    ),
    "an exception while losses are queued": (
        """
        for _ in range(100):
            client.report(loss=1.0)
        print("now", flush=True)
        raise RuntimeError("boom")
        """,
        1,
    ),
    "the end while another thread pushes": (
        """
        threading.Thread(target=client.push, args=(ONES, clock), daemon=True).start()
        until_a_push_waits()
        print("now", flush=True)
        """,
        0,
    ),
    "an event loop that is stopped in a push": (
        """
        async def main():
            other = adamserve.connect_async(target, job, pusher="other", timeout_s=60.0)
            _, clock = await other.pull()
            pushing = asyncio.create_task(other.push(ONES, clock))
            await asyncio.to_thread(until_a_push_waits)
            print("now", flush=True)
            raise RuntimeError("boom")

        asyncio.run(main())
        """,
        1,
    ),
    "a client that was never closed": ('print("now", flush=True)', 0),
}


@pytest.fixture
def round_job(connect: Connect) -> Client:
    """A job in bsp with a pusher that never pushes, so that others wait for it."""
    client = connect(pusher="waits")
    client.create(W, SGD, consistency="bsp")
    client.join()
    return client


@pytest.mark.parametrize(("script", "code"), ENDS.values(), ids=ENDS)
def test_a_process_ends_at_once_and_leaves(service: Ready, round_job: Client, script: str, code: int) -> None:
    source = BEGIN + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", source, service.target, round_job.job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    began = time.monotonic()
    _, said = process.communicate(timeout=20)
    took = time.monotonic() - began
    assert process.returncode == code, said
    assert took < 4.0, f"{took:.1f} s; 2 on a machine of its own"
    until(lambda: [p.name for p in round_job.status().pushers] == ["waits"], "the others have not left", 2.0)


def test_a_dropped_client_leaves_and_ends_its_threads(service: Ready, round_job: Client) -> None:
    before = set(threading.enumerate())

    def begun() -> list[str]:
        """The client's threads; the service has its own in this process."""
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [
            name
            for name in names
            if name.startswith(("adamserve-shard", "adamserve-lease", "adamserve-beat"))
        ]

    dropped = adamserve.connect(service.target, round_job.job, pusher="dropped", timeout_s=60.0)
    _, clock = dropped.pull()
    dropped.push(ONES, clock, wait=False)
    assert len(begun()) >= 4
    del dropped
    gc.collect()
    until(lambda: [p.name for p in round_job.status().pushers] == ["waits"], "it has not left", 5.0)
    until(lambda: not begun(), "its threads go on", 5.0)


def test_a_client_that_its_own_thread_collects_leaves(service: Ready, round_job: Client) -> None:
    """As where the collector finds one in a cycle while its lease is being renewed."""
    dropped = adamserve.connect(service.target, round_job.job, pusher="dropped", lease_s=600.0)
    dropped.join()
    renewing = dropped._session._beside
    cycle: list[object] = [dropped]
    cycle.append(cycle)
    gc.collect()
    gc.disable()
    try:
        del dropped, cycle
        for thread in renewing:
            thread.submit(gc.collect).result(10.0)
    finally:
        gc.enable()
    until(lambda: [p.name for p in round_job.status().pushers] == ["waits"], "it has not left", 5.0)


FORKED: dict[str, Callable[[Client], object]] = {
    "pull": lambda client: client.pull(),
    "push": lambda client: client.push(ONES, client.pull()[1]),
    "set": lambda client: client.set(W),
    "join": lambda client: client.join(),
    "tensors": lambda client: client.tensors,
    "create": lambda client: client.create(W, SGD),
    "status": lambda client: client.status(),
    "checkpoint": lambda client: client.checkpoint(),
    "delete": lambda client: client.delete(),
}


def test_a_forked_child_is_told_and_the_parent_untouched(connect: Connect) -> None:
    """Every call in the child, closing apart, is refused at once; its end leaves the parent's pushes alone."""
    client = connect()
    client.create(W, SGD)
    _, clock = client.pull()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        said = []
        for name, call in FORKED.items():
            try:
                call(client)
                said.append(f"{name} went on")
            except InvalidArgument as error:
                said.append("" if "forked" in str(error) else str(error))
            except BaseException as error:
                said.append(repr(error))
        client.close()
        os.write(write, "".join(said).encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 10_000).decode() == ""
    receipt = client.push(ONES, clock)
    assert {shard.outcome for shard in receipt.shards} == {Outcome.APPLIED}
    assert client.pull()[0]["w"].tolist() == [-1.0] * 4


def test_asyncio_clients_do_not_wait_for_each_others_threads(service: Ready, connect: Connect) -> None:
    """More clients in one round than the default executor has threads."""
    creator, count = connect(), (os.cpu_count() or 1) + 6
    creator.create(W, SGD, consistency="bsp")

    async def main() -> list[object]:
        clients = [adamserve.connect_async(service.target, creator.job, timeout_s=30.0) for _ in range(count)]
        clocks = [(await client.pull())[1] for client in clients]
        pushes = [client.push(ONES, clock) for client, clock in zip(clients, clocks, strict=True)]
        receipts = await asyncio.gather(*pushes)
        for client in clients:
            await client.close()
        return [receipt.outcome for receipt in receipts]

    assert asyncio.run(main()) == [Outcome.APPLIED] * count


def test_a_cancelled_await_leaves_the_client_usable(service: Ready, round_job: Client) -> None:
    async def main() -> None:
        async with adamserve.connect_async(service.target, round_job.job, timeout_s=30.0) as client:
            _, clock = await client.pull()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.push(ONES, clock), 0.2)
            assert (await client.status()).job == round_job.job, "what waits for no turn goes on beside it"
            round_job.push(ONES, clock)
            _, clock = await client.pull()
            assert {stamp.clock for stamp in clock} == {1}, "the push went on, and the pull came after it"

    asyncio.run(main())


def test_what_is_given_to_a_thread_is_done_in_order_or_cancelled() -> None:
    thread, begun, go = Thread("test"), threading.Event(), threading.Event()
    done: list[int] = []

    def hold() -> bool:
        begun.set()
        return go.wait(10)

    first = thread.submit(hold)
    second = thread.submit(done.append, 2)
    begun.wait(10)
    third = thread.submit(int, "x")
    thread.shutdown(cancel_futures=True)
    go.set()
    assert first.result(10)
    assert second.cancelled()
    assert third.cancelled()
    assert done == []
    with pytest.raises(RuntimeError, match="ended"):
        thread.submit(int)


def test_waiting_for_a_job_that_somebody_creates(service: Ready, connect: Connect) -> None:
    waiting, creator = connect(), connect()
    threading.Timer(0.3, creator.create, (W, SGD)).start()
    waiting.wait()
    assert waiting.pull()[0]["w"].tolist() == [0.0] * 4
    with pytest.raises(AdamServeError, match="nobody has created it"):
        connect(job="never", timeout_s=0.5).wait()


def test_a_restarted_trainer_takes_its_place_at_once(service: Ready, round_job: Client) -> None:
    """Killed in a round, and started again under its name: no Conflict, long before its lease has run out."""
    source = BEGIN.replace(
        "timeout_s=60.0", 'timeout_s=60.0, lease_s=600.0, transport="direct"'
    ) + textwrap.dedent(
        """
        threading.Thread(target=client.push, args=(ONES, clock), daemon=True).start()
        until_a_push_waits()
        print("now", flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", source, service.target, round_job.job]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with (
            adamserve.connect(service.target, round_job.job, pusher="script", transport="direct") as other,
            pytest.raises(Conflict, match="the name 'script' belongs to another client's session"),
        ):
            other.join()
        process.kill()
    began = time.monotonic()
    with adamserve.connect(service.target, round_job.job, pusher="script", transport="direct") as again:
        until(lambda: not isinstance(_joining(again), Conflict), "its place is not free", 5.0)
        assert time.monotonic() - began < 5.0
        _, clock = again.pull()
        pushed = again.push(ONES, clock, wait=False)
        round_job.push(ONES, clock)
        assert pushed.result().outcome is Outcome.APPLIED


def _joining(client: Client) -> Exception | None:
    try:
        client.join()
    except Conflict as error:
        return error
    return None
