"""`adamserve dashboard`: the dashboards for whoever has no Grafana."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamserve.cli.train import Format
from adamserve.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adamserve.observe.dashboards import Dashboard

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
    from adamserve.observe import draw, query
    from adamserve.values import Deadline

    wanted = _wanted(dashboard or [])
    _make(out)
    since, until = query.window(start, end, last, time.time())
    asked = query.Prometheus(prometheus, Deadline.after(timeout_s))
    scrape_s = asked.scrape_interval()
    window = query.Window(since, until, max((until - since) / query.POINTS, scrape_s))
    _check_jobs(job or [], asked.jobs(window))
    known = query.variables(window, scrape_s, job or [])
    pictures = [
        draw.picture(asked, board, panel, window, known) for board in wanted for panel in board.panels
    ]
    for picture in pictures:
        (out / picture.file).write_bytes(picture.png)
    (out / "index.html").write_text(draw.document(pictures, window))
    if output is Format.json:
        listing = [
            {
                "dashboard": picture.dashboard.uid,
                "panel": picture.panel.title,
                "file": str(out / picture.file),
                "lines": picture.lines,
                "queries": picture.queries,
            }
            for picture in pictures
        ]
        html = str(out / "index.html")
        print(
            json.dumps({"from": since, "to": until, "step_s": window.step, "html": html, "panels": listing})
        )
        return
    for picture in pictures:
        lines = f"{picture.lines} line{'s' * (picture.lines != 1)}" if picture.lines else "no data"
        print(f"{picture.dashboard.uid:24}{picture.panel.title:28}{lines:10}{out / picture.file}")
    print(out / "index.html")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").touch()
    except OSError as error:
        raise InvalidArgument(
            f"{folder} cannot be written: {error.strerror}", field="out", fix="choose another folder"
        ) from None


def _wanted(names: Sequence[str]) -> Sequence[Dashboard]:
    from adamserve.observe.dashboards import DASHBOARDS

    by_name = {board.uid.removeprefix("adamserve-"): board for board in DASHBOARDS}
    for name in names:
        if name.removeprefix("adamserve-") not in by_name:
            raise NotFound(
                f"there is none called {name!r}", field="dashboard", fix=f"one of {', '.join(by_name)}"
            )
    return [by_name[name.removeprefix("adamserve-")] for name in names] or DASHBOARDS


def _check_jobs(wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise NotFound(
                f"Prometheus has seen no job {name!r} in that time",
                field="job",
                fix=f"it has seen {', '.join(known) or 'none'}",
            )
