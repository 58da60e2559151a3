"""What the command line's processes say while they run: one line an event, as text or as JSON.

`set_up` is for processes that are adamserve's own: the driver, the controller, shards and workers. Used as a library,
adamserve logs to `logging` under the name "adamserve" and sets nothing.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from adamserve.errors import InvalidArgument

LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}

LOGGERS = ("adamserve", "grpc")
"""Whose lines are written; gRPC says so where a handler of ours has failed."""

BURST, WINDOW_S = 5, 10.0
"""Lines alike that are written in such a time; the others are counted."""

SECRETS = re.compile(
    r"(?i)((?:bearer|basic)\s+)[^\s\"'\\]+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)",
    re.S,
)
"""Nothing of ours prints such things; should anything ever, it is struck out here."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How to write: "text" or "json", and the least level: debug, info, warning or error."""

    format: Literal["text", "json"] = "text"
    level: str = "info"

    def __post_init__(self) -> None:
        if self.format not in ("text", "json"):
            raise InvalidArgument(f"must be text or json, got {self.format!r}", field="log_format")
        if self.level not in LEVELS:
            raise InvalidArgument(f"must be {', '.join(LEVELS)}, got {self.level!r}", field="log_level")


def fields(**values: Any) -> dict[str, Mapping[str, Any]]:
    """What belongs to an event, such as job, shard and pusher: `log.info("...", extra=fields(job="a"))`."""
    return {"fields": values}


def set_up(config: LogConfig, stream: TextIO | None = None) -> None:
    """Write what this process logs to a stream, standard error by default. Called again, it starts anew."""
    handler = Handler(config, stream or sys.stderr)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in [known for known in logger.handlers if isinstance(known, Handler)]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("adamserve").setLevel(LEVELS[config.level])


@dataclass(slots=True)
class _Window:
    """Lines alike since a moment, and the last one that was left out."""

    since: float
    lines: int = 0
    last: logging.LogRecord | None = None


class Handler(logging.StreamHandler[TextIO]):
    """Writes one line an event; of many alike some are left out, and counted in the next or the last of them.

    Alike are lines of the same text (before its values are filled in), job and shard. `now` is a clock in seconds.
    """

    def __init__(self, config: LogConfig, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._now = now
        self._windows: dict[tuple[str, str, str, str], _Window] = {}
        self._line = _json if config.format == "json" else _text
        self._clear = "\r\033[K" if stream.isatty() else ""  # a progress line may stand there

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`; called with the handler's lock held."""
        now = self._now()
        self._tell_left_out(now)
        known = getattr(record, "fields", {})
        key = (record.name, str(record.msg), str(known.get("job")), str(known.get("shard")))
        window = self._windows.setdefault(key, _Window(now))
        window.lines += 1
        if window.lines <= BURST:
            super().emit(record)
        else:
            window.last = record

    def format(self, record: logging.LogRecord) -> str:
        """One line, without secrets."""
        return self._clear + SECRETS.sub(lambda match: f"{match[1] or ''}***", self._line(record))

    def close(self) -> None:
        """As `logging.Handler.close`."""
        self.acquire()
        try:
            self._tell_left_out(float("inf"))
        finally:
            self.release()
        super().close()

    def _tell_left_out(self, now: float) -> None:
        """Of lines whose time is over, write the last one that was left out, with how many were."""
        for key in [key for key, window in self._windows.items() if now - window.since >= WINDOW_S]:
            window = self._windows.pop(key)
            if window.last is not None:
                last = copy.copy(window.last)
                last.fields = {**getattr(last, "fields", {}), "left_out": window.lines - BURST - 1}
                super().emit(last)


def _parts(record: logging.LogRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {"at": at.replace("+00:00", "Z"), "level": record.levelname.lower(), "logger": record.name}
    parts = {**head, "event": record.getMessage(), **getattr(record, "fields", {})}
    if record.exc_info:
        parts["exception"] = logging.Formatter().formatException(record.exc_info)
    return parts


def _json(record: logging.LogRecord) -> str:
    return json.dumps(_parts(record), default=str)


def _text(record: logging.LogRecord) -> str:
    parts = _parts(record)
    head = [parts.pop("at"), parts.pop("level"), f"{parts.pop('logger')}:", *parts.pop("event").split()]
    return " ".join([*head, *(f"{name}={_word(value)}" for name, value in parts.items())])


def _word(value: Any) -> str:
    """A value that a line can be split at, quoted where it has to be."""
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
