"""`adamserve status`: how the jobs of a running service stand."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from adamserve.cli.reading import Job, Target, Timeout, TlsCa, TlsCert, TlsKey, TokenFile, reading
from adamserve.cli.train import Format


def status(
    target: Target,
    job: Job = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 10.0,
    output: Annotated[Format, typer.Option("--format", help="Print tables or JSON.")] = Format.table,
) -> None:
    """Show how the jobs of a running service stand."""
    from adamserve.observe.state import as_json

    with reading(
        target,
        job,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        timeout_s=timeout_s,
    ) as read:
        found = read()
    if output is Format.json:
        print(json.dumps([as_json(state) for state in found]))
        return
    from adamserve.observe.page import Board
    from adamserve.observe.terminal import text

    board = Board()
    board.show(*found)
    print(text(board), end="")
