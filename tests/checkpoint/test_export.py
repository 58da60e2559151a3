"""An export goes on in plain torch as it would have gone on here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamserve import checkpoint, optim
from adamserve.checkpoint import Manifest
from adamserve.checkpoint.export import export_torch
from adamserve.errors import InvalidArgument
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.shard.geometry import partition
from adamserve.shard.ledger import Decided
from adamserve.shard.shard import Shard
from adamserve.values import Array, Push, ShardState, Stamp, TensorSpec

TENSORS = [TensorSpec("a", (5, 3), "float64"), TensorSpec("b", (4,), "float64")]
STEPS = 12

RULES: list[optim.Rule] = [
    optim.SGD(lr=0.1, momentum=0.0),
    optim.SGD(lr=0.1, momentum=0.9, l2=0.01),
    optim.Nesterov(lr=0.1, momentum=0.9),
    optim.AdaGrad(lr=0.1, eps=1e-10, eps_inside_sqrt=False),
    optim.RMSProp(lr=0.01, decay=0.95, eps=1e-8, eps_inside_sqrt=False),
    optim.Adam(lr=0.01, eps_inside_sqrt=False),
    optim.Adam(lr=0.01, eps_inside_sqrt=False, amsgrad=True, l2=0.1),
    optim.Adam(lr=0.01, eps_inside_sqrt=False, weight_decay=0.1),
    optim.AdaMax(lr=0.01, eps=1e-8),
    optim.TorchSGD(lr=0.1, momentum=0.9, dampening=0.5),
    optim.TorchRMSprop(lr=0.01, momentum=0.9, centered=True),
]


def pull_towards_one(w: Array) -> Array:
    """A gradient that depends on where it is taken, so that the look-ahead point matters."""
    return 0.5 * (w - 1.0) + np.sin(3.0 * w)


def shard_for(rule: optim.Rule, **options: Any) -> Shard:
    rng = np.random.default_rng(0)
    initial = {spec.name: rng.normal(size=spec.numel) for spec in TENSORS}
    shard = Shard(
        partition=partition(TENSORS, 1),
        state=ShardState(0, Stamp(1, 0), (), {"w": initial}),
        rule=rule,
        consistency=consistency.Async(),
        **options,
    )
    shard.join("a", lease_s=60.0)
    return shard


def advance(shard: Shard, first: int, last: int, names: str = "ab") -> None:
    for seq in range(first, last + 1):
        flat = shard.read(training=True)["float64"].copy()
        gradients = {"a": pull_towards_one(flat[:15]), "b": pull_towards_one(flat[15:])}
        gradients = {name: gradients[name] for name in names}
        answer = shard.offer(shard.check(Push("a", seq, shard.stamp, gradients)))
        assert isinstance(answer, Decided)


def save(shard: Shard, rule: optim.Rule, root: Path, **fields: Any) -> Path:
    folder = root / "00000001"
    folder.mkdir()
    entry = checkpoint.seal_shard(checkpoint.write_shard(folder, shard.state()))
    manifest = Manifest(
        number=1,
        created="",
        config=JobConfig(
            name="job",
            tensors=tuple(TENSORS),
            rule=optim.to_dict(rule),
            consistency={"mode": "async"},
            **fields,
        ),
        shards=(entry,),
    )
    checkpoint.write_manifest(folder, manifest)
    return folder


def continued(document: Any, groups: Sequence[str] = ("ab",)) -> dict[str, Array]:
    """Parameters after more steps in plain torch, from what was exported."""
    parameters = {name: torch.nn.Parameter(w.clone()) for name, w in document["model"].items()}
    made: Any = getattr(torch.optim, document["optimizer_class"])(
        [{"params": [parameters[name] for name in names]} for names in groups], lr=123.0
    )
    made.load_state_dict(document["optimizer"])
    for _ in range(STEPS):
        for parameter in parameters.values():
            parameter.grad = torch.from_numpy(pull_towards_one(parameter.detach().numpy()))
        made.step()
    return {name: parameter.detach().numpy().reshape(-1) for name, parameter in parameters.items()}


def assert_goes_on(found: Mapping[str, Array], shard: Shard, rule: optim.Rule) -> None:
    """Both compute in float64; the order of operations differs."""
    advance(shard, STEPS + 1, 2 * STEPS)
    expected = shard.read(training=rule.has_lookahead)["float64"]
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"]]), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_torch_goes_on_where_the_checkpoint_stopped(rule: optim.Rule, tmp_path: Path) -> None:
    shard = shard_for(rule)
    advance(shard, 1, STEPS)
    notes = export_torch(save(shard, rule, tmp_path), tmp_path / "out.pt")
    assert notes == []
    assert_goes_on(continued(torch.load(tmp_path / "out.pt", weights_only=True)), shard, rule)


def test_rules_by_tensor_become_param_groups(tmp_path: Path) -> None:
    """As AdamW is used: one group decays, the other does not. Only AdamW can be both."""
    rule = optim.Adam(lr=0.01, eps_inside_sqrt=False)
    other = replace(rule, weight_decay=0.1, beta1=0.5)
    shard = shard_for(rule, tensor_rules={"b": other})
    advance(shard, 1, STEPS)
    folder = save(shard, rule, tmp_path, tensor_rules={"b": optim.to_dict(other)})
    assert export_torch(folder, tmp_path / "out.pt") == []
    document = torch.load(tmp_path / "out.pt", weights_only=True)
    assert document["optimizer_class"] == "AdamW"
    groups = document["optimizer"]["param_groups"]
    assert [(g["param_names"], g["weight_decay"]) for g in groups] == [(["a"], 0.0), (["b"], 0.1)]
    assert_goes_on(continued(document, ["a", "b"]), shard, rule)


@pytest.mark.parametrize(
    "rule",
    [
        optim.AdaGrad(lr=0.1, eps=1e-10, eps_inside_sqrt=False),
        optim.TorchSGD(lr=0.1, momentum=0.9, dampening=0.5),
        optim.Adam(lr=0.01, eps_inside_sqrt=False),
    ],
    ids=repr,
)
def test_a_tensor_without_an_update_begins_in_torch(rule: optim.Rule, tmp_path: Path) -> None:
    shard = shard_for(rule)
    advance(shard, 1, STEPS, names="a")
    export_torch(save(shard, rule, tmp_path), tmp_path / "out.pt")
    assert_goes_on(continued(torch.load(tmp_path / "out.pt", weights_only=True)), shard, rule)


@pytest.mark.parametrize(
    ("rule", "note"),
    [
        (optim.Adam(lr=0.1), "outside the root"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, lr_schedule="inverse_sqrt"), "schedule"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, lr_decay=0.5), "lr_decay=0.5"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, bias_correction=False), "bias_correction"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, box=(-1.0, 1.0)), "the box (-1.0, 1.0)"),
        (optim.AdaMax(lr=0.1), "divides 0 by 0"),
    ],
)
def test_what_torch_does_otherwise_is_said(rule: optim.Rule, note: str, tmp_path: Path) -> None:
    shard = shard_for(rule)
    [found] = export_torch(save(shard, rule, tmp_path), tmp_path / "out.pt")
    assert note in found


@pytest.mark.parametrize("rule", [optim.LpAdam(lr=0.1, p=3), optim.NesterovRMSProp(lr=0.1, momentum=0.5)])
def test_a_rule_that_torch_lacks_is_refused_by_name(rule: optim.Rule, tmp_path: Path) -> None:
    folder = save(shard_for(rule), rule, tmp_path)
    with pytest.raises(InvalidArgument, match=f"torch has no {type(rule).__name__}.*--model-only"):
        export_torch(folder, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    export_torch(folder, tmp_path / "out.pt", model_only=True)
    assert sorted(torch.load(tmp_path / "out.pt", weights_only=True)["model"]) == ["a", "b"]
