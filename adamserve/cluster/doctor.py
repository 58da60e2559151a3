"""Is this machine fit to run the service? Findings, each with its fix. `adamserve doctor` shows them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import IntEnum
from functools import partial
from importlib import metadata
from pathlib import Path

from adamserve.client.credentials import PROXIES

SHM_BYTES, DISK_BYTES = 2 << 30, 1 << 30
"""Below these, shared memory and disk are called small."""

ANSWER_S = 5.0
"""How long Prometheus may take."""

SKEW_S = 1.0
"""How far a file system's clock may be from this machine's."""

SET_CLOCKS = "let NTP set both machines' clocks"


class Severity(IntEnum):
    """How bad a finding is; the worst one is the exit code."""

    ok = 0
    warning = 1
    error = 2


OK, WARNING, ERROR = Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it ("" where all is well)."""

    check: str
    severity: Severity
    found: str
    fix: str = ""


def _judged(check: str, good: bool, found: str, fix: str, otherwise: Severity = WARNING) -> Finding:
    return Finding(check, OK, found) if good else Finding(check, otherwise, found, fix)


def python(version: tuple[int, int]) -> Finding:
    """The interpreter."""
    return _judged("Python", version >= (3, 11), f"{version[0]}.{version[1]}", "use 3.11 or later", ERROR)


def packages(required: Iterable[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """What the service and the training need, beside what is installed; optional packages are passed over."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    for text in required:
        requirement = Requirement(text)
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", "torch", "service", "train")
        )
        if not wanted or requirement.name in {"adamserve", *seen}:
            continue
        seen.add(requirement.name)
        found = installed(requirement.name)
        good = found is not None and requirement.specifier.contains(found, prereleases=True)
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        yield _judged(requirement.name, good, found or "not installed", fix, ERROR)


def compiler(which: Callable[[str], str | None]) -> Finding:
    """A C compiler, for the rules' kernels."""
    path = next((found for name in ("cc", "gcc", "clang") if (found := which(name))), None)
    found = path or "none: updates take 3 to 10 times as long, with the same numbers"
    return _judged("C compiler", path is not None, found, "apt-get install gcc")


def proxy(environ: Mapping[str, str]) -> Finding:
    """A proxy that gRPC would use for every service but this machine's own."""
    name = next((name for name in PROXIES if environ.get(name)), "")
    found = f"{name}={environ[name]}: gRPC goes through it, except to this machine" if name else "none is set"
    return _judged("proxy", not name, found, "put the hosts of your services into no_proxy")


def kernel_cache(folder: Path) -> Finding:
    """Whether compiled kernels can be kept, and loaded from where they are kept."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    executable = not os.statvfs(there).f_flag & os.ST_NOEXEC
    found = str(folder) if executable else f"{folder} is on a file system that is mounted noexec"
    return _judged("kernel cache", executable, found, "set ADAMSERVE_CACHE_DIR to a folder elsewhere")


def ray_token(environ: Mapping[str, str]) -> Finding:
    """Ray's token authentication: a cluster's nodes and drivers have to share one, and nobody else may read it."""
    finding, mode = partial(Finding, "Ray token"), environ.get("RAY_AUTH_MODE", "")
    if mode.lower() not in ("", "disabled", "token"):
        unknown = f"RAY_AUTH_MODE={mode} is nothing that Ray knows"
        return finding(ERROR, unknown, "set it to token, or to disabled")
    if mode.lower() != "token":
        return finding(OK, f"RAY_AUTH_MODE={mode or 'not set'}")
    if environ.get("RAY_AUTH_TOKEN"):
        return finding(OK, "RAY_AUTH_MODE=token, with a token")
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file() or not path.stat().st_size:
        none = f"RAY_AUTH_MODE=token, but there is no token in RAY_AUTH_TOKEN or in {path}"
        return finding(ERROR, none, "set RAY_AUTH_TOKEN to the cluster's token")
    if path.stat().st_mode & 0o077:
        return finding(WARNING, f"others may read {path}", f"chmod 600 {path}")
    return finding(OK, f"RAY_AUTH_MODE=token, from {path}")


def space(check: str, folder: Path, least: int, fix: str) -> Finding:
    """Free bytes of a file system."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(check, ERROR, f"{folder}: {error.strerror}", fix)
    return _judged(check, free >= least, f"{free / 2**30:.1f} GiB free in {folder.resolve()}", fix)


def clock(folder: Path) -> Finding:
    """This machine's clock beside that of the file system, which may be another machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            before = time.time()
            os.utime(file.fileno())
            there = os.stat(file.fileno()).st_mtime
            after = time.time()
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
        return Finding("clock", ERROR, problem, "choose a folder that can be")
    return skew(before, there, after)


def skew(before: float, there: float, after: float) -> Finding:
    """How far a time that was taken between two others is outside of them."""
    apart = max(before - there, there - after, 0.0)
    if apart <= SKEW_S:
        return Finding("clock", OK, "agrees with the file system's")
    return Finding("clock", WARNING, f"{apart:.1f} s from the file system's", SET_CLOCKS)


def gpu(driver: Path = Path("/proc/driver/nvidia/version")) -> Finding:
    """CUDA devices; none is no fault, one that torch cannot use is."""
    finding = partial(Finding, "GPU")
    try:
        import torch
    except ImportError:
        return finding(OK, "unknown without torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return finding(OK, ", ".join(names))
    if not driver.exists():
        return finding(OK, "none; shards keep their state on the CPU")
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    found = f"there is NVIDIA's driver, but torch {torch.__version__}, {build}, finds no device"
    return finding(WARNING, found, "install the build of torch that fits the driver (pytorch.org says which)")


def port(number: int, host: str = "127.0.0.1") -> Finding:
    """Whether a port of this machine can be listened on."""
    finding = partial(Finding, f"port {number}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, number), family=family).close()
    except OSError as error:
        fix = "choose another with --port or --metrics-port, or 0 for any"
        return finding(WARNING, f"cannot be listened on: {error.strerror}", fix)
    return finding(OK, "free")


def prometheus(url: str, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Whether a Prometheus is ready, has this machine's time, and sees a process of adamserve."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/-/ready", timeout=ANSWER_S) as answer:
            found, date = answer.read().decode().strip(), answer.headers["Date"]
        query = urllib.parse.urlencode({"query": "count(adamserve_build_info)"})
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query?{query}", timeout=ANSWER_S) as answer:
            seen = json.load(answer)["data"]["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{url}: {getattr(error, 'reason', error)}"
        yield Finding("Prometheus", ERROR, problem, "is it running, and is the URL right?")
        return
    yield Finding("Prometheus", OK, found)
    apart = abs(parsedate_to_datetime(date).timestamp() - now()) if date else 0.0
    if apart > ANSWER_S + SKEW_S:
        yield Finding("Prometheus' clock", WARNING, f"{apart:.0f} s from this machine's", SET_CLOCKS)
    targets = f"{int(seen[0]['value'][1])} of adamserve" if seen else "none of adamserve answers it now"
    fix = "give it the scrape configuration in deploy/prometheus, and start a job"
    yield _judged("Prometheus' targets", bool(seen), targets, fix)


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
