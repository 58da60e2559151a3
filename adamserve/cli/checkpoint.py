"""`adamserve checkpoint`: list, inspect, verify, export."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adamserve.cli.options import Format, answer, opt, table
from adamserve.errors import CheckpointError, NotFound

if TYPE_CHECKING:
    from adamserve.checkpoint import CheckpointInfo

Root = Annotated[Path, typer.Argument(help="A run folder, or a job's folder of checkpoints.")]
Folder = Annotated[Path, typer.Argument(help="A checkpoint; of a run or job folder the newest one.")]
Output = Annotated[Format, opt("Print a table or JSON.", "--format")]


def list_checkpoints(root: Root, output: Output = "table") -> None:
    """List a run's checkpoints, oldest first."""
    infos = _all(root)
    rows = [
        (i.number, i.created, " ".join(map(str, i.clocks)), f"{i.nbytes / 1e6:.1f}", i.problem or "ok")
        for i in infos
    ]
    answer(
        output,
        [{**asdict(info), "folder": str(info.folder)} for info in infos],
        table("number", "created", "clocks", "MB", "state", rows=rows),
    )


def inspect(folder: Folder, output: Output = "table") -> None:
    """Show what a checkpoint holds."""
    from adamserve import checkpoint

    found = _one(folder)
    manifest = checkpoint.read_manifest(found).to_json()
    said = ("number", "job", "created", "rule", "consistency", "extra")
    rows = [(key, json.dumps(manifest[key])) for key in said]
    for s in manifest["shards"]:
        number, clock = s["stamp"]
        rows.append((f"shard {s['shard']}", f"incarnation {number} clock {clock}, {s['nbytes']} bytes"))
    for t in manifest["tensors"]:
        rows.append((t["name"], f"{t['dtype']} {'x'.join(map(str, t['shape'])) or 'scalar'}"))
    answer(output, {"folder": str(found), **manifest}, table(str(found), "", rows=rows))


def verify(folder: Folder, output: Output = "table") -> None:
    """Check every byte of a checkpoint; exit code 1 when something is wrong."""
    from adamserve import checkpoint

    found = _one(folder)
    try:
        manifest = checkpoint.verify(found)
    except CheckpointError as error:
        answer(output, {"folder": str(found), "ok": False, "problem": str(error)}, str(error))
        raise typer.Exit(1) from None
    nbytes = sum(entry.nbytes for entry in manifest.shards)
    shards = len(manifest.shards)
    answer(
        output,
        {"folder": str(found), "ok": True, "shards": shards, "nbytes": nbytes},
        f"{found}: {shards} shards, {nbytes} bytes, all as written",
    )


def export(
    folder: Folder,
    out: Annotated[Path, opt("File to write.")],
    to: Annotated[Literal["torch"], opt("The format.")] = "torch",
    model_only: Annotated[bool, opt("Leave the optimizer's state out.", "--model-only")] = False,
    output: Output = "table",
) -> None:
    """Write a model's and an optimizer's state_dict, to go on with in plain torch."""
    from adamserve.checkpoint.export import export_torch

    notes = export_torch(_one(folder), out, model_only=model_only)
    answer(output, {"file": str(out), "notes": notes}, f"wrote {out}", *(f"note: {note}" for note in notes))


def _all(path: Path) -> list[CheckpointInfo]:
    """The checkpoints of the job folders that a path may mean."""
    from adamserve import checkpoint

    if not path.is_dir():
        raise NotFound("there is no such folder", field=str(path))
    jobs = sorted(p for p in (path / "checkpoints").glob("*") if p.is_dir())
    return [info for job in jobs or [path] for info in checkpoint.list_checkpoints(job)]


def _one(path: Path) -> Path:
    """The checkpoint that a path names; of a folder of several, the newest complete one."""
    from adamserve import checkpoint

    run = (path / "checkpoints").is_dir()  # its name may be a number too
    if path.is_dir() and not run and (path.name.isdecimal() or (path / checkpoint.MANIFEST).exists()):
        return path
    infos = [info for info in _all(path) if info.complete]
    if not infos:
        raise NotFound("holds no complete checkpoint", field=str(path))
    return max(infos, key=lambda info: (info.created, info.number)).folder
