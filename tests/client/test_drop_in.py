"""As torch does, or an error: what users do to a model and its optimizer between two steps.

Each case is written once and run twice, with torch's optimizer and with the remote form of it.
"""

from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

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
from torch.optim.swa_utils import AveragedModel

from adamserve import RemoteOptimizer, optim
from adamserve.cluster.serving import Ready
from adamserve.errors import InvalidArgument
from tests.client.test_remote_optimizer import FLOAT32, KINDS, Remote, batches, flat, loss_of, model, remote

__all__ = ["remote"]

STEPS = 8


def trained(
    net: nn.Module, optimizer: Optimizer, between: Callable[[int], None] = lambda step: None
) -> Tensor:
    """The parameters after some steps, with `between` after each."""
    for step, batch in enumerate(batches(count=STEPS)):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
        between(step)
    return flat(net)


def same(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) <= FLOAT32


# ---- the model is the user's


AVERAGES: WeakKeyDictionary[nn.Module, AveragedModel] = WeakKeyDictionary()


def clamped(net: nn.Module, step: int) -> None:
    for parameter in net.parameters():
        parameter.data.clamp_(-0.1, 0.1)


def clamped_without_grad(net: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.clamp_(-0.1, 0.1)


def loaded(net: nn.Module, step: int) -> None:
    if step == 3:
        torch.manual_seed(11)
        net.load_state_dict({name: torch.randn_like(value) for name, value in net.state_dict().items()})


def masked(net: nn.Module, step: int) -> None:
    first = next(net.parameters())
    first.data[::2] = 0.0


def averaged(net: nn.Module, step: int) -> None:
    """As EMA's and lookahead optimizers' owners do: the average of now and of the last time."""
    if step % 3 == 0:
        old = getattr(net, "old", None)
        if old is not None:
            for parameter, before in zip(net.parameters(), old, strict=True):
                parameter.data.lerp_(before, 0.5)
        net.old = [parameter.detach().clone() for parameter in net.parameters()]  # type: ignore[assignment]


def swapped(net: nn.Module, step: int) -> None:
    """Two elements change places, so that sums stay."""
    data = next(net.parameters()).data.view(-1)
    data[0], data[1] = data[1].clone(), data[0].clone()


def negated(net: nn.Module, step: int) -> None:
    next(net.parameters()).data.neg_()


def other_memory(net: nn.Module, step: int) -> None:
    for parameter in net.parameters():
        parameter.data = parameter.data.clone() * (2.0 if step == 2 else 1.0)


def shared(net: nn.Module, step: int) -> None:
    if step == 2:
        net.share_memory()


def transposed(net: nn.Module, step: int) -> None:
    """A parameter whose memory is not in one run."""
    weight = next(net.parameters())
    weight.data = weight.data.t().contiguous().t()
    weight.data[0] = 0.0


def renormalised(net: nn.Module, step: int) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()) * 0.9, net.parameters())


def swa(net: nn.Module, step: int) -> None:
    if step == 0:
        AVERAGES[net] = AveragedModel(net)
    AVERAGES[net].update_parameters(net)
    if step == 4:
        net.load_state_dict(AVERAGES[net].module.state_dict())


OWNED = [
    clamped,
    clamped_without_grad,
    loaded,
    masked,
    averaged,
    swapped,
    negated,
    other_memory,
    shared,
    transposed,
    renormalised,
    swa,
]


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
@pytest.mark.parametrize("change", OWNED, ids=lambda change: change.__name__)
def test_a_change_between_steps_has_its_local_meaning(remote: Remote, change: Any, overlap: bool) -> None:
    near, far = model(), model()
    wrapped = remote(KINDS["SGD momentum"](far.parameters()), overlap=overlap)
    expected = trained(near, KINDS["SGD momentum"](near.parameters()), lambda step: change(near, step))
    same(trained(far, wrapped, lambda step: change(far, step)), expected)
    assert wrapped.client.seq > STEPS or change in (shared,), "the change has been sent"


def test_a_change_between_backward_and_step_counts_too(remote: Remote) -> None:
    def run(net: nn.Module, optimizer: Optimizer) -> Tensor:
        for batch in batches(count=STEPS):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            clamped(net, 0)
            optimizer.step()
        return flat(net)

    near, far = model(), model()
    expected = run(near, KINDS["Adam"](near.parameters()))
    same(run(far, remote(KINDS["Adam"](far.parameters()))), expected)


def test_in_bsp_every_trainer_may_clamp(remote: Remote) -> None:
    """Values that are assigned within a round do not end it."""
    nets = [model(), model()]
    optimizers = [
        remote(torch.optim.SGD(net.parameters(), lr=0.05), job="clamped", consistency="bsp", pusher=f"p{i}")
        for i, net in enumerate(nets)
    ]
    from concurrent.futures import ThreadPoolExecutor

    def run(i: int) -> Tensor:
        return trained(nets[i], optimizers[i], lambda step: clamped(nets[i], step))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    near = model()
    expected = trained(near, torch.optim.SGD(near.parameters(), lr=0.05), lambda step: clamped(near, step))
    for each in found:
        same(each, expected)


