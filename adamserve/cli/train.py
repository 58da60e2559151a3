"""`adamserve train`: options in, a live line, a table and a run folder out."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamserve.cli.options import (
    Format,
    LogFormat,
    LogLevel,
    RayAddress,
    SdFile,
    ShardPorts,
    answer,
    configured,
    live_line,
    opt,
    table,
)
from adamserve.errors import InvalidArgument

if TYPE_CHECKING:
    from adamserve.optim import Rule
    from adamserve.train.progress import Progress

log = logging.getLogger("adamserve.train")

CHECK_ONLY = "check only"
"""As a context's object: the options are checked, and nothing is run."""

TASK_OPTIONS: tuple[str, ...] = ("dataset", "whiten", "l2", "regret", "sparse", "dtype")
"""Options that the task takes: those that were given, as it has defaults of its own."""

JOB_OPTIONS = (
    *("network", *TASK_OPTIONS, "optimizer", "lr", "lr_schedule", "weight_decay", "option", "workers"),
    *("consistency", "max_staleness", "staleness_lr", "delay_compensation", "batch", "seed"),
)
"""Options that a resumed run takes from its checkpoint."""


def train(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="The network to train.")] = "mlp",
    dataset: Annotated[
        str, opt("The data set: digits or zipf (embedded), mnist, imdb or cifar10.")
    ] = "digits",
    optimizer: Annotated[
        str, opt("The rule: sgd, nesterov, adagrad, rmsprop, nesterovrmsprop, adam, lpadam or adamax.")
    ] = "adam",
    lr: Annotated[float | None, opt("The rate. The rule's own default where it is left out.")] = None,
    lr_schedule: Annotated[str, opt("constant or inverse_sqrt (lr/sqrt(t)).")] = "constant",
    weight_decay: Annotated[float, opt("Decoupled weight decay.")] = 0.0,
    option: Annotated[
        list[str] | None, opt("Any other constant of the rule, as NAME=VALUE.", "--option", "-o")
    ] = None,
    workers: Annotated[int, opt("Worker processes.")] = 2,
    shards: Annotated[int, opt("Shard processes.")] = 2,
    consistency: Annotated[str, opt("async, ssp:S (S steps ahead at most) or bsp.")] = "async",
    max_staleness: Annotated[int | None, opt("async: refuse staler pushes, in updates.")] = None,
    staleness_lr: Annotated[str | None, opt("async: none, or inverse (rate over staleness).")] = None,
    delay_compensation: Annotated[float | None, opt("async: lambda of delay compensation.")] = None,
    epochs: Annotated[int, opt("Passes over the training set by all workers together.")] = 20,
    batch: Annotated[int, opt("Examples in one worker's mini-batch.")] = 32,
    seed: Annotated[int, opt("Seed of weights, data order and dropout.")] = 0,
    whiten: Annotated[bool, opt("Normalise the images' contrast and whiten them.", "--whiten")] = False,
    l2: Annotated[float, opt("logreg on dense data: weight of the L2 penalty in the loss.")] = 0.0,
    regret: Annotated[
        bool, opt("logreg with --l2: count the regret, live and in hindsight.", "--regret")
    ] = False,
    dtype: Annotated[str, opt("Of parameters and computation: float32 or float64.")] = "float32",
    sparse: Annotated[
        str, opt("Bags of words: exact or lazy rows, or dense (push and pull whole tensors).")
    ] = "exact",
    max_steps: Annotated[int | None, opt("Stop each worker after this many pushes.")] = None,
    target_loss: Annotated[float | None, opt("Stop a worker at this mean training loss.")] = None,
    data_dir: Annotated[Path | None, opt("Folder with the data set's files.")] = None,
    run_dir: Annotated[Path | None, opt("Folder to write; runs/DATE-NETWORK-DATASET by default.")] = None,
    resume: Annotated[bool, opt("Go on from the newest checkpoint in --run-dir.", "--resume")] = False,
    address: RayAddress = None,
    shard_ports: ShardPorts = None,
    token_file: Annotated[
        Path | None, opt("Bearer tokens of others than the workers: a line TOKEN, or a line JOB TOKEN.")
    ] = None,
    insecure: Annotated[
        bool, opt("On several machines: let others call without a token.", "--insecure")
    ] = False,
    gpus_per_shard: Annotated[float, opt("GPUs for each shard; above 0 its state lives there.")] = 0.0,
    gpus_per_worker: Annotated[float, opt("GPUs for each worker.")] = 0.0,
    lease_s: Annotated[float, opt("Seconds until a silent worker stops counting.")] = 10.0,
    checkpoint_every_s: Annotated[float, opt("Seconds between checkpoints.")] = 30.0,
    metrics_host: Annotated[str, opt("Address that Prometheus metrics are served on.")] = "127.0.0.1",
    metrics_port: Annotated[int | None, opt("Port of the metrics; none are served without it.")] = None,
    sd_file: SdFile = None,
    log_format: LogFormat = "text",
    log_level: LogLevel = "info",
    output: Annotated[Format, opt("Print the result as a table or as JSON.", "--format")] = "table",
) -> None:
    """Train a network through the service, on a local Ray or on a running cluster."""
    from adamserve.observe.logs import LogConfig, set_up

    log_as = LogConfig(log_format, log_level)
    if resume:
        for name in _given(context, *JOB_OPTIONS):  # a resumed run is the same job
            fix = "leave it out; --epochs, --shards and --data-dir may change"
            raise InvalidArgument("a resumed run keeps its own", field=name, fix=fix)
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
    from adamserve.train.config import TrainConfig, kept_settings
    from adamserve.train.task import recipe

    if resume and run_dir is not None and context.obj is not CHECK_ONLY:
        network = kept_settings(run_dir)["network"]
    what = recipe(network, **_given(context, *TASK_OPTIONS, "data_dir"))
    if run_dir is None:
        run_dir = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{what.label}"
    config = configured(
        TrainConfig,
        context.params,
        recipe=what,
        rule=rule,
        consistency=mode,
        run_dir=run_dir,
        security=Security(tokens=Tokens.read(token_file) if token_file is not None else Tokens()),
        log=log_as,
    )
    if context.obj is CHECK_ONLY:
        return
    from adamserve.train.run import train as run

    set_up(log_as)
    as_log = log_format == "json"
    with _stopping() as stop, live_line(write=_log if as_log else None) as show:
        record = run(config, on_progress=lambda p: show(p if as_log else _line(p), p.note), stop=stop)
    answer(output, record, _table(record))


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
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in names}
    return {name: context.params[name] for name in names if sources[name] == "COMMANDLINE"}


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Ctrl-C (or SIGTERM, or SIGHUP) once ends the run cleanly, with a checkpoint; a second time ends it at once."""
    from adamserve.cluster.ray_runtime import heeded

    stop = threading.Event()

    def ask(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.info("stopping after the steps under way; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in heeded()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(progress: Progress) -> None:
    from adamserve.observe.logs import fields

    facts = asdict(progress)
    facts |= facts.pop("numbers")
    log.info("progress", extra=fields(**{k: v for k, v in facts.items() if v not in (None, "") and v == v}))


def _line(progress: Progress) -> str:
    tested = progress.numbers.get("test_accuracy", math.nan)
    accuracy = "" if math.isnan(tested) else f"  test {tested:.2%}"
    regret = "" if progress.average_regret is None else f"  regret/T {progress.average_regret:.4f}"
    rollbacks = f"  rollbacks {progress.rollbacks}" if progress.rollbacks else ""
    note = f"  {progress.note}" if progress.note else ""
    return (
        f"epoch {progress.epoch:5.2f}/{progress.epochs}  loss {progress.loss:.4f}{regret}{accuracy}"
        f"  {progress.pushes_per_s:.0f} pushes/s  staleness {progress.staleness:.1f}{rollbacks}{note}"
    )


def _table(record: dict[str, Any]) -> Any:
    """What a run's record says; None stands for a number that is not finite, or that there is none of."""
    config, rule = record["config"], dict(record["config"]["rule"])
    rows: list[tuple[str, Any, str]] = [
        ("rule", f"{rule.pop('rule')}({', '.join(f'{k}={v}' for k, v in rule.items())})", ""),
        ("test accuracy", record.get("test_accuracy"), ".2%"),
        ("test loss", record.get("test_loss"), ".4f"),
        ("training loss", record.get("train_loss"), ".4f"),
        ("steps", f"{record['steps']} by {config['workers']} workers on {config['shards']} shards", ""),
        ("pushes/s", record["pushes"]["per_s"], ""),
        ("staleness", ", ".join(f"{k} {v:g}" for k, v in record["staleness"].items()), ""),
        ("rollbacks", len(record["rollbacks"]), ""),
        ("training time", f"{record['seconds']['training']:.1f} s", ""),
        ("run folder", record["run_dir"], ""),
    ]
    if record["regret"]:
        rows.insert(-2, ("R(T)/T", record["regret"].get("average_regret"), ".6f"))
    shown = [(name, "none" if value is None else format(value, form)) for name, value, form in rows]
    return table(rows=shown, title=f"{record['task']}: {record['status']}")
