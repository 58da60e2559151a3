"""The command line. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from adamserve import __version__
from adamserve.cli import checkpoint, dashboard, metrics
from adamserve.cli.delete import delete
from adamserve.cli.doctor import doctor
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
        "list": checkpoint.list_checkpoints,
        "inspect": checkpoint.inspect,
        "verify": checkpoint.verify,
        "export": checkpoint.export,
    },
    ("metrics", "What there is to watch."): {"list": metrics.list_metrics},
    ("dashboard", "The dashboards, without Grafana."): {"render": dashboard.render},
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
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        typer.echo(f"adamserve: {' '.join(message.split())}", err=True)
        code = USAGE_ERROR
    sys.exit(code)


def _message(error: Exception) -> str | None:
    """What the user can mend, the field as it was typed: `data_dir` is `--data-dir`."""
    if isinstance(error, AdamServeError):
        field = error.field
        option = any(
            field in inspect.signature(command).parameters for command in (*COMMANDS, dashboard.render)
        )
        error.field = TYPED.get(field, f"--{field.replace('_', '-')}" if option else field)
        return str(error)
    if not hasattr(error, "format_message"):
        return None
    # What Typer raises for a wrong option has no public name in the versions that carry their own click.
    context = getattr(error, "ctx", None)
    return f"{error.format_message()} (see {context.command_path if context else 'adamserve'} --help)"
