"""`adamserve submit`: `adamserve train` on a running Ray cluster, through Ray Jobs."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
import typer.main

from adamserve.cli.options import Format, opt, seconds
from adamserve.cli.train import CHECK_ONLY, train
from adamserve.errors import InvalidArgument

MISSING = 127
"""A shell's exit code for a command that it does not find."""


def submit(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NETWORK] [OPTIONS OF TRAIN]",
            help="As for `adamserve train`. Options of submit itself go before NETWORK.",
        ),
    ] = None,
    address: Annotated[
        str | None, opt("URL of the cluster's job server, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS")
    ] = None,
    wait: Annotated[bool, opt("Show the log until the job has ended.", "--wait/--no-wait")] = True,
    timeout_s: Annotated[
        float, opt("Longest to wait for the job's end; it goes on without this command.")
    ] = 86400.0,
    output: Annotated[
        Format, opt("With json, the job as one line, and its log on standard error.", "--format")
    ] = "table",
) -> None:
    """Run `adamserve train` on a running Ray cluster; exit as it exits."""
    seconds("timeout_s", timeout_s)
    words = list(arguments or [])
    _check(
        words,
        own={word for option in context.command.params for word in (*option.opts, *option.secondary_opts)},
    )
    entrypoint = shlex.join(["adamserve", "train", *words, "--address", "auto"])

    from adamserve.cluster import submit

    client = submit.connect(address)
    began = time.monotonic()
    name = submit.submit(client, entrypoint)
    show = partial(print, end="", file=sys.stderr if output == "json" else sys.stdout, flush=True)
    try:
        typer.echo(f"submitted {name}: {entrypoint}", err=True)
        job = submit.follow(client, name, show, timeout_s) if wait else submit.state(client, name)
    except KeyboardInterrupt:
        typer.echo(f"\n{name} goes on; to end it: ray job stop --address {address} {name}", err=True)
        raise
    if output == "json":
        print(json.dumps({**asdict(job), "address": address, "entrypoint": entrypoint}))
    elif wait:
        typer.echo(f"{name} {job.status} after {time.monotonic() - began:.1f} s: {job.message}", err=True)
    else:
        print(name)
    if job.exit_code == MISSING:
        typer.echo("is adamserve installed on the cluster's head, and on its PATH?", err=True)
    raise typer.Exit(job.exit_code or 0)


def _check(words: list[str], *, own: set[str]) -> None:
    """Refuse what `adamserve train` would refuse, without running it."""
    alone = typer.Typer(add_completion=False)
    alone.command()(train)
    command: Any = typer.main.get_command(alone)
    fix = "give it before the network"
    try:
        parsed = command.make_context("adamserve train", list(words), obj=CHECK_ONLY)
    except Exception as error:
        option = getattr(error, "option_name", "")
        if option in own:
            raise InvalidArgument("is an option of submit itself", field=option, fix=fix) from None
        raise
    with parsed:
        if parsed.params["address"] is not None:
            problem = "is the cluster's that the job is submitted to"
            raise InvalidArgument(problem, field="address", fix=fix)
        command.invoke(parsed)
