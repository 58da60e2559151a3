"""`adamserve dashboard`: the dashboards for whoever has no Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adamserve.cli.options import Format, answer, opt, seconds


def render(
    prometheus: Annotated[str, opt("URL of a Prometheus.")] = "http://127.0.0.1:9090",
    last: Annotated[str, opt("How much time to draw, up to --to: 90s, 30m, 1h30m, 2d.")] = "30m",
    start: Annotated[
        str | None, opt("First moment, in place of --last: 2026-11-25T14:30, in UTC.", "--from")
    ] = None,
    end: Annotated[str | None, opt("Last moment; now without it.", "--to")] = None,
    out: Annotated[Path, opt("Folder for the pictures and index.html.")] = Path("dashboards"),
    dashboard: Annotated[list[str] | None, opt("Draw this one; again for another. All without it.")] = None,
    job: Annotated[list[str] | None, opt("Draw this job; again for another. All without it.")] = None,
    timeout_s: Annotated[float, opt("Longest that all queries together may take.")] = 60.0,
    output: Annotated[Format, opt("List as text or as JSON.", "--format")] = "table",
) -> None:
    """Draw the panels of the dashboards from a Prometheus: a PNG each, and all of them in index.html."""
    seconds("timeout_s", timeout_s)
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
    listing = []
    lines = []
    for picture in pictures:
        uid, title, file = picture.dashboard.uid, picture.title, str(out / picture.file)
        entry = {"dashboard": uid, "panel": title, "file": file}
        listing.append({**entry, "lines": picture.lines, "queries": picture.queries})
        drawn_lines = f"{picture.lines} line{'s' * (picture.lines != 1)}" if picture.lines else "no data"
        lines.append(f"{uid:24}{title:28}{drawn_lines:10}{file}")
    times = {"from": window.start, "to": window.end, "step_s": window.step}
    answer(output, {**times, "html": str(html), "panels": listing}, *lines, str(html))
