"""The paper's experiments, as jobs on the service: what the entry point of `adamserve.experiments` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMES = ("logreg-mnist", "logreg-imdb", "mlp-mnist", "cnn-cifar10", "vae-bias", "adamax", "regret")
"""The experiments, in the order in which all are run."""


def run(names: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """Run some of the experiments, as `reproduce.reproduce` does, which is loaded only now."""
    from workers.experiments.reproduce import reproduce

    return reproduce(names, **options)
