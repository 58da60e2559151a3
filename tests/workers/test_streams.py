"""Streams: gradients are those of the losses, and W* is where their sum is least."""

from __future__ import annotations

import numpy as np
import pytest

from workers.data.streams import Alternating, Quadratic, Stream


@pytest.mark.parametrize("stream", [Quadratic(), Alternating()], ids=["quadratic", "alternating"])
def test_the_gradient_is_the_loss_s(stream: Stream) -> None:
    rng = np.random.default_rng(0)
    for t in (1, 2, 3, 4, 100):
        w, direction = rng.uniform(-1, 1, (2, stream.start.size))
        step = 1e-6
        slope = (stream.loss(t, w + step * direction) - stream.loss(t, w - step * direction)) / (2 * step)
        # The losses are at most quadratic, so a central difference errs by rounding alone.
        assert slope == pytest.approx(stream.gradient(t, w) @ direction, abs=1e-8)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_best_of_the_quadratics(steps: int) -> None:
    stream = Quadratic()
    best = stream.best(steps)
    total = sum(stream.gradient(t, best) for t in range(1, steps + 1))
    assert np.abs(total).max() < 1e-12 * steps
    np.testing.assert_array_equal(stream.start, np.zeros(10))


@pytest.mark.parametrize("steps", [3, 30])
def test_the_best_of_the_alternating(steps: int) -> None:
    stream = Alternating()
    sums = {
        w: sum(stream.loss(t, np.array([w])) for t in range(1, steps + 1)) for w in np.linspace(-1, 1, 41)
    }
    assert min(sums, key=lambda w: sums[w]) == stream.best(steps)[0] == -1.0
    assert (sums[1.0] - sums[-1.0]) / steps == pytest.approx(stream.limit)


def test_a_stream_is_the_same_at_every_call() -> None:
    w = np.zeros(10)
    assert Quadratic().loss(5, w) == Quadratic().loss(5, w) != Quadratic().loss(6, w)
