"""The paper's experiments, as jobs on the service: what the entry point of `adamserve.experiments` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adamserve.shard.consistency import Consistency

NAMES = ("logreg-mnist", "logreg-imdb", "mlp-mnist", "cnn-cifar10", "vae-bias", "adamax", "regret")
"""The experiments, in the order in which all are run."""


def run(
    names: Sequence[str],
    *,
    scale: str,
    seeds: int | None,
    shards: int,
    workers: int,
    consistency: Consistency,
    data_dir: Path | None,
    out: Path,
    address: str | None,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run some of the experiments, as `reproduce.reproduce` does; `seeds` None stands for as many as the scale has."""
    from workers.experiments.base import SEEDS, Scale, Settings
    from workers.experiments.catalogue import EXPERIMENTS
    from workers.experiments.reproduce import reproduce

    settings = Settings(
        scale=Scale(scale),
        data=data_dir is not None,
        seeds=SEEDS[Scale(scale)] if seeds is None else seeds,
        shards=shards,
        workers=workers,
        consistency=consistency,
    )
    chosen = [EXPERIMENTS[name] for name in names]
    return reproduce(chosen, settings, data_dir=data_dir, out=out, address=address, progress=progress)
