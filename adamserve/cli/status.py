"""`adamserve status`: how the jobs of a running service stand."""

from __future__ import annotations

from typing import Annotated

import typer

from adamserve.cli.options import Format, answer, opt
from adamserve.cli.reading import Job, Target, Timeout, TlsCa, TlsCert, TlsKey, TokenFile, reading


def status(
    context: typer.Context,
    target: Target,
    job: Job = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 10.0,
    output: Annotated[Format, opt("Print tables or JSON.", "--format")] = "table",
) -> None:
    """Show how the jobs of a running service stand."""
    from adamserve.observe.page import Board
    from adamserve.observe.state import as_json
    from adamserve.observe.terminal import text

    with reading(context.params) as read:
        states = read()
    board = Board()
    board.show(*states)
    answer(output, [as_json(state) for state in states], text(board).removesuffix("\n"))
