"""Rules side by side on one network: training cost against epochs, each rule at the best rate of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adamserve import optim
from workers.experiments import figures
from workers.experiments.base import Claim, Findings, Scale, Settings, counted, differences, relative
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Result, Trial

STEP = math.sqrt(10.0)
"""Factor from one rate of the grid to the next."""

EXTENSIONS = 3
"""How often the grid grows by a rate where the best one stands at its edge."""

Finals = Mapping[str, float]
"""By label the final training cost, mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A rule in the comparison.

    Attributes:
        make: the rule at a rate.
        rate: where its grid starts: this rate, and one on either side.
    """

    make: Callable[[float], optim.Rule]
    rate: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """One scale of an experiment.

    Attributes:
        epochs, batch, examples: of every training.
        grid_epochs: of the trainings that choose the rates; None for `epochs`.
    """

    epochs: int
    batch: int = 128
    examples: int | None = None
    grid_epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An experiment of this form.

    Attributes:
        name, title: as for every experiment.
        network, l2: what is trained.
        data, stand_in: on what, with the files at hand and without.
        whiten: whether `data` is whitened.
        contenders: by label.
        sizes: by scale.
        claims: what is claimed, from the final costs.
        what, differs: in words; see `Findings`.
    """

    name: str
    title: str
    network: str
    data: str
    stand_in: str
    contenders: Mapping[str, Contender]
    sizes: Mapping[Scale, Size]
    claims: Callable[[Finals], Sequence[Claim]]
    l2: float = 0.0
    whiten: bool = False
    what: str = ""
    differs: Sequence[str] = ()

    def run(self, lab: Lab, settings: Settings, folder: Path) -> Findings:
        """As `Experiment.run`."""
        log = folder / "trials.jsonl"
        grid = self._search(lab, settings, log)
        best = {label: min(found, key=lambda rate: found[rate].final) for label, found in grid.items()}
        trials = {
            label: [self.trial(settings, label, best[label], seed) for seed in range(settings.seeds)]
            for label in self.contenders
        }
        lab.run([trial for some in trials.values() for trial in some], log)
        results = {label: lab.run(some, log) for label, some in trials.items()}
        finals = {label: _mean([r.final for r in some]) for label, some in results.items()}
        self._write(folder, grid, results)
        trial = next(iter(trials.values()))[0]
        data, size = lab.data(trial.data), self.sizes[settings.scale]
        shown = {
            f"{label} (rate {best[label]:.3g})": [r.costs for r in some] for label, some in results.items()
        }
        drawn = figures.curves(folder, self.name, shown, title=f"{self.network} on {data.name}")
        return Findings(
            claims=self.claims(finals),
            figures=[drawn],
            tables={
                "Final training cost": [
                    ["rule", "rate", "mean", "least", "most", "seconds"],
                    *[
                        [
                            label,
                            f"{best[label]:.3g}",
                            figures.shown(finals[label]),
                            figures.shown(min(r.final for r in some)),
                            figures.shown(max(r.final for r in some)),
                            f"{_mean([r.seconds for r in some]):.1f}",
                        ]
                        for label, some in results.items()
                    ],
                ],
                f"Rate grid (seed 0, {size.grid_epochs or size.epochs} epochs)": [
                    ["rule", *[f"rate {i + 1}" for i in range(max(map(len, grid.values())))]],
                    *[
                        [
                            label,
                            *[f"{rate:.3g}: {figures.shown(found[rate].final)}" for rate in sorted(found)],
                        ]
                        for label, found in grid.items()
                    ],
                ],
            },
            what=[
                f"{self.what} {self.network} on {len(data.train_y)} examples of {data.name}"
                f"{', whitened' if trial.data.whiten else ''}, mini-batches of {trial.batch},"
                f" {trial.epochs} epochs, {counted(settings.seeds, 'seed')}."
            ],
            differs=[
                *self.differs,
                *([LOOK_AHEAD] if "Nesterov" in self.contenders else []),
                *differences(data, self.data),
                *self._sizes(size),
                *(
                    f"{label}'s best rate, {best[label]:.3g}, is at the edge of its grid: a better one may lie beyond."
                    for label, found in grid.items()
                    if best[label] in (min(found), max(found))
                ),
            ],
        )

    def _sizes(self, size: Size) -> list[str]:
        epochs = self.sizes[Scale.full].epochs
        found = [f"{size.epochs} epochs, where the paper has {epochs}."] if size.epochs != epochs else []
        if size.grid_epochs:
            found.append(f"Rates are chosen after {size.grid_epochs} epochs.")
        return found

    def needs(self, settings: Settings) -> Data:
        """As `Experiment.needs`."""
        examples = self.sizes[settings.scale].examples
        if not settings.data:
            return Data(name=self.stand_in, examples=examples)
        return Data(name=self.data, examples=examples, whiten=self.whiten)

    def trial(
        self, settings: Settings, label: str, rate: float, seed: int, epochs: int | None = None
    ) -> Trial:
        """One training of the comparison."""
        size = self.sizes[settings.scale]
        return Trial(
            network=self.network,
            data=self.needs(settings),
            rule=self.contenders[label].make(rate),
            batch=size.batch,
            epochs=size.epochs if epochs is None else epochs,
            seed=seed,
            l2=self.l2,
            workers=settings.workers,
            consistency=settings.consistency,
        )

    def _search(self, lab: Lab, settings: Settings, log: Path) -> dict[str, dict[float, Result]]:
        """Each rule's grid of rates, grown up to `EXTENSIONS` times while the best one is at its edge; seed 0."""
        epochs = self.sizes[settings.scale].grid_epochs
        rates = {label: [c.rate / STEP, c.rate, c.rate * STEP] for label, c in self.contenders.items()}
        found: dict[str, dict[float, Result]] = {}
        for _ in range(1 + (0 if settings.scale is Scale.smoke else EXTENSIONS)):
            trials = {
                (label, rate): self.trial(settings, label, rate, 0, epochs)
                for label, some in rates.items()
                for rate in some
            }
            results = dict(zip(trials, lab.run(list(trials.values()), log), strict=True))
            found = {label: {rate: results[label, rate] for rate in some} for label, some in rates.items()}
            grown = {label: _grown(some) for label, some in found.items()}
            if grown == rates:
                break
            rates = grown
        return found

    def _write(
        self,
        folder: Path,
        grid: Mapping[str, Mapping[float, Result]],
        results: Mapping[str, Sequence[Result]],
    ) -> None:
        figures.table(
            folder / "grid.csv",
            [
                ("rule", "rate", "final_cost"),
                *(
                    (label, rate, r.final)
                    for label, found in grid.items()
                    for rate, r in sorted(found.items())
                ),
            ],
        )
        figures.table(
            folder / f"{self.name}.csv",
            [
                ("rule", "seed", "epoch", "training_cost"),
                *(
                    (label, seed, epoch, cost)
                    for label, some in results.items()
                    for seed, result in enumerate(some)
                    for epoch, cost in enumerate(result.costs, 1)
                ),
            ],
        )


