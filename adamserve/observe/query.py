"""What a dashboard asks of Prometheus: its variables filled in, over a range of time, with a deadline."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adamserve.errors import AdamServeError, DataError, InvalidArgument, Unavailable
from adamserve.values import Deadline

POINTS = 300
"""Of a line, at most."""

SCRAPE_S = 15.0
"""Grafana's guess at the scrape interval, where Prometheus does not tell."""

VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")
DURATION = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
DURATION_S = (604_800.0, 86_400.0, 3600.0, 60.0, 1.0, 0.001)


@dataclass(frozen=True, slots=True)
class Window:
    """A range of time, in seconds since 1970, and the seconds between two points of a line."""

    start: float
    end: float
    step: float


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its labels, and its points in time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """A Prometheus' HTTP API.

    Args:
        url: where it is.
        deadline: of all questions together.

    Raises:
        InvalidArgument: that is no URL.
    """

    def __init__(self, url: str, deadline: Deadline) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidArgument(
                f"{url!r} is no URL", field="prometheus", fix="give one such as http://127.0.0.1:9090"
            )
        self._url = url.rstrip("/")
        self._deadline = deadline

    def ask(self, path: str, field: str = "prometheus", **parameters: str) -> Any:
        """The data that it answers.

        Args:
            path: below /api/v1/.
            field: what to name where it refuses the question.
            parameters: of the question.

        Raises:
            Unavailable: it does not answer in time.
            InvalidArgument: it refuses the question.
            DataError: it is no Prometheus.
        """
        self._deadline.check(f"{self._url} to answer")
        address = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=max(0.1, self._deadline.remaining())) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, field) from None
        except OSError as error:
            raise Unavailable(
                f"{self._url} does not answer: {getattr(error, 'reason', error)}",
                field="prometheus",
                fix="is it running, and is the URL right?",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise self._no_prometheus() from None

    def _refusal(self, error: urllib.error.HTTPError, field: str) -> AdamServeError:
        try:
            found = json.load(error)
            kind, text = found["errorType"], found["error"]
        except (ValueError, KeyError, TypeError):
            return self._no_prometheus()
        if kind == "bad_data":
            return InvalidArgument(
                f"{self._url} refuses the query: {text}",
                field=field,
                fix="are Prometheus and the dashboards of one age?",
            )
        return Unavailable(f"{self._url} cannot answer: {text}", field=field, fix="ask for less, or later")

    def _no_prometheus(self) -> DataError:
        return DataError(
            f"what answers at {self._url} is no Prometheus",
            field="prometheus",
            fix="give Prometheus' own URL, not a target's or Grafana's",
        )

    def lines(self, expr: str, window: Window, field: str = "query") -> list[Series]:
        """A query over a range; points that are not a number are left out, and so are lines without any."""
        found = self.ask(
            "query_range",
            field,
            query=expr,
            start=f"{window.start:.3f}",
            end=f"{window.end:.3f}",
            step=f"{window.step:.3f}",
            timeout=f"{max(1, math.ceil(self._deadline.remaining()))}s",
        )
        lines = [
            Series(
                one["metric"],
                tuple((float(at), float(value)) for at, value in one["values"] if value != "NaN"),
            )
            for one in found["result"]
        ]
        return [line for line in lines if line.points]

    def jobs(self, window: Window) -> list[str]:
        """The jobs that were seen in a range."""
        found: list[str] = self.ask(
            "label/job/values",
            **{"match[]": "adamserve_clock", "start": f"{window.start:.3f}", "end": f"{window.end:.3f}"},
        )
        return found

    def scrape_interval(self) -> float:
        """Seconds between two scrapes of adamserve's slowest target."""
        ours = {
            one["metric"].get("instance")
            for one in self.ask("query", query="group by (instance) (adamserve_build_info)")["result"]
        }
        targets = self.ask("targets", state="active")["activeTargets"]
        found = [
            seconds_of(target["scrapeInterval"])
            for target in targets
            if target["labels"].get("instance") in ours and "scrapeInterval" in target
        ]
        return max(found, default=SCRAPE_S)


def variables(window: Window, scrape_s: float, jobs: Sequence[str]) -> dict[str, str]:
    """What Grafana puts in place of a dashboard's variables; without jobs, all of them."""
    chosen = "|".join(re.escape(job).replace("\\", "\\\\") for job in jobs)
    seconds = window.end - window.start
    return {
        "job": chosen or ".*",
        "datasource": "prometheus",
        "__interval": _milliseconds(window.step),
        "__rate_interval": _milliseconds(max(window.step + scrape_s, 4 * scrape_s)),
        "__range": _milliseconds(seconds),
    }


def substituted(expr: str, known: Mapping[str, str]) -> str:
    """A query with its variables ($name, ${name}, ${name:format}, [[name]]) filled in.

    Raises:
        InvalidArgument: it names one that is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = next(filter(None, match.groups()))
        if name not in known:
            raise InvalidArgument(f"the query has the unknown variable {name!r}", field=expr)
        return known[name]

    return VARIABLE.sub(value, expr)


def window(start: str | None, end: str | None, last: str, now: float) -> tuple[float, float]:
    """The range that `--from`, `--to` and `--last` mean."""
    until = now if end is None else seconds_since_1970(end, "--to")
    since = until - seconds_of(last) if start is None else seconds_since_1970(start, "--from")
    if not since < until:
        raise InvalidArgument("is not before --to", field="--from", fix="give an earlier time")
    return since, until


def seconds_of(text: str) -> float:
    """A duration as Prometheus writes it, such as 30m or 1h30m."""
    match = DURATION.fullmatch(text)
    parts = match.groups("0") if match else ()
    found = sum(int(part) * seconds for part, seconds in zip(parts, DURATION_S, strict=bool(parts)))
    if not found > 0:
        raise InvalidArgument(f"{text!r} is no duration", field="last", fix="give one such as 30m or 1h30m")
    return found


def seconds_since_1970(text: str, field: str) -> float:
    """A time: ISO 8601, in UTC where it names no zone, or seconds since 1970."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            f"{text!r} is no time", field=field, fix="give one such as 2026-11-25T14:30 or seconds since 1970"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _milliseconds(seconds: float) -> str:
    return f"{math.ceil(1000 * seconds)}ms"
