"""Where `adamserve status` and `adamserve top` read from: a service over gRPC, or a status page over HTTP."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamserve.cli.options import opt, seconds
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
Job = Annotated[str | None, opt("One job; all that the token may see without it.")]
TokenFile = Annotated[Path | None, opt("File that holds the bearer token.")]
TlsCa = Annotated[Path | None, opt("PEM authorities of the service's certificate; plain text without it.")]
TlsCert = Annotated[Path | None, opt("This client's PEM certificate (mutual TLS).")]
TlsKey = Annotated[Path | None, opt("Its PEM key.")]
Timeout = Annotated[float, opt("Longest that an answer may take, in seconds.")]


@contextmanager
def reading(options: Mapping[str, Any]) -> Iterator[Read]:
    """Connect as a command's options say; nothing is asked before the first read.

    Raises:
        InvalidArgument: an option is wrong, or its file cannot be read; names it.
    """
    seconds("timeout_s", options["timeout_s"])
    if "://" in options["target"]:
        context = _context(options["tls_ca"], options["tls_cert"], options["tls_key"])
        yield lambda: _of_page(
            options["target"], options["job"], _token(options["token_file"]), context, options["timeout_s"]
        )
        return
    with connecting(options) as client:
        yield client.jobs


@contextmanager
def connecting(options: Mapping[str, Any]) -> Iterator[Client]:
    """A client of one job, as a command's options say; nothing is sent yet.

    Raises:
        InvalidArgument: an option is wrong, or its file cannot be read; names it.
    """
    from adamserve.client.connect import connect

    files = {name: options[f"tls_{name}"] for name in ("ca", "cert", "key")}
    named = {name: options[name] for name in ("target", "token_file", "timeout_s")}
    try:
        client = connect(job=options["job"] or "", **named, **files)
    except InvalidArgument as error:
        if error.field in files:
            raise InvalidArgument(error.problem, field=f"tls_{error.field}", fix=error.fix) from None
        raise
    with closing(client):
        yield client


def _of_page(
    url: str, job: str | None, token: str, context: ssl.SSLContext | None, timeout_s: float
) -> Sequence[JobState]:
    """The jobs of a status page."""
    from adamserve.observe.state import from_json

    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"{url!r} is no URL of a page", field="TARGET", fix="begin it with http://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/status.json", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:
            found = [from_json(one) for one in json.load(answer)]
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
