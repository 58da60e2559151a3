"""`adamserve serve`: run the service for trainers outside the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from adamserve.cli.train import LogFormat, LogLevel


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of ControlService; 0 takes any free one.")] = 50051,
    shards: Annotated[int, typer.Option(help="Shard processes, each with an endpoint of its own.")] = 1,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Where checkpoints go; the jobs found there are taken up again.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port on --host; 0 takes any free one.")] = 0,
    sd_file: Annotated[
        Path | None,
        typer.Option(help="File to keep for Prometheus' file_sd: where every process's metrics are."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain of the service.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="PEM authorities that clients' certificates must come from (mutual TLS)."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Bearer tokens: a line TOKEN for every job, a line JOB TOKEN for one.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without TLS or a token.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join (host:port or auto); without it a local Ray is started."),
    ] = None,
    shard_ports: Annotated[
        str | None,
        typer.Option(
            metavar="LOW-HIGH", help="Ports that shards listen on, two each; without it any free ones."
        ),
    ] = None,
    gpus_per_shard: Annotated[float, typer.Option(help="GPUs that each shard reserves.")] = 0.0,
    threads_per_shard: Annotated[
        int, typer.Option(help="Threads of each shard's kernels; 0: all cores.")
    ] = 0,
    grace_s: Annotated[
        float, typer.Option(help="Seconds that running calls may take when the service stops.")
    ] = 10.0,
    stall_s: Annotated[
        float, typer.Option(help="Seconds after which a stream that does not move is cut.")
    ] = 30.0,
    log_format: LogFormat = "text",
    log_level: LogLevel = "info",
    format: Annotated[
        Literal["text", "json"], typer.Option(help="How to say that the service is ready.")
    ] = "text",
) -> None:
    """Serve jobs over gRPC until SIGTERM or Ctrl-C; then drain, write checkpoints and exit with 0."""
    import json
    from dataclasses import asdict

    from adamserve.observe.logs import LogConfig

    log = LogConfig(log_format, log_level)
    from adamserve.cluster.serving import ServeConfig, read_pem, run
    from adamserve.edge.security import Limits, Security, Tokens
    from adamserve.edge.shard_edge import Ports

    security = Security(
        cert=read_pem(tls_cert, "tls_cert"),
        key=read_pem(tls_key, "tls_key"),
        client_ca=read_pem(tls_ca, "tls_ca"),
        tokens=Tokens.read(token_file) if token_file is not None else Tokens(),
        limits=Limits(stall_s=stall_s),
    )
    config = ServeConfig(
        host=host,
        port=port,
        metrics_port=metrics_port,
        sd_file=sd_file.absolute() if sd_file is not None else None,
        shards=shards,
        checkpoint_dir=checkpoint_dir.absolute() if checkpoint_dir is not None else None,
        security=security,
        insecure=insecure,
        address=address,
        shard_ports=Ports.parse(shard_ports) if shard_ports is not None else None,
        gpus_per_shard=gpus_per_shard,
        threads_per_shard=threads_per_shard,
        grace_s=grace_s,
        log=log,
    )
    run(
        config,
        lambda ready: print(json.dumps(asdict(ready)) if format == "json" else str(ready), flush=True),
    )
