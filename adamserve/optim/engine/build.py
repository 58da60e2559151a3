"""Compile C source with the machine's compiler, once, and keep the result on disk.

The name of a compiled file is the hash of all that it depends on: source, compiler (path, size and time of change, so
that a warm start calls no compiler), flags and processor. It is written under another name and then renamed, so that
several processes may compile the same kernel at once. It ends in the hash of its own content: a torn or altered file is
compiled again, never loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

# -ffp-contract=off keeps a*b+c two roundings, as everywhere else. -fno-trapping-math lets the unused side of a
# select be computed, -fno-math-errno makes sqrt one instruction; neither changes a result.
FLAGS = (
    "-std=gnu99",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
NATIVE = ("-march=native",)
_COMPILE_SECONDS = 120.0


class BuildError(Exception):
    """There is no compiler, or it refused the source. The message says which."""


@dataclass(frozen=True, slots=True)
class Built:
    """A loaded library, whether it came from the disk, and what went wrong with the cache, if anything."""

    library: ctypes.CDLL
    cached: bool
    reason: str

    def function(self, name: str, *arguments: Any, returns: Any = None) -> Callable[..., Any]:
        """Return a function of the library, with its C types."""
        function = getattr(self.library, name)
        function.argtypes, function.restype = arguments, returns
        return cast("Callable[..., Any]", function)


@cache
def text(package: str, file: str) -> str:
    """Read a C file that lies in a package, beside its modules."""
    return resources.files(package).joinpath(file).read_text(encoding="utf-8")


def compiler() -> tuple[str, ...] | None:
    """Return the C compiler's command: $CC, or the first of cc, gcc and clang on PATH; None if there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            return (path, *command[1:])
    return None


def cache_directory() -> Path:
    """Return $ADAMSERVE_CACHE_DIR, else adamserve/kernels under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("ADAMSERVE_CACHE_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adamserve" / "kernels"


def build(source: str) -> Built:
    """Return the library of `source`, from the cache or freshly compiled.

    Without a usable cache directory it is compiled to a temporary one, and `reason` says so.

    Raises:
        BuildError: no compiler, or it failed.
    """
    command = compiler()
    if command is None:
        named = os.environ.get("CC")
        raise BuildError(f"no C compiler: {'$CC=' + named if named else 'cc, gcc, clang'} not found on PATH")
    real = Path(command[0]).resolve()
    status = real.stat()
    identity = f"{real} {status.st_size} {status.st_mtime_ns} {' '.join(command[1:])}"
    name = hashlib.sha256("\0".join((source, identity, *FLAGS, *NATIVE, _processor())).encode()).hexdigest()
    try:
        path = _own(cache_directory()) / f"{name}.so"
        if _intact(path):
            with contextlib.suppress(OSError):
                return Built(ctypes.CDLL(str(path)), True, "")
        _compile(command, source, path)
        return Built(ctypes.CDLL(str(path)), False, "")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        reason = f"kernels are not kept: {error}"
    try:
        with tempfile.TemporaryDirectory(prefix="adamserve-") as directory:
            path = Path(directory) / "kernel.so"
            _compile(command, source, path)
            return Built(ctypes.CDLL(str(path)), False, reason)
    except OSError as error:
        raise BuildError(f"cannot compile: {error}") from error


def _own(directory: Path) -> Path:
    """Make the directory for this user alone; refuse another user's, who could put code there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    if status.st_mode & 0o022:
        directory.chmod(0o700)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} is not writable")
    return directory


def _intact(path: Path) -> bool:
    """Whether the file ends in the hash of what precedes. A file cut short could crash the loader."""
    content = path.read_bytes() if path.exists() else b""
    return len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]


def _compile(command: tuple[str, ...], source: str, path: Path) -> None:
    """Compile `source` to `path` by way of a neighbouring file and a rename."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as directory:
        c_file, output = Path(directory) / "kernel.c", Path(directory) / "kernel.so"
        c_file.write_text(source)
        said = ""
        for native in (NATIVE, ()):  # a compiler that does not know this processor still compiles without
            line = [*command, *FLAGS, *native, str(c_file), "-o", str(output), "-lm"]
            try:
                done = subprocess.run(
                    line, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise BuildError(f"{command[0]} took more than {_COMPILE_SECONDS:g} s") from error
            if done.returncode == 0 and output.exists():
                break
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        else:
            raise BuildError(f"{command[0]} failed: {said}")
        content = output.read_bytes()
        output.write_bytes(content + hashlib.sha256(content).digest())
        output.replace(path)


@cache
def _processor() -> str:
    """Model and instruction sets, on which -march=native depends."""
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines += [line for line in first.splitlines() if line.startswith(wanted)]
    return "\n".join(lines)
