"""The page that shows every experiment: one HTML file with its figures in it, which asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1rem 0; } img { max-width: 100%; background: white; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8886; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
caption { text-align: left; font-weight: bold; padding-top: .5rem; }
.held { color: #18794e; } .not { color: #c62a2f; } .numbers { font-size: .85em; opacity: .8; }
""".strip()


def write(folder: Path, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Write REPORT.html over the verdicts, whose figures lie in FOLDER/NAME; returns its path."""
    held = sum(claim["held"] for verdict in verdicts for claim in verdict["claims"])
    total = sum(len(verdict["claims"]) for verdict in verdicts)
    settings = verdicts[0]["settings"] if verdicts else {}
    body = [
        "<h1>Adam, reproduced through the service</h1>",
        f"<p>{held} of {total} claims held.</p>",
        *(
            [
                "<p>A smoke run shows that everything works. It is far too small for its verdicts to mean much.</p>"
            ]
            if settings.get("scale") == "smoke"
            else []
        ),
        "<ul>",
        *(
            f'<li><a href="#{escape(v["experiment"])}">{escape(v["title"])}</a>: '
            f"{sum(c['held'] for c in v['claims'])} of {len(v['claims'])} held</li>"
            for v in verdicts
        ),
        "</ul>",
        *(part for verdict in verdicts for part in _section(folder, verdict)),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<link rel="icon" href="data:,">'
        f"<title>Adam, reproduced</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    path = folder / "REPORT.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page)
    temporary.replace(path)
    return path


def _section(folder: Path, verdict: Mapping[str, Any]) -> list[str]:
    name = verdict["experiment"]
    parts = [f'<h2 id="{escape(name)}">{escape(verdict["title"])}</h2>']
    parts += [f"<p>{escape(line)}</p>" for line in verdict["what"]]
    parts.append(f"<p>Settings: {escape(_settings(verdict))}.</p>")
    parts.append("<table><caption>Claims</caption><tr><th></th><th>claim</th><th>numbers</th></tr>")
    for claim in verdict["claims"]:
        mark = '<td class="held">held</td>' if claim["held"] else '<td class="not">not held</td>'
        numbers = ", ".join(f"{key}: {_shown(value)}" for key, value in claim["numbers"].items())
        parts.append(
            f'<tr>{mark}<td>{escape(claim["text"])}<br><span class="numbers">{escape(claim["source"])}</span></td>'
            f'<td class="numbers">{escape(numbers)}</td></tr>'
        )
    parts.append("</table>")
    for figure in verdict["figures"]:
        data = base64.b64encode((folder / name / figure).read_bytes()).decode()
        parts.append(f'<figure><img alt="{escape(figure)}" src="data:image/png;base64,{data}"></figure>')
    for title, rows in verdict["tables"].items():
        head, *rest = rows
        parts.append(f"<table><caption>{escape(title)}</caption>")
        parts.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
        parts += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rest]
        parts.append("</table>")
    if verdict["differs"]:
        parts.append("<p>What is not as in the paper:</p><ul>")
        parts += [f"<li>{escape(line)}</li>" for line in verdict["differs"]]
        parts.append("</ul>")
    return parts


def _settings(verdict: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in verdict["settings"].items())


def _shown(value: Any) -> str:
    if value is None:
        return "diverged"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
