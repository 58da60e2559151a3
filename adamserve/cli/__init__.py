"""The command line. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from adamserve import __version__
from adamserve.cli.checkpoint import app as checkpoint_app
from adamserve.cli.train import train
from adamserve.errors import AdamServeError

USAGE_ERROR = 2
"""Exit code for bad input and for whatever else the user can mend."""

app = typer.Typer(
    name="adamserve",
    help="A distributed optimizer service for parameter servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.add_typer(checkpoint_app, name="checkpoint")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adamserve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """A distributed optimizer service for parameter servers."""


def main() -> None:
    """Run the command line; an error that adamserve raised on purpose is one line and exit code 2."""
    try:
        app()
    except AdamServeError as error:
        field = f"--{error.field.replace('_', '-')}" if error.field in OPTIONS else error.field
        line = type(error)(error.problem, field=field, fix=error.fix)
        print(f"adamserve: {' '.join(str(line).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


OPTIONS = frozenset(
    "shards workers epochs batch seed lr lr_schedule dataset optimizer consistency data_dir run_dir address "
    "gpus_per_shard gpus_per_worker lease_s checkpoint_every_s max_steps target_loss max_staleness staleness_lr "
    "delay_compensation metrics_port option".split()
)
"""Fields that are options of the command line, to be named as the user wrote them."""
