"""The error tree. Each error says whose fault it is, which field, and what to do.

A stale push is not an error: it is answered by a `Receipt` whose outcome is STALE.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial


class AdamServeError(Exception):
    """Base of every error that adamserve raises on purpose.

    Args:
        problem: what is wrong, in one sentence without a full stop.
        field: the argument, option, tensor or file that is wrong, as the caller wrote it.
        fix: what the caller can do about it.
    """

    def __init__(self, problem: str, *, field: str = "", fix: str = "") -> None:
        super().__init__(problem, field, fix)
        self.problem = problem
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.field}: {self.problem}" if self.field else self.problem
        return f"{head} ({self.fix})" if self.fix else head

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), field=self.field, fix=self.fix), (self.problem,), vars(self)


class InvalidArgument(AdamServeError, ValueError):
    """The caller's value is wrong. Nothing was changed."""


def unknown(noun: str, name: str, known: Iterable[str], *, field: str) -> InvalidArgument:
    """Say that there is no such `noun`; the fix names the nearest of the known ones, and all of them."""
    from difflib import get_close_matches

    choices = list(known)
    hint = "".join(f"did you mean {near}? " for near in get_close_matches(name, choices, n=1))
    return InvalidArgument(
        f"there is no {noun} {name!r}", field=field, fix=f"{hint}choose {' or '.join(choices)}"
    )


class BadSequence(InvalidArgument):
    """A push's seq is negative, skips one, or is too old to be remembered."""


class NotFinite(InvalidArgument):
    """A gradient, or the loss that it came from, holds NaN or infinity. Nothing was changed."""


class NotFound(AdamServeError, LookupError):
    """There is no job, tensor, pusher, checkpoint or file of that name."""


class Conflict(AdamServeError):
    """Something of that name exists already and differs from what was asked for."""


class Unavailable(AdamServeError):
    """The service cannot answer now: it is starting, restoring, or a wait ran out."""


class LimitExceeded(AdamServeError):
    """A limit of the service stands against it: size, number, memory. Nothing was changed."""


class Unauthenticated(AdamServeError):
    """The call carries no token, or one that does not allow it."""


class RolledBack(AdamServeError):
    """A shard was restored from a checkpoint, and updates that the caller knew of are lost.

    The client that raises it knows the new clocks already: pull, compute again, and go on.

    Attributes:
        before: each shard's (incarnation, clock) as the client knew it.
        after: the same now; a restored shard's is where its new incarnation began.
    """

    before: tuple[tuple[int, int], ...] = ()
    after: tuple[tuple[int, int], ...] = ()


class DataError(AdamServeError):
    """A data set's file is missing, truncated, or not of the format it should have."""


class CheckpointError(AdamServeError):
    """A checkpoint is torn, altered, or of a version that this code cannot read."""
