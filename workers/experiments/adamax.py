"""AdaMax: beside Adam on a network, as the limit of the L^p rules, and the size of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adamserve import optim
from adamserve.values import Array, Gradient
from workers.experiments import figures
from workers.experiments.base import Claim, Findings, Scale, Settings
from workers.experiments.comparison import COMPARISONS, Comparison, Contender, Finals
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Trial

SOURCE = "slides p. 27-28; Kingma & Ba 2015, section 7.1"

NORMS = (2.0, 4.0, 16.0, 64.0, 256.0)
"""The p of the rules that go to AdaMax."""

STEPS: Mapping[Scale, int] = {Scale.smoke: 60, Scale.cpu: 300, Scale.full: 1000}
"""Updates for the limit and the steps' sizes."""

_BY_NAME = {comparison.name: comparison for comparison in COMPARISONS}


class AdaMaxStudy:
    """The experiment."""

    name = "adamax"
    title = "AdaMax, the limit of the L^p generalisation"

    def run(self, lab: Lab, settings: Settings, folder: Path) -> Findings:
        """As `Experiment.run`."""
        beside = self._beside().run(lab, settings, folder)
        steps = STEPS[settings.scale]
        trial = replace(
            _BY_NAME["logreg-mnist"].trial(settings, "Adam", 0.01, 0),
            rule=optim.AdaMax(lr=0.01),
            epochs=10**6,
            workers=1,
            dtype="float64",  # the differences of float32 parameters are not steps to 1e-6
        )
        sizes, adamax = self._drive(lab, trial, steps)
        ratio = max(size / trial.rule.lr for size in sizes)
        distances = {}
        for p in NORMS:
            rule = optim.LpAdam(lr=0.01, p=p)
            _, end = self._drive(lab, replace(trial, rule=rule), steps)
            distances[p] = float(np.linalg.norm(end - adamax) / np.linalg.norm(adamax))
        figures.table(folder / "limit.csv", [("p", "distance_from_adamax"), *distances.items()])
        drawn = self._draw(folder, distances, [size / trial.rule.lr for size in sizes])
        falling = list(distances.values())
        return replace(
            beside,
            claims=[
                *beside.claims,
                Claim(
                    text=f"over {steps} updates no step of AdaMax exceeds the rate in any element",
                    source=SOURCE,
                    numbers={"largest step / rate": ratio},
                    held=ratio <= 1.0 + 1e-6,
                ),
                Claim(
                    text="the L^p rules go to AdaMax as p grows: closer with every p, within 1% at 256",
                    source=SOURCE,
                    numbers={f"p = {p:g}": distance for p, distance in distances.items()},
                    held=falling == sorted(falling, reverse=True) and falling[-1] < 0.01,
                ),
            ],
            figures=[*beside.figures, drawn],
            what=[
                *beside.what,
                f"Limit and steps: logistic regression on {trial.data.name}, {steps} updates from 0 at rate 0.01,"
                " one worker, float64.",
            ],
            differs=[
                *beside.differs,
                "The slides' bound holds as beta2 goes to 1; for 0.999 the exact one is 1.009 times the rate"
                " (`AdaMax.step_bound`).",
            ],
        )

    def needs(self, settings: Settings) -> Data:
        """As `Experiment.needs`."""
        return self._beside().needs(settings)

    def _beside(self) -> Comparison:
        mlp = _BY_NAME["mlp-mnist"]
        return replace(
            mlp,
            name=self.name,
            title="AdaMax beside Adam: multi-layer network on MNIST",
            contenders={
                "Adam": mlp.contenders["Adam"],
                "AdaMax": Contender(make=lambda lr: optim.AdaMax(lr=lr), rate=2e-3),
            },
            claims=_none,
            differs=("Neither the slides nor the paper train with AdaMax; the curves claim nothing.",),
        )

    def _drive(self, lab: Lab, trial: Trial, steps: int) -> tuple[list[float], Array]:
        """The max-norm of each update, and where it ends."""
        points: list[Array] = []

        def observe(w: Mapping[str, Array], gradients: Mapping[str, Gradient]) -> None:
            points.append(np.concatenate([a.astype(np.float64).ravel() for a in w.values()]))

        lab.drive(trial, steps + 1, observe=observe)
        return [float(np.abs(b - a).max()) for a, b in itertools.pairwise(points)], points[-1]

    def _draw(self, folder: Path, distances: Mapping[float, float], sizes: Sequence[float]) -> str:
        figure, [[left, right]] = figures.grid(1, 2, width=9, height=3.6)
        left.loglog(list(distances), list(distances.values()), "o-", color="tab:blue")
        left.set(xlabel="p", ylabel="distance from AdaMax, relative", title="L^p rules go to AdaMax")
        right.plot(range(1, len(sizes) + 1), sizes, color="tab:blue")
        right.axhline(1.0, color="tab:red", linewidth=1)
        right.set(xlabel="update", ylabel="largest step / rate", title="AdaMax's steps")
        return figures.save(figure, folder, "adamax-limit")


def _none(finals: Finals) -> Sequence[Claim]:
    return []
