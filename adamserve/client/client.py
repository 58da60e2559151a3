"""`adamserve.connect`: push to a job and pull from it. Needs numpy, grpcio and protobuf only.

Every call goes straight to the shards, each over a connection and in a thread of its own, and is tried again until its
deadline: pushes are named by (job, pusher, seq), so a shard applies each once however often it comes. Calls to one
shard keep their order.
"""

from __future__ import annotations

import os
import socket
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from concurrent import futures
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from adamserve import optim
from adamserve.client.control_link import ControlLink
from adamserve.client.credentials import Credentials
from adamserve.client.destination import Target
from adamserve.client.gradients import Gradients
from adamserve.client.pushes import OutgoingPush, Pushes, Terms
from adamserve.client.reports import Reports
from adamserve.client.session import Session
from adamserve.client.wire_link import Member, Pull
from adamserve.errors import InvalidArgument
from adamserve.observe.state import JobState
from adamserve.shard.sparse import check_tables, spec_of
from adamserve.values import Array, Clocks, Constants, Deadline, Gradient, JobReceipt, PusherKind, TensorSpec

CLOSE_S = 5.0
"""Longest that reports are still sent for when a client is closed."""


class Client(AbstractContextManager["Client"]):
    """Pushes and pulls for one pusher of one job; `adamserve.connect` is its other name.

    Thread-safe, but for `push`, `push_pull`, `stream` and `pull` with training=True, which one thread at a time calls.
    A thread beside it renews the lease while gradients are computed. A call that a service, a shard, a turn or a clock
    keeps waiting beyond the timeout raises Unavailable.
    """

    def __init__(
        self,
        target: str,
        job: str,
        *,
        pusher: str = "",
        session: str = "",
        kind: PusherKind = "trainer",
        credentials: Credentials | None = None,
        token: str = "",
        token_file: str | Path | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str = "",
        transport: str = "auto",
        timeout_s: float = 120.0,
        lease_s: float = 10.0,
        wire_dtype: str = "float32",
        max_in_flight: int = 4,
    ) -> None:
        """Connect to a service that `adamserve serve` started. Nothing is sent until the first call.

        Args:
            target: host:port of its ControlService.
            job: the job's name; `create` starts one.
            pusher: this pusher's name, unique in the job and the same after a restart; "" makes one up.
            session: of a process that is known to be dead, and whose place this client takes at once, its lease or not;
                empty for a new one.
            kind: where the pusher runs: "worker", started by `adamserve.train`, or "trainer", anywhere else.
            credentials: all from `token` to `transport` in one value, in place of them.
            token, token_file: bearer token, or the file that holds it.
            ca: PEM file of the authorities that sign the server's certificate; without it the connection is plain text.
            cert, key: PEM files of this client's own certificate, for mutual TLS.
            server_name: name to expect in the server's certificate in place of the host.
            transport: how tensors travel: "direct" over bare connections to the shards, the fastest; "grpc", for
                networks that let nothing else through; "auto", direct where a connection can be made.
            timeout_s: longest that a call may take, all its tries together.
            lease_s: seconds after which the shards stop counting a client that fell silent.
            wire_dtype: how float32 gradients travel: "float32", "bfloat16", "float16" (parameters too), or "int8"
                (gradients only, with error feedback).
            max_in_flight: pushes under way at the same time.

        Raises:
            InvalidArgument: an argument is wrong, or a file cannot be read; names it.
        """
        given = Credentials.read(
            token, token_file, ca, cert, key, server_name=server_name, transport=transport
        )
        if credentials is not None and given != Credentials():
            raise InvalidArgument("stand beside a part of them", field="credentials", fix="put all into them")
        pusher = pusher or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        member = Member(job, pusher, session or uuid.uuid4().hex, kind, lease_s)
        self._control = ControlLink(target, credentials or given, timeout_s)
        self._session = Session(self._control, member)
        self._gradients = Gradients(self._session, wire_dtype)
        self._pushes = Pushes(self._session, self._gradients, max_in_flight)
        self._reports = Reports(self._control, job, self.pusher)
        self.before_checkpoint: Callable[[], None] = lambda: None
        """Brings what the service has to know before `checkpoint` writes one."""
        self._end = weakref.finalize(self, self._session.end, self._pushes, self._reports)

    @property
    def job(self) -> str:
        """The job's name."""
        return self._session.member.job

    @property
    def pusher(self) -> str:
        """This pusher's name."""
        return self._session.member.pusher

    @property
    def seq(self) -> int:
        """The last seq used; once joined, the number of pushes that this pusher has made."""
        return self._pushes.seq

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The job's tensors, in order."""
        self._opened(join=False)
        return tuple(self._session.topology.tensors.values())

    @property
    def rules(self) -> dict[str, optim.Rule]:
        """Each tensor's rule, with the constants that a push has where it brings none."""
        self._opened(join=False)
        return self._session.topology.parsed_rules()

    @property
    def modes(self) -> dict[str, Any]:
        """The job's "consistency" with its options, and "sparse", as `create` takes them."""
        self._opened(join=False)
        return dict(self._session.topology.modes)

    # ---- pushes and pulls

    def join(self) -> int:
        """Become live on every shard now; the first push or pull for training does it otherwise.

        Returns the last seq used: that of an earlier client of this name, or 0. Conflict: the name is live elsewhere.
        """
        self._opened(join=True)
        return self._pushes.seq

    def pull(
        self,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        training: bool = True,
        at_least: int = 0,
    ) -> tuple[Mapping[str, Array], Clocks]:
        """Fetch the parameters, and the stamp of each shard; pushes made earlier go first.

        Args:
            into: writable contiguous arrays by tensor, of the tensors' shapes and dtypes, to fill. Without it new ones
                are made. After an error they may hold anything.
            rows: by tensor, the numbers of the rows wanted; only those travel, and come back in this order as an array
                of shape (n, *shape[1:]), never in `into`. Other tensors come whole.
            training: the point where gradients are to be taken rather than w; ssp may hold the call back.
            at_least: wait until every shard's clock has come this far.

        Raises:
            RolledBack: a shard was restored, and updates that this client saw are lost. Pull again to go on.
        """
        deadline = self._opened(join=training)
        pull = replace(self._pull(into, rows, deadline), training=training, at_least=at_least)
        *others, last = self._session.links
        here = self._pushes.idle
        stamps = [*(link.pull(pull, here=False) for link in others), last.pull(pull, here=here)]
        futures.wait(stamps)
        clock = Clocks(stamp.result() for stamp in stamps)
        self._session.see(clock)
        self._session.raise_lost()
        return pull.target.result(), clock

    @overload
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
        wait: Literal[True] = True,
    ) -> JobReceipt: ...
    @overload
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
        wait: Literal[False],
    ) -> OutgoingPush: ...
    def push(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
        wait: bool = True,
    ) -> JobReceipt | OutgoingPush:
        """Send gradients to the shards that own them.

        Args:
            gradients: by tensor, of the tensor's shape, float32 or float64, or `SparseRows` (also torch.sparse_coo and
                scipy matrices); a tensor left out had no gradient.
            clock: what the pull returned.
            lr: rate for this push in place of the rule's.
            rates: by tensor, a rate in place of `lr` and the rule's.
            constants: by tensor, other constants of its rule for this push, such as {"w": {"beta1": 0.85}}.
            wait: return the receipt when every shard has answered. False copies the gradients and returns a handle at
                once; it waits only while `max_in_flight` pushes are under way.

        Raises:
            InvalidArgument: a name, shape, dtype or value is wrong; nothing was sent.
            RolledBack: a shard was restored after `clock`; the others have applied their part. Pull and go on.
        """
        terms = Terms(lr, rates, constants)
        handle = self._send(gradients, clock, terms, None, self._opened(join=True), wait=wait)
        return handle.result() if wait else handle

    def push_pull(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
    ) -> tuple[JobReceipt, Mapping[str, Array], Clocks]:
        """`push`, then `pull`, in one exchange with each shard."""
        deadline = self._opened(join=True)
        then = self._pull(into, rows, deadline)
        terms = Terms(lr, rates, constants)
        return self._send(gradients, clock, terms, then, deadline, wait=True).exchanged()

    def set(
        self,
        values: Mapping[str, Gradient],
        *,
        slot: str = "w",
        updates: Mapping[str, int] | None = None,
        constants: Constants | None = None,
    ) -> JobReceipt:
        """Assign values to parameters: an update like a push, exactly once, in every consistency mode at once.

        Args:
            values: by tensor, arrays of its shape and dtype, or `SparseRows` for some of its rows; tensors left out
                keep their values.
            slot: "w" for the parameters, or a slot of the job's rule, such as "m".
            updates: by tensor, the number of updates that it counts as having had (the rule's t).
            constants: by tensor, those that a checkpoint is to hold in place of the last push's; the rate is "lr".

        Raises:
            InvalidArgument: a name, shape, dtype or value is wrong, or the rule has no such slot; nothing was sent.
            RolledBack: a shard was restored meanwhile, and was assigned nothing. Pull, and assign again.
        """
        deadline = self._opened(join=True)
        ready = {name: self._gradients.values(name, value) for name, value in values.items()}
        push = self._pushes.begin(self._session.seen, None, deadline, slot)
        for name, value in ready.items():
            push.put(name, value)
        push.finish(Terms(updates=updates, constants=constants))
        return self._pushes.send(push, here=True).result()

    def stream(
        self,
        clock: Clocks,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
    ) -> OutgoingPush:
        """Open a push whose gradients are not all known yet, and a pull after it in the same exchange.

            with client.stream(clock) as push:
                push.add("w", gradient)
                receipt, parameters, clock = push.commit()

        The client's timeout holds for all of it. No other push can be made before its end. `clock` is what the pull
        returned; `into` and `rows` are as for `pull`.
        """
        deadline = self._opened(join=True)
        then = self._pull(into, rows, deadline)
        return self._pushes.send(self._pushes.begin(clock, then, deadline), here=False)

    def _send(
        self,
        gradients: Mapping[str, Gradient],
        clock: Clocks,
        terms: Terms,
        then: Pull | None,
        deadline: Deadline,
        *,
        wait: bool,
    ) -> OutgoingPush:
        """Send a push whose gradients are all here; everything is checked before any of it is sent."""
        ready = {name: self._gradients.checked(name, g, copy=not wait) for name, g in gradients.items()}
        push = self._pushes.begin(clock, then, deadline)
        for name, gradient in ready.items():
            push.put(name, self._gradients.prepared(name, gradient))
        push.finish(terms)
        return self._pushes.send(push, here=wait)

    def _pull(
        self, into: Mapping[str, Array] | None, rows: Mapping[str, Array] | None, deadline: Deadline
    ) -> Pull:
        target = Target(self._session.topology.tensors, into, rows)
        return Pull(target, deadline, self._gradients.pulled_as)

    def _opened(self, *, join: bool) -> Deadline:
        """The deadline of a call that begins now, once it is known where the shards are."""
        deadline = self._control.deadline()
        self._session.open(deadline)
        if join:
            self._pushes.join(deadline)
        return deadline

    # ---- the job

    def create(
        self,
        parameters: Mapping[str, Array],
        rule: optim.Rule,
        *,
        consistency: str = "async",
        tensor_rules: Mapping[str, optim.Rule] | None = None,
        tables: Collection[str] = (),
        sparse: str = "exact",
        checkpoint_every_s: float | None = None,
        max_staleness: int | None = None,
        staleness_lr: str = "none",
        delay_compensation: float = 0.0,
    ) -> bool:
        """Start the job from these parameters, and say whether this call did. One that exists keeps its values.

        Args:
            parameters: float32 or float64 arrays by tensor, in the order in which they are laid out.
            rule: how gradients become updates.
            consistency: "async", "bsp", or "ssp:S".
            tensor_rules: by tensor, a rule other than `rule`: of the same class and with the same slots.
            tables: tensors of which some rows are far busier than others, such as embeddings sorted by frequency: each
                shard gets an equal share of any run of rows. A whole push or pull of a table costs one copy more.
            sparse: "exact" or "lazy", what `SparseRows` do to the other rows: what a zero gradient would, or nothing.
            checkpoint_every_s: seconds between checkpoints; None takes the service's default.
            max_staleness, staleness_lr, delay_compensation: as `consistency.Async` takes them.

        Raises:
            Conflict: a job of that name exists with other tensors, another rule or mode.
            InvalidArgument: a name, dtype, value or constant is wrong; names it.
        """
        arrays = {name: np.asarray(array) for name, array in parameters.items()}
        specs = [spec_of(name, array, tables) for name, array in arrays.items()]
        check_tables(specs, tables)
        return self._control.create(
            specs,
            arrays,
            rule,
            tensor_rules or {},
            name=self.job,
            consistency=consistency,
            sparse=sparse,
            checkpoint_every_s=checkpoint_every_s or 0.0,
            max_staleness=max_staleness,
            staleness_lr="" if staleness_lr == "none" else staleness_lr,
            delay_compensation=delay_compensation,
        )

    def wait(self) -> None:
        """Wait until somebody has created the job."""
        self._session.wait()

    def report(
        self, /, loss: float | None = None, comparator_loss: float | None = None, **numbers: float
    ) -> None:
        """Report a batch's training loss, and other numbers, for the metrics.

        Returns at once: reports are sent in batches, at most a quarter of a second later. `status` and `close` send
        what is queued.

        Args:
            loss: at the parameters that were pulled; it feeds the convergence metrics.
            comparator_loss: for a convex job, the same batch's loss at the best parameters, W*; it feeds the regret.
            numbers: whatever else is worth watching, by name, such as test_accuracy; the latest value counts.

        Raises:
            NotFinite: a number is NaN or infinite; names it.
            AdamServeError: what an earlier report met.
        """
        self._reports.add(loss, comparator_loss, numbers, self._control.deadline())

    def status(self) -> JobState:
        """How the job stands."""
        [state] = self.jobs()
        return state

    def jobs(self) -> list[JobState]:
        """How this client's job stands; of one that was made with job "", every job that its token may see."""
        self._reports.flush(self._control.deadline())
        return self._control.status(self.job)

    def checkpoint(self) -> int:
        """Write a checkpoint now; returns its number, 0 where the service keeps none."""
        self.before_checkpoint()
        return self._control.checkpoint(self.job)

    def delete(self, *, purge: bool = False) -> bool:
        """Delete the job, whose name can be used again; returns whether there was one.

        With `purge` its checkpoints are removed too, instead of moved to the trash.
        """
        return self._control.delete(self.job, purge=purge)

    def close(self) -> None:
        """Wait for the pushes under way, stop counting as live, and disconnect; raises nothing that a push has raised.

        The last reference's end and the process's do it too, and wait for no longer than a second.
        """
        if self._end.detach() is not None and not self._control.forked:
            self._pushes.wait()
            self._reports.close(Deadline.after(CLOSE_S))
            self._session.close()

    def drop(self) -> None:
        """As `close`, without waiting for pushes that take longer than a second."""
        self._end()

    def __exit__(self, *exc: object) -> None:
        self.close()


connect = Client