def _grown(found: Mapping[float, Result]) -> list[float]:
    """The rates, and one more beyond the edge that the best one stands at."""
    rates = sorted(found)
    best = min(rates, key=lambda rate: found[rate].final)
    if best == rates[0]:
        return [best / STEP, *rates]
    if best == rates[-1]:
        return [*rates, best * STEP]
    return rates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SLIDES = "slides p. {}; Kingma & Ba 2015, section {}"

INVERSE_SQRT = (
    "Adam and Nesterov take rate/sqrt(t), as the paper has it for logistic regression; AdaGrad's own sum "
    "does as much."
)


LOOK_AHEAD = "Nesterov's costs are taken where its gradients are, a step of momentum ahead of its parameters."


def _lowest(finals: Finals, label: str, tolerance: float, source: str) -> Claim:
    others = {name: cost for name, cost in finals.items() if name != label}
    least = min(others.values())
    above = relative(finals[label], least)
    return Claim(
        text=f"{label} ends lowest or within {tolerance:.0%} of the lowest",
        source=source,
        numbers={**finals, "above the best other": above},
        held=above <= tolerance,
    )


def _below(finals: Finals, low: str, high: str, source: str, tolerance: float = 0.0) -> Claim:
    above = relative(finals[low], finals[high])
    text = f"{low} ends below {high}" + (f" or within {tolerance:.0%} of it" if tolerance else "")
    numbers = {low: finals[low], high: finals[high], "relative difference": above}
    return Claim(text=text, source=source, numbers=numbers, held=above < tolerance)


def _logreg_mnist(finals: Finals) -> Sequence[Claim]:
    source = SLIDES.format(21, "6.1")
    low, high = sorted((finals["Adam"], finals["Nesterov"]))
    apart = relative(high, low)
    return [
        Claim(
            text="Adam and Nesterov end within 5% of each other",
            source=source,
            numbers={"Adam": finals["Adam"], "Nesterov": finals["Nesterov"], "relative difference": apart},
            held=apart <= 0.05,
        ),
        _below(finals, "Adam", "AdaGrad", source),
        _below(finals, "Nesterov", "AdaGrad", source),
    ]


