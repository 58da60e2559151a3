"""One client's standing with the shards of a job: where they are, its lease on each, and what it has seen of them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from contextlib import suppress
from typing import TYPE_CHECKING

from adamserve.client.backoff import Tries
from adamserve.client.control_link import ControlLink, Place, Topology
from adamserve.client.threads import Thread
from adamserve.client.wire_link import Member, WireLink
from adamserve.errors import (
    AdamServeError,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RolledBack,
    Unavailable,
)
from adamserve.values import Clocks, Deadline, Joined, Stamp
from adamserve.wire.status import connection_failed

if TYPE_CHECKING:
    from adamserve.client.pushes import Pushes
    from adamserve.client.reports import Reports

FIND_S = 5.0
"""Longest that a shard is looked for before a call to it is tried again where it was."""

UNREACHED_S = 3.0
"""How long a shard that was never reached from here is tried, while the service says that it is up."""

END_S = 1.0
"""Longest that the end of the process waits for pushes that are under way."""

LEAVE_S = 5.0
"""Longest that a shard is told that a client leaves: otherwise the lease runs out by itself."""


class Session:
    """Finds a job's shards, joins them, keeps the leases, and notices what a restore has lost. Thread-safe.

    Attributes:
        member: who the client is to the shards.
        links: the ways to them, in shard order; empty before `open`.
        topology: what the job was found to be; without places before `open`.
        restores: how often a shard was found to have been restored; it may know of fewer pushes than were made.
    """

    def __init__(self, control: ControlLink, member: Member) -> None:
        self.member = member
        self.links: tuple[WireLink, ...] = ()
        self.topology = Topology({}, {}, {}, ())
        self.restores = 0
        self.control = control
        self._opening = threading.Lock()
        self._closed = threading.Event()
        self._beside: list[Thread] = []
        self._beating: threading.Thread | None = None
        self._lock = threading.Lock()
        self._seen: list[Stamp] = []
        self._lost: tuple[Clocks, Clocks] | None = None

    # ---- where the shards are

    def open(self, deadline: Deadline) -> None:
        """Learn where the shards are, the first time; refuse where the client is closed."""
        self.control.check_process()
        if self._closed.is_set():
            raise InvalidArgument("the client is closed", field="client")
        if self.links:
            return
        with self._opening:
            if self.links:
                return
            self.topology = self.control.topology(self.member.job, deadline)
            places = self.topology.places
            self._seen = [Stamp(place.incarnation, 0) for place in places]
            self.links = tuple(
                WireLink(place, self.member, self.control.credentials, self._recover) for place in places
            )

    def wait(self) -> None:
        """Learn where the shards are once somebody has created the job."""
        tries = Tries(self.control.deadline())
        while not self.links:
            try:
                self.open(tries.deadline)
            except NotFound as error:
                missing = Unavailable(f"nobody has created it: {error.problem}", field="job", fix="create it")
                self._closed.wait(tries.pause_after(missing))

    def _recover(self, link: WireLink, tries: Tries, error: AdamServeError) -> None:
        """Wait, and look for a shard, after a try that met an error; raise where no other try is to be made."""
        # A restored shard knows neither job nor pusher for a moment.
        restoring = isinstance(error, NotFound) and error.field in ("job", "pusher")
        if not (restoring or isinstance(error, Unavailable)) or self._closed.is_set():
            raise error
        if link.unreached_s() > UNREACHED_S and connection_failed(error) and self._is_up(link):
            raise Unavailable(
                f"shard {link.index} cannot be reached at {link.endpoint} from here, though it is up:"
                f" {error.problem}",
                field="shards",
                fix="open its ports (adamserve serve --shard-ports), or tell clients of others (--advertise)",
            )
        self._closed.wait(tries.pause_after(error))
        link.reconnect()
        with suppress(Unavailable, LimitExceeded):  # the service is away too
            self._find(link, Deadline.after(min(FIND_S, tries.deadline.remaining())))

    def _is_up(self, link: WireLink) -> bool:
        """Whether the service finds a shard in order."""
        with suppress(AdamServeError):
            [state] = self.control.status(self.member.job)
            return link.index in {shard.shard for shard in state.shards} - set(state.down)
        return False

    def _find(self, link: WireLink, deadline: Deadline) -> None:
        """Learn anew where the shards are, and be live on this one, which may have been restored."""
        self.note(self.control.topology(self.member.job, deadline).places)
        if self._beating is not None:
            with suppress(NotFound):  # the shard is still being restored
                self._joined(link, link.join(0, max(0.001, deadline.remaining())))

    def note(self, places: tuple[Place, ...]) -> None:
        """Talk to the shards where they are now; Conflict if they are not those that the client knows."""
        if [place.spans for place in places] != [link.spans for link in self.links]:
            raise Conflict(
                f"the service has {len(places)} shards now, where it had {len(self.links)}, or others",
                field="shards",
                fix="connect again",
            )
        for link, place in zip(self.links, places, strict=True):
            link.move(place)
            self._restored(link, place.incarnation, place.restored_clock)

    # ---- the leases

    def join(self, last_seq: int, deadline: Deadline) -> list[int]:
        """Be live on every shard, from now on until `close`; returns the last seq that each knows."""
        self.open(deadline)
        self._beside = self._beside or [Thread(f"adamserve-lease-{link.index}") for link in self.links]
        joins = [self._beside[link.index].submit(self._join, link, last_seq, deadline) for link in self.links]
        known = [join.result().last_seq for join in joins]
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="adamserve-beat", daemon=True)
            self._beating.start()
        return known

    def _join(self, link: WireLink, last_seq: int, deadline: Deadline) -> Joined:
        tries = Tries(deadline)
        while True:
            try:
                return self._joined(link, link.join(last_seq, tries.seconds))
            except AdamServeError as error:
                self._recover(link, tries, error)

    def _joined(self, link: WireLink, joined: Joined) -> Joined:
        self._restored(link, joined.stamp.incarnation, joined.restored_clock)
        return joined

    def _beat(self) -> None:
        """Renew the leases three times in their length, until closed."""
        third = self.member.lease_s / 3
        while not self._closed.wait(third):
            due = [link for link in self.links if time.monotonic() - link.renewed_at > third]
            with suppress(RuntimeError):  # the interpreter is ending
                for renewal in [self._beside[link.index].submit(self._renew, link) for link in due]:
                    renewal.result()

    def _renew(self, link: WireLink) -> None:
        """Renew one lease, where the shard was or where it is now; the next call says what is wrong with both."""
        deadline = Deadline.after(self.member.lease_s / 3)
        with suppress(AdamServeError):
            try:
                self._joined(link, link.join(0, self.member.lease_s / 6))
            except (Unavailable, NotFound):
                self._find(link, deadline)

    def close(self, within_s: float = LEAVE_S) -> None:
        """Stop counting as live, if that can be said in time, and disconnect."""
        self._closed.set()
        if self._beating is not None:
            self._beating.join(within_s)  # so that no renewal comes after the leaving
        leaving = [
            self._beside[link.index].submit(link.leave, within_s) for link in self.links if self._beside
        ]
        wait(leaving, within_s)
        for thread in self._beside:
            thread.shutdown()
        for link in self.links:
            link.close()
        self.control.close()

    def end(self, pushes: Pushes, reports: Reports) -> None:
        """Close a client that nobody has closed, soon.

        The garbage collector may call this in one of the client's own threads, in the middle of anything: so another
        thread closes, and those do not wait for it.
        """
        if self.control.forked:
            return

        def close() -> None:
            pushes.end(END_S)
            reports.close(Deadline.after(END_S / 4))
            self.close(END_S / 2)

        closing = threading.Thread(target=close, name="adamserve-end", daemon=True)
        try:
            closing.start()
        except RuntimeError:  # the interpreter is ending, and lets no thread begin
            close()
        else:
            if not threading.current_thread().name.startswith("adamserve-"):
                closing.join(2 * END_S)

    # ---- what was seen of the shards, and lost

    @property
    def seen(self) -> Clocks:
        """The newest stamp that was seen of every shard."""
        with self._lock:
            return Clocks(self._seen)

    def see(self, clock: Clocks) -> None:
        """Note every shard's stamp; one of a new incarnation is asked at which clock that began."""
        for link, stamp in zip(self.links, clock, strict=True):
            if stamp.incarnation > self._seen[link.index].incarnation:
                if self._beating is not None:
                    self._join(link, 0, self.control.deadline())
                else:
                    self.note(self.control.topology(self.member.job, self.control.deadline()).places)
        with self._lock:
            self._seen = [max(pair) for pair in zip(self._seen, clock, strict=True)]

    def _restored(self, link: WireLink, incarnation: int, clock: int) -> None:
        """Note that a shard is in an incarnation that began at this clock: what was seen beyond it is lost."""
        with self._lock:
            before, now = self._seen[link.index], Stamp(incarnation, clock)
            if incarnation <= before.incarnation:
                return
            self.restores += 1
            if clock < before.clock:
                first, mended = self._lost or (Clocks(self._seen), Clocks(self._seen))
                self._lost = first, Clocks(now if i == link.index else s for i, s in enumerate(mended))
            self._seen[link.index] = now

    def raise_lost(self) -> None:
        """Raise RolledBack, once, where a shard was restored and updates that this client saw are lost."""
        if self._lost is not None:
            problem = "a shard was restored from a checkpoint; updates that this client saw are lost"
            raise self.rolled_back(problem, *self._lost)

    def rolled_back(self, problem: str, before: Clocks, after: Clocks) -> RolledBack:
        """The error that tells a rollback, with its clocks; `raise_lost` does not tell it again."""
        with self._lock:
            self._lost = None
        error = RolledBack(
            f"{problem} (clocks {before} before, {after} after)", fix="pull, and compute again"
        )
        error.before, error.after = tuple(before), tuple(after)
        return error
