"""Hugging Face accelerate prepares and drives a RemoteOptimizer as it does any other."""

from __future__ import annotations

import uuid

import accelerate
import pytest
import torch
from torch import nn

from adamserve import RemoteOptimizer
from adamserve.cluster.serving import Ready

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def train(target: str | None) -> list[torch.Tensor]:
    """Train with gradient accumulation and clipping by accelerate, locally or over the service."""
    torch.manual_seed(1)
    model: nn.Module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if target is not None:
        optimizer = RemoteOptimizer.wrap(
            optimizer, target, job=f"accelerate-{uuid.uuid4().hex[:8]}", timeout_s=20
        )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, driven, scheduled = accelerator.prepare(model, optimizer, scheduler)
    generator = torch.Generator().manual_seed(2)
    for _ in range(40):
        x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        with accelerator.accumulate(prepared):
            accelerator.backward(nn.functional.cross_entropy(prepared(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            driven.step()
            scheduled.step()
            driven.zero_grad()
    if isinstance(optimizer, RemoteOptimizer):
        optimizer.close()
    return [parameter.detach().cpu() for parameter in model.parameters()]


def test_accelerate_trains_as_it_does_locally(service: Ready) -> None:
    for near, far in zip(train(None), train(service.target), strict=True):
        torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-6)
