"""Rules side by side on one network: training cost against epochs, each rule at the best rate of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adamserve import optim
from workers.experiments import figures
from workers.experiments.base import (
    Claim,
    Findings,
    Scale,
    Settings,
    by_scale,
    described,
    differences,
    relative,
)
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Result, Trial, mean

STEP = math.sqrt(10.0)
"""Factor from one rate of the grid to the next."""

EXTENSIONS = 3
"""How often the grid grows by a rate where the best one stands at its edge."""

Finals = Mapping[str, float]
"""By label the final training cost, mean over seeds."""

Judged = tuple[str, Finals, bool]
"""A claim, the numbers that decide it, and whether it holds."""

Grid = Mapping[str, Mapping[float, float]]
"""By label and rate, from the lowest, the final training cost of seed 0."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One scale of an experiment; `grid_epochs` is of the trainings that choose the rates, None for `epochs`."""

    epochs: int
    batch: int = 128
    examples: int | None = None
    grid_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An experiment of this form.

    Attributes:
        data, stand_in: what is trained on, with the files at hand and without; only the former is ever whitened.
        rules: by label, each at the rate in the middle of its grid's first three.
        claims: each says what it makes of the final costs.
        what, differs: in words; see `Findings`.
    """

    name: str
    title: str
    network: str
    data: str
    stand_in: str
    rules: Mapping[str, optim.Rule]
    sizes: Mapping[Scale, Size]
    claims: Sequence[Callable[[Finals], Judged]]
    source: str
    l2: float = 0.0
    whiten: bool = False
    what: str = ""
    differs: Sequence[str] = ()

    def run(self, lab: Lab, settings: Settings, folder: Path) -> Findings:
        log = folder / "trials.jsonl"
        grid = self._search(lab, settings, log)
        best = {label: min(found, key=found.__getitem__) for label, found in grid.items()}
        variants = {
            label: self.trial(settings, replace(rule, lr=best[label])) for label, rule in self.rules.items()
        }
        results = lab.run(variants, settings.seeds, log)
        finals = {label: mean(some, "final") for label, some in results.items()}
        self._write(folder, grid, results)
        [trial, *_] = variants.values()
        data, size = lab.data(trial.data), self.sizes[settings.scale]
        shown = {
            f"{label} (rate {best[label]:.3g})": [r.costs for r in some] for label, some in results.items()
        }
        final_rows = [["rule", "rate", "mean", "least", "most", "seconds"]]
        for label, some in results.items():
            costs = [r.final for r in some]
            numbers = map(figures.shown, (finals[label], min(costs), max(costs)))
            final_rows.append([label, f"{best[label]:.3g}", *numbers, f"{mean(some, 'seconds'):.1f}"])
        grid_rows = [["rule", *[f"rate {i + 1}" for i in range(max(map(len, grid.values())))]]]
        for label, found in grid.items():
            grid_rows.append([label, *[f"{r:.3g}: {figures.shown(cost)}" for r, cost in found.items()]])
        differs = [
            *self.differs,
            *([LOOK_AHEAD] if "Nesterov" in self.rules else []),
            *differences(data, self.data),
        ]
        if size.epochs != (epochs := self.sizes[Scale.full].epochs):
            differs.append(f"{size.epochs} epochs, where the paper has {epochs}.")
        if size.grid_epochs:
            differs.append(f"Rates are chosen after {size.grid_epochs} epochs.")
        differs += [
            f"{label}'s best rate, {best[label]:.3g}, is at the edge of its grid: a better one may lie beyond."
            for label, found in grid.items()
            if best[label] in (min(found), max(found))
        ]
        return Findings(
            claims=self.judge(finals),
            figures=[figures.curves(folder, self.name, shown, title=f"{self.network} on {data.name}")],
            tables={
                "Final training cost": final_rows,
                f"Rate grid (seed 0, {size.grid_epochs or size.epochs} epochs)": grid_rows,
            },
            what=[f"{self.what} {described(trial, data, settings)}"],
            differs=differs,
        )

    def judge(self, finals: Finals) -> list[Claim]:
        """What became of the claims."""
        return [
            Claim(text=text, source=self.source, numbers=numbers, held=held)
            for text, numbers, held in (claim(finals) for claim in self.claims)
        ]

    def needs(self, settings: Settings) -> Data:
        examples = self.sizes[settings.scale].examples
        return settings.choose(self.data, self.stand_in, examples=examples, whiten=self.whiten)

    def trial(self, settings: Settings, rule: optim.Rule, epochs: int | None = None) -> Trial:
        """One training of the comparison."""
        size = self.sizes[settings.scale]
        return Trial(
            network=self.network,
            data=self.needs(settings),
            rule=rule,
            batch=size.batch,
            epochs=epochs or size.epochs,
            l2=self.l2,
            workers=settings.workers,
            consistency=settings.consistency,
        )

    def _search(self, lab: Lab, settings: Settings, log: Path) -> Grid:
        """Each rule's grid of rates, grown up to `EXTENSIONS` times while the best one is at its edge; seed 0."""
        epochs = self.sizes[settings.scale].grid_epochs
        grid: dict[str, dict[float, float]] = {label: {} for label in self.rules}
        for _ in range(1 if settings.scale is Scale.smoke else 1 + EXTENSIONS):
            trials = {
                (label, rate): self.trial(settings, replace(rule, lr=rate), epochs)
                for label, rule in self.rules.items()
                for rate in _untried(rule.lr, grid[label])
            }
            for (label, rate), [result] in lab.run(trials, 1, log).items():
                grid[label][rate] = result.final
        return {label: dict(sorted(found.items())) for label, found in grid.items()}

    def _write(self, folder: Path, grid: Grid, results: Mapping[str, Sequence[Result]]) -> None:
        tried = [(label, *pair) for label, found in grid.items() for pair in found.items()]
        figures.table(folder / "grid.csv", [("rule", "rate", "final_cost"), *tried])
        costs = [
            (label, seed, epoch, cost)
            for label, some in results.items()
            for seed, result in enumerate(some)
            for epoch, cost in enumerate(result.costs, 1)
        ]
        figures.table(folder / f"{self.name}.csv", [("rule", "seed", "epoch", "training_cost"), *costs])


