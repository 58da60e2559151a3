"""`adamserve reproduce`: the paper's experiments, a report and a table of what held."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from adamserve.cli.options import Format, RayAddress, answer, live_line, opt, table
from adamserve.errors import InvalidArgument

GROUP = "adamserve.experiments"
"""An entry point of this group names a study, a module or an object: `NAMES` are its experiments in the order in which
"all" runs them, and `run` runs some of them and returns each one's verdict."""

SCALES = ("smoke", "cpu", "full")


def reproduce(
    experiment: Annotated[
        str,
        typer.Argument(help="An experiment's name, such as mlp-mnist, or all. A wrong one gets their list."),
    ],
    scale: Annotated[str, opt("smoke (minutes), cpu (an hour or two on two cores) or full.")] = "smoke",
    data_dir: Annotated[
        Path | None, opt("Folder with the data sets' files; embedded stand-ins are used without it.")
    ] = None,
    out: Annotated[Path | None, opt("Folder to write; runs/reproduce-SCALE by default.")] = None,
    seeds: Annotated[int | None, opt("Seeds: 1 for smoke, 3 for cpu, 5 for full.")] = None,
    shards: Annotated[int, opt("Shard processes.")] = 2,
    workers: Annotated[int, opt("Workers of each training, but for regret, which compares several.")] = 1,
    consistency: Annotated[str, opt("async, ssp:S or bsp; regret is async.")] = "async",
    address: RayAddress = None,
    output: Annotated[Format, opt("Print the verdicts as a table or as JSON.", "--format")] = "table",
) -> None:
    """Run the paper's experiments through the service, and say by numbers which of its claims held.

    A run that was stopped goes on where it was when it is started again with the same --out.
    """
    study, names = _chosen(experiment)
    if scale not in SCALES:
        raise InvalidArgument(f"must be {', '.join(SCALES)}, got {scale!r}", field="scale")
    for name, value in (("shards", shards), ("workers", workers), ("seeds", seeds)):
        if value is not None and value < 1:
            raise InvalidArgument(f"must be at least 1, got {value}", field=name)
    from adamserve.shard.consistency import parse

    mode = parse(consistency)
    folder = out if out is not None else Path("runs") / f"reproduce-{scale}"
    with live_line(every_s=10.0, width=150) as show:
        verdicts = study.run(
            names,
            scale=scale,
            seeds=seeds,
            shards=shards,
            workers=workers,
            consistency=mode,
            data_dir=data_dir,
            out=folder,
            address=address,
            progress=show,
        )
    rows = [
        (verdict["experiment"], claim["text"], "held" if claim["held"] else "not held")
        for verdict in verdicts
        for claim in verdict["claims"]
    ]
    title = f"claims; the figures are in {folder / 'REPORT.html'}"
    answer(output, verdicts, table("experiment", "claim", "verdict", rows=rows, title=title))


def _chosen(name: str) -> tuple[Any, Sequence[str]]:
    """The study that has the experiment, and which of its experiments are meant; "all" takes the first study's."""
    studies: list[Any] = [entry.load() for entry in entry_points(group=GROUP)]
    for study in studies:
        if name in study.NAMES:
            return study, (name,)
    if name == "all" and studies:
        return studies[0], studies[0].NAMES
    raise InvalidArgument(
        f"there is no experiment {name!r}",
        field="EXPERIMENT",
        fix=f"choose {', '.join(known for study in studies for known in study.NAMES)} or all",
    )
