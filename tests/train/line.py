"""The smallest task: a line through noiseless points, with dropout on what goes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from adamserve.train.task import Part, Task


@dataclass(frozen=True)
class Line(Task[torch.Tensor]):
    """`slope` is the points'; NaN makes the first loss NaN."""

    slope: float = 2.0
    evaluated: bool = False

    @property
    def examples(self) -> int:
        return 12

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.25), nn.Linear(1, 1))

    def batches(self, part: Part) -> Callable[[int], torch.Tensor]:
        return lambda step: torch.from_numpy(part.examples(self.examples, step)).float()[:, None] / 12

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (model(batch) - self.slope * batch).square().mean()
        return loss

    def evaluate(self, model: nn.Module) -> Mapping[str, float] | None:
        points = torch.arange(12)[:, None] / 12
        return {"test_loss": float(self.loss(model, points))} if self.evaluated else None
