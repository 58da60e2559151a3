"""torch.optim and the rules are one table: there and back, and on with the training on the other side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from adamserve import optim
from adamserve.errors import InvalidArgument
from adamserve.optim import torch_map
from tests.optim.oracle import oracle

Options = dict[str, Any]

TAKEN: dict[type[torch.optim.Optimizer], dict[str, tuple[Any, ...]]] = {
    torch.optim.SGD: {
        "momentum": (0, 0.9),
        "dampening": (0, 0.5),
        "nesterov": (False, True),
        "weight_decay": (0, 0.1),
    },
    torch.optim.Adam: {
        "betas": ((0.9, 0.999), (0.8, 0.99)),
        "amsgrad": (False, True),
        "weight_decay": (0, 0.1),
        "decoupled_weight_decay": (False, True),
    },
    torch.optim.AdamW: {"amsgrad": (False, True), "weight_decay": (0, 0.1), "eps": (1e-8, 1e-6)},
    torch.optim.Adamax: {"betas": ((0.9, 0.999), (0.8, 0.99)), "weight_decay": (0, 0.1), "eps": (1e-8, 1e-6)},
    torch.optim.Adagrad: {"lr_decay": (0, 0.01), "weight_decay": (0, 0.1), "eps": (1e-10, 1e-6)},
    torch.optim.RMSprop: {
        "alpha": (0.99, 0.9),
        "momentum": (0, 0.9),
        "centered": (False, True),
        "weight_decay": (0, 0.1),
        "eps": (1e-8, 1e-6),
    },
}
"""Every option that changes what an optimizer computes, with its default and another value."""


def every_option_set() -> Iterator[tuple[type[torch.optim.Optimizer], Options]]:
    for kind, taken in TAKEN.items():
        for values in product(*taken.values()):
            options = dict(zip(taken, values, strict=True))
            if not options.get("nesterov") or (options["momentum"] and not options["dampening"]):
                yield kind, {"lr": 0.05, **options}


CASES = list(every_option_set())
every_case = pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{kind.__name__}-{options}" for kind, options in CASES]
)

STEPS = 20
N = 30


def made(kind: Any, options: Mapping[str, Any], w: torch.Tensor) -> tuple[Any, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(w.clone())
    return kind([parameter], **options), parameter


def options_of(optimizer: torch.optim.Optimizer) -> Options:
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


def gradients(steps: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(steps, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


@every_case
def test_a_group_becomes_a_rule_and_the_rule_the_group(kind: Any, options: Options) -> None:
    """AdamW without weight decay is Adam, and decoupled Adam is AdamW: of these one name comes back."""
    start = torch.zeros(N, dtype=torch.float64)
    original, _ = made(kind, options, start)
    group = original.param_groups[0]
    rule = torch_map.rule_of(kind, group)
    form = torch_map.form_of([rule])
    back, _ = made(getattr(torch.optim, form.optimizer), form.options(rule), start)
    expected = options_of(original)
    if isinstance(original, torch.optim.Adam):
        decoupled = bool(group["decoupled_weight_decay"] and group["weight_decay"])
        assert form.optimizer == ("AdamW" if decoupled else "Adam")
        expected["decoupled_weight_decay"] = decoupled
    else:
        assert type(back) is kind
    assert options_of(back) == expected
    assert torch_map.rule_of(type(back), back.param_groups[0]) == rule
    assert form.notes(rule) == []


@every_case
@pytest.mark.parametrize("before", [0, 1, STEPS])
def test_torch_goes_on_from_the_slots(kind: Any, options: Options, before: int) -> None:
    """Some steps here and the others in plain torch end where the float64 oracle does, which takes all of them.

    All three compute in float64, in another order of the same operations: some 40 roundings of 1e-16, of numbers near
    1, and 1e-12 is a hundred times as much. torch's own state after the first steps has the same names and numbers.
    """
    start = torch.linspace(-1, 1, N, dtype=torch.float64)
    given = gradients(2 * STEPS)
    local, _ = made(kind, options, start)
    rule = torch_map.rule_of(kind, local.param_groups[0])
    w, slots = start.clone(), rule.init(start)
    for t, g in enumerate(given[:before], start=1):
        rule.step_(w, g, slots, t)

    form = torch_map.form_of([rule])
    torchs, parameter = made(getattr(torch.optim, form.optimizer), form.options(rule), w)
    state = torchs.state_dict()
    state["state"] = {0: entry} if (entry := form.state(rule, slots, before)) else {}
    torchs.load_state_dict(state)
    for g in given[before:]:
        parameter.grad = g.clone()
        torchs.step()

    expected, update = start.numpy().copy(), oracle(rule)
    for t, g in enumerate(given, start=1):
        expected = update(expected, g.numpy(), t)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-12)


@every_case
def test_the_state_is_torchs_own(kind: Any, options: Options) -> None:
    start = torch.linspace(-1, 1, N, dtype=torch.float64)
    local, parameter = made(kind, options, start)
    rule = torch_map.rule_of(kind, local.param_groups[0])
    w, slots = start.clone(), rule.init(start)
    for t, g in enumerate(gradients(STEPS), start=1):
        parameter.grad = g.clone()
        local.step()
        rule.step_(w, g, slots, t)
    found = torch_map.form_of([rule]).state(rule, slots, STEPS)
    expected = {name: value for name, value in local.state[parameter].items() if value is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


SLIDES: list[tuple[optim.Rule, str]] = [
    (optim.SGD(lr=0.1, momentum=0.0, l2=0.1), "SGD"),
    (optim.SGD(lr=0.1, momentum=0.9), "SGD"),
    (optim.RMSProp(lr=0.01, eps=1e-8, eps_inside_sqrt=False), "RMSprop"),
    (optim.Adam(lr=0.01, eps_inside_sqrt=False, weight_decay=0.1), "AdamW"),
]


@pytest.mark.parametrize(("rule", "optimizer"), SLIDES, ids=str)
def test_the_slides_rules_go_on_in_torch_too(rule: optim.Rule, optimizer: str) -> None:
    form = torch_map.form_of([rule])
    assert form.optimizer == optimizer
    start = torch.linspace(-1, 1, N, dtype=torch.float64)
    given = gradients(2 * STEPS)
    w, slots = start.clone(), rule.init(start)
    torchs, parameter = made(getattr(torch.optim, optimizer), form.options(rule), start)
    for t, g in enumerate(given, start=1):
        if t == STEPS + 1:
            torchs.load_state_dict({**torchs.state_dict(), "state": {0: form.state(rule, slots, STEPS)}})
            parameter.data.copy_(w)
        if t > STEPS:
            parameter.grad = g.clone()
            torchs.step()
        rule.step_(w, g, slots, t)
    torch.testing.assert_close(parameter.detach(), w, rtol=0, atol=1e-12)


REFUSED: list[tuple[list[optim.Rule], str]] = [
    ([optim.LpAdam()], "torch has no LpAdam "),
    ([optim.NesterovRMSProp()], "torch has no NesterovRMSProp "),
    ([optim.SGD(weight_decay=0.1)], "torch has no SGD with weight_decay=0.1"),
    ([optim.Adam(weight_decay=0.1, l2=0.2)], "torch has no Adam with l2=0.2 and weight_decay=0.1"),
    (
        [optim.Adam(weight_decay=0.1), optim.Adam(l2=0.2)],
        "torch has no Adam with l2=0.2 and weight_decay=0.1",
    ),
    ([optim.Adam(beta2=1.0)], r"torch has no Adam with beta2=1.0"),
    ([optim.Nesterov(momentum=0.0)], r"torch has no Nesterov with momentum=0.0"),
]


@pytest.mark.parametrize(("rules", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_rule_that_torch_lacks_is_refused_by_name(rules: list[optim.Rule], says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"rule: {says}"):
        torch_map.form_of(rules)


def test_a_velocity_cannot_be_divided_by_a_rate_of_zero() -> None:
    rule = optim.SGD(lr=0.0, momentum=0.9)
    with pytest.raises(InvalidArgument, match="lr: torch keeps the velocity over the rate"):
        torch_map.form_of([rule]).state(rule, {"velocity": torch.ones(3)}, 5)


def test_a_foreign_optimizer_of_a_known_name_is_refused() -> None:
    class Adam(torch.optim.Adam):
        """It may compute anything."""

    says = r"optimizer: Adam cannot be reproduced \(wrap one of SGD, Adam, AdamW, Adamax, Adagrad, RMSprop\)"
    with pytest.raises(InvalidArgument, match=says):
        torch_map.rule_of(Adam, {})
