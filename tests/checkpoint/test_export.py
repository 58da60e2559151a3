"""An export goes on in plain torch as it would have gone on here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamserve import checkpoint, optim
from adamserve.checkpoint import Manifest
from adamserve.checkpoint.export import export_torch
from adamserve.errors import InvalidArgument
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
]


def pull_towards_one(w: Array) -> Array:
    """A gradient that depends on where it is taken, so that the look-ahead point matters."""
    return 0.5 * (w - 1.0) + np.sin(3.0 * w)


def shard_for(rule: optim.Rule) -> Shard:
    rng = np.random.default_rng(0)
    initial = {spec.name: rng.normal(size=spec.numel) for spec in TENSORS}
    shard = Shard(
        partition=partition(TENSORS, 1),
        state=ShardState(0, Stamp(1, 0), (), {"w": initial}),
        rule=rule,
        consistency=consistency.Async(),
    )
    shard.join("a", lease_s=60.0)
    return shard


def advance(shard: Shard, first: int, last: int) -> None:
    for seq in range(first, last + 1):
        flat = shard.read(training=True)["float64"].copy()
        gradients = {"a": pull_towards_one(flat[:15]), "b": pull_towards_one(flat[15:])}
        answer = shard.offer(shard.check(Push("a", seq, shard.stamp, gradients)))
        assert isinstance(answer, Decided)


def save(shard: Shard, rule: optim.Rule, root: Path) -> Path:
    folder = root / "00000001"
    folder.mkdir()
    entry = checkpoint.seal_shard(checkpoint.write_shard(folder, shard.state()))
    manifest = Manifest(
        number=1,
        job="job",
        created="",
        tensors=tuple(TENSORS),
        rule=optim.to_dict(rule),
        consistency={"mode": "async"},
        shards=(entry,),
    )
    checkpoint.write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_torch_goes_on_where_the_checkpoint_stopped(rule: optim.Rule, tmp_path: Path) -> None:
    shard = shard_for(rule)
    advance(shard, 1, STEPS)
    notes = export_torch(save(shard, rule, tmp_path), tmp_path / "out.pt")
    assert notes == []
    document = torch.load(tmp_path / "out.pt", weights_only=True)
    parameters = [torch.nn.Parameter(document["model"][spec.name].clone()) for spec in TENSORS]
    made: Any = getattr(torch.optim, document["optimizer_class"])(parameters, lr=123.0)
    made.load_state_dict(document["optimizer"])
    for _ in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.from_numpy(pull_towards_one(parameter.detach().numpy()))
        made.step()
    advance(shard, STEPS + 1, 2 * STEPS)
    expected = shard.read(training=isinstance(rule, optim.Nesterov))["float64"]
    found = torch.cat([p.detach().reshape(-1) for p in parameters]).numpy()
    # Both compute in float64; the order of operations differs.
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("rule", "note"),
    [
        (optim.Adam(lr=0.1), "outside the root"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, lr_schedule="inverse_sqrt"), "schedule"),
        (optim.Adam(lr=0.1, eps_inside_sqrt=False, bias_correction=False), "bias_correction"),
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
