"""Shard processes as Ray's actors; the controller's only calls of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Concatenate

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adamserve.cluster.config import CALL_TIMEOUT_S, ServiceConfig
from adamserve.cluster.placement import Answer, Given
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.ray_calls import as_future
from adamserve.errors import Unavailable


class RayHandle:
    """A shard's actor (`placement.ShardHandle`)."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(
        self,
        method: Callable[Concatenate[ShardProcess, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Future[Answer]:
        """As `ShardHandle.call`; an argument may be Ray's reference to what the method takes."""
        return as_future(self.actor.call.remote(method.__name__, *args, **options))

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self.actor)


class RayPlacement:
    """Places shards' actors (`placement.Placement`).

    What they need is reserved from the start, in a placement group that lives as long as this process, so that nobody
    else's tasks can take the place of a shard that is being restarted.

    Args:
        config: what each shard reserves, and how its process runs.
        actor: the class of the actors, as `ray.remote` made it.

    Raises:
        Unavailable: the cluster has no room for the shards.
    """

    def __init__(self, config: ServiceConfig, actor: Any) -> None:
        self._config = config
        self._actor = actor
        self._placed = 0
        needs = {"CPU": config.cpus_per_shard, "GPU": config.gpus_per_shard}
        bundle = {name: amount for name, amount in needs.items() if amount}
        self._group = placement_group([bundle] * config.shards, strategy="SPREAD") if bundle else None
        if self._group is not None and not self._group.wait(CALL_TIMEOUT_S):
            remove_placement_group(self._group)
            raise Unavailable(
                f"the cluster has had no room for {config.shards} shards of {bundle} in {CALL_TIMEOUT_S:.0f} s",
                field="shards",
                fix="ask for fewer, or add nodes",
            )

    def start(self, index: int) -> RayHandle:
        """Place an actor; no name comes twice."""
        config = self._config
        self._placed += 1
        return RayHandle(
            self._actor.options(
                name=f"{config.name}.shard-{index}.{self._placed}",
                num_cpus=config.cpus_per_shard,
                num_gpus=config.gpus_per_shard,
                scheduling_strategy=(
                    PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
                    if self._group is not None
                    else "SPREAD"
                ),
                max_restarts=0,
            ).remote(index, config)
        )
