"""What a training run is: its options, checked, and what of them a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adamserve import checkpoint, optim
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Ports
from adamserve.errors import InvalidArgument
from adamserve.observe.logs import LogConfig
from adamserve.regret import check_theorem
from adamserve.shard import consistency
from adamserve.shard.consistency import Consistency
from adamserve.train.task import Part, Recipe

JOB = "train"
"""Name of a training run's one job."""

KEPT = ("workers", "batch", "seed")
"""Numbers of a run that `resume` may not change."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Fields without a word here are the options of `adamserve train` of the same names.

    Attributes:
        recipe: what is trained.
        rule: the update rule.
        consistency: when a push may be applied.
        security: tokens of others than the run's own workers, who may push and look too.
        log: how the run's processes log.
    """

    recipe: Recipe
    rule: optim.Rule = field(default_factory=lambda: optim.Adam(lr=1e-3))
    consistency: Consistency = field(default_factory=consistency.Async)
    shards: int = 2
    workers: int = 2
    epochs: int = 20
    batch: int = 32
    seed: int = 0
    run_dir: Path
    resume: bool = False
    address: str | None = None
    shard_ports: Ports | None = None
    security: Security = field(default_factory=Security)
    insecure: bool = False
    gpus_per_shard: float = 0.0
    gpus_per_worker: float = 0.0
    lease_s: float = 10.0
    checkpoint_every_s: float = 30.0
    max_steps: int | None = None
    target_loss: float | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    sd_file: Path | None = None
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InvalidArgument(f"must be in 0 to 2^32 - 1, got {self.seed}", field="seed")
        self.part(0)  # which checks its own fields
        for name, least in {"shards": 1, "gpus_per_shard": 0, "gpus_per_worker": 0}.items():
            if not least <= getattr(self, name) < float("inf"):
                raise InvalidArgument(f"must be at least {least}, got {getattr(self, name)}", field=name)
        for name in ("lease_s", "checkpoint_every_s", "target_loss"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgument(f"must be positive, got {getattr(self, name)}", field=name)
        if self.sd_file is not None and self.metrics_port is None:
            raise InvalidArgument("there are no metrics", field="sd_file", fix="give --metrics-port too")

    @property
    def theorem(self) -> optim.Adam | None:
        """The rule, where the run counts regret and the theorem's bound on it is about the rule.

        It is about a run from its first update on: one that goes on counts its regret from there, at later rates.
        """
        if self.resume or not self.recipe.counts_regret or not isinstance(self.rule, optim.Adam):
            return None
        try:
            check_theorem(self.rule)
        except InvalidArgument:
            return None
        return self.rule

    def named(self, *names: str) -> dict[str, Any]:
        """Some of the fields by name."""
        return {name: getattr(self, name) for name in names}

    def part(self, rank: int) -> Part:
        """One worker's part in the run."""
        device = "cuda" if self.gpus_per_worker else "cpu"
        named = self.named("workers", "batch", "epochs", "seed", "max_steps", "target_loss")
        return Part(rank=rank, device=device, **named)

    def settings(self) -> dict[str, Any]:
        """What the job is, as JSON: kept in every checkpoint, and not to be changed by `resume`."""
        return {
            **self.recipe.settings(),
            "rule": optim.to_dict(self.rule),
            "consistency": consistency.to_dict(self.consistency),
            **self.named(*KEPT),
        }

    def resumed(self) -> TrainConfig:
        """This run with the settings of the checkpoint that it goes on from."""
        kept = kept_settings(self.run_dir)
        return replace(
            self,
            recipe=self.recipe.resumed(kept),
            rule=optim.from_dict(kept["rule"]),
            consistency=consistency.from_dict(kept["consistency"]),
            **{name: kept[name] for name in KEPT},
        )


def kept_settings(run_dir: Path) -> Mapping[str, Any]:
    """The settings in a run's newest checkpoint.

    Raises:
        AdamServeError: there is none, or it is damaged.
    """
    _, manifest = checkpoint.newest(run_dir / "checkpoints" / JOB)
    return manifest.config.extra
