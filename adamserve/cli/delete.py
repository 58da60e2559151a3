"""`adamserve delete`: delete a job of a running service."""

from __future__ import annotations

from typing import Annotated

import typer

from adamserve.cli.options import opt
from adamserve.cli.reading import Timeout, TlsCa, TlsCert, TlsKey, TokenFile, connecting
from adamserve.errors import NotFound


def delete(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="The job's name.")],
    target: Annotated[
        str, typer.Argument(help="host:port of the service, as `adamserve serve` prints it.")
    ] = "127.0.0.1:50051",
    purge: Annotated[
        bool, opt("Remove its checkpoints, instead of moving them to .trash.", "--purge")
    ] = False,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 120.0,
) -> None:
    """Delete a job: its shards forget it, and its checkpoints go to the folder .trash beside the jobs' own."""
    with connecting(context.params) as client:
        if not client.delete(purge=purge):
            raise NotFound(
                f"the service has no job {job!r}", field="JOB", fix="adamserve status shows which it has"
            )
    rest = ", with its checkpoints" if purge else "; its checkpoints, if any, are in .trash"
    print(f"deleted {job}{rest}")
