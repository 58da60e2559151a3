"""A push that begins while backward runs: each gradient leaves when autograd has accumulated it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adamserve.client.pushes import OutgoingPush
from adamserve.shard.sparse import as_rows
from adamserve.values import Array, Clocks, Constants, Gradient, JobReceipt


class Early:
    """The gradients of one step that are on their way already, and the push that carries them.

    Args:
        push: opened; what it pulls goes into `memory`.
        memory: by tensor.
    """

    def __init__(self, push: OutgoingPush, memory: Mapping[str, Array]) -> None:
        self.push = push
        self.memory = memory
        self._sent: dict[str, Tensor] = {}
        self._void = False

    def send(self, name: str, gradient: Tensor) -> None:
        """Send a copy of a gradient; one that changes afterwards, or holds NaN, makes the push void."""
        self._void = self._void or name in self._sent or not bool(torch.isfinite(gradient.sum()))
        if not self._void:
            self._sent[name] = gradient.to("cpu", copy=True)
            self.push.add(name, as_array(name, self._sent[name]))

    def stands(self, gradients: Mapping[str, Tensor], memory: Mapping[str, Array]) -> bool:
        """Whether the push is alive, what was sent still holds, and what it pulls goes where the parameters are."""
        return (
            self.push.alive
            and not self._void
            and all(self.memory[name].ctypes.data == own.ctypes.data for name, own in memory.items())
            and all(
                name in gradients and torch.equal(sent, gradients[name]) for name, sent in self._sent.items()
            )
        )

    def finish(
        self, gradients: Mapping[str, Tensor], rates: Mapping[str, float], constants: Constants
    ) -> tuple[JobReceipt, Clocks]:
        """Add what was not sent, and commit; a gradient that is refused gives the whole push up."""
        with self.push:
            for name, gradient in gradients.items():
                if name not in self._sent:
                    self.push.add(name, as_array(name, gradient))
            receipt, _, clock = self.push.commit(rates=rates, constants=constants)
        return receipt, clock


class UnderWay:
    """The early push of an optimizer, where there is one. Thread-safe: autograd has a thread for each device.

    Attributes:
        allowed: whether gradients may leave early.
    """

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self._early: Early | None = None
        self._sending = threading.Lock()

    def send(self, name: str, gradient: Tensor, begin: Callable[[], Early]) -> None:
        """Send a gradient; the first one begins the push, unless it is not finite."""
        with self._sending:
            if not self.allowed:
                return
            if self._early is None:
                if not torch.isfinite(gradient.sum()):
                    return
                self._early = begin()
            self._early.send(name, gradient)

    def taken(self) -> Early | None:
        """The push, which is the caller's from now on."""
        early, self._early = self._early, None
        return early

    def give_up(self) -> None:
        """Abort the push, if there is one: no shard has applied anything."""
        early = self.taken()
        if early is not None:
            early.push.abort()


def as_array(name: str, gradient: Tensor) -> Gradient:
    """A gradient on the CPU as numpy; halves are widened."""
    wide = gradient.float() if gradient.dtype in (torch.bfloat16, torch.float16) else gradient
    rows = as_rows(name, wide)
    if rows is not None:
        return rows
    array: Array = wide.contiguous().numpy()
    return array
