"""`adamserve dashboard`: the dashboards for whoever has no Grafana."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adamserve.cli.train import Format
from adamserve.errors import InvalidArgument

app = typer.Typer(help="The dashboards, without Grafana.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """The dashboards, without Grafana."""


@app.command()
def render(
    prometheus: Annotated[str, typer.Option(help="URL of a Prometheus.")] = "http://127.0.0.1:9090",
    last: Annotated[
        str, typer.Option(help="How much time to draw, up to --to: 90s, 30m, 1h30m, 2d.")
    ] = "30m",
    start: Annotated[
        str | None, typer.Option("--from", help="First moment, in place of --last: 2026-11-25T14:30, in UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Last moment; now without it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and index.html.")] = Path("dashboards"),
    dashboard: Annotated[
        list[str] | None, typer.Option(help="Draw this one; again for another. All without it.")
    ] = None,
    job: Annotated[
        list[str] | None, typer.Option(help="Draw this job; again for another. All without it.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest that all queries together may take.")] = 60.0,
    output: Annotated[Format, typer.Option("--format", help="List as text or as JSON.")] = Format.table,
) -> None:
    """Draw the panels of the dashboards from a Prometheus: a PNG each, and all of them in index.html."""
    if not 0 < timeout_s < float("inf"):
        raise InvalidArgument(f"must be a positive number of seconds, got {timeout_s}", field="timeout_s")
    from adamserve.observe.render import render as drawn

    pictures, window = drawn(
        prometheus,
        out,
        start=start,
        end=end,
        last=last,
        dashboards=dashboard or [],
        jobs=job or [],
        timeout_s=timeout_s,
    )
    html = out / "index.html"
    if output is Format.json:
        listing = [
            {
                "dashboard": picture.dashboard.uid,
                "panel": picture.title,
                "file": str(out / picture.file),
                "lines": picture.lines,
                "queries": picture.queries,
            }
            for picture in pictures
        ]
        times = {"from": window.start, "to": window.end, "step_s": window.step}
        print(json.dumps({**times, "html": str(html), "panels": listing}))
        return
    for picture in pictures:
        lines = f"{picture.lines} line{'s' * (picture.lines != 1)}" if picture.lines else "no data"
        print(f"{picture.dashboard.uid:24}{picture.title:28}{lines:10}{out / picture.file}")
    print(html)
