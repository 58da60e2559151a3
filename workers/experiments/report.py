"""The page that shows every experiment: one HTML file with its figures in it, which asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamserve.train.record import beside
from workers.experiments import figures


def write(folder: Path, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Write REPORT.html over the verdicts, whose figures lie in FOLDER/NAME; returns its path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def image(name: str, figure: str) -> str:
        return base64.b64encode((folder / name / figure).read_bytes()).decode()

    page = templates.get_template("report.html.j2").render(
        verdicts=verdicts, image=image, shown=figures.shown
    )
    path = folder / "REPORT.html"
    with beside(path) as temporary:
        temporary.write_text(page)
    return path
