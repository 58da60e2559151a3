"""`adamserve train`: options in, a live line, a table and a run folder out."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adamserve.errors import InvalidArgument

if TYPE_CHECKING:
    from adamserve.optim import Rule
    from adamserve.train.progress import Progress

log = logging.getLogger("adamserve.train")

PLAIN_EVERY_S = 2.0
"""Seconds between progress lines where there is no terminal to redraw."""

CHECK_ONLY = "check only"
"""As a context's object: the options are checked, and nothing is run."""

LogFormat = Annotated[Literal["text", "json"], typer.Option(help="How every process logs to standard error.")]
LogLevel = Annotated[str, typer.Option(help="Least that is logged: debug, info, warning or error.")]

TASK_OPTIONS: tuple[str, ...] = ("dataset", "whiten", "l2", "regret", "sparse", "dtype")
"""Options that the task takes: those that were given, as it has defaults of its own."""

JOB_OPTIONS: tuple[str, ...] = (
    "network",
    *TASK_OPTIONS,
    "optimizer",
    "lr",
    "lr_schedule",
    "weight_decay",
    "option",
    "workers",
    "consistency",
    "max_staleness",
    "staleness_lr",
    "delay_compensation",
    "batch",
    "seed",
)
"""Options that a resumed run takes from its checkpoint."""


class Format(StrEnum):
    """How to print the result."""

    table = "table"
    json = "json"


