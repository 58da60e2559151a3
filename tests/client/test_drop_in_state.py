"""As torch does, or an error: schedules and constants, moments, and the optimizer as an object."""

from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from adamserve import RemoteOptimizer, optim
from adamserve.cluster.serving import Ready
from adamserve.errors import InvalidArgument
from tests.client.test_drop_in import STEPS, same, trained
from tests.client.test_remote_optimizer import KINDS, Remote, batches, flat, loss_of, model, remote

__all__ = ["remote"]


# ---- schedules and constants


def one_cycle(optimizer: Optimizer) -> Any:
    return OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1)


def cyclic(optimizer: Optimizer) -> Any:
    return CyclicLR(optimizer, 0.01, 0.1, step_size_up=2, cycle_momentum=True)


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "OneCycle": one_cycle,
    "Cyclic": cyclic,
    "MultiStep": lambda o: MultiStepLR(o, [2, 5]),
    "Exponential": lambda o: ExponentialLR(o, 0.8),
    "Cosine": lambda o: CosineAnnealingLR(o, STEPS),
    "Lambda": lambda o: LambdaLR(o, lambda step: 1.0 / (step + 1)),
    "Sequential": lambda o: SequentialLR(o, [LinearLR(o, 0.1), ConstantLR(o)], [3]),
}


