"""What a job is, and where its shards are."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adamserve.errors import InvalidArgument
from adamserve.values import Config, TensorSpec

SPARSE_MODES = ("exact", "lazy")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What a job is, and how it is kept: one value on the wire and on disk.

    Attributes:
        name: letters, digits, `-`, `_` and `.`; it becomes a folder's name.
        tensors: in the order they are laid out.
        rule: as `optim.to_dict` writes it.
        consistency: as `consistency.to_dict` writes it.
        tensor_rules: by tensor, a rule other than the job's: of the same class and with the same slots.
        sparse: "exact" or "lazy": what a gradient of some rows does to the other rows. Exact: what a zero gradient
            would do (moments decay, momentum and weight decay go on). Lazy: nothing.
        checkpoint_every_s: seconds between checkpoints while the clock moves; None writes only on demand.
        checkpoints_kept: complete checkpoints kept.
        extra: free JSON kept with every checkpoint (what the training run needs to resume).
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    rule: Config
    consistency: Config
    tensor_rules: Mapping[str, Config] = field(default_factory=dict)
    sparse: str = "exact"
    checkpoint_every_s: float | None = 30.0
    checkpoints_kept: int = 3
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.sparse not in SPARSE_MODES:
            raise InvalidArgument(f"must be {' or '.join(SPARSE_MODES)}, got {self.sparse!r}", field="sparse")
        if self.checkpoint_every_s is not None and not self.checkpoint_every_s > 0:
            raise InvalidArgument(
                f"must be positive, got {self.checkpoint_every_s!r}", field="checkpoint_every_s"
            )
        if not self.checkpoints_kept >= 1:
            raise InvalidArgument(
                f"must be at least 1, got {self.checkpoints_kept}", field="checkpoints_kept"
            )


def difference(job: JobConfig, asked: JobConfig) -> str:
    """What a job would have to be otherwise, with both values, to be what was asked for; "" where nothing.

    The order of tensors does not matter, nor who created the job.
    """
    tensors, others = ({t.name: t for t in config.tensors} for config in (job, asked))
    for name in dict.fromkeys([*tensors, *others]):
        pair = tensors.get(name), others.get(name)
        if pair[0] != pair[1]:
            has_it, asked_it = (
                f"{t.dtype} {t.shape}, stride {t.stride}" if t is not None else "absent" for t in pair
            )
            return f"tensor {name!r} is {has_it}, not {asked_it}"
    configs = [("rule", job.rule, asked.rule), ("consistency", job.consistency, asked.consistency)]
    for name in dict.fromkeys([*job.tensor_rules, *asked.tensor_rules]):
        own, other = (config.tensor_rules.get(name, config.rule) for config in (job, asked))
        configs.append((f"rule of {name!r}", own, other))
    for what, has, wants in configs:
        for key in dict.fromkeys([*has, *wants]):
            if has.get(key) != wants.get(key):
                return f"{what}: {key} is {has.get(key)!r}, not {wants.get(key)!r}"
    return "" if job.sparse == asked.sparse else f"sparse is {job.sparse!r}, not {asked.sparse!r}"


def check_name(name: str) -> None:
    """Raise InvalidArgument for what cannot be a job's name."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or not plain.isascii() or name.startswith(".") or len(name) > 64:
        raise InvalidArgument(
            f"{name!r} is not a job name",
            field="job",
            fix="use up to 64 letters, digits, '-', '_' and '.', not starting with '.'",
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one shard of a job is, and where its present incarnation began.

    Attributes:
        endpoint, direct: host:port of its gRPC services, and for bare connections.
        restored_clock: clock at which the incarnation began.
    """

    endpoint: str
    direct: str
    incarnation: int
    restored_clock: int


@dataclass(frozen=True, slots=True)
class Topology:
    """A job, and the places of its shards in shard order."""

    config: JobConfig
    places: tuple[Place, ...]

    @property
    def incarnations(self) -> tuple[int, ...]:
        """Each shard's."""
        return tuple(place.incarnation for place in self.places)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_port(host: str, port: int) -> str:
    """host:port, as targets and URLs write it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(target: str, field: str = "target") -> tuple[str, int]:
    """The host and the port of "host:port"; an IPv6 address stands in brackets, which are taken off."""
    fix = "give host:port, as adamserve serve prints it"
    if "://" in target:
        scheme = target.partition("://")[0]
        raise InvalidArgument(f"{target!r} begins with {scheme}://", field=field, fix=fix)
    host, colon, port = target.rpartition(":")
    if not colon or not host or host == "[]":
        raise InvalidArgument(f"{target!r} has no port", field=field, fix=fix)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidArgument(f"{target!r} has several colons", field=field, fix=f"write [{host}]:{port}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidArgument(f"{port!r} is no port", field=field, fix="a number from 1 to 65535")
    return host.strip("[]"), int(port)
