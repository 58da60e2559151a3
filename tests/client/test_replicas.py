"""DistributedDataParallel: rank 0 speaks for both, and both hold the same parameters and meet the same errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from adamserve import testing

RANK = """
import sys, warnings
import torch, torch.distributed as dist
from adamserve import RemoteOptimizer
from adamserve.errors import RolledBack

target, rank, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = dist.TCPStore("127.0.0.1", port, 2, False)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.manual_seed(0)
inputs = torch.randn(2, 8, 3)[rank]
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
remote = RemoteOptimizer.wrap(torch.optim.Adam(net.parameters(), lr=0.1), target, job="job", pusher=f"rank-{rank}")


def step():
    remote.zero_grad()
    net(inputs).pow(2).mean().backward()
    remote.step()


def told(*words):
    print(*words, *(round(float(x), 6) for p in net.parameters() for x in p.detach().flatten()), flush=True)
    sys.stdin.readline()


step()
told("stepped")
try:
    step()
except RolledBack as error:
    assert error.after != error.before
    told("RolledBack", str(error.after).replace(" ", ""))
step()
told("stepped")
own = remote.state_dict()
moments = torch.optim.Adam(net.parameters(), lr=0.1)
net(inputs).pow(2).mean().backward()
moments.step()
for state in (own, moments.state_dict()):
    with warnings.catch_warnings():
        warnings.simplefilter("error" if rank else "ignore")
        remote.load_state_dict(state)
step()
told("loaded")
remote.client.checkpoint()
remote.close()
dist.destroy_process_group()
"""


class Rank:
    """One process of the job."""

    def __init__(self, target: str, rank: int, port: int) -> None:
        command = [sys.executable, "-c", RANK, target, str(rank), str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def says(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line or self._process.stderr is None, self._process.communicate(timeout=10)[1]
        return line.split()

    def goes_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def ended(self) -> tuple[int, str]:
        errors = self._process.communicate(timeout=30)[1]
        return self._process.returncode, errors


@pytest.fixture
def store() -> Any:
    """Where the ranks find each other."""
    return distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined] # it is there


def test_rank_0_speaks_for_both(store: Any, tmp_path: Path) -> None:
    with (
        testing.Service(shards=2, checkpoint_dir=tmp_path) as service,
        Rank(service.target, 0, store.port) as first,
        Rank(service.target, 1, store.port) as second,
    ):
        seen = []
        for expected in ("stepped", "RolledBack", "stepped", "loaded"):
            here, there = first.says(), second.says()
            assert here == there
            assert here[0] == expected
            seen.append(here[1:])
            [state] = service.status()
            assert [pusher.name for pusher in state.pushers] == ["rank-0"]
            if len(seen) == 1:
                service.kill(0)
            first.goes_on()
            second.goes_on()
        assert len({tuple(values) for values in seen}) == len(seen), "each exchange has moved them"
        for rank in (first, second):
            assert rank.ended()[0] == 0
