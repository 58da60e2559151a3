"""The inputs of torch's own optimizer tests, as torch ships them: its numbers, for every one."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.client.test_remote_optimizer import FLOAT64, Remote, flat, remote

__all__ = ["remote"]

KINDS = ("SGD", "Adam", "AdamW", "Adamax", "Adagrad", "RMSprop")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, about parts of its own tests that are not used here
    from torch.testing._internal.common_optimizers import optim_db

INPUTS = [
    pytest.param(kind, given.kwargs, id=f"{name}-{given.desc}")
    for info in optim_db
    if (kind := cast("Any", info.optim_cls)) and (name := kind.__name__) in KINDS
    for given in info.optim_inputs_func(device="cpu")
]


def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
    for _ in range(7):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize(("kind", "options"), INPUTS)
def test_torchs_numbers(remote: Remote, kind: Any, options: dict[str, Any]) -> None:
    near, far = net(), net()
    expected = stepped(near, kind(near.parameters(), **copy.deepcopy(options)))
    found = stepped(far, remote(kind(far.parameters(), **copy.deepcopy(options))))
    assert not torch.equal(expected, flat(net()))
    assert float((found - expected).abs().max()) <= FLOAT64


def test_every_kind_has_inputs() -> None:
    assert {cast("Any", param.values[0]).__name__ for param in INPUTS} == set(KINDS)
    assert len(INPUTS) >= 39
