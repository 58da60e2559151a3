"""A look at one update now and then: how long its gradient was and how far it moved the parameters.

Nothing is computed while a push is applied. A scrape asks for a look; the next update then keeps copies of a few
thousand elements of w, before and after, and of the gradient; the norms are worked out when statistics are read next.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import torch

from adamserve import optim
from adamserve.shard.gradients import Loaded
from adamserve.shard.statistics import Seen
from adamserve.values import Span

BLOCKS, BLOCK = 64, 64
"""At most so many blocks of so many elements are looked at: everything, where that is no more."""


class _Look:
    """What is kept of one update. `gradients` are samples, each with the number of elements that one stands for."""

    def __init__(self, gradients: list[tuple[torch.Tensor, float]], views: list[torch.Tensor]) -> None:
        self.gradients = gradients
        self.runs: set[tuple[optim.Rule, int, float | None, float]] = set()
        self._views = views
        self.before = self.after = self._copied()

    def end(self) -> None:
        """The update is over."""
        self.after = self._copied()
        self._views = []

    def _copied(self) -> torch.Tensor:
        return torch.cat(self._views) if self._views else torch.empty(0)

    @cached_property
    def seen(self) -> Seen:
        """The norms, worked out once."""
        squares = sum(weight * float(values.double().square().sum()) for values, weight in self.gradients)
        if not len(self.before):
            return Seen(math.sqrt(squares), None, None)
        step = float((self.after.double() - self.before.double()).abs().max())
        bounds = [
            None if (bound := rule.step_bound(t, lr=lr)) is None else bound * scale
            for rule, t, lr, scale in self.runs
        ]
        known = [bound for bound in bounds if bound is not None]
        return Seen(math.sqrt(squares), step, max(known) if known and len(known) == len(bounds) else None)


class Probe:
    """Looks at a shard's updates when it is asked to. Not thread-safe but for `ask` and `seen`.

    Args:
        layout: the shard's spans, in the order that they are laid out.
        view: elements start to stop of a tensor's span, as they live.
    """

    def __init__(self, layout: Iterable[Span], view: Callable[[str, int, int], torch.Tensor]) -> None:
        self.wanted = False
        self._blocks = _blocks(list(layout), view)
        self._last: _Look | None = None
        self._now: _Look | None = None

    def ask(self) -> None:
        """Look at the next update."""
        self.wanted = True

    def seen(self) -> Seen | None:
        """The last update that was looked at."""
        return self._last.seen if self._last is not None else None

    def begin(self, gradients: Mapping[str, Loaded], behind: Collection[str]) -> None:
        """An update begins; in the tensors `behind` it may move rows by more than its own step."""
        self.wanted = False
        dense: list[torch.Tensor] = []
        views: list[torch.Tensor] = []
        for tensor, start, stop, view in self._blocks:
            gradient = gradients.get(tensor)
            if isinstance(gradient, torch.Tensor):
                dense.append(gradient[start:stop])
                if tensor not in behind:
                    views.append(view)
        samples = []
        if dense:
            sample = torch.cat(dense)
            total = sum(g.numel() for g in gradients.values() if isinstance(g, torch.Tensor))
            samples.append((sample, total / len(sample)))
        by_rows = [g.values.reshape(-1) for g in gradients.values() if not isinstance(g, torch.Tensor)]
        for values in by_rows[:BLOCKS]:
            every = max(1, len(values) // BLOCK)
            samples.append((values[::every].clone(), float(every)))
        self._now = _Look(samples, views)

    def ran(self, rule: optim.Rule, t: int, lr: float | None, lr_scale: float) -> None:
        """A rule ran, as its t-th update of some elements."""
        if self._now is not None:
            self._now.runs.add((rule, t, lr, lr_scale))

    def end(self) -> None:
        """The update is over."""
        if self._now is not None:
            self._now.end()
            self._last, self._now = self._now, None


def _blocks(
    layout: Sequence[Span], view: Callable[[str, int, int], torch.Tensor]
) -> list[tuple[str, int, int, torch.Tensor]]:
    """The elements to look at, spread evenly: (tensor, start and stop in its span, view)."""
    spans = [span for span in layout if span.numel]
    ends = list(accumulate(span.numel for span in spans))
    chosen = [(span.tensor, 0, span.numel) for span in spans]
    if len(spans) > BLOCKS or (ends and ends[-1] > BLOCKS * BLOCK):
        every, chosen = ends[-1] / BLOCKS, []
        for k in range(BLOCKS):
            place = int((k + 0.5) * every)
            i = bisect_right(ends, place)
            first = ends[i] - spans[i].numel
            stop = min(place + min(BLOCK, max(1, int(every))), ends[i])
            chosen.append((spans[i].tensor, place - first, stop - first))
    return [(tensor, start, stop, view(tensor, start, stop)) for tensor, start, stop in chosen]
