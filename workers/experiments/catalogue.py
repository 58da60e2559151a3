"""Every experiment by name."""

from __future__ import annotations

from collections.abc import Mapping

from workers.experiments.adamax import AdaMaxStudy
from workers.experiments.base import Experiment
from workers.experiments.comparison import COMPARISONS
from workers.experiments.convex import RegretStudy
from workers.experiments.vae import BiasCorrection

_ALL: tuple[Experiment, ...] = (*COMPARISONS, BiasCorrection(), AdaMaxStudy(), RegretStudy())

EXPERIMENTS: Mapping[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""In the order in which they are run."""
