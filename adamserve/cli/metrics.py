"""`adamserve metrics`: what there is to watch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from adamserve.cli.train import Format

app = typer.Typer(help="What there is to watch.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """What there is to watch."""


@app.command("list")
def list_metrics(
    output: Annotated[Format, typer.Option("--format", help="Print text or JSON.")] = Format.table,
) -> None:
    """List every metric: its type, its labels, which processes have it, and the panels and alerts that look at it."""
    from adamserve.observe.usage import usages

    found = usages()
    if output is Format.json:
        print(json.dumps(found))
        return
    for usage in found:
        print(f"{usage['name']}  {usage['type']}  {', '.join(usage['labels'])}")
        print(f"    {usage['help']}")
        print(f"    from: {', '.join(usage['processes'])}")
        for lookers in ("panels", "alerts"):
            if usage[lookers]:
                print(f"    {lookers}: {'; '.join(usage[lookers])}")