def train(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="The network to train.")] = "mlp",
    dataset: Annotated[
        str, typer.Option(help="The data set: digits or zipf (embedded), mnist, imdb or cifar10.")
    ] = "digits",
    optimizer: Annotated[
        str,
        typer.Option(
            help="The rule: sgd, nesterov, adagrad, rmsprop, nesterovrmsprop, adam, lpadam or adamax."
        ),
    ] = "adam",
    lr: Annotated[
        float | None, typer.Option(help="The rate. The rule's own default where it is left out.")
    ] = None,
    lr_schedule: Annotated[str, typer.Option(help="constant or inverse_sqrt (lr/sqrt(t)).")] = "constant",
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.0,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Any other constant of the rule, as NAME=VALUE."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    shards: Annotated[int, typer.Option(help="Shard processes.")] = 2,
    consistency: Annotated[str, typer.Option(help="async, ssp:S (S steps ahead at most) or bsp.")] = "async",
    max_staleness: Annotated[
        int | None, typer.Option(help="async: refuse staler pushes, in updates.")
    ] = None,
    staleness_lr: Annotated[
        str | None, typer.Option(help="async: none, or inverse (rate over staleness).")
    ] = None,
    delay_compensation: Annotated[
        float | None, typer.Option(help="async: lambda of delay compensation.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training set by all workers together.")] = 20,
    batch: Annotated[int, typer.Option(help="Examples in one worker's mini-batch.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = 0,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Normalise the images' contrast and whiten them.")
    ] = False,
    l2: Annotated[
        float, typer.Option(help="logreg on dense data: weight of the L2 penalty in the loss.")
    ] = 0.0,
    regret: Annotated[
        bool, typer.Option("--regret", help="logreg with --l2: count the regret, live and in hindsight.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of parameters and computation: float32 or float64.")
    ] = "float32",
    sparse: Annotated[
        str,
        typer.Option(help="Bags of words: exact or lazy rows, or dense (push and pull whole tensors)."),
    ] = "exact",
    max_steps: Annotated[int | None, typer.Option(help="Stop each worker after this many pushes.")] = None,
    target_loss: Annotated[
        float | None, typer.Option(help="Stop a worker at this mean training loss.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder to write; runs/DATE-NETWORK-DATASET by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --run-dir.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, host:port or auto.")] = None,
    shard_ports: Annotated[
        str | None,
        typer.Option(
            metavar="LOW-HIGH", help="Ports that shards listen on, two each; without it any free ones."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Bearer tokens of others than the workers: a line TOKEN, or a line JOB TOKEN."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="On several machines: let others call without a token.")
    ] = False,
    gpus_per_shard: Annotated[
        float, typer.Option(help="GPUs for each shard; above 0 its state lives there.")
    ] = 0.0,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs for each worker.")] = 0.0,
    lease_s: Annotated[float, typer.Option(help="Seconds until a silent worker stops counting.")] = 10.0,
    checkpoint_every_s: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 30.0,
    metrics_host: Annotated[
        str, typer.Option(help="Address that Prometheus metrics are served on.")
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics; none are served without it.")
    ] = None,
    sd_file: Annotated[
        Path | None,
        typer.Option(help="File to keep for Prometheus' file_sd: where every process's metrics are."),
    ] = None,
    log_format: LogFormat = "text",
    log_level: LogLevel = "info",
    output: Annotated[
        Format, typer.Option("--format", help="Print the result as a table or as JSON.")
    ] = Format.table,
) -> None:
    """Train a network through the service, on a local Ray or on a running cluster."""
    from adamserve.observe.logs import LogConfig, set_up

    log_as = LogConfig(log_format, log_level)
    if resume:
        _refuse_changes(context)
    if lr is not None and not 0 < lr < float("inf"):
        raise InvalidArgument(f"must be positive and finite, got {lr}", field="lr")
    rule = _rule(optimizer, lr=lr, lr_schedule=lr_schedule, weight_decay=weight_decay, options=option or [])
    from adamserve.shard.consistency import parse

    mode = parse(
        consistency,
        max_staleness=max_staleness,
        staleness_lr=staleness_lr,
        delay_compensation=delay_compensation,
    )
    if resume and run_dir is None:
        raise InvalidArgument(
            "is needed to resume", field="run_dir", fix="give the folder of the run to go on with"
        )
    from adamserve.edge.security import Security, Tokens
    from adamserve.edge.shard_edge import Ports
    from adamserve.train.config import TrainConfig, kept_settings
    from adamserve.train.tasks import recipe

    if resume and run_dir is not None and context.obj is not CHECK_ONLY:
        network = kept_settings(run_dir)["network"]
    what = recipe(network, **_given(context, *TASK_OPTIONS, "data_dir"))
    if run_dir is None:
        run_dir = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{what.label}"
    config = TrainConfig(
        recipe=what,
        rule=rule,
        consistency=mode,
        shards=shards,
        workers=workers,
        epochs=epochs,
        batch=batch,
        seed=seed,
        run_dir=run_dir,
        resume=resume,
        address=address,
        shard_ports=Ports.parse(shard_ports) if shard_ports is not None else None,
        security=Security(tokens=Tokens.read(token_file) if token_file is not None else Tokens()),
        insecure=insecure,
        gpus_per_shard=gpus_per_shard,
        gpus_per_worker=gpus_per_worker,
        lease_s=lease_s,
        checkpoint_every_s=checkpoint_every_s,
        max_steps=max_steps,
        target_loss=target_loss,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        sd_file=sd_file.absolute() if sd_file is not None else None,
        log=log_as,
    )
    if context.obj is CHECK_ONLY:
        return
    from adamserve.train.run import train as run

    set_up(log_as)
    with _stopping() as stop, _progress(as_log=log_format == "json") as show:
        record = run(config, on_progress=show, stop=stop)
    if output is Format.json:
        print(json.dumps(record))
    else:
        _table(record)


def _rule(name: str, *, lr: float | None, lr_schedule: str, weight_decay: float, options: list[str]) -> Rule:
    from adamserve import optim

    constants: dict[str, Any] = {"lr_schedule": lr_schedule, "weight_decay": weight_decay}
    if lr is not None:
        constants["lr"] = lr
    for text in options:
        key, given, value = text.partition("=")
        if not given:
            raise InvalidArgument(f"{text!r} is not NAME=VALUE", field="option", fix="as in -o beta1=0.95")
        try:
            constants[key] = json.loads(value.lower())
        except json.JSONDecodeError:
            constants[key] = value
    return optim.by_name(name, **constants)


