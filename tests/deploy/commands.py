"""Commands of this project and of Ray, read by their own parsers and not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer.main
from ray.scripts.scripts import cli as ray

from adamserve.cli import app


def problem(words: list[str]) -> str:
    """What is wrong with a command and its options; "" if nothing is."""
    root: Any = typer.main.get_command(app) if words[0] == "adamserve" else ray
    try:
        context = root.make_context(words[0], words[1:])
        with context:
            while hasattr(context.command, "commands"):
                name, command, rest = context.command.resolve_command(
                    context, [*context._protected_args, *context.args]
                )
                context = command.make_context(name, rest, parent=context)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return f"{shlex.join(words)}: {message()}"
    if words[:2] == ["adamserve", "submit"] and (inner := context.params["arguments"]):
        return problem(["adamserve", "train", *inner])
    return ""


def in_shell(text: str) -> Iterator[list[str]]:
    """The commands `adamserve ...` and `ray start ...` in a line of shell."""
    for part in re.split(r"&&|\|\||;|\|", text):
        words = shlex.split(part, comments=True)
        while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("exec", "export")):
            words = words[1:]
        if words and (words[0] == "adamserve" or words[:2] == ["ray", "start"]):
            yield words
