"""Bias correction on a variational auto-encoder, over a grid of decay rates and step sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adamserve import optim
from workers.experiments import figures
from workers.experiments.base import Claim, Findings, Scale, Settings, counted, differences, relative
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Trial

SOURCE = "slides p. 25; Kingma & Ba 2015, section 6.4"

LARGER = 1e-3
"""Step sizes from here on count as the larger ones: the upper half of the paper's grid, 1e-5 to 1e-1."""

LITTLE = 0.05
"""Costs that differ by less than this part differ little."""

Cell = tuple[float, float, float, bool]
"""beta1, beta2, rate, whether corrected."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One scale of the experiment."""

    epochs: int
    examples: int | None
    beta1: Sequence[float]
    beta2: Sequence[float]
    rates: Sequence[float]
    batch: int = 128


SIZES: Mapping[Scale, Size] = {
    Scale.smoke: Size(
        epochs=2, examples=500, beta1=(0.9,), beta2=(0.99, 0.9999), rates=(1e-3, 1e-2), batch=64
    ),
    Scale.cpu: Size(
        epochs=5, examples=5000, beta1=(0.0, 0.9), beta2=(0.99, 0.999, 0.9999), rates=(1e-4, 1e-3, 1e-2, 1e-1)
    ),
    Scale.full: Size(
        epochs=100,
        examples=None,
        beta1=(0.0, 0.9),
        beta2=(0.99, 0.999, 0.9999),
        rates=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    ),
}


class BiasCorrection:
    """The experiment."""

    name = "vae-bias"
    title = "Bias correction on a variational auto-encoder"

    def run(self, lab: Lab, settings: Settings, folder: Path) -> Findings:
        """As `Experiment.run`."""
        size, log = SIZES[settings.scale], folder / "trials.jsonl"
        cells: list[Cell] = list(itertools.product(size.beta1, size.beta2, size.rates, (True, False)))
        trials = {
            cell: [self._trial(settings, cell, seed) for seed in range(settings.seeds)] for cell in cells
        }
        lab.run([trial for some in trials.values() for trial in some], log)
        costs = {
            cell: sum(result.final for result in lab.run(some, log)) / len(some)
            for cell, some in trials.items()
        }
        figures.table(
            folder / f"{self.name}.csv",
            [
                ("beta1", "beta2", "rate", "corrected", "final_cost"),
                *((*cell, cost) for cell, cost in costs.items()),
            ],
        )
        data = lab.data(self.needs(settings))
        return Findings(
            claims=[self._steep(size, costs), self._flat(size, costs)],
            figures=[self._draw(folder, size, costs)],
            tables={
                "Final training cost (nats an example; with / without correction)": [
                    ["beta1", "beta2", *[f"rate {rate:g}" for rate in size.rates]],
                    *[
                        [
                            f"{b1:g}",
                            f"{b2:g}",
                            *[
                                " / ".join(figures.shown(costs[b1, b2, rate, on]) for on in (True, False))
                                for rate in size.rates
                            ],
                        ]
                        for b1 in size.beta1
                        for b2 in size.beta2
                    ],
                ]
            },
            what=[
                f"vae on {len(data.train_y)} examples of {data.name}, mini-batches of {size.batch},"
                f" {size.epochs} epochs, {counted(settings.seeds, 'seed')}. The cost is the negative lower bound."
            ],
            differs=[
                "The paper shows costs after 10 and after 100 epochs of 60,000 examples.",
                "A cell diverged if any of its seeds did; pairs that diverged both with and without correction say"
                " nothing about it and are left out of the claims.",
                "Pixels are taken as probabilities; the paper does not say how it made them binary.",
                *differences(data, "mnist"),
            ],
        )

    def needs(self, settings: Settings) -> Data:
        """As `Experiment.needs`."""
        return Data(name="mnist" if settings.data else "digits", examples=SIZES[settings.scale].examples)

    def _trial(self, settings: Settings, cell: Cell, seed: int) -> Trial:
        size = SIZES[settings.scale]
        beta1, beta2, rate, corrected = cell
        return Trial(
            network="vae",
            data=self.needs(settings),
            rule=optim.Adam(lr=rate, beta1=beta1, beta2=beta2, bias_correction=corrected),
            batch=size.batch,
            epochs=size.epochs,
            seed=seed,
            workers=settings.workers,
            consistency=settings.consistency,
        )

    def _steep(self, size: Size, costs: Mapping[Cell, float]) -> Claim:
        pairs = {
            f"beta1 {b1:g}, rate {rate:g}": (costs[b1, 0.9999, rate, True], costs[b1, 0.9999, rate, False])
            for b1 in size.beta1
            for rate in size.rates
            if rate >= LARGER
        }
        return Claim(
            text="at beta2 = 0.9999 with the larger rates (0.001 and up), the uncorrected run is worse or diverges",
            source=SOURCE,
            numbers={name: f"with {_shown(a)}, without {_shown(b)}" for name, (a, b) in pairs.items()},
            held=_all(pairs, lambda with_, without: math.isfinite(with_) and without > with_),
        )

    def _flat(self, size: Size, costs: Mapping[Cell, float]) -> Claim:
        pairs = {
            f"beta1 {b1:g}, rate {rate:g}": (costs[b1, 0.99, rate, True], costs[b1, 0.99, rate, False])
            for b1 in size.beta1
            for rate in size.rates
        }
        return Claim(
            text=f"at beta2 = 0.99 the two differ by less than {LITTLE:.0%}",
            source=SOURCE,
            numbers={name: f"with {_shown(a)}, without {_shown(b)}" for name, (a, b) in pairs.items()},
            held=_all(
                pairs, lambda a, b: math.isfinite(a) and math.isfinite(b) and abs(relative(b, a)) < LITTLE
            ),
        )

    def _draw(self, folder: Path, size: Size, costs: Mapping[Cell, float]) -> str:
        figure, axes = figures.grid(
            len(size.beta1), len(size.beta2), width=3.2 * len(size.beta2), height=0.6 + 2.6 * len(size.beta1)
        )
        finite = [cost for cost in costs.values() if math.isfinite(cost)]
        for row, b1 in zip(axes, size.beta1, strict=True):
            for panel, b2 in zip(row, size.beta2, strict=True):
                for corrected, colour in ((True, "tab:red"), (False, "tab:green")):
                    shown = [
                        (math.log10(rate), costs[b1, b2, rate, corrected])
                        for rate in size.rates
                        if math.isfinite(costs[b1, b2, rate, corrected])
                    ]
                    label = "with correction" if corrected else "without"
                    panel.plot(*zip(*shown, strict=True), "o-", color=colour, label=label) if shown else None
                panel.set(title=f"beta1 = {b1:g}, beta2 = {b2:g}", xlabel="log10 rate", ylabel="cost, nats")
                if finite:
                    panel.set_ylim(0.9 * min(finite), min(1.1 * max(finite), 4 * min(finite)))
        axes[0][0].legend()
        return figures.save(figure, folder, self.name)


def _all(pairs: Mapping[str, tuple[float, float]], true: Callable[[float, float], bool]) -> bool:
    """Whether it is true of every pair that says something: where both diverged, correction was not the reason."""
    telling = [pair for pair in pairs.values() if not all(map(math.isinf, pair))]
    return bool(telling) and all(true(*pair) for pair in telling)


_shown = figures.shown
