"""A push that begins while backward runs: each gradient leaves when autograd has accumulated it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adamserve.client.pushes import OutgoingPush
from adamserve.shard.sparse import as_rows
from adamserve.values import Array, Clocks, Constants, Gradient, JobReceipt

Begin = Callable[[], tuple[OutgoingPush, Mapping[str, Array]]]
"""Opens a push, and says into which memory it pulls, by tensor."""


class Early:
    """The push of one step whose gradients are on their way already, where there is one.

    Thread-safe: autograd has a thread for each device.

    Attributes:
        allowed: whether gradients may leave early.
        push: opened; None where no gradient has left.
    """

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.push: OutgoingPush | None = None
        self._memory: Mapping[str, Array] = {}
        self._sent: dict[str, Tensor] = {}
        self._void = False
        self._sending = threading.Lock()

    def send(self, name: str, gradient: Tensor, begin: Begin) -> None:
        """Send a copy of a gradient; one that changes afterwards, or holds NaN, makes the push void.

        The first one begins the push, unless it is not finite.
        """
        with self._sending:
            if not self.allowed:
                return
            finite = bool(torch.isfinite(gradient.sum()))
            if self.push is None:
                if not finite:
                    return
                self.push, self._memory = begin()
                self._sent, self._void = {}, False
            self._void = self._void or name in self._sent or not finite
            if not self._void:
                self._sent[name] = gradient.to("cpu", copy=True)
                self.push.add(name, as_array(name, self._sent[name]))

    def stands(self, gradients: Mapping[str, Tensor], memory: Mapping[str, Array]) -> bool:
        """Whether the push is alive, what was sent still holds, and what it pulls goes where the parameters are."""
        return (
            self.push is not None
            and self.push.alive
            and not self._void
            and all(self._memory[name].ctypes.data == own.ctypes.data for name, own in memory.items())
            and all(
                name in gradients and torch.equal(sent, gradients[name]) for name, sent in self._sent.items()
            )
        )

    def finish(
        self, gradients: Mapping[str, Tensor], rates: Mapping[str, float], constants: Constants
    ) -> tuple[JobReceipt, Clocks]:
        """Add what was not sent, and commit; a gradient that is refused gives the whole push up."""
        push = self.taken()
        assert push is not None
        with push:
            for name, gradient in gradients.items():
                if name not in self._sent:
                    push.add(name, as_array(name, gradient))
            receipt, _, clock = push.commit(rates=rates, constants=constants)
        return receipt, clock

    def taken(self) -> OutgoingPush | None:
        """The push, which is the caller's from now on."""
        push, self.push = self.push, None
        return push

    def give_up(self) -> None:
        """Abort the push, if there is one: no shard has applied anything."""
        if (push := self.taken()) is not None:
            push.abort()


def as_array(name: str, gradient: Tensor) -> Gradient:
    """A gradient on the CPU as numpy; halves are widened."""
    wide = gradient.float() if gradient.dtype in (torch.bfloat16, torch.float16) else gradient
    rows = as_rows(name, wide)
    if rows is not None:
        return rows
    array: Array = wide.contiguous().numpy()
    return array