def _logreg_imdb(finals: Finals) -> Sequence[Claim]:
    source = SLIDES.format(22, "6.1")
    return [
        _below(finals, "Adam", "AdaGrad", source, 0.02),
        _below(finals, "Adam", "Nesterov", source),
        _below(finals, "AdaGrad", "Nesterov", source),
    ]


def _mlp_mnist(finals: Finals) -> Sequence[Claim]:
    return [_lowest(finals, "Adam", 0.02, SLIDES.format(23, "6.2"))]


def _cnn_cifar10(finals: Finals) -> Sequence[Claim]:
    source = SLIDES.format(24, "6.3")
    return [_below(finals, "Adam", "AdaGrad", source), _below(finals, "Nesterov", "AdaGrad", source)]


COMPARISONS = (
    Comparison(
        name="logreg-mnist",
        title="Logistic regression on MNIST",
        network="logreg",
        l2=1e-3,
        data="mnist",
        stand_in="digits",
        contenders={
            "AdaGrad": Contender(make=lambda lr: optim.AdaGrad(lr=lr), rate=0.03),
            "Nesterov": Contender(
                make=lambda lr: optim.Nesterov(lr=lr, momentum=0.9, lr_schedule="inverse_sqrt"), rate=0.3
            ),
            "Adam": Contender(make=lambda lr: optim.Adam(lr=lr, lr_schedule="inverse_sqrt"), rate=0.03),
        },
        sizes={
            Scale.smoke: Size(epochs=4, batch=64),
            Scale.cpu: Size(epochs=25),
            Scale.full: Size(epochs=45),
        },
        claims=_logreg_mnist,
        what="L2-regularised (0.001)",
        differs=[INVERSE_SQRT],
    ),
    Comparison(
        name="logreg-imdb",
        title="Logistic regression on IMDB bags of words",
        network="logreg",
        data="imdb",
        stand_in="zipf",
        contenders={
            "AdaGrad": Contender(make=lambda lr: optim.AdaGrad(lr=lr), rate=0.03),
            "Nesterov": Contender(
                make=lambda lr: optim.Nesterov(lr=lr, momentum=0.9, lr_schedule="inverse_sqrt"), rate=0.3
            ),
            "Adam": Contender(make=lambda lr: optim.Adam(lr=lr, lr_schedule="inverse_sqrt"), rate=0.03),
        },
        sizes={
            Scale.smoke: Size(epochs=3, examples=2000),
            Scale.cpu: Size(epochs=8),
            Scale.full: Size(epochs=160),
        },
        claims=_logreg_imdb,
        what="With half of the words dropped in each step:",
        differs=[INVERSE_SQRT],
    ),
    Comparison(
        name="mlp-mnist",
        title="Multi-layer network with dropout on MNIST",
        network="mlp",
        data="mnist",
        stand_in="digits",
        contenders={
            "AdaGrad": Contender(make=lambda lr: optim.AdaGrad(lr=lr), rate=0.01),
            "RMSProp": Contender(make=lambda lr: optim.RMSProp(lr=lr, eps=1e-8), rate=3e-4),
            "Nesterov": Contender(make=lambda lr: optim.Nesterov(lr=lr, momentum=0.9), rate=0.03),
            "Adam": Contender(make=lambda lr: optim.Adam(lr=lr), rate=1e-3),
        },
        sizes={
            Scale.smoke: Size(epochs=2, batch=64, examples=500),
            Scale.cpu: Size(epochs=10),
            Scale.full: Size(epochs=200),
        },
        claims=_mlp_mnist,
        differs=["The paper's AdaDelta is not among the slides' rules and is left out."],
    ),
    Comparison(
        name="cnn-cifar10",
        title="Convolutional network with dropout on CIFAR-10",
        network="cnn",
        data="cifar10",
        stand_in="digits32",
        whiten=True,
        contenders={
            "AdaGrad": Contender(make=lambda lr: optim.AdaGrad(lr=lr), rate=3e-3),
            "Nesterov": Contender(make=lambda lr: optim.Nesterov(lr=lr, momentum=0.9), rate=0.01),
            "Adam": Contender(make=lambda lr: optim.Adam(lr=lr), rate=3e-4),
        },
        sizes={
            Scale.smoke: Size(epochs=2, batch=32, examples=64),
            Scale.cpu: Size(epochs=10, examples=10_000, grid_epochs=3),
            Scale.full: Size(epochs=45),
        },
        claims=_cnn_cifar10,
    ),
)
