"""Ray's calls as futures, with our own errors in place of Ray's."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from adamserve.cluster.placement import ProcessGone
from adamserve.errors import AdamServeError, Unavailable


def own_error(error: RayTaskError) -> Exception:
    """The error that our own code raised inside an actor, or Ray's where it was another's."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, AdamServeError) else error


def as_future(ref: Any) -> Future[Any]:
    """A call's future.

    Its exception is `ProcessGone` once the process is known to be dead, and otherwise what the call raised.
    """
    answer: Future[Any] = Future()

    def done(future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            answer.set_result(future.result())
        else:
            answer.set_exception(_own(error))

    ref.future().add_done_callback(done)
    return answer


def _own(error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError):
        return own_error(error)
    if isinstance(error, ActorUnavailableError):
        return Unavailable(f"a process cannot be reached: {_first_line(error)}")
    if isinstance(error, RayActorError):
        return ProcessGone(_first_line(error))
    return error


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
