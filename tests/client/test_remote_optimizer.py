"""RemoteOptimizer against torch.optim on the same model, data order and seed."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from adamserve import RemoteOptimizer, optim
from adamserve.cluster.serving import Ready
from adamserve.errors import Conflict, InvalidArgument
from adamserve.values import Outcome

Make = Callable[[Any], Optimizer]
Remote = Callable[..., RemoteOptimizer]

KINDS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=1e-3),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1),
    "SGD Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "SGD maximize": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.5, weight_decay=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, betas=(0.8, 0.99)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "RMSprop momentum centered": lambda p: torch.optim.RMSprop(
        p, lr=1e-3, momentum=0.9, centered=True, eps=1e-6
    ),
}

STEPS = 200

FLOAT64 = 1e-10
"""Both sides compute in float64, in other orders of the same operations: some 200 roundings of 1e-16."""

FLOAT32 = 1e-5
"""Of the parameters' norm; 200 roundings of 6e-8 that add up at worst, and the model's curvature."""


@pytest.fixture
def remote(service: Ready) -> Iterator[Remote]:
    made: list[RemoteOptimizer] = []

    def make(source: Any, *args: Any, **options: Any) -> RemoteOptimizer:
        options = {"job": f"job-{uuid.uuid4().hex[:12]}", "timeout_s": 20.0, **options}
        if isinstance(source, Optimizer):
            made.append(RemoteOptimizer.wrap(source, service.target, **options))
        else:
            made.append(RemoteOptimizer(source, service.target, *args, **options))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)).to(dtype)


def batches(dtype: torch.dtype = torch.float32, count: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield (
            torch.randn(8, 12, dtype=dtype, generator=generator),
            torch.randint(0, 5, (8,), generator=generator),
        )


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def groups(net: nn.Sequential) -> list[dict[str, Any]]:
    return [
        {"params": net[0].parameters()},
        {"params": net[2].parameters(), "lr": 2e-3, "weight_decay": 0.01},
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_wrap_is_the_local_optimizer(remote: Remote, kind: Make, dtype: torch.dtype) -> None:
    """With StepLR and with two groups, through two shards, in bsp."""
    near, far = model(dtype), model(dtype)
    local, wrapped = kind(groups(near)), remote(kind(groups(far)), consistency="bsp")
    schedulers = [StepLR(local, 60, 0.5), StepLR(wrapped, 60, 0.5)]
    for batch in batches(dtype):
        for net, optimizer in ((near, local), (far, wrapped)):
            optimizer.zero_grad()
            loss_of(net, batch).backward()
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert float((flat(near) - flat(model(dtype))).norm()) > 0.01, "the local model has not moved"
    if dtype == torch.float64:
        assert float((flat(near) - flat(far)).abs().max()) <= FLOAT64
    else:
        assert float((flat(near) - flat(far)).norm() / flat(near).norm()) <= FLOAT32


def train(
    net: nn.Module, optimizer: Optimizer, change: Callable[[nn.Module, Optimizer, Tensor], None]
) -> Tensor:
    for batch in batches(count=20):
        optimizer.zero_grad()
        change(net, optimizer, loss_of(net, batch))
    return flat(net)


def plain(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()


def clipped(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()


def changed_through_data(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter.grad.data.mul_(0.5)
    optimizer.step()


def accumulated(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    (loss / 2).backward(retain_graph=True)
    (loss / 2).backward()
    optimizer.step()


def closure(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    def again() -> float:
        loss.backward()
        return 0.5

    assert optimizer.step(again) == 0.5


def some_without_a_gradient(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    next(iter(net.parameters())).grad = None
    optimizer.step()


def frozen(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    list(net.parameters())[-1].requires_grad_(False)
    plain(net, optimizer, loss)


def skipped(net: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    """Every other batch is dropped after its backward pass."""
    loss.backward()
    net.count = getattr(net, "count", 0) + 1  # type: ignore[assignment]
    if net.count % 2:  # type: ignore[operator]
        optimizer.step()


CHANGES = [
    plain,
    clipped,
    changed_through_data,
    accumulated,
    closure,
    some_without_a_gradient,
    frozen,
    skipped,
]


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_is_done_to_gradients_is_what_counts(remote: Remote, change: Any, overlap: bool) -> None:
    near, far = model(), model()
    wrapped = remote(KINDS["Adam"](far.parameters()), overlap=overlap)
    expected = train(near, KINDS["Adam"](near.parameters()), change)
    found = train(far, wrapped, change)
    assert float((found - expected).norm() / expected.norm()) <= FLOAT32
    assert wrapped.receipt is not None
    assert wrapped.receipt.outcome is Outcome.APPLIED
    if change in (plain, closure, frozen):
        assert wrapped._early.allowed is overlap, "nothing changed, so gradients still go early"


def test_overlap_gives_the_same_bits(remote: Remote) -> None:
    first, second = model(), model()
    a = train(first, remote(first.parameters(), optim.Adam(lr=0.01), overlap=True), plain)
    b = train(second, remote(second.parameters(), optim.Adam(lr=0.01), overlap=False), plain)
    assert torch.equal(a, b)


def test_grad_scaler_skips_and_unscales(remote: Remote) -> None:
    def scaled(net: nn.Module, optimizer: Optimizer) -> tuple[Tensor, float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
        for i, batch in enumerate(batches(count=20)):
            optimizer.zero_grad()
            loss = loss_of(net, batch) * (float("inf") if i == 7 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return flat(net), scaler.get_scale()

    near, far = model(), model()
    expected = scaled(near, KINDS["Adam"](near.parameters()))
    found = scaled(far, remote(KINDS["Adam"](far.parameters())))
    assert expected[1] == found[1]
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) <= FLOAT32


def test_groups_may_differ_in_any_constant(remote: Remote) -> None:
    near, far = model(), model()
    rule = optim.Adam(lr=0.01, eps_inside_sqrt=False)
    ours = remote(
        [
            {"params": far[0].parameters(), "beta1": 0.5, "weight_decay": 0.1},
            {"params": far[2].parameters(), "beta2": 0.9},
        ],
        rule,
    )
    theirs = torch.optim.AdamW(
        [
            {"params": near[0].parameters(), "betas": (0.5, 0.999), "weight_decay": 0.1},
            {"params": near[2].parameters(), "betas": (0.9, 0.9), "weight_decay": 0.0},
        ],
        lr=0.01,
        eps=1e-8,
    )
    expected, found = train(near, theirs, plain), train(far, ours, plain)
    assert float((found - expected).norm() / expected.norm()) <= FLOAT32


def test_two_trainers_share_a_job(remote: Remote) -> None:
    first, second = model(), copy.deepcopy(model())
    for parameter in second.parameters():
        parameter.data.zero_()
    one = remote(first.parameters(), optim.SGD(lr=0.1), job="shared")
    two = remote(second.parameters(), optim.SGD(lr=0.1), job="shared", pusher="two")
    assert torch.equal(flat(first), flat(second)), "the first one's parameters start the job"
    batch = next(batches())
    loss_of(first, batch).backward()
    one.step()
    loss_of(second, batch).backward()
    two.step()
    assert two.receipt is not None
    assert two.receipt.staleness == 1


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("consistency", "bsp", "consistency: the job has async, this optimizer bsp"),
        ("sparse", "lazy", "sparse: the job has exact, this optimizer lazy"),
        ("max_staleness", 4, "max_staleness: the job has 3, this optimizer 4"),
        ("staleness_lr", "none", "staleness_lr: the job has inverse, this optimizer none"),
        ("delay_compensation", 0.1, r"delay_compensation: the job has 0\.3, this optimizer 0\.1"),
    ],
)
def test_a_job_of_another_mode_is_not_joined(remote: Remote, option: str, value: Any, says: str) -> None:
    """Also where tensors have the options' names."""
    mode = {
        "consistency": "ASYNC",
        "sparse": "exact",
        "max_staleness": 3,
        "staleness_lr": "inverse",
        "delay_compensation": 0.3,
    }
    named = [(name, nn.Parameter(torch.zeros(2))) for name in ("consistency", "sparse")]
    job = remote(named, optim.SGD(lr=1.0), **mode).client.job
    remote(named, optim.SGD(lr=1.0), job=job, **mode)
    with pytest.raises(Conflict, match=says):
        remote(named, optim.SGD(lr=1.0), job=job, **{**mode, option: value})