def test_a_graph_of_old_values_is_refused_as_in_torch(remote: Remote) -> None:
    net = model()
    optimizer = remote(torch.optim.SGD(net.parameters(), lr=0.1))
    loss = loss_of(net, next(batches()))
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_unchanged_model_costs_no_assignment(remote: Remote) -> None:
    net = model()
    optimizer = remote(KINDS["Adam"](net.parameters()))
    trained(net, optimizer)
    assert optimizer.client.seq == STEPS


def test_a_look_ahead_point_is_not_a_parameter(remote: Remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optim.Nesterov(lr=0.1))
    clamped(net, 0)
    loss_of(net, next(batches())).backward()
    with pytest.raises(InvalidArgument, match="look-ahead point"):
        optimizer.step()


# ---- weights that share memory, or names


def test_weights_tied_by_one_parameter_are_one_tensor(remote: Remote) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.tanh(self.embed(x)))
            return out

    def run(net: nn.Module, optimizer: Optimizer) -> Tensor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            net(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
        return flat(net)

    torch.manual_seed(0)
    near = Tied()
    far = copy.deepcopy(near)
    optimizer = remote(torch.optim.SGD(far.parameters(), lr=0.01))
    assert [tensor.name for tensor in optimizer.client.tensors] == ["embed.weight", "embed.bias", "out.bias"]
    same(run(far, optimizer), run(near, torch.optim.SGD(near.parameters(), lr=0.01)))


def views() -> list[tuple[str, nn.Parameter]]:
    flat = torch.zeros(8)
    return [("a", nn.Parameter(flat[:6])), ("b", nn.Parameter(flat[4:]))]


def expanded() -> list[tuple[str, nn.Parameter]]:
    return [("a", nn.Parameter(torch.zeros(1).expand(4)))]


def named_alike() -> list[dict[str, Any]]:
    return [
        {"params": nn.Linear(2, 2).named_parameters()},
        {"params": nn.Linear(2, 1).named_parameters()},
    ]


def twice() -> list[tuple[str, nn.Parameter]]:
    weight = nn.Parameter(torch.zeros(2))
    return [("a", weight), ("b", weight)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "views of one tensor": (views, "b: shares memory with a"),
    "an expanded tensor": (expanded, "a: has elements that share memory"),
    "one name twice": (named_alike, "weight: is the name of two parameters"),
}


@pytest.mark.parametrize(("params", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_apart_is_refused(remote: Remote, params: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        remote(params(), optim.SGD(lr=0.1))


def test_positions_alone_are_told(remote: Remote) -> None:
    pair = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    with pytest.warns(UserWarning, match="another order would exchange them"):
        remote(pair, optim.SGD(lr=0.1))
    different = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    assert [t.name for t in remote(different, optim.SGD(lr=0.1)).client.tensors] == ["group0.0", "group0.1"]


class Query(nn.Module):
    def __init__(self, *order: str) -> None:
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(2, 2, bias=False))


def test_names_travel_so_that_an_order_does_not_matter(remote: Remote) -> None:
    one, other = Query("q", "k"), Query("k", "q")
    remote(torch.optim.SGD(one.parameters()), job="order")
    remote(torch.optim.SGD(other.parameters()), job="order", pusher="other")
    for name in ("q", "k"):
        assert torch.equal(one.get_submodule(name).weight, other.get_submodule(name).weight)  # type: ignore[arg-type]


def test_names_are_the_models_own(remote: Remote) -> None:
    """Of the module that has the parameters, also in a part of a larger one, and inside of what wraps it."""
    whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    names = ["weight", "bias"]
    assert [t.name for t in remote(torch.optim.SGD(whole[1].parameters())).client.tensors] == names
    assert [t.name for t in remote(torch.optim.SGD(whole.parameters())).client.tensors] == list(
        whole.state_dict()
    )
    wrapper = nn.DataParallel(whole)
    assert [t.name for t in remote(torch.optim.SGD(wrapper.parameters())).client.tensors] == list(
        whole.state_dict()
    )
    given = remote(torch.optim.SGD(whole[1].parameters()), model=whole)
    assert [t.name for t in given.client.tensors] == ["1.weight", "1.bias"]
    with pytest.raises(InvalidArgument, match="model: has no parameter of shape"):
        remote(torch.optim.SGD(whole.parameters()), model=whole[0])


# ---- frozen parameters


def test_what_needs_no_gradient_stays_local(remote: Remote) -> None:
    half, mask = nn.Linear(2, 2).bfloat16(), nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)
    head = nn.Linear(2, 1)
    parameters = [
        *half.requires_grad_(False).named_parameters("frozen"),
        ("mask", mask),
        *head.named_parameters(),
    ]
    optimizer = remote(torch.optim.AdamW([(name.replace("..", "."), p) for name, p in parameters]))
    assert [tensor.name for tensor in optimizer.client.tensors] == ["weight", "bias"]
    head(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert mask.tolist() == [-torch.inf] * 2
    mask.requires_grad_(True)
    mask.grad = torch.zeros(2)
    with pytest.raises(InvalidArgument, match="mask: has a gradient, but needed none"):
        optimizer.step()


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