def _given(context: typer.Context, *names: str) -> dict[str, Any]:
    """Those of the options that the user typed, by name."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source and source.name == "COMMANDLINE"
    }


def _refuse_changes(context: typer.Context) -> None:
    """A resumed run is the same job: options that would make it another are refused by name."""
    for name in _given(context, *JOB_OPTIONS):
        raise InvalidArgument(
            "a resumed run keeps its own",
            field=name,
            fix="leave it out; --epochs, --shards and --data-dir may change",
        )


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Ctrl-C (or SIGTERM) once ends the run cleanly, with a checkpoint; a second time ends it at once."""
    stop = threading.Event()

    def ask(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.info("stopping after the steps under way; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(*, as_log: bool) -> Iterator[Callable[[Progress], None]]:
    """A line on stderr that is redrawn in a terminal, and printed or logged now and then elsewhere."""
    from dataclasses import asdict

    from adamserve.observe.logs import fields

    terminal = sys.stderr.isatty() and not as_log
    printed = 0.0
    noted = ""

    def show(progress: Progress) -> None:
        nonlocal printed, noted
        due = time.monotonic() - printed >= PLAIN_EVERY_S or progress.note != noted
        if not terminal and not due:
            return
        noted, printed = progress.note, time.monotonic()
        if as_log:
            facts = asdict(progress)
            facts |= facts.pop("numbers")
            log.info(
                "progress", extra=fields(**{k: v for k, v in facts.items() if v not in (None, "") and v == v})
            )
            return
        tested = progress.numbers.get("test_accuracy", math.nan)
        accuracy = "" if math.isnan(tested) else f"  test {tested:.2%}"
        regret = "" if progress.average_regret is None else f"  regret/T {progress.average_regret:.4f}"
        rollbacks = f"  rollbacks {progress.rollbacks}" if progress.rollbacks else ""
        note = f"  {progress.note}" if progress.note else ""
        line = (
            f"epoch {progress.epoch:5.2f}/{progress.epochs}  loss {progress.loss:.4f}{regret}{accuracy}"
            f"  {progress.pushes_per_s:.0f} pushes/s  staleness {progress.staleness:.1f}{rollbacks}{note}"
        )
        if terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal:
            print(file=sys.stderr)


def _table(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    config = record["config"]
    table = Table(title=f"{record['task']}: {record['status']}", show_header=False)
    rows = [
        (
            "rule",
            ", ".join(f"{k}={v}" for k, v in config["rule"].items() if k != "rule"),
            config["rule"]["rule"],
        ),
        ("test accuracy", _number(record.get("test_accuracy"), ".2%"), None),
        ("test loss", _number(record.get("test_loss"), ".4f"), None),
        ("training loss", _number(record.get("train_loss"), ".4f"), None),
        ("steps", f"{record['steps']} by {config['workers']} workers on {config['shards']} shards", None),
        ("pushes/s", f"{record['pushes']['per_s']}", None),
        ("staleness", ", ".join(f"{k} {v:g}" for k, v in record["staleness"].items()), None),
        ("rollbacks", str(len(record["rollbacks"])), None),
        *(
            [("R(T)/T", _number(record["regret"].get("average_regret"), ".6f"), None)]
            if record["regret"]
            else []
        ),
        ("training time", f"{record['seconds']['training']:.1f} s", None),
        ("run folder", record["run_dir"], None),
    ]
    for name, value, head in rows:
        table.add_row(name, f"{head}({value})" if head else value)
    Console().print(table)


def _number(value: float | None, form: str) -> str:
    """A number of a record; None stands for one that is not finite, or that there is none of."""
    return "none" if value is None else format(value, form)
