"""AdaMax: beside Adam on a network, as the limit of the L^p rules, and the size of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adamserve import optim
from adamserve.values import Array
from workers.experiments import figures
from workers.experiments.base import Claim, Experiment, Findings, Settings, by_scale
from workers.experiments.comparison import LOGREG_MNIST, MLP_MNIST
from workers.experiments.lab import Lab
from workers.experiments.trial import Trial

SOURCE = "slides p. 27-28; Kingma & Ba 2015, section 7.1"

NORMS = (2.0, 4.0, 16.0, 64.0, 256.0)
"""The p of the rules that go to AdaMax."""

RATE = 0.01
"""Of AdaMax and the L^p rules beside it."""

STEPS = by_scale(60, 300, 1000)
"""Updates for the limit and the steps' sizes."""

BESIDE = replace(
    MLP_MNIST,
    name="adamax",
    title="AdaMax, the limit of the L^p generalisation",
    rules={"Adam": MLP_MNIST.rules["Adam"], "AdaMax": optim.AdaMax(lr=2e-3)},
    claims=(),
    differs=("Neither the slides nor the paper train with AdaMax; the curves claim nothing.",),
)


def _run(lab: Lab, settings: Settings, folder: Path) -> Findings:
    beside = BESIDE.run(lab, settings, folder)
    steps = STEPS[settings.scale]
    trial = replace(
        LOGREG_MNIST.trial(settings, optim.AdaMax(lr=RATE)),
        epochs=10**6,
        workers=1,
        dtype="float64",  # the differences of float32 parameters are not steps to 1e-6
    )
    sizes, adamax = _drive(lab, trial, steps)
    distances = {}
    for p in NORMS:
        _, end = _drive(lab, replace(trial, rule=optim.LpAdam(lr=RATE, p=p)), steps)
        distances[p] = float(np.linalg.norm(end - adamax) / np.linalg.norm(adamax))
    figures.table(folder / "limit.csv", [("p", "distance_from_adamax"), *distances.items()])
    falling = list(distances.values())
    return replace(
        beside,
        claims=[
            Claim(
                text=f"over {steps} updates no step of AdaMax exceeds the rate in any element",
                source=SOURCE,
                numbers={"largest step / rate": max(sizes)},
                held=max(sizes) <= 1.0 + 1e-6,
            ),
            Claim(
                text="the L^p rules go to AdaMax as p grows: closer with every p, within 1% at 256",
                source=SOURCE,
                numbers={f"p = {p:g}": distance for p, distance in distances.items()},
                held=falling == sorted(falling, reverse=True) and falling[-1] < 0.01,
            ),
        ],
        figures=[*beside.figures, _draw(folder, distances, sizes)],
        what=[
            *beside.what,
            f"Limit and steps: logistic regression on {trial.data.name}, {steps} updates from 0 at rate {RATE:g},"
            " one worker, float64.",
        ],
        differs=[
            *beside.differs,
            "The slides' bound holds as beta2 goes to 1; for 0.999 the exact one is 1.009 times the rate"
            " (`AdaMax.step_bound`).",
        ],
    )


def _drive(lab: Lab, trial: Trial, steps: int) -> tuple[list[float], Array]:
    """The max-norm of each update as a part of the rate, and where the training ends."""
    points: list[Array] = []
    lab.drive(trial, steps + 1, lambda w, gradient: points.append(w))
    return [float(np.abs(b - a).max()) / RATE for a, b in itertools.pairwise(points)], points[-1]


def _draw(folder: Path, distances: Mapping[float, float], sizes: Sequence[float]) -> str:
    figure, [[left, right]] = figures.grid(1, 2, width=9, height=3.6)
    left.loglog(list(distances), list(distances.values()), "o-", color="tab:blue")
    left.set(xlabel="p", ylabel="distance from AdaMax, relative", title="L^p rules go to AdaMax")
    right.plot(range(1, len(sizes) + 1), sizes, color="tab:blue")
    right.axhline(1.0, color="tab:red", linewidth=1)
    right.set(xlabel="update", ylabel="largest step / rate", title="AdaMax's steps")
    return figures.save(figure, folder, "adamax-limit")


ADAMAX = Experiment(name=BESIDE.name, title=BESIDE.title, needs=BESIDE.needs, run=_run)