def _untried(rate: float, found: Mapping[float, float]) -> list[float]:
    """A grid's first three rates; then the one beyond the edge that the best one stands at, if it stands at one."""
    if not found:
        return [rate / STEP, rate, rate * STEP]
    best = min(sorted(found), key=found.__getitem__)
    if best == min(found):
        return [best / STEP]
    return [best * STEP] if best == max(found) else []


INVERSE_SQRT = (
    "Adam and Nesterov take rate/sqrt(t), as the paper has it for logistic regression;"
    " AdaGrad's own sum does as much."
)

LOOK_AHEAD = "Nesterov's costs are taken where its gradients are, a step of momentum ahead of its parameters."


def _lowest(label: str, within: float, finals: Finals) -> Judged:
    above = relative(finals[label], min(cost for name, cost in finals.items() if name != label))
    text = f"{label} ends lowest or within {within:.0%} of the lowest"
    return text, {**finals, "above the best other": above}, above <= within


def _alike(a: str, b: str, within: float, finals: Finals) -> Judged:
    low, high = sorted((finals[a], finals[b]))
    apart = relative(high, low)
    text = f"{a} and {b} end within {within:.0%} of each other"
    return text, {a: finals[a], b: finals[b], "relative difference": apart}, apart <= within


def _below(low: str, high: str, finals: Finals, *, within: float = 0.0) -> Judged:
    above = relative(finals[low], finals[high])
    text = f"{low} ends below {high}" + (f" or within {within:.0%} of it" if within else "")
    return text, {low: finals[low], high: finals[high], "relative difference": above}, above < within


_LOGREG: Mapping[str, optim.Rule] = {
    "AdaGrad": optim.AdaGrad(lr=0.03),
    "Nesterov": optim.Nesterov(lr=0.3, momentum=0.9, lr_schedule="inverse_sqrt"),
    "Adam": optim.Adam(lr=0.03, lr_schedule="inverse_sqrt"),
}

LOGREG_MNIST = Comparison(
    name="logreg-mnist",
    title="Logistic regression on MNIST",
    network="logreg",
    l2=1e-3,
    data="mnist",
    stand_in="digits",
    rules=_LOGREG,
    sizes=by_scale(Size(epochs=4, batch=64), Size(epochs=25), Size(epochs=45)),
    claims=[
        partial(_alike, "Adam", "Nesterov", 0.05),
        partial(_below, "Adam", "AdaGrad"),
        partial(_below, "Nesterov", "AdaGrad"),
    ],
    source="slides p. 21; Kingma & Ba 2015, section 6.1",
    what="L2-regularised (0.001)",
    differs=[INVERSE_SQRT],
)

LOGREG_IMDB = Comparison(
    name="logreg-imdb",
    title="Logistic regression on IMDB bags of words",
    network="logreg",
    data="imdb",
    stand_in="zipf",
    rules=_LOGREG,
    sizes=by_scale(Size(epochs=3, examples=2000), Size(epochs=8), Size(epochs=160)),
    claims=[
        partial(_below, "Adam", "AdaGrad", within=0.02),
        partial(_below, "Adam", "Nesterov"),
        partial(_below, "AdaGrad", "Nesterov"),
    ],
    source="slides p. 22; Kingma & Ba 2015, section 6.1",
    what="With half of the words dropped in each step:",
    differs=[INVERSE_SQRT],
)

MLP_MNIST = Comparison(
    name="mlp-mnist",
    title="Multi-layer network with dropout on MNIST",
    network="mlp",
    data="mnist",
    stand_in="digits",
    rules={
        "AdaGrad": optim.AdaGrad(lr=0.01),
        "RMSProp": optim.RMSProp(lr=3e-4, eps=1e-8),
        "Nesterov": optim.Nesterov(lr=0.03, momentum=0.9),
        "Adam": optim.Adam(lr=1e-3),
    },
    sizes=by_scale(Size(epochs=2, batch=64, examples=500), Size(epochs=10), Size(epochs=200)),
    claims=[partial(_lowest, "Adam", 0.02)],
    source="slides p. 23; Kingma & Ba 2015, section 6.2",
    differs=["The paper's AdaDelta is not among the slides' rules and is left out."],
)

CNN_CIFAR10 = Comparison(
    name="cnn-cifar10",
    title="Convolutional network with dropout on CIFAR-10",
    network="cnn",
    data="cifar10",
    stand_in="digits32",
    whiten=True,
    rules={
        "AdaGrad": optim.AdaGrad(lr=3e-3),
        "Nesterov": optim.Nesterov(lr=0.01, momentum=0.9),
        "Adam": optim.Adam(lr=3e-4),
    },
    sizes=by_scale(
        Size(epochs=2, batch=32, examples=64),
        Size(epochs=10, examples=10_000, grid_epochs=3),
        Size(epochs=45),
    ),
    claims=[partial(_below, "Adam", "AdaGrad"), partial(_below, "Nesterov", "AdaGrad")],
    source="slides p. 24; Kingma & Ba 2015, section 6.3",
)
