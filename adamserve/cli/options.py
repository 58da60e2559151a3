"""What commands have in common: some options, how a config is made of them, and how the answer is printed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from adamserve.errors import InvalidArgument

Config = TypeVar("Config")

Format = Literal["table", "json"]
"""How to print the answer."""


def opt(says: str, *names: str, **how: Any) -> Any:
    """An option with its help."""
    return typer.Option(*names, help=says, **how)


def absolute(path: Path | None) -> Path | None:
    """A path for processes that run in other folders."""
    return path and path.absolute()


def _ports(text: str | None) -> Any:
    from adamserve.edge.shard_edge import Ports

    return None if text is None else Ports.parse(text)


def _advertised(text: str | None) -> Any:
    from adamserve.edge.shard_edge import Advertised

    return None if text is None else Advertised.parse(text)


RayAddress = Annotated[str | None, opt("A running Ray cluster, host:port or auto.")]
ShardPorts = Annotated[
    str | None,
    opt(
        "Ports that shards listen on, two each; without it any free ones.",
        metavar="LOW-HIGH",
        callback=_ports,
    ),
]
Advertise = Annotated[
    str | None,
    opt(
        "Where clients are told that the shards are: one host, or HOST:PORT,... for each; for NAT and containers.",
        metavar="HOST",
        callback=_advertised,
    ),
]
SdFile = Annotated[
    Path | None,
    opt("File to keep for Prometheus' file_sd: where every process's metrics are.", callback=absolute),
]
LogFormat = Annotated[Literal["text", "json"], opt("How every process logs to standard error.")]
LogLevel = Annotated[str, opt("Least that is logged: debug, info, warning or error.")]


def seconds(name: str, value: float) -> None:
    """Refuse a time that is not positive and finite."""
    if not 0 < value < float("inf"):
        raise InvalidArgument(f"must be a positive number of seconds, got {value}", field=name)


def configured(kind: Callable[..., Config], options: Mapping[str, Any], **made: Any) -> Config:
    """Make a config: the fields that `made` lacks are the options of the same names."""
    named = {field.name for field in fields(kind)} & options.keys()  # type: ignore[arg-type] # a dataclass
    return kind(**{name: options[name] for name in named} | made)


def answer(output: Format, value: Any, *shown: Any) -> None:
    """Print a command's answer as a line of JSON, or what is shown in its place: lines and tables."""
    if output == "json":
        print(json.dumps(value), flush=True)
        return
    for part in shown:
        if isinstance(part, str):
            print(part, flush=True)
            continue
        from rich.console import Console

        Console().print(part)


def table(*columns: str, rows: Iterable[Iterable[Any]], title: str | None = None) -> Any:
    """A table to show; without columns it has no head."""
    from rich.table import Table

    made = Table(*columns, title=title, show_header=bool(columns))
    for row in rows:
        made.add_row(*map(str, row))
    return made


@contextmanager
def live_line(
    *, every_s: float = 2.0, width: int | None = None, write: Callable[..., None] | None = None
) -> Iterator[Callable[..., None]]:
    """A line on stderr: redrawn in a terminal, elsewhere printed every `every_s` seconds and with every new note.

    Args:
        width: most characters that are redrawn.
        write: to be called in place of printing; nothing is redrawn then.
    """
    terminal = write is None and sys.stderr.isatty()
    say = write or partial(print, file=sys.stderr, flush=True)
    printed, noted = 0.0, ""

    def show(what: Any, note: str = "") -> None:
        nonlocal printed, noted
        if terminal:
            say(f"\r\033[K{what[:width]}", end="")
        elif note != noted or time.monotonic() - printed >= every_s:
            printed, noted = time.monotonic(), note
            say(what)

    try:
        yield show
    finally:
        if terminal:
            say()
