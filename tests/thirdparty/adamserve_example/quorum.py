"""The consistency mode quorum:K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from adamserve.errors import InvalidArgument
from adamserve.shard.consistency import Arrival, Consistency, Decision, Verdict


@dataclass(frozen=True, kw_only=True)
class Quorum(Consistency):
    """Average the first `members` pushes of a round, then step once; a push that comes later is refused."""

    name: ClassVar[str] = "quorum"
    gathers: ClassVar[bool] = True
    members: int

    @classmethod
    def parse(cls, argument: str, options: Mapping[str, Any]) -> Self:
        """Read quorum:K."""
        if not argument.isdecimal() or options:
            raise InvalidArgument(
                f"{argument!r} is no number of pushes", field="consistency", fix="as in quorum:2"
            )
        return cls(members=int(argument))

    def admit(self, arrival: Arrival) -> Decision:
        """As `Consistency.admit`."""
        if arrival.staleness > 0:
            return Decision(Verdict.STALE, f"the round was over {arrival.staleness} updates ago")
        present = len({*arrival.waiting, arrival.pusher})
        if present < self.members:
            return Decision(Verdict.WAIT, f"{present} of {self.members} pushes are here")
        return Decision(Verdict.APPLY, f"mean of {present} pushes")

    def __str__(self) -> str:
        return f"quorum:{self.members}"
