"""How fast are pushes and pulls over gRPC, beside bare grpcio and torch.distributed.rpc?

push, pull    100 MB of float32 to and from one shard (SGD without momentum, ack included), beside a stream of 1 MiB
              chunks into a server that only counts bytes, and beside one naive unary message.
push_pull     25 M parameters with Adam on 1 and 2 shards, beside `rpc_sync` to a server with torch.optim.Adam; and with
              bfloat16 on the wire beside float32, over both carriers.
small         10,000 parameters a push, beside bare unary calls of the same bytes; and 8 trainers at once.

All servers are processes of their own on this machine; the sides take turns in one run; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import grpc
import numpy as np
import torch
import torch.distributed.rpc

import adamserve
from adamserve import optim

CHUNK = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

TARGETS = {
    "push": 0.8, "push_naive": 5.0, "pull": 0.8, "pull_naive": 5.0,
    "push_pull_1": 1.0, "push_pull_2": 1.0, "bfloat16": 1.5, "grpc_bfloat16": 1.5, "small": 0.6, "p99": 5.0,
}  # fmt: skip
"""Least speed of ours over the other side's; for p99 the most times the median."""


# ---- the other sides


def bare_server() -> None:
    """Counts the bytes of streams and messages, and sends as many back when asked."""
    kept: dict[int, bytes] = {}

    def stored(size: int) -> bytes:
        if size not in kept:
            kept[size] = os.urandom(1 << 16) * (size // (1 << 16) + 1)
        return kept[size][:size] if len(kept[size]) != size else kept[size]

    def push_stream(messages: Iterator[bytes], _: Any) -> bytes:
        return str(sum(map(len, messages))).encode()

    def push_unary(message: bytes, _: Any) -> bytes:
        return str(len(message)).encode()

    def pull_stream(message: bytes, _: Any) -> Iterator[bytes]:
        data = memoryview(stored(int(message)))
        for i in range(0, len(data), CHUNK):
            yield bytes(data[i : i + CHUNK])

    def pull_unary(message: bytes, _: Any) -> bytes:
        return stored(int(message))

    server = grpc.server(ThreadPoolExecutor(16), options=OPTIONS)
    handlers: dict[str, Any] = {
        "push_stream": grpc.stream_unary_rpc_method_handler(push_stream),
        "push_unary": grpc.unary_unary_rpc_method_handler(push_unary),
        "pull_stream": grpc.unary_stream_rpc_method_handler(pull_stream),
        "pull_unary": grpc.unary_unary_rpc_method_handler(pull_unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


class TorchServer:
    """torch.optim.Adam behind torch.distributed.rpc."""

    parameter: torch.Tensor
    optimizer: torch.optim.Optimizer

    @classmethod
    def make(cls, size: int) -> None:
        cls.parameter = torch.zeros(size)
        cls.optimizer = torch.optim.Adam([cls.parameter], lr=1e-3)

    @classmethod
    def step(cls, gradient: torch.Tensor) -> torch.Tensor:
        cls.parameter.grad = gradient
        cls.optimizer.step()
        return cls.parameter


def torch_rpc(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    init: Any = torch.distributed.rpc.init_rpc
    init(("trainer", "server")[rank], rank=rank, world_size=2)


def torch_trainer(port: int, size: int) -> None:
    """For each line of the standard input, the seconds of one exchange with the server."""
    torch_rpc(0, port)
    call = torch.distributed.rpc.rpc_sync
    call("server", TorchServer.make, args=(size,))
    gradient = torch.from_numpy(gradient_of(size))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        call("server", TorchServer.step, args=(gradient,))
        print(time.perf_counter() - began, flush=True)


@contextmanager
def child(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own until the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        process.wait(timeout=60)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def torch_side(size: int) -> Iterator[Callable[[], float]]:
    """A trainer and a server over torch.distributed.rpc; yields what makes one exchange and returns its seconds.

    The two are stopped in between: TensorPipe's threads poll without rest, on a core for each process, which would be
    missing to the others' turns.
    """
    port = str(29500 + os.getpid() % 1000)
    with (
        child(sys.executable, __file__, "--torch-server", port) as server,
        child(sys.executable, __file__, "--torch-trainer", port, "--elements", str(size)) as trainer,
    ):
        line_of(trainer)

        def signalled(number: signal.Signals) -> None:
            for process in (server, trainer):
                process.send_signal(number)

        def exchange() -> float:
            assert trainer.stdin is not None
            signalled(signal.SIGCONT)
            print(file=trainer.stdin, flush=True)
            seconds = float(line_of(trainer))
            signalled(signal.SIGSTOP)
            return seconds

        signalled(signal.SIGSTOP)
        yield exchange


@contextmanager
def bare_side() -> Iterator[Any]:
    """A channel to a bare server in a process of its own."""
    with (
        child(sys.executable, __file__, "--bare-server") as server,
        grpc.insecure_channel(f"127.0.0.1:{line_of(server)}", OPTIONS) as channel,
    ):
        yield channel


@contextmanager
def service(shards: int) -> Iterator[str]:
    """`adamserve serve`; yields its target."""
    command = [str(Path(sys.executable).with_name("adamserve")), "serve", "--port", "0", "--format", "json"]
    with child(*command, "--shards", str(shards)) as process:
        yield json.loads(line_of(process))["target"]


# ---- measuring


def gradient_of(size: int) -> Any:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, one call each in turn, after one that does not count.

    What a side returns as a float are its seconds, measured where it runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeats + 1):
        for name, call in sides.items():
            began = time.perf_counter()
            own = call()
            if i:
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def connected(stack: ExitStack, target: str, size: int, rule: optim.Rule, **options: Any) -> Any:
    """A client of a new job of one tensor."""
    client = stack.enter_context(adamserve.connect(target, job=f"bench-{uuid.uuid4().hex[:8]}", **options))
    client.create({"w": np.zeros(size, np.float32)}, rule)
    return client


def large(size: int, repeats: int) -> dict[str, Any]:
    """Push and pull of `size` float32."""
    gradient = gradient_of(size)
    view = memoryview(gradient.view(np.uint8).data)
    with ExitStack() as stack:
        channel = stack.enter_context(bare_side())
        push_stream, push_unary = (
            channel.stream_unary("/bare/push_stream"),
            channel.unary_unary("/bare/push_unary"),
        )
        pull_stream, pull_unary = (
            channel.unary_stream("/bare/pull_stream"),
            channel.unary_unary("/bare/pull_unary"),
        )
        asked = str(len(view)).encode()
        client = connected(stack, stack.enter_context(service(1)), size, optim.SGD(lr=1e-9, momentum=0.0))
        into, clock = client.pull()

        def chunks() -> Iterator[bytes]:
            return (bytes(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK))

        sides: dict[str, Callable[[], object]] = {
            "push": lambda: client.push({"w": gradient}, clock),
            "pull": lambda: client.pull(into=into),
            "push_bare": lambda: push_stream(chunks()),
            "pull_bare": lambda: sum(map(len, pull_stream(asked))),
            "push_naive": lambda: push_unary(bytes(view)),
            "pull_naive": lambda: len(pull_unary(asked)),
        }
        seconds = take_turns(sides, repeats)
    ratios = {
        "push": seconds["push_bare"] / seconds["push"],
        "push_naive": seconds["push_naive"] / seconds["push"],
        "pull": seconds["pull_bare"] / seconds["pull"],
        "pull_naive": seconds["pull_naive"] / seconds["pull"],
    }
    return {"seconds": seconds, "ratios": ratios}


def push_pull(size: int, repeats: int) -> dict[str, Any]:
    """One exchange of `size` parameters with Adam."""
    gradient = gradient_of(size)
    with ExitStack() as stack:
        sides: dict[str, Callable[[], object]] = {"torch": stack.enter_context(torch_side(size))}
        one, two = (stack.enter_context(service(shards)) for shards in (1, 2))
        for name, target, wire, transport in (
            ("1", one, "float32", "direct"),
            ("2", two, "float32", "direct"),
            ("bfloat16", one, "bfloat16", "direct"),
            ("grpc", one, "float32", "grpc"),
            ("grpc_bfloat16", one, "bfloat16", "grpc"),
        ):
            rule = optim.Adam(lr=1e-3)
            client = connected(stack, target, size, rule, wire_dtype=wire, transport=transport)
            into, clock = client.pull()

            def exchange(client: Any = client, into: Any = into, clock: Any = clock) -> None:
                client.push_pull({"w": gradient}, clock, into=into)

            sides[name] = exchange
        seconds = take_turns(sides, repeats)
    ratios = {
        "push_pull_1": seconds["torch"] / seconds["1"],
        "push_pull_2": seconds["torch"] / seconds["2"],
        "bfloat16": seconds["1"] / seconds["bfloat16"],
        "grpc_bfloat16": seconds["grpc"] / seconds["grpc_bfloat16"],
    }
    return {"seconds": seconds, "ratios": ratios}


def small(size: int, calls: int, trainers: int) -> dict[str, Any]:
    """Many pushes of `size` parameters."""
    gradient = {"w": np.ones(size, np.float32)}
    data = gradient["w"].tobytes()
    rule = optim.SGD(lr=1e-9, momentum=0.0)
    with ExitStack() as stack:
        channel = stack.enter_context(bare_side())
        unary = channel.unary_unary("/bare/push_unary")
        target = stack.enter_context(service(1))
        client = connected(stack, target, size, rule)
        _, clock = client.pull()

        def ours() -> None:
            for _ in range(calls):
                client.push(gradient, clock)

        def bare() -> None:
            for _ in range(calls):
                unary(data)

        seconds = take_turns({"ours": ours, "bare": bare}, 5)
        times: list[float] = []

        def trainer() -> None:
            own = stack.enter_context(adamserve.connect(target, job=client.job))
            _, at = own.pull()
            for _ in range(calls):
                began = time.perf_counter()
                own.push(gradient, at)
                times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=trainer) for _ in range(trainers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times.sort()
    median, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return {
        "seconds": {
            **{name: value / calls for name, value in seconds.items()},
            "median_8": median,
            "p99_8": p99,
        },
        "ratios": {"small": seconds["bare"] / seconds["ours"], "p99": p99 / median},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=float, default=25e6, help="float32 parameters of the large ones")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1000, help="small pushes in a row")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--bare-server", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--torch-server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--torch-trainer", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_server:
        bare_server()
    elif arguments.torch_trainer:
        torch_trainer(arguments.torch_trainer, int(arguments.elements))
    elif arguments.torch_server:
        torch_rpc(1, arguments.torch_server)
        sys.stdin.read()
    else:
        size = int(arguments.elements)
        parts = {
            "large": large(size, arguments.repeats),
            "push_pull": push_pull(size, arguments.repeats),
            "small": small(10_000, arguments.calls, 8),
        }
        ratios = {name: round(ratio, 3) for part in parts.values() for name, ratio in part["ratios"].items()}
        seconds = {name: part["seconds"] for name, part in parts.items()}
        machine = {"machine": platform.machine(), "cores": os.cpu_count()}
        result = {"elements": size, "seconds": seconds, "ratios": ratios, "targets": TARGETS, **machine}
        if arguments.json:
            print(json.dumps(result, indent=2))
            return
        for part, found in seconds.items():
            for name, value in found.items():
                print(f"{part:10} {name:13} {value * 1e3:9.2f} ms")
        for name, ratio in ratios.items():
            print(
                f"{name:13} {ratio:7.2f}  (target {'at most' if name == 'p99' else 'at least'} {TARGETS[name]})"
            )


if __name__ == "__main__":
    main()
