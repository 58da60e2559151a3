"""The controller: places the shards, watches them, and restores one that died from the newest checkpoint.

It holds no parameters. Pushers ask it where the shards are, and ask again when one does not answer. A shard that
is restored starts a new incarnation, so that nothing pulled before the restart is applied after it.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from adamserve import checkpoint, optim
from adamserve.cluster.actors import Edge, ShardActor, own_error
from adamserve.errors import (
    AdamServeError,
    CheckpointError,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from adamserve.job import JobConfig
from adamserve.observe.logs import LogConfig, fields, set_up
from adamserve.observe.state import JobState, Rollback
from adamserve.regret import Account, Loss
from adamserve.shard import consistency, sparse
from adamserve.shard.events import EVENTS_KEPT, Event, merged
from adamserve.shard.geometry import partition
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Array, Deadline, Joined, Stamp

log = logging.getLogger("adamserve.service")

CALL_TIMEOUT_S = 120.0
"""Longest that opening, restoring or writing a shard may take."""

WATCH_EVERY_S = 0.5
"""How often every shard is asked how it stands; a dead process is noticed within about this time."""

LATE_EVERY_S = 5.0
"""How often a job is tried again that could not be restored with its shard, as where the disk is full."""

LOOK_S = 5.0
"""Longest that a look at how the shards stand waits for them; one that hangs is passed over."""

NUMBERS_KEPT = 64
"""Numbers that a job may report by name, beside its losses."""

SHARD_CPUS = 0.1
"""CPUs that Ray reserves for a shard where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """How a service runs.

    Attributes:
        name: of the controller's actor in Ray; the shards' begin with it.
        shards: shard processes.
        gpus_per_shard: GPUs (or a fraction) that Ray reserves for each; above 0 the buffers live on CUDA.
        cpus_per_shard: CPUs that Ray reserves for each; above 0, for Ray spreads only what needs something.
        threads_per_shard: threads of a rule's kernel; 0 takes every core of the node.
        checkpoint_dir: where checkpoints go, one folder a job; None keeps none, and a shard that dies cannot
            be restored. On several nodes it is a folder that all of them share.
        edge: starts another way into each shard's process than Ray; None for none.
        metrics_host: where each shard's process serves its metrics, on any free port: a loopback address, or any other
            for the node's own; None serves none.
        log: how the controller's and the shards' processes log; None leaves that to them.
    """

    name: str = "adamserve"
    shards: int = 1
    gpus_per_shard: float = 0.0
    cpus_per_shard: float = SHARD_CPUS
    threads_per_shard: int = 0
    checkpoint_dir: Path | None = None
    edge: Edge | None = None
    metrics_host: str | None = None
    log: LogConfig | None = None

    def __post_init__(self) -> None:
        if not self.shards >= 1:
            raise InvalidArgument(f"must be at least 1, got {self.shards}", field="shards")
        for name in ("gpus_per_shard", "cpus_per_shard", "threads_per_shard"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument(f"must be at least 0, got {getattr(self, name)}", field=name)


@dataclass(frozen=True, slots=True)
class Topology:
    """Where a job's shards are now.

    Attributes:
        config: the job's own.
        actors: handle of each shard's actor, in shard order.
        incarnations: each shard's incarnation.
        restored: the clock at which each incarnation began.
        endpoints: host:port of each shard's gRPC services, and for bare connections; "" where it has none.
        joined: what each shard answered to `Controller.join`; empty otherwise.
    """

    config: JobConfig
    actors: tuple[Any, ...]
    incarnations: tuple[int, ...]
    restored: tuple[int, ...]
    endpoints: tuple[tuple[str, str], ...]
    joined: tuple[Joined, ...] = ()


@dataclass(slots=True)
class _Job:
    """What the controller knows of a job."""

    config: JobConfig
    folder: Path | None
    incarnations: list[int]
    seen: list[ShardStatistics | None]
    kernels: list[str]
    number: int = 0
    written_at: float = 0.0
    tried_at: float = 0.0
    written_clocks: tuple[int, ...] = ()
    checkpoint_seconds: float | None = None
    rollbacks: list[Rollback] = field(default_factory=list)
    failed: str = ""
    restored: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    """Shards that do not hold it any more, and not yet again."""
    skew: int | None = None
    account: Account = field(default_factory=Account)
    numbers: dict[str, float] = field(default_factory=dict)
    past: list[Event] = field(default_factory=list)
    """Events of shards that have died since."""


class Controller:
    """Places, watches and heals the shards of one service. Thread-safe; `ControllerActor` is its Ray shell."""

    def __init__(self, config: ServiceConfig) -> None:
        if config.log is not None:
            set_up(config.log)
        self._config = config
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._checkpointing = threading.Lock()
        self._late_at = 0.0
        # Held while shards open jobs, which may take long, and while a checkpoint is committed; before `_lock`.
        self._opening = threading.Lock()
        self._stopping = threading.Event()
        self._placed = 0
        self._down: dict[int, str] = {}
        """Why, of each shard whose process is dead."""
        self._actors = [self._place(index) for index in range(config.shards)]
        processes = self.processes()
        self._endpoints = [_endpoints(found) for found in processes]
        self._metrics = [found["metrics"] for found in processes]
        self._get([actor.serve.remote() for actor in self._actors], "the shards to serve")
        self._watcher = threading.Thread(target=self._watch, name="adamserve-watch", daemon=True)
        self._watcher.start()

    # ---- jobs

    def create(self, config: JobConfig, initial: Sequence[ray.ObjectRef[Mapping[str, Array]]]) -> bool:
        """Start a job from its initial parameters. Idempotent; how often checkpoints are written and how many are kept
        are the last call's.

        Args:
            config: the job.
            initial: for each shard a reference to its spans by tensor.

        Returns:
            Whether this call started it; of several at once, one does.

        Raises:
            Conflict: a job of that name exists with another configuration.
        """
        with self._opening:
            begun = config.name not in self._jobs
            if begun:
                self._begin(config, initial)
            with self._lock:
                known = self._job(config.name)
                if config != _kept_as(known.config, config):
                    raise Conflict(
                        f"job {config.name!r} exists with another configuration",
                        field="job",
                        fix="choose another name",
                    )
                known.config = config
        if self._job(config.name).number == 0:  # also where writing the first one failed before
            self.checkpoint(config.name)
        return begun

    def _begin(self, config: JobConfig, initial: Sequence[ray.ObjectRef[Mapping[str, Array]]]) -> None:
        """Open a new job on every shard."""
        optim.rules_of(config.rule, config.tensor_rules)
        folder = self._folder(config.name)
        if folder is not None and any(info.complete for info in checkpoint.list_checkpoints(folder)):
            raise Conflict(
                f"{folder} already holds checkpoints of job {config.name!r}",
                field="checkpoint_dir",
                fix="resume the job, or give another folder",
            )
        opened = [
            actor.open.remote(config, 1, initial=part)
            for actor, part in zip(self._actors, initial, strict=True)
        ]
        try:
            self._adopt(config, folder, self._get(opened, "the shards to open the job"))
        except Exception:
            for actor in self._actors:  # what some have opened would stay with them
                actor.drop.remote(config.name)
            raise
        log.info("job was created", extra=fields(job=config.name, shards=len(opened)))

    def resume(self, name: str, changes: Mapping[str, Any] | None = None) -> Topology:
        """Take up a job from its newest checkpoint that verifies, onto this service's shards.

        Args:
            name: the job's.
            changes: options of its `JobConfig` in place of those in the checkpoint.

        Raises:
            NotFound: there is no checkpoint of that job that verifies.
        """
        with self._opening:
            if name in self._jobs:
                return self.topology(name)
            folder = self._folder(name)
            if folder is None:
                raise InvalidArgument(
                    "the service keeps no checkpoints", field="checkpoint_dir", fix="give a folder"
                )
            newest, manifest = checkpoint.newest(folder, on_skip=_log_skipped)
            config = JobConfig(
                name=name,
                tensors=manifest.tensors,
                rule=optim.to_dict(optim.from_dict(manifest.rule)),  # with options that came later
                consistency=manifest.consistency,
                checkpoint_every_s=manifest.checkpoint_every_s,
                checkpoints_kept=manifest.checkpoints_kept,
                extra=manifest.extra,
                tensor_rules=manifest.tensor_rules,
                sparse=manifest.sparse,
            )
            config = replace(config, **(changes or {}))
            incarnation = checkpoint.new_incarnation(
                folder, 1 + max(entry.stamp.incarnation for entry in manifest.shards)
            )
            opened = [actor.open.remote(config, incarnation, folder=newest) for actor in self._actors]
            self._adopt(
                config, folder, self._get(opened, "the shards to restore the job"), number=manifest.number
            )
        log.info(
            "job was taken up", extra=fields(job=name, checkpoint=manifest.number, incarnation=incarnation)
        )
        return self.topology(name)

    def topology(self, job: str) -> Topology:
        """Where a job's shards are now."""
        with self._lock:
            known = self._job(job)
            return Topology(
                known.config,
                tuple(self._actors),
                tuple(known.incarnations),
                tuple(known.restored),
                tuple(self._endpoints),
            )

    def join(self, job: str, pusher: str, session: str, lease_s: float, last_seq: int) -> Topology:
        """Make a pusher live on every shard, as `Shard.join`; the topology holds the answers.

        Raises:
            Conflict: the name is live in another session.
            Unavailable: a shard does not answer; it is being restored.
        """
        found = self.topology(job)
        refs = [actor.join.remote(job, pusher, lease_s, last_seq, session) for actor in found.actors]
        return replace(found, joined=tuple(self._get(refs, f"{pusher} to join")))

    def leave(self, job: str, pusher: str, session: str) -> None:
        """Stop counting a pusher on every shard."""
        refs = [actor.leave.remote(job, pusher, session) for actor in self.topology(job).actors]
        self._get(refs, f"{pusher} to leave")

    def report(self, job: str, losses: Sequence[Loss], numbers: Mapping[str, float] | None = None) -> None:
        """Note training losses, and the latest value of each of some other numbers.

        Raises:
            InvalidArgument: one of them is not finite; the others are noted.
            LimitExceeded: the job has `NUMBERS_KEPT` other numbers, and none is noted.
        """
        refused: InvalidArgument | None = None
        with self._lock:
            known = self._job(job)
            for loss in losses:
                try:
                    known.account.add(*loss)
                except InvalidArgument as error:
                    refused = refused or error
            numbers = numbers or {}
            if len(known.numbers.keys() | numbers.keys()) > NUMBERS_KEPT:
                raise LimitExceeded(f"a job has at most {NUMBERS_KEPT}", field="numbers")
            for name, number in numbers.items():
                if math.isfinite(number):
                    known.numbers[name] = number
                else:
                    refused = refused or InvalidArgument(f"must be finite, got {number!r}", field=name)
        if refused is not None:
            raise refused

    def drop(self, job: str) -> None:
        """Forget a job and free what the shards hold of it; its checkpoints stay. Idempotent."""
        with self._lock:
            self._jobs.pop(job, None)
        self._get([actor.drop.remote(job) for actor in self._actors], "the shards to drop the job")

    def await_restored(self, job: str, shard: int, incarnation: int, timeout_s: float) -> Topology:
        """Wait until a shard that did not answer in `incarnation` is in a later one.

        Raises:
            Unavailable: it is not back in time, or cannot be restored; says why.
        """
        deadline = Deadline.after(timeout_s)
        with self._changed:
            known = self._job(job)
            while known.incarnations[shard] <= incarnation:
                if known.failed:
                    raise Unavailable(known.failed, field=f"shard {shard}")
                deadline.check(f"shard {shard} to be restored")
                self._changed.wait(min(1.0, deadline.remaining()))
            return self.topology(job)

    def checkpoint(self, job: str) -> int | None:
        """Write a checkpoint, one consistent cut a shard, while pushes go on.

        Returns:
            Its number, or None where the service keeps none.
        """
        known = self._job(job)
        if known.folder is None:
            return None
        began = known.tried_at = time.monotonic()
        with self._checkpointing:
            number = checkpoint.next_number(known.folder)
            folder = known.folder / f"{number:08d}"
            folder.mkdir(parents=True)
            try:
                actors = list(self._actors)
                entries = self._get([a.write.remote(job, folder) for a in actors], "the shards to be written")
                # Nothing is restored between this look and the manifest: a later restore from this checkpoint would
                # undo the updates made since.
                with self._opening:
                    if (
                        self._actors != actors
                        or [entry.stamp.incarnation for entry in entries] != known.incarnations
                    ):
                        raise Unavailable("a shard was restored meanwhile", fix="try again")
                    checkpoint.write_manifest(
                        folder,
                        checkpoint.Manifest(
                            number=number,
                            job=job,
                            created=datetime.now(UTC).isoformat(timespec="seconds"),
                            tensors=known.config.tensors,
                            rule=known.config.rule,
                            consistency=known.config.consistency,
                            shards=tuple(entries),
                            extra=known.config.extra,
                            tensor_rules=known.config.tensor_rules,
                            sparse=known.config.sparse,
                            checkpoint_every_s=known.config.checkpoint_every_s,
                            checkpoints_kept=known.config.checkpoints_kept,
                        ),
                    )
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            with self._lock:
                known.number = number
                known.written_at = time.monotonic()
                known.checkpoint_seconds = known.written_at - began
                known.written_clocks = tuple(entry.stamp.clock for entry in entries)
                seconds = round(known.checkpoint_seconds, 3)
            log.info("checkpoint was written", extra=fields(job=job, checkpoint=number, seconds=seconds))
            checkpoint.prune(known.folder, keep=known.config.checkpoints_kept)
            return number

    def status(self) -> tuple[JobState, ...]:
        """Every job, as last seen."""
        with self._lock:
            return tuple(self._status(name) for name in self._jobs)

    def status_now(self) -> tuple[JobState, ...]:
        """Every job, after asking every shard."""
        self._look_around()
        return self.status()

    def metrics(self) -> dict[int, str]:
        """Where the metrics of each shard are whose process lives: host:port by shard."""
        with self._lock:
            return {i: at for i, at in enumerate(self._metrics) if at and i not in self._down}

    def folder(self, job: str) -> Path | None:
        """Where a job's checkpoints are."""
        return self._job(job).folder

    def processes(self) -> list[dict[str, Any]]:
        """Who each shard's process is, as `ShardActor.process`."""
        return self._get([actor.process.remote() for actor in self._actors], "the shards to answer")

    def drain(self, grace_s: float) -> None:
        """End the shards' other ways in, and write a last checkpoint of every job.

        Raises:
            AdamServeError: what went wrong first; everything else was tried all the same.
        """
        errors: list[Exception] = []

        def tried(act: Callable[[], object]) -> None:
            try:
                act()
            except Exception as error:
                log.error("while draining: %s", error)
                errors.append(error)

        drained = [actor.drain.remote(grace_s) for actor in self._actors]
        for answer in drained:
            tried(partial(self._get, [answer], "the shards to drain"))
        for job in list(self._jobs):
            tried(partial(self.checkpoint, job))
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """Stop watching and end the shards; a job's last checkpoint is the caller's to ask for."""
        self._stopping.set()
        self._watcher.join(timeout=CALL_TIMEOUT_S)
        for actor in self._actors:
            ray.kill(actor)

    # ---- inside

    def _place(self, index: int) -> Any:
        config = self._config
        self._placed += 1
        return ShardActor.options(  # type: ignore[attr-defined]
            name=f"{config.name}.shard-{index}.{self._placed}",
            num_cpus=config.cpus_per_shard,
            num_gpus=config.gpus_per_shard,
            scheduling_strategy="SPREAD",
            max_restarts=0,
        ).remote(
            index,
            config.shards,
            "cuda" if config.gpus_per_shard else "cpu",
            config.threads_per_shard,
            config.edge,
            config.metrics_host,
            config.log,
        )

    def _folder(self, job: str) -> Path | None:
        return self._config.checkpoint_dir / job if self._config.checkpoint_dir is not None else None

    def _adopt(
        self, config: JobConfig, folder: Path | None, opened: Sequence[tuple[Stamp, str]], number: int = 0
    ) -> None:
        job = _Job(
            config=config,
            folder=folder,
            incarnations=[stamp.incarnation for stamp, _ in opened],
            seen=[None] * len(opened),
            kernels=[kernel for _, kernel in opened],
            number=number,
            written_at=time.monotonic(),
            written_clocks=tuple(stamp.clock for stamp, _ in opened),
            restored=[stamp.clock for stamp, _ in opened],
        )
        with self._lock:
            self._jobs[config.name] = job

    def _job(self, name: str) -> _Job:
        try:
            return self._jobs[name]
        except KeyError:
            raise NotFound(
                f"the service has no job {name!r}",
                field="job",
                fix=f"it has {', '.join(self._jobs) or 'none'}",
            ) from None

    def _status(self, name: str) -> JobState:
        known = self._jobs[name]
        shards, account = tuple(s for s in known.seen if s is not None), known.account
        rule = optim.from_dict(known.config.rule)
        kept = known.folder is not None
        return JobState(
            job=name,
            failed=known.failed,
            consistency=str(consistency.from_dict(dict(known.config.consistency))),
            rule=type(rule).__name__,
            rate=rule.rate(max(1, min((s.stamp.clock for s in shards), default=1))),
            loss=account.loss,
            best_loss=account.best,
            losses_not_finite=account.not_finite,
            regret=account.regret if account.steps else None,
            regret_steps=account.steps,
            numbers=dict(known.numbers),
            checkpoint=known.number,
            checkpoint_age_s=time.monotonic() - known.written_at if kept else None,
            checkpoint_seconds=known.checkpoint_seconds,
            unsaved_updates=_unsaved(known),
            clock_skew=known.skew,
            down=tuple(sorted({*self._down, *known.lost})),
            rollbacks=tuple(known.rollbacks),
            shards=shards,
            events=merged(
                [*known.past, *(r.event() for r in known.rollbacks), *(e for s in shards for e in s.events)]
            ),
        )

    def _get(self, refs: Sequence[Any], what: str) -> list[Any]:
        try:
            return ray.get(list(refs), timeout=CALL_TIMEOUT_S)
        except GetTimeoutError:
            raise Unavailable(f"{CALL_TIMEOUT_S:.0f} s passed while waiting for {what}") from None
        except RayActorError as error:
            raise Unavailable(f"a shard died while waiting for {what}", fix="try again") from error

    def _watch(self) -> None:
        """Ask every shard how it stands; heal the dead; write the checkpoints that are due.

        No other thread heals, so that a shard is restored once.
        """
        while not self._stopping.wait(WATCH_EVERY_S):
            self._attempt(self._look_around, "looking at the shards")
            with self._lock:
                dead = list(self._down)
            for index in dead:
                self._attempt(partial(self._heal, index), f"restoring shard {index}")
            for known, index in self._late():
                self._attempt(partial(self._heal_late, known, index), f"restoring {known.config.name}")
            for name, known in list(self._jobs.items()):
                if self._due(known):
                    self._attempt(partial(self.checkpoint, name), f"checkpoint of {name}")

    def _late(self) -> list[tuple[_Job, int]]:
        """Jobs to be restored by themselves, each with its shard; there are some every `LATE_EVERY_S` at most."""
        if time.monotonic() < self._late_at:
            return []
        self._late_at = time.monotonic() + LATE_EVERY_S
        with self._lock:
            jobs = [known for known in self._jobs.values() if not known.failed]
            return [(known, index) for known in jobs for index in sorted(known.lost - self._down.keys())]

    def _look_around(self) -> None:
        """See how every shard stands, at about the same moment."""
        actors = list(self._actors)
        asked = [actor.statistics.remote() for actor in actors]
        ray.wait(asked, num_returns=len(asked), timeout=LOOK_S)
        for index, (actor, answer) in enumerate(zip(actors, asked, strict=True)):
            self._look(index, actor, answer)
        with self._lock:
            for known in self._jobs.values():
                clocks = [seen.stamp.clock for seen in known.seen if seen is not None]
                known.skew = max(clocks) - min(clocks) if clocks and len(clocks) == len(asked) else None

    def _look(self, index: int, actor: Any, answer: Any) -> None:
        """Take in how a shard stands, or that its process is dead; nothing of one that was replaced meanwhile."""
        statistics: Mapping[str, ShardStatistics] = {}
        death = ""
        try:
            statistics = ray.get(answer, timeout=0)
        except ActorUnavailableError as error:  # Ray will know soon whether it is dead
            log.warning("shard cannot be reached: %s", error, extra=fields(shard=index))
        except RayActorError as error:
            death = str(error).split("\n")[0]
        except GetTimeoutError:
            log.warning("shard has not answered for %.0f s", LOOK_S, extra=fields(shard=index))
        with self._lock:
            if self._actors[index] is not actor:
                return
            if death:
                self._down.setdefault(index, death)
            for job, found in statistics.items():
                if job in self._jobs:  # else it was dropped meanwhile
                    self._jobs[job].seen[index] = found

    def _attempt(self, act: Callable[[], object], what: str) -> None:
        """The watcher must outlive whatever goes wrong once: log it and go on."""
        try:
            act()
        except (AdamServeError, RayActorError, OSError) as error:
            log.error("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)

    def _due(self, known: _Job) -> bool:
        every, clocks = (
            known.config.checkpoint_every_s,
            tuple(s.stamp.clock for s in known.seen if s is not None),
        )
        if every is None or known.folder is None or known.failed or clocks == known.written_clocks:
            return False
        last = max(known.written_at, known.tried_at)  # one that failed waits its turn too
        return time.monotonic() - last >= every

    def _heal(self, index: int) -> None:
        """Start a dead shard's process anew, and restore every job on it from its newest checkpoint."""
        with self._opening:  # a job that was opened meanwhile would be missing
            self._heal_alone(index)

    def _heal_alone(self, index: int) -> None:
        began, actor = time.monotonic(), self._place(index)
        try:
            with self._lock:
                jobs = list(self._jobs.values())
            restored = []
            for known in jobs:
                try:
                    rollback = self._restore(known, index, actor, began, self._down[index])
                except (CheckpointError, OSError, RayTaskError) as error:
                    _log_late(known, index, error)  # the others need not wait for it
                    continue
                if rollback is not None:
                    restored.append((known, rollback))
            [process] = self._get([actor.process.remote()], "a shard to start")
            self._get([actor.serve.remote()], "a shard to serve")
        except Exception:
            ray.kill(actor)
            raise
        with self._changed:
            self._actors[index] = actor
            self._down.pop(index)
            self._endpoints[index] = _endpoints(process)
            self._metrics[index] = process["metrics"]
            for known, rollback in restored:
                self._note_restored(known, index, actor, rollback)
            self._changed.notify_all()

    def _heal_late(self, known: _Job, index: int) -> None:
        """Restore a job that could not be restored when its shard's process was started anew."""
        with self._opening:
            actor = self._actors[index]
            try:
                rollback = self._restore(known, index, actor, time.monotonic(), "a restore before had failed")
            except (CheckpointError, OSError, RayTaskError) as error:
                _log_late(known, index, error)
                return
            if rollback is not None:
                with self._changed:
                    self._note_restored(known, index, actor, rollback)
                    self._changed.notify_all()

    def _note_restored(self, known: _Job, index: int, actor: Any, rollback: Rollback) -> None:
        name = known.config.name
        if self._jobs.get(name) is not known:  # it was dropped meanwhile
            actor.drop.remote(name)
            return
        known.incarnations[index] = rollback.incarnation
        known.lost.discard(index)
        known.restored[index] = rollback.clock_after
        known.rollbacks.append(rollback)
        seen = known.seen[index]
        known.past = [*known.past, *(seen.events if seen is not None else ())][-EVENTS_KEPT:]
        log.warning("shard was %s", rollback.event().reason, extra=fields(job=name, shard=index))

    def _restore(self, known: _Job, index: int, actor: Any, began: float, why: str) -> Rollback | None:
        """Open a job on a new process for a dead shard; None where the job has to be given up.

        Raises:
            CheckpointError, OSError, RayTaskError: it cannot be done now, and nothing has changed.
        """
        known.lost.add(index)
        if known.failed:
            return None
        if known.folder is None:
            self._give_up(
                known, f"shard {index} died, and the service keeps no checkpoints to restore it from"
            )
            return None
        try:
            folder, manifest = checkpoint.newest(known.folder, on_skip=_log_skipped)
        except NotFound as error:
            self._give_up(known, f"shard {index} died and cannot be restored: {error}")
            return None
        incarnation = checkpoint.new_incarnation(known.folder, known.incarnations[index] + 1)
        [(stamp, _)] = self._get(
            [actor.open.remote(known.config, incarnation, folder=folder)], "a shard to be restored"
        )
        before = known.seen[index]
        # The checkpoint may be newer than the last look.
        clock_before = max(stamp.clock, before.stamp.clock if before is not None else 0)
        seconds = time.monotonic() - began
        return Rollback(
            shard=index,
            incarnation=incarnation,
            clock_before=clock_before,
            clock_after=stamp.clock,
            checkpoint=manifest.number,
            seconds=seconds,
            reason=why,
            at=time.time(),
        )

    def _give_up(self, known: _Job, reason: str) -> None:
        with self._changed:
            known.failed = reason
            self._changed.notify_all()
        log.error("job cannot go on: %s", reason, extra=fields(job=known.config.name))


def _log_late(known: _Job, index: int, error: Exception) -> None:
    said = own_error(error) if isinstance(error, RayTaskError) else error
    log.error("job cannot be restored now: %s", said, extra=fields(job=known.config.name, shard=index))


def _kept_as(config: JobConfig, other: JobConfig) -> JobConfig:
    """With checkpoints written and kept as another configuration has them."""
    return replace(
        config, checkpoint_every_s=other.checkpoint_every_s, checkpoints_kept=other.checkpoints_kept
    )


def _endpoints(process: Mapping[str, Any]) -> tuple[str, str]:
    return process["endpoint"], process["direct"]


def _unsaved(known: _Job) -> int | None:
    """Updates since the newest checkpoint, of the shard that has made most."""
    if known.folder is None:
        return None
    clocks = zip(known.seen, known.written_clocks, strict=False)
    return max((max(0, seen.stamp.clock - at) for seen, at in clocks if seen is not None), default=None)


def _log_skipped(folder: Path, reason: str) -> None:
    log.error("checkpoint %s is refused: %s", folder, reason)


# Ray's stubs lack some of its options.
ControllerActor: Any = ray.remote(num_cpus=0, max_concurrency=128)(Controller)  # type: ignore[call-overload]
"""Ray's view of the controller."""


def initial_parts(
    config: JobConfig, parameters: Mapping[str, Array], num_shards: int
) -> list[dict[str, Array]]:
    """Each shard's spans of the initial parameters, 1-D views."""
    parts = partition(config.tensors, num_shards)
    kept = {spec.name: sparse.to_places(spec, parameters[spec.name]) for spec in config.tensors}
    return [
        {span.tensor: kept[span.tensor][span.start : span.stop] for span in spans} for spans in parts.shards
    ]
