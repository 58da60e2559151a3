"""`adamserve doctor`: is this machine fit to run the service, and what to do where it is not."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from adamserve.cli.options import Format, answer, opt


def doctor(
    folder: Annotated[Path, opt("Where checkpoints will go.")] = Path(),
    ports: Annotated[
        list[int] | None, opt("A port that will be listened on; again for another.", "--port")
    ] = None,
    host: Annotated[str, opt("The address that will be listened on.")] = "127.0.0.1",
    prometheus: Annotated[str | None, opt("URL of the Prometheus that is to watch.")] = None,
    output: Annotated[Format, opt("Print text or JSON.", "--format")] = "table",
) -> None:
    """Check this machine; exit with 0 if all is well, 1 after a warning, 2 after an error."""
    from adamserve.cluster import doctor as checks
    from adamserve.optim.engine.build import cache_directory

    findings = [
        checks.python(sys.version_info[:2]),
        *checks.packages(metadata.requires("adamserve") or (), checks.installed_version),
        checks.compiler(shutil.which),
        checks.kernel_cache(cache_directory()),
        checks.proxy(os.environ),
        checks.ray_token(os.environ),
        checks.space("shared memory", Path("/dev/shm"), checks.SHM_BYTES, "raise it (Docker: --shm-size=2g)"),
        checks.space("disk", folder, checks.DISK_BYTES, "free some, or choose another folder"),
        checks.clock(folder),
        checks.gpu(),
        *(checks.port(number, host) for number in ports or (50051, 9464)),
    ]
    if prometheus is not None:
        findings += checks.prometheus(prometheus)
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.name:8}{finding.check}: {finding.found}")
        if finding.fix:
            lines.append(f"{'':8}-> {finding.fix}")
    answer(output, [{**asdict(f), "severity": f.severity.name} for f in findings], *lines)
    raise typer.Exit(max(finding.severity for finding in findings))
