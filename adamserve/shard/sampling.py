"""A look at one update now and then: how long its gradient was and how far it moved the parameters.

Nothing is computed while a push is applied. A scrape asks for a look; the next update then keeps copies of a few
thousand elements of w, before and after, and of the gradient; the norms are worked out when statistics are read next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from adamserve import optim
from adamserve.shard.statistics import Seen
from adamserve.values import Span

BLOCKS, BLOCK = 64, 64
"""At most so many blocks of so many elements are looked at: everything, where that is no more."""


@dataclass(slots=True)
class _Look:
    """What is kept of one update. `gradients` are samples, each with the number of elements that one stands for."""

    gradients: list[tuple[torch.Tensor, float]]
    views: list[torch.Tensor]
    before: torch.Tensor | None
    after: torch.Tensor | None = None
    bounds: dict[tuple[optim.Rule, int, float | None], float] = field(default_factory=dict)
    result: Seen | None = None

    def seen(self) -> Seen:
        """The norms, worked out once."""
        if self.result is None:
            self.result = self._work_out()
        return self.result

    def _work_out(self) -> Seen:
        squares = sum(
            weight * float(values.double().square().sum()) for values, weight in self.gradients if len(values)
        )
        step = None
        if self.before is not None and self.after is not None and len(self.before):
            step = float((self.after.double() - self.before.double()).abs().max())
        known = [
            None if (bound := rule.step_bound(t, lr=lr)) is None else bound * scale
            for (rule, t, lr), scale in self.bounds.items()
        ]
        bounds = [bound for bound in known if bound is not None]
        complete = step is not None and bounds and len(bounds) == len(known)
        return Seen(math.sqrt(squares), step, max(bounds) if complete else None)


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
        return self._last.seen() if self._last is not None else None

    def begin(
        self, gradients: Mapping[str, torch.Tensor], by_rows: Mapping[str, torch.Tensor], apart: Iterable[str]
    ) -> None:
        """An update begins.

        Args:
            gradients: dense ones by tensor, of the span's elements.
            by_rows: the values of those that name some rows only.
            apart: tensors of which some rows may have missed updates; their steps are not this update's alone.
        """
        self.wanted = False
        late = {*apart, *by_rows}
        parts: list[torch.Tensor] = []
        views: list[torch.Tensor] = []
        for tensor, start, stop, view in self._blocks:
            gradient = gradients.get(tensor)
            if gradient is not None:
                parts.append(gradient[start:stop])
                if tensor not in late:
                    views.append(view)
        samples = []
        if parts:
            sample = torch.cat(parts)
            samples.append((sample, sum(g.numel() for g in gradients.values()) / max(1, len(sample))))
        for values in list(by_rows.values())[:BLOCKS]:
            flat = values.reshape(-1)
            every = max(1, len(flat) // BLOCK)
            samples.append((flat[::every].clone(), float(every)))
        self._now = _Look(samples, views, torch.cat(views) if views else None)

    def ran(self, rule: optim.Rule, t: int, lr: float | None, lr_scale: float) -> None:
        """A rule ran, as its t-th update of some elements."""
        if self._now is not None:
            self._now.bounds[rule, t, lr] = lr_scale

    def end(self) -> None:
        """The update is over."""
        look, self._now = self._now, None
        if look is not None:
            look.after = torch.cat(look.views) if look.views else None
            look.views = []
            self._last = look


def _blocks(
    layout: Sequence[Span], view: Callable[[str, int, int], torch.Tensor]
) -> list[tuple[str, int, int, torch.Tensor]]:
    """The elements to look at, spread evenly: (tensor, start and stop in its span, view)."""
    spans = [span for span in layout if span.numel]
    total = sum(span.numel for span in spans)
    if total <= BLOCKS * BLOCK and len(spans) <= BLOCKS:
        chosen = [(span.tensor, 0, span.numel) for span in spans]
    else:
        chosen = []
        every, end, wanted = total / BLOCKS, 0, 0
        for span in spans:
            first, end = end, end + span.numel
            while wanted < BLOCKS and (place := int((wanted + 0.5) * every)) < end:
                stop = min(place + min(BLOCK, max(1, int(every))), end)
                chosen.append((span.tensor, place - first, stop - first))
                wanted += 1
    return [(tensor, start, stop, view(tensor, start, stop)) for tensor, start, stop in chosen]
