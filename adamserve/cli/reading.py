"""Where `adamserve status` and `adamserve top` read from: a service over gRPC, or a status page over HTTP."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamserve.cli.options import opt, seconds
from adamserve.errors import DataError, InvalidArgument, NotFound, Unauthenticated, Unavailable

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
    """Connect as a command's options say; nothing is asked before the first read. Raises what `connecting` does."""
    seconds("timeout_s", options["timeout_s"])
    if "://" in options["target"]:
        yield partial(_of_page, options)
        return
    with connecting(options) as client:
        yield client.jobs


def connecting(options: Mapping[str, Any]) -> closing[Client]:
    """A client of one job, as a command's options say; nothing is sent yet.

    Raises:
        InvalidArgument: an option is wrong, or its file cannot be read; names it.
    """
    from adamserve.client.client import Client

    files = {name: options[f"tls_{name}"] for name in ("ca", "cert", "key")}
    named = {name: options[name] for name in ("target", "token_file", "timeout_s")}
    return closing(Client(job=options["job"] or "", **named, **files))


def _of_page(options: Mapping[str, Any]) -> Sequence[JobState]:
    """The jobs of a status page."""
    from adamserve.observe.plain import from_plain
    from adamserve.observe.state import JobState

    url, job, token_file = options["target"], options["job"], options["token_file"]
    if not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"{url!r} is no URL of a page", field="TARGET", fix="begin it with http://")
    request = urllib.request.Request(f"{url.rstrip('/')}/status.json")
    try:
        token = token_file.read_text().strip() if token_file is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{token_file} cannot be read: {error}", field="token_file") from None
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    wrong = partial(DataError, field="TARGET", fix="give the URL that was printed")
    context = _context(options["tls_ca"], options["tls_cert"], options["tls_key"])
    try:
        with urllib.request.urlopen(request, timeout=options["timeout_s"], context=context) as answer:
            states = [from_plain(JobState, state) for state in json.load(answer)]
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise Unauthenticated(
                f"{url} wants a token", field="token_file", fix="give the service's token"
            ) from None
        raise wrong(f"{url} answers {error.code}") from None
    except OSError as error:
        raise Unavailable(
            f"{url} does not answer: {getattr(error, 'reason', error)}",
            field="TARGET",
            fix="is it running, and is the URL right?",
        ) from None
    except (ValueError, TypeError):
        raise wrong(f"{url} is not a status page of this version") from None
    jobs = [state.job for state in states]
    if job is not None and job not in jobs:
        raise NotFound(f"there is no job {job!r}", field="job", fix=f"it has {jobs}")
    return [state for state in states if job in (None, state.job)]


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
