"""One service a folder: two that write checkpoints of the same jobs would lose each other's updates."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from adamserve.errors import Conflict, InvalidArgument

LOCK = ".lock"
"""File in a folder for checkpoints that its service holds, and that says whose it is."""

WAIT_S = 5.0
"""How long a service that is ending is waited for."""


class FolderLock:
    """A folder for checkpoints, held until `release` or the end of the process.

    Args:
        folder: made where it does not exist.
        wait_s: how long to wait for another service to let go of it.

    Raises:
        Conflict: another service holds it; says which.
        InvalidArgument: it cannot be written.
    """

    def __init__(self, folder: Path, wait_s: float = WAIT_S) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise InvalidArgument(
                f"{folder} cannot be written: {error.strerror or error}",
                field="checkpoint_dir",
                fix="give a folder that this user may write",
            ) from None
        ends = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() >= ends:
                self._file.seek(0)
                owner = self._file.read().strip() or "another service"
                self._file.close()
                raise Conflict(
                    f"{folder} is held by {owner}",
                    field="checkpoint_dir",
                    fix="stop that service, or give each a folder of its own",
                )
            time.sleep(0.1)
        self._file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(f"the service of process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        self._file.flush()

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let others have the folder."""
        self._file.close()
