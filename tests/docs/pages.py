"""The commands that the project's pages tell people to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHELL = ("sh", "bash", "shell", "console")
"""Languages of fenced blocks that are commands; an indented block always is."""


@dataclass(frozen=True)
class Command:
    """One command of a page, on one line and without its comment."""

    page: str
    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def pages() -> list[Path]:
    """README, docs and whatever deploy/ explains."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "deploy").rglob("*.md")),
    ]


def commands(page: Path, text: str | None = None) -> Iterator[Command]:
    """Every command in a page's indented blocks and shell fences, in order."""
    heading, fence, before, pending = "", "", "", ""
    for line in (page.read_text(encoding="utf-8") if text is None else text).splitlines():
        opened = re.match(r"(```+|~~~+)\s*(\w*)", line)
        if opened:
            fence = "" if fence else f"fence {opened[2]}"
        elif not fence and line.startswith("#"):
            heading = line.lstrip("# ").strip()
        elif fence.removeprefix("fence ") in SHELL or (not fence and _indented(line, before)):
            pending += re.sub(r"^\$ ", "", line.strip())
            if pending.endswith("\\"):
                pending = pending[:-1]
            else:
                bare = re.sub(r"(^|\s+)#(\s.*)?$", "", pending).strip()
                if bare:
                    yield Command(str(page.relative_to(ROOT)), heading, bare)
                pending = ""
        before = line
    assert not pending, f"{page}: a block ends with a backslash"


def _indented(line: str, before: str) -> bool:
    """Whether a line is in an indented block: such a block follows an empty line and stands in no list."""
    return (
        line.startswith("    ") and bool(line.strip()) and (not before.strip() or before.startswith("    "))
    )


def inline(page: Path) -> Iterator[Command]:
    """Every `adamserve ...` in a page's text, but for a bare command's name."""
    text = re.sub(r"^(```+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`(adamserve [a-z][^`(|\n]*)`", text):
        if len(found.split()) > 2:
            yield Command(str(page.relative_to(ROOT)), "", " ".join(found.split()))