def test_updates_are_counted_on_after_a_restart(remote: Remote) -> None:
    """Adagrad's lr_decay counts them; here it makes the rate lr / t."""
    weight = nn.Parameter(torch.zeros(1))
    job = f"job-{uuid.uuid4().hex[:12]}"

    def made() -> RemoteOptimizer:
        return remote(torch.optim.Adagrad([weight], lr=1.0, lr_decay=1.0, eps=0.0), job=job)

    def step(optimizer: RemoteOptimizer) -> float:
        before = float(weight.detach())
        weight.grad = torch.ones(1)
        optimizer.step()
        return before - float(weight.detach())

    first = made()
    steps = [step(first) for _ in range(2)]
    state = first.state_dict()
    first.close()
    second = made()
    second.load_state_dict(state)
    steps.append(step(second))
    assert steps == pytest.approx([1 / t / t**0.5 for t in (1, 2, 3)], rel=1e-5)


def test_a_push_that_backward_began_does_not_hold_a_pull_up(remote: Remote) -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = remote([weight], optim.SGD(lr=1.0, momentum=0.0), overlap=True)
    state = optimizer.state_dict()
    (weight.sum() * 2.0).backward()  # and no step
    optimizer.load_state_dict(state)
    weight.grad = None
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [-1.0] * 3


