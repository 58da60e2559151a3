"""Processes that hold one model: DistributedDataParallel has averaged their gradients, so one of them pushes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch.distributed as dist
from torch import Tensor, nn

from adamserve.client.parameters import warn


class Replicas:
    """The ranks of torch.distributed's default group that DistributedDataParallel keeps alike, if it does.

    Rank 0 talks to the service, and the others take the parameters from it.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        wanted = {id(parameter) for parameter in self._parameters}
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.here = several and any(
            wanted & {id(parameter) for parameter in thing.parameters()}
            for thing in gc.get_objects()
            if issubclass(type(thing), nn.parallel.DistributedDataParallel)
        )
        if self.here and dist.get_rank() == 0:
            warn(
                f"DistributedDataParallel averages the gradients of {dist.get_world_size()} ranks:"
                " rank 0 pushes for all of them"
            )

    @property
    def follows(self) -> bool:
        """Whether another rank talks to the service."""
        return self.here and dist.get_rank() != 0

    def together(self, exchange: Callable[[], None]) -> None:
        """Make an exchange with the service on rank 0, and give all ranks its parameters and its error.

        They take the parameters after an error too: a rollback leaves the restored ones in rank 0's model.
        """
        if not self.here:
            exchange()
            return
        told: list[BaseException | None] = [None]
        if not self.follows:
            try:
                exchange()
            except Exception as error:
                told[0] = error
        dist.broadcast_object_list(told, src=0)
        for parameter in self._parameters:
            dist.broadcast(parameter.data, src=0)
        if told[0] is not None:
            raise told[0]
