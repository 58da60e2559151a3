"""Bias correction on a variational auto-encoder, over a grid of decay rates and step sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adamserve import optim
from workers.experiments import figures
from workers.experiments.base import (
    Claim,
    Experiment,
    Findings,
    Settings,
    by_scale,
    described,
    differences,
    relative,
)
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Trial, mean

NAME = "vae-bias"

LARGER = 1e-3
"""Step sizes from here on count as the larger ones: the upper half of the paper's grid, 1e-5 to 1e-1."""

LITTLE = 0.05
"""Costs that differ by less than this part differ little."""

Cell = tuple[float, float, float, bool]
"""beta1, beta2, rate, whether corrected."""


@dataclass(frozen=True, kw_only=True)
class Size:
    epochs: int
    examples: int | None
    rates: Sequence[float]
    beta1: Sequence[float] = (0.0, 0.9)
    beta2: Sequence[float] = (0.99, 0.999, 0.9999)
    batch: int = 128


SIZES = by_scale(
    Size(epochs=2, examples=500, rates=(1e-3, 1e-2), beta1=(0.9,), beta2=(0.99, 0.9999), batch=64),
    Size(epochs=5, examples=5000, rates=(1e-4, 1e-3, 1e-2, 1e-1)),
    Size(epochs=100, examples=None, rates=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
)


def _needs(settings: Settings) -> Data:
    return settings.choose("mnist", "digits", examples=SIZES[settings.scale].examples)


def _run(lab: Lab, settings: Settings, folder: Path) -> Findings:
    size, data = SIZES[settings.scale], lab.data(_needs(settings))
    trial = Trial(
        network="vae",
        data=_needs(settings),
        rule=optim.Adam(),
        batch=size.batch,
        epochs=size.epochs,
        workers=settings.workers,
        consistency=settings.consistency,
    )
    variants = {
        (b1, b2, rate, on): replace(trial, rule=optim.Adam(lr=rate, beta1=b1, beta2=b2, bias_correction=on))
        for b1, b2, rate, on in itertools.product(size.beta1, size.beta2, size.rates, (True, False))
    }
    results = lab.run(variants, settings.seeds, folder / "trials.jsonl")
    costs = {cell: mean(some, "final") for cell, some in results.items()}
    heading = ("beta1", "beta2", "rate", "corrected", "final_cost")
    figures.table(folder / f"{NAME}.csv", [heading, *((*cell, cost) for cell, cost in costs.items())])
    rows = [["beta1", "beta2", *[f"rate {rate:g}" for rate in size.rates]]]
    for b1, b2 in itertools.product(size.beta1, size.beta2):
        pairs = [[figures.shown(costs[b1, b2, rate, on]) for on in (True, False)] for rate in size.rates]
        rows.append([f"{b1:g}", f"{b2:g}", *map(" / ".join, pairs)])
    return Findings(
        claims=judge(size, costs),
        figures=[_draw(folder, size, costs)],
        tables={"Final training cost (nats an example; with / without correction)": rows},
        what=[f"{described(trial, data, settings)} The cost is the negative lower bound."],
        differs=[
            "The paper shows costs after 10 and after 100 epochs of 60,000 examples.",
            "A cell diverged if any of its seeds did; pairs that diverged both with and without correction say"
            " nothing about it and are left out of the claims.",
            "Pixels are taken as probabilities; the paper does not say how it made them binary.",
            *differences(data, "mnist"),
        ],
    )


def judge(size: Size, costs: Mapping[Cell, float]) -> list[Claim]:
    """What becomes of the two claims, from the final costs."""

    def claim(text: str, beta2: float, least: float, true: Callable[[float, float], bool]) -> Claim:
        pairs = {
            f"beta1 {b1:g}, rate {rate:g}": (costs[b1, beta2, rate, True], costs[b1, beta2, rate, False])
            for b1 in size.beta1
            for rate in size.rates
            if rate >= least
        }
        # Where both diverged, correction was not the reason.
        telling = [pair for pair in pairs.values() if not all(map(math.isinf, pair))]
        return Claim(
            text=text,
            source="slides p. 25; Kingma & Ba 2015, section 6.4",
            numbers={
                name: f"with {figures.shown(a)}, without {figures.shown(b)}" for name, (a, b) in pairs.items()
            },
            held=bool(telling) and all(true(*pair) for pair in telling),
        )

    return [
        claim(
            "at beta2 = 0.9999 with the larger rates (0.001 and up), the uncorrected run is worse or diverges",
            0.9999,
            LARGER,
            lambda with_, without: without > with_,
        ),
        claim(
            f"at beta2 = 0.99 the two differ by less than {LITTLE:.0%}",
            0.99,
            0.0,
            lambda with_, without: abs(relative(without, with_)) < LITTLE,
        ),
    ]


def _draw(folder: Path, size: Size, costs: Mapping[Cell, float]) -> str:
    rows, columns = len(size.beta1), len(size.beta2)
    figure, axes = figures.grid(rows, columns, width=3.2 * columns, height=0.6 + 2.6 * rows)
    finite = [cost for cost in costs.values() if math.isfinite(cost)]
    for (b1, b2), panel in zip(itertools.product(size.beta1, size.beta2), axes.flat, strict=True):
        for corrected, colour in ((True, "tab:red"), (False, "tab:green")):
            found = {math.log10(rate): costs[b1, b2, rate, corrected] for rate in size.rates}
            shown = {rate: cost for rate, cost in found.items() if math.isfinite(cost)}
            label = "with correction" if corrected else "without"
            if shown:
                panel.plot(shown.keys(), shown.values(), "o-", color=colour, label=label)
        panel.set(title=f"beta1 = {b1:g}, beta2 = {b2:g}", xlabel="log10 rate", ylabel="cost, nats")
        if finite:
            panel.set_ylim(0.9 * min(finite), min(1.1 * max(finite), 4 * min(finite)))
    axes[0][0].legend()
    return figures.save(figure, folder, NAME)


VAE_BIAS = Experiment(
    name=NAME, title="Bias correction on a variational auto-encoder", needs=_needs, run=_run
)
