"""The command line. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from adamserve import __version__
from adamserve.cli.checkpoint import export, list_checkpoints, verify
from adamserve.cli.checkpoint import inspect as inspect_checkpoint
from adamserve.cli.dashboard import render
from adamserve.cli.delete import delete
from adamserve.cli.doctor import doctor
from adamserve.cli.metrics import list_metrics
from adamserve.cli.reproduce import reproduce
from adamserve.cli.serve import serve
from adamserve.cli.status import status
from adamserve.cli.submit import submit
from adamserve.cli.top import top
from adamserve.cli.train import train
from adamserve.errors import AdamServeError

USAGE_ERROR = 2
"""Exit code for bad input and for whatever else the user can mend."""

INTERRUPTED = 130
"""Exit code when Ctrl-C ended the command at once."""

TYPED = {
    "network": "NETWORK",
    "rule": "--optimizer",
    **{name: f"--tls-{name}" for name in ("ca", "cert", "key")},
}
"""What the user types where the field of an error is called otherwise."""

app = typer.Typer(
    name="adamserve",
    help="A distributed optimizer service for parameter servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (train, serve, submit, reproduce, status, top, delete, doctor)
for command in COMMANDS:
    app.command(context_settings={"allow_interspersed_args": command is not submit})(command)
GROUPS: dict[tuple[str, str], dict[str, Callable[..., None]]] = {
    ("checkpoint", "Look at checkpoints, check them, and take them elsewhere."): {
        "list": list_checkpoints,
        "inspect": inspect_checkpoint,
        "verify": verify,
        "export": export,
    },
    ("metrics", "What there is to watch."): {"list": list_metrics},
    ("dashboard", "The dashboards, without Grafana."): {"render": render},
}
for (group, says), members in GROUPS.items():
    below = typer.Typer(no_args_is_help=True)
    below.callback(help=says)(lambda: None)  # without it, a group of one command would be that command
    for name, member in members.items():
        below.command(name)(member)
    app.add_typer(below, name=group)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adamserve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A distributed optimizer service for parameter servers."""


def main() -> None:
    """Run the command line; whatever the user can mend is one line on stderr and exit code 2."""
    try:
        code: Any = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except AdamServeError as error:
        error.field = _as_typed(error.field)
        _complain(str(error))
        code = USAGE_ERROR
    except Exception as error:
        # What Typer raises for a wrong option has no public name in the versions that carry their own click.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        _complain(f"{message()} (see {context.command_path if context else 'adamserve'} --help)")
        code = USAGE_ERROR
    sys.exit(code)


def _as_typed(field: str) -> str:
    """An error's field as the user typed it: `data_dir` is `--data-dir`."""
    option = any(field in inspect.signature(command).parameters for command in (*COMMANDS, render))
    return TYPED.get(field, f"--{field.replace('_', '-')}" if option else field)


def _complain(message: str) -> None:
    typer.echo(f"adamserve: {' '.join(message.split())}", err=True)
