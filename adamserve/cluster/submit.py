"""Jobs of Ray: submit a command to a running cluster, follow its log, say how it ended.

Ray's own client takes no timeouts, so every call to it is made here, in a thread that is waited for until a deadline
and keeps no process alive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from adamserve.errors import InvalidArgument, Unauthenticated, Unavailable

T = TypeVar("T")

ANSWER_S = 30.0
"""Longest that one answer of the job server may take."""

QUIET_S = 10.0
"""After as long without a line of the log, the job server is asked how the job stands."""

POLL_S = 0.5
"""How often it is asked again, for a job that it cannot take yet or that has not ended with its log."""

START_S = 60.0
"""Longest that a head may take to have started."""

STARTING = "No available agent to submit job"
"""What the job server of such a head says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A submitted job.

    Attributes:
        submission_id: Ray's name for it.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: of its command, once it has ended: 0 if and only if it SUCCEEDED.
        message: Ray's word on it.
    """

    submission_id: str
    status: str
    exit_code: int | None
    message: str


def connect(address: str | None, *, answer_s: float = ANSWER_S) -> JobSubmissionClient:
    """A client of the job server at `address`.

    Raises:
        InvalidArgument: there is no address, or it is not the URL of a server.
        Unauthenticated: the cluster wants a token, or another one.
        Unavailable: no job server answers there.
    """
    if not address:
        raise InvalidArgument(
            "is needed", field="address", fix="give http://HOST:8265, or set RAY_API_SERVER_ADDRESS"
        )
    try:
        url = urlsplit(address)
        whole = url.scheme in ("http", "https") and bool(url.hostname) and url.port is not None
    except ValueError:
        whole = False
    if not whole:
        raise InvalidArgument(
            f"{address!r} is not the URL of Ray's job server", field="address", fix="give http://HOST:8265"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which would win over the argument
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
    return _ask(lambda: JobSubmissionClient(address), address, answer_s)


def submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Start a shell command on the cluster; returns its submission id.

    A head that has just started refuses jobs for a few seconds: it is asked again for `START_S`.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            return _ask(lambda: client.submit_job(entrypoint=entrypoint), client.get_address())
        except Unavailable as error:
            if STARTING not in error.problem or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


def state(client: JobSubmissionClient, submission_id: str) -> Job:
    """How a job stands now."""
    info = _ask(lambda: client.get_job_info(submission_id), client.get_address())
    code: int | None = None
    if info.status.is_terminal():
        code = 0 if info.status == JobStatus.SUCCEEDED else max(info.driver_exit_code or 1, 1)
    return Job(
        submission_id=submission_id, status=info.status.value, exit_code=code, message=info.message or ""
    )


def follow(
    client: JobSubmissionClient, submission_id: str, show: Callable[[str], None], timeout_s: float
) -> Job:
    """Show a job's log until the job has ended.

    Raises:
        Unavailable: it has not ended in time, or the job server is gone. The job itself is left alone.
    """
    deadline = time.monotonic() + timeout_s
    log: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_tail, args=(client, submission_id, log), daemon=True).start()
    shown, text = 0, _next(log, deadline)
    while True:
        if isinstance(text, Exception):
            show(f"(the log breaks off here: {text})\n")
        elif text:
            show(text)
            shown += len(text)
        elif (job := state(client, submission_id)).exit_code is not None:
            break
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"{submission_id} has not ended after {timeout_s:g} s, and goes on",
                field="timeout_s",
                fix=f"wait longer, or end it: ray job stop {submission_id}",
            )
        if text is None:
            time.sleep(POLL_S)
        else:
            text = _next(log, deadline)
    # What a short job wrote last may have come after Ray's last look at its log.
    with suppress(Unavailable):
        whole = _ask(lambda: client.get_job_logs(submission_id), client.get_address())
        if len(whole) > shown:
            show(whole[shown:])
    return job


def _tail(
    client: JobSubmissionClient, submission_id: str, log: queue.SimpleQueue[str | Exception | None]
) -> None:
    """Put the log's pieces into the queue, why it breaks off if it does, and None at its end."""

    async def read() -> None:
        async for text in client.tail_job_logs(submission_id):
            log.put(text)

    try:
        asyncio.run(read())
    except Exception as error:
        log.put(error)
    log.put(None)


def _next(log: queue.SimpleQueue[str | Exception | None], deadline: float) -> str | Exception | None:
    """What comes next, "" if none comes in time, None at its end."""
    try:
        return log.get(timeout=max(0.0, min(QUIET_S, deadline - time.monotonic())))
    except queue.Empty:
        return ""


def _ask(call: Callable[[], T], address: str, answer_s: float = ANSWER_S) -> T:
    """A call's answer, or an error of ours."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=answer_s)
    except AuthenticationError:
        raise Unauthenticated(
            f"the cluster at {address} wants its token",
            field="address",
            fix="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        ) from None
    except TimeoutError:
        problem = f"no answer within {answer_s:g} s"
    except ConnectionError:
        problem = "nothing answers there"
    except (RuntimeError, ValueError, OSError, LookupError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    raise Unavailable(
        f"Ray's job server at {address}: {problem}",
        field="address",
        fix="it listens where the head's dashboard does (ray start --head --dashboard-host), on port 8265",
    )
