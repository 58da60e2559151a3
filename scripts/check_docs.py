"""Check the Markdown files: every relative link leads somewhere, and every `make` target named exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
MAKE = re.compile(r"`make ([a-z][a-z-]*)|^(?: {4}|\t)make ([a-z][a-z-]*)", re.MULTILINE)
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """Name the anchor of a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def problems(path: Path, targets: set[str]) -> list[str]:
    """Say what in one file leads nowhere."""
    text = path.read_text(encoding="utf-8")
    found = []
    for link in (match[1] or match[2] for match in LINK.finditer(CODE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists():
            found.append(f"{link}: there is no such file")
        elif fragment and there.suffix == ".md":
            headings = HEADING.findall(CODE.sub("", there.read_text(encoding="utf-8")))
            if fragment not in {anchor(heading) for heading in headings}:
                found.append(f"{link}: {there.name} has no such heading")
    for match in MAKE.finditer(text):
        target = match[1] or match[2]
        if target not in targets:
            found.append(f"make {target}: there is no such target")
    return [f"{path.relative_to(ROOT)}: {problem}" for problem in found]


def main() -> int:
    """Check every Markdown file that git knows or would add."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name and (ROOT / name).exists()]
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    found = [problem for path in paths for problem in problems(path, targets)]
    print("\n".join(found) if found else f"{len(paths)} files, nothing leads nowhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