@pytest.mark.parametrize("before", [True, False], ids=["made before", "made after"])
@pytest.mark.parametrize("kind", ["SGD momentum", "AdamW"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedulers_move_what_they_move_in_torch(
    remote: Remote, schedule: Callable[[Optimizer], Any], kind: str, before: bool
) -> None:
    """Rates, betas and momentum, whether the scheduler knows the optimizer that was wrapped or the remote one."""
    near, far = model(), model()
    local, wrapped = KINDS[kind](near.parameters()), KINDS[kind](far.parameters())
    ours = schedule(wrapped) if before else None
    distant = remote(wrapped)
    theirs, ours = schedule(local), ours or schedule(distant)
    expected = trained(near, local, lambda step: theirs.step())
    same(trained(far, distant, lambda step: ours.step()), expected)


def test_a_plateau_and_hands_move_constants_too(remote: Remote) -> None:
    def run(net: nn.Module, optimizer: Optimizer) -> Tensor:
        plateau = ReduceLROnPlateau(optimizer, patience=0)

        def between(step: int) -> None:
            plateau.step(1.0)
            optimizer.param_groups[0]["weight_decay"] = 0.01 * step
            optimizer.param_groups[0]["eps"] = 1e-8 * (step + 1)

        return trained(net, optimizer, between)

    near, far = model(), model()
    expected = run(near, KINDS["AdamW"](near.parameters()))
    same(run(far, remote(KINDS["AdamW"](far.parameters()))), expected)


def test_a_constant_that_needs_other_slots_is_refused(remote: Remote) -> None:
    net = model()
    optimizer = remote(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    optimizer.param_groups[0]["momentum"] = 0.0
    loss_of(net, next(batches())).backward()
    before = flat(net)
    with pytest.raises(InvalidArgument, match="momentum: the job keeps the slots momentum_buffer"):
        optimizer.step()
    assert torch.equal(flat(net), before)


# ---- moments


@pytest.mark.parametrize("kind", KINDS)
def test_moments_come_along(remote: Remote, kind: str) -> None:
    """By wrapping an optimizer that has stepped, and by loading the state of one."""
    near = model()
    local = KINDS[kind](near.parameters())
    trained(near, local)
    wrapped_net, loaded_net = copy.deepcopy(near), copy.deepcopy(near)
    stepped = KINDS[kind](wrapped_net.parameters())
    stepped.load_state_dict(copy.deepcopy(local.state_dict()))
    wrapped = remote(stepped)
    loading = remote(KINDS[kind](loaded_net.parameters()))
    loading.load_state_dict(copy.deepcopy(local.state_dict()))
    expected = trained(near, local)
    same(trained(wrapped_net, wrapped), expected)
    same(trained(loaded_net, loading), expected)


def test_moments_of_another_kind_are_refused(remote: Remote) -> None:
    net, other = model(), model()
    local = torch.optim.Adam(other.parameters())
    trained(other, local)
    optimizer = remote(torch.optim.RMSprop(net.parameters()))
    with pytest.raises((InvalidArgument, KeyError, ValueError)):
        optimizer.load_state_dict(local.state_dict())
    with pytest.raises(InvalidArgument, match=r"use RemoteOptimizer\.wrap"):
        remote(model().parameters(), optim.Adam()).load_state_dict(local.state_dict())


def test_restoring_the_model_restores_it(remote: Remote) -> None:
    """As a rate finder does: the parameters are the restored ones, and that the moments are not is said."""
    net = model()
    optimizer = remote(KINDS["Adam"](net.parameters()))
    trained(net, optimizer)
    parameters, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    restored = flat(net)
    trained(net, optimizer)
    net.load_state_dict(parameters)
    with pytest.warns(UserWarning, match="its moments are those of now"):
        optimizer.load_state_dict(state)
    assert torch.equal(flat(net), restored)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(flat(net), restored), "the service has them too"


# ---- the object


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_is_refused_at_once(remote: Remote, copied: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidArgument, match="cannot be copied or pickled"):
        copied(remote(KINDS["Adam"](model().parameters())))


def test_the_wrapped_optimizer_no_longer_steps(remote: Remote) -> None:
    net = model()
    local = KINDS["Adam"](net.parameters())
    remote(local)
    loss_of(net, next(batches())).backward()
    with pytest.raises(InvalidArgument, match="step the RemoteOptimizer"):
        local.step()


def test_state_that_is_elsewhere_is_not_read_as_empty(remote: Remote) -> None:
    net = model()
    optimizer = remote(KINDS["Adam"](net.parameters()))
    with pytest.raises(InvalidArgument, match="the moments are with the service"):
        optimizer.state[next(net.parameters())]
    assert not list(optimizer.state.items())
    with pytest.raises(InvalidArgument, match="the moments are with the service"):
        get_optimizer_state_dict(net, optimizer)
    with pytest.raises(InvalidArgument, match="the moments are with the service"):
        set_optimizer_state_dict(net, optimizer, {"state": {}, "param_groups": []})
    assert optimizer.client.seq == 0, "no step was made to fill it"


def test_hooks_run_as_in_torch(remote: Remote) -> None:
    net, called = model(), []
    optimizer = remote(KINDS["Adam"](net.parameters()))
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.register_state_dict_post_hook(lambda o, state: called.append("state"))
    loss_of(net, next(batches())).backward()
    optimizer.step()
    optimizer.state_dict()
    assert called == ["before", "after", "state"]


def test_a_dropped_optimizer_leaves(service: Ready) -> None:
    """A notebook's cell that is run again: a round does not wait for the one before."""
    net = model()

    def cell() -> RemoteOptimizer:
        made = RemoteOptimizer.wrap(
            torch.optim.SGD(net.parameters(), lr=0.1),
            service.target,
            job="cell",
            consistency="bsp",
            timeout_s=5.0,
        )
        made.zero_grad()
        loss_of(net, next(batches())).backward()
        made.step()
        return made

    first = cell()
    del first
    gc.collect()
    cell().close()


def test_the_page_has_every_entry_of_torchs_interface() -> None:
    """docs/drop-in.md names each public attribute of torch's optimizers, and nothing that neither has."""
    page = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")
    table = page.split("## The optimizer")[1].split("## The model")[0]
    entries = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)", row.split("|")[1])
    }
    bare = Optimizer([torch.zeros(1)], {})
    interface = {name for name in {*dir(Optimizer), *vars(bare)} if not name.startswith("_")}
    assert interface <= entries
    ours = {name for name in dir(RemoteOptimizer) if not name.startswith("_")}
    assert entries - interface - ours - {"RemoteOptimizer", "copy", "pickle", "torch", "with"} == set()
