"""What a client and its ways to the shards say to each other, whatever carries it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from adamserve.client.backoff import Tries
from adamserve.client.destination import Target
from adamserve.errors import AdamServeError
from adamserve.values import Deadline, Joined, PusherKind, Receipt, Span, Stamp

if TYPE_CHECKING:
    from adamserve.client.pushes import OutgoingPush


class Aborted(Exception):
    """A push was given up before its commit: no shard has counted it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one shard of a job is: host:port of its two endpoints, and the clock at which its incarnation began."""

    index: int
    endpoint: str
    direct: str
    incarnation: int
    restored_clock: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """Who a client is to the shards of its job; after `lease_s` seconds of silence they stop counting it."""

    job: str
    pusher: str
    session: str
    kind: PusherKind
    lease_s: float


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull, as `values.PullRequest`; every link writes its own shard's part into the target."""

    target: Target
    deadline: Deadline
    encoding: str
    training: bool = True
    at_least: int = 0


class PushAnswer(NamedTuple):
    """A shard's answer to a push, and the stamp of what was pulled after it."""

    receipt: Receipt
    pulled: Stamp | None


class ShardLink(Protocol):
    """One way to one shard. Thread-safe; it makes pushes and pulls in the order in which they were asked for.

    Attributes:
        index, spans: the shard's number, and what it owns.
        renewed_at: when the last answered call began that renewed the client's lease, by `time.monotonic`.
    """

    index: int
    spans: tuple[Span, ...]
    renewed_at: float

    def push(self, push: OutgoingPush, then: Pull | None, *, here: bool) -> Future[PushAnswer]:
        """Send this shard's part of a push, and pull in the same exchange; try until it is answered.

        With `here` the caller's thread does it, before this returns; nothing else may be under way. The future's
        exception is an AdamServeError, or `Aborted`.
        """

    def pull(self, pull: Pull, *, here: bool) -> Future[Stamp]:
        """Fetch this shard's part of the parameters; try until it is answered."""

    def join(self, last_seq: int, timeout_s: float) -> Joined:
        """Become live on the shard, or renew the lease: one try, in the caller's thread, beside what is under way."""

    def leave(self, timeout_s: float) -> None:
        """Stop counting there: one try."""

    def move(self, place: Place) -> None:
        """Talk to the shard where it is now."""

    def reconnect(self) -> None:
        """Drop the connections, and make others when they are needed."""

    def close(self) -> None:
        """Drop the connections for good."""


class Recovery(Protocol):
    """Finds a shard again that does not answer."""

    def recover(self, link: ShardLink, tries: Tries, error: AdamServeError) -> None:
        """Wait, and look for the shard, after a try that met an error; raise where no other try is to be made."""
