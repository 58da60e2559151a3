"""`adamserve top`: the jobs of a running service, drawn anew every few seconds."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from adamserve.cli.options import Format, answer, opt
from adamserve.cli.reading import Job, Read, Target, Timeout, TlsCa, TlsCert, TlsKey, TokenFile, reading
from adamserve.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from adamserve.observe.page import Board


def top(
    context: typer.Context,
    target: Target,
    job: Job = None,
    interval: Annotated[float, opt("Seconds between two looks.")] = 2.0,
    once: Annotated[bool, opt("Look once and end.", "--once")] = False,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    timeout_s: Timeout = 10.0,
    output: Annotated[Format, opt("Draw, or print one line of JSON a look.", "--format")] = "table",
) -> None:
    """Watch the jobs of a running service until Ctrl-C."""
    if not 0.1 <= interval < float("inf"):
        raise InvalidArgument(f"must be at least 0.1 seconds, got {interval}", field="interval")
    from adamserve.observe.page import Board
    from adamserve.observe.state import as_json
    from adamserve.observe.terminal import text

    board = Board()
    with reading(context.params) as read:
        try:
            board.show(*read())
            if output == "table" and sys.stdout.isatty() and not once:
                _live(board, read, interval)
                return
            while True:
                jobs = [as_json(state) for state, _ in board.jobs()]
                answer(output, {"at": board.now(), "jobs": jobs}, text(board).removesuffix("\n"))
                if once:
                    return
                time.sleep(interval)
                board.show(*read())
        except KeyboardInterrupt:
            return
        except BrokenPipeError:  # whoever read has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _live(board: Board, read: Read, interval: float) -> None:
    """Redraw one screen; while the service does not answer, the last view stays and says so."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from adamserve.observe.terminal import drawn

    with Live(drawn(board), screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(interval)
            try:
                board.show(*read())
            except Unavailable as error:
                live.update(Group(Text(f"not answering: {error}", "bold red"), drawn(board)))
            else:
                live.update(drawn(board))
