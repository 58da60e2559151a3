"""As torch does, or an error: what users do to a model between two steps, its names, and what is frozen.

Each case is written once and run twice, with torch's optimizer and with the remote form of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from adamserve import optim
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
