"""Where `adamserve status` and `adamserve top` read from: a service over gRPC, or a status page over HTTP."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamserve.errors import (
    AdamServeError,
    DataError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from adamserve.client.client import Client
    from adamserve.observe.state import JobState

Read = Callable[[], "Sequence[JobState]"]
"""Asks how the jobs stand."""

Target = Annotated[
    str,
    typer.Argument(
        help="host:port of a service, as `adamserve serve` prints it; or the URL of a status page, which"
        " `adamserve train --metrics-port` has too."
    ),
]
Job = Annotated[str | None, typer.Option(help="One job; all that the token may see without it.")]
TokenFile = Annotated[Path | None, typer.Option(help="File that holds the bearer token.")]
TlsCa = Annotated[
    Path | None, typer.Option(help="PEM authorities of the service's certificate; plain text without it.")
]
TlsCert = Annotated[Path | None, typer.Option(help="This client's PEM certificate (mutual TLS).")]
TlsKey = Annotated[Path | None, typer.Option(help="Its PEM key.")]
Timeout = Annotated[float, typer.Option(help="Longest that an answer may take, in seconds.")]


@contextmanager
def reading(
    target: str,
    job: str | None,
    *,
    token_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    timeout_s: float,
) -> Iterator[Read]:
    """Connect; nothing is asked before the first read.

    Raises:
        InvalidArgument: an option is wrong, or its file cannot be read; names it.
    """
    if not 0 < timeout_s < float("inf"):
        raise InvalidArgument(f"must be a positive number of seconds, got {timeout_s}", field="timeout_s")
    if "://" in target:
        context = _context(tls_ca, tls_cert, tls_key)
        yield lambda: _of_page(target, job, _token(token_file), context, timeout_s)
        return
    with connecting(
        target,
        job or "",
        token_file=token_file,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        timeout_s=timeout_s,
    ) as client:
        yield client.jobs


@contextmanager
def connecting(
    target: str,
    job: str,
    *,
    token_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    timeout_s: float,
) -> Iterator[Client]:
    """A client of one job, by the options that commands share; nothing is sent yet.

    Raises:
        InvalidArgument: an option is wrong, or its file cannot be read; names it.
    """
    from adamserve.client.connect import connect

    try:
        client = connect(
            target, job, token_file=token_file, ca=tls_ca, cert=tls_cert, key=tls_key, timeout_s=timeout_s
        )
    except InvalidArgument as error:
        if error.field in ("ca", "cert", "key"):
            raise InvalidArgument(error.problem, field=f"tls_{error.field}", fix=error.fix) from None
        raise
    try:
        yield client
    finally:
        client.close()


def _of_page(
    url: str, job: str | None, token: str, context: ssl.SSLContext | None, timeout_s: float
) -> Sequence[JobState]:
    """The jobs of a status page."""
    from adamserve.observe.plain import from_plain
    from adamserve.observe.state import JobState

    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"{url!r} is no URL of a page", field="TARGET", fix="begin it with http://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/status.json", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:
            found = [from_plain(JobState, one) for one in json.load(answer)]
    except urllib.error.HTTPError as error:
        raise _refusal(url, error.code) from None
    except OSError as error:
        raise Unavailable(
            f"{url} does not answer: {getattr(error, 'reason', error)}",
            field="TARGET",
            fix="is it running, and is the URL right?",
        ) from None
    except (ValueError, TypeError):
        raise DataError(
            f"{url} is not a status page of this version", field="TARGET", fix="give the URL that was printed"
        ) from None
    if job is not None and job not in {state.job for state in found}:
        raise NotFound(f"there is no job {job!r}", field="job", fix=f"it has {[s.job for s in found]}")
    return [state for state in found if job in (None, state.job)]


def _refusal(url: str, code: int) -> AdamServeError:
    if code == 401:
        return Unauthenticated(f"{url} wants a token", field="token_file", fix="give the service's token")
    return DataError(f"{url} answers {code}", field="TARGET", fix="give the URL that was printed")


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}", field="token_file") from None


def _context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca is None and cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:  # SSLError is one
        raise InvalidArgument(f"cannot be read: {error}", field="tls_ca") from None
    return context
