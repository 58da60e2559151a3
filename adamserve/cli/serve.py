"""`adamserve serve`: run the service for trainers outside the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from adamserve.cli.options import (
    Advertise,
    LogFormat,
    LogLevel,
    SdFile,
    ShardPorts,
    absolute,
    configured,
    opt,
)


def serve(
    context: typer.Context,
    host: Annotated[str, opt("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, opt("Port of ControlService; 0 takes any free one.")] = 50051,
    shards: Annotated[int, opt("Shard processes, each with an endpoint of its own.")] = 1,
    checkpoint_dir: Annotated[
        Path | None,
        opt("Where checkpoints go; the jobs found there are taken up again.", callback=absolute),
    ] = None,
    metrics_port: Annotated[int, opt("Prometheus port on --host; 0 takes any free one.")] = 0,
    sd_file: SdFile = None,
    tls_cert: Annotated[Path | None, opt("PEM certificate chain of the service.")] = None,
    tls_key: Annotated[Path | None, opt("Its PEM key.")] = None,
    tls_ca: Annotated[
        Path | None, opt("PEM authorities that clients' certificates must come from (mutual TLS).")
    ] = None,
    token_file: Annotated[
        Path | None, opt("Bearer tokens: a line TOKEN for every job, a line JOB TOKEN for one.")
    ] = None,
    insecure: Annotated[
        bool, opt("Listen beyond this machine without TLS or a token.", "--insecure")
    ] = False,
    address: Annotated[
        str | None, opt("Ray cluster to join (host:port or auto); without it a local Ray is started.")
    ] = None,
    shard_ports: ShardPorts = None,
    advertise: Advertise = None,
    gpus_per_shard: Annotated[float, opt("GPUs that each shard reserves.")] = 0.0,
    threads_per_shard: Annotated[int, opt("Threads of each shard's kernels; 0: all cores.")] = 0,
    grace_s: Annotated[float, opt("Seconds that running calls may take when the service stops.")] = 10.0,
    stall_s: Annotated[float, opt("Seconds after which a stream that does not move is cut.")] = 30.0,
    log_format: LogFormat = "text",
    log_level: LogLevel = "info",
    format: Annotated[Literal["text", "json"], opt("How to say that the service is ready.")] = "text",
) -> None:
    """Serve jobs over gRPC until SIGTERM or Ctrl-C; then drain, write checkpoints and exit with 0."""
    from dataclasses import asdict

    from adamserve.cluster.serving import ServeConfig, read_pem, run
    from adamserve.edge.security import Limits, Security, Tokens
    from adamserve.observe.logs import LogConfig

    security = Security(
        cert=read_pem(tls_cert, "tls_cert"),
        key=read_pem(tls_key, "tls_key"),
        client_ca=read_pem(tls_ca, "tls_ca"),
        tokens=Tokens.read(token_file) if token_file is not None else Tokens(),
        limits=Limits(stall_s=stall_s),
    )
    run(
        configured(ServeConfig, context.params, security=security, log=LogConfig(log_format, log_level)),
        lambda ready: print(json.dumps(asdict(ready)) if format == "json" else str(ready), flush=True),
    )