def test_gradients_that_come_on_several_threads_begin_one_push(remote: Remote) -> None:
    """As autograd's threads, one a device, call the hooks; here threads of our own do."""
    weights = [nn.Parameter(torch.zeros(4)) for _ in range(8)]
    named = [(f"w{i}", weight) for i, weight in enumerate(weights)]
    optimizer = remote(named, optim.SGD(lr=1.0, momentum=0.0), overlap=True)
    for _ in range(5):
        for weight in weights:
            weight.grad = torch.ones(4)
        together = threading.Barrier(len(weights))

        def hook(weight: nn.Parameter, together: threading.Barrier = together) -> None:
            together.wait(10.0)
            optimizer._accumulated(weight)

        threads = [threading.Thread(target=hook, args=(weight,)) for weight in weights]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert optimizer._early.push is not None
        assert len(optimizer._early.push.gradients) == len(weights), "all of them are under way before step"
        optimizer.step()
    assert [weight.tolist() for weight in weights] == [[-5.0] * 4] * 8
    assert optimizer.client.seq == 5


def test_state_dict_goes_through_a_file(remote: Remote, tmp_path: Any) -> None:
    net = model()
    optimizer = remote(net.parameters(), optim.Adam(lr=0.01))
    scheduler = StepLR(optimizer, 1, 0.5)
    loss_of(net, next(batches())).backward()
    optimizer.step()
    scheduler.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    assert state["remote"]["job"] == optimizer.client.job
    again = model()
    resumed = remote(again.parameters(), optim.Adam(lr=0.01), job=optimizer.client.job)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.005
    assert torch.equal(flat(again), flat(net))
    with pytest.raises(Conflict, match="the state is of job"):
        remote(model().parameters(), optim.Adam(lr=0.01)).load_state_dict(state)


def test_int8_feeds_its_error_back_here_too(remote: Remote) -> None:
    """Equal gradients: after 40 steps the sum is right to one quantum, not 40."""
    weight = nn.Parameter(torch.zeros(256))
    optimizer = remote([weight], optim.SGD(lr=1.0, momentum=0.0), wire_dtype="int8")
    gradient = torch.linspace(-1, 1, 256) ** 3
    for _ in range(40):
        optimizer.zero_grad()
        (weight * gradient).sum().backward()
        optimizer.step()
    assert float((weight.detach() + 40 * gradient).abs().max()) < 1.1 / 127


def test_an_early_push_that_has_ended_is_sent_again(remote: Remote) -> None:
    """A step that takes longer than a call may: the push begun in backward has given up by then."""
    net = model()
    optimizer = remote(net.parameters(), optim.SGD(lr=1.0, momentum=0.0), timeout_s=2.0)
    before = flat(net)
    loss_of(net, next(batches())).backward()
    push = optimizer._early.push
    assert push is not None
    for future in push.futures:
        assert future.exception(timeout=20) is not None
    optimizer.step()
    gradient = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(flat(net), before - gradient)


def test_a_gradient_that_is_not_finite_changes_nothing(remote: Remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optim.Adam(lr=0.01))
    before = flat(net)
    (loss_of(net, next(batches())) * float("nan")).backward()
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        optimizer.step()
    assert torch.equal(flat(net), before)
    optimizer.zero_grad()
    loss_of(net, next(batches())).backward()
    optimizer.step()
    assert not torch.equal(flat(net), before)


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "NAdam": (lambda net: torch.optim.NAdam(net.parameters()), "optimizer: NAdam cannot be reproduced"),
    "differentiable": (
        lambda net: torch.optim.Adam(net.parameters(), differentiable=True),
        "differentiable: cannot",
    ),
    "half": (lambda net: torch.optim.SGD(net.half().parameters(), lr=0.1), "is a torch.float16 parameter"),
    "slots": (
        lambda net: torch.optim.Adam(
            [{"params": net[0].parameters()}, {"params": net[2].parameters(), "amsgrad": True}]  # type: ignore[index]
        ),
        "give all tensors of a job one kind of rule",
    ),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_reproduced_is_refused_by_name(remote: Remote, make: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        remote(make(model()))
