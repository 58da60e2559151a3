"""What a Prometheus is asked, over a range of time and within a deadline."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from adamserve.errors import DataError, InvalidArgument, Unavailable
from adamserve.values import Deadline

SCRAPE_S = 15.0
"""Grafana's guess at the scrape interval, where Prometheus does not tell."""

UNITS_S = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Window(NamedTuple):
    """A range of time, in seconds since 1970, and the seconds between two points of a line."""

    start: float
    end: float
    step: float


class Series(NamedTuple):
    """One line: its labels, and its points in time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """The HTTP API of the Prometheus at `url`; `deadline` is that of all questions together.

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
        """The data that it answers at a path below /api/v1/; `field` is what to name where it refuses the question.

        Raises:
            Unavailable: it does not answer in time.
            InvalidArgument: it refuses the question.
            DataError: it is no Prometheus.
        """
        self._deadline.check(f"{self._url} to answer")
        address = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            try:
                reply = urllib.request.urlopen(address, timeout=max(0.1, self._deadline.remaining()))
            except urllib.error.HTTPError as error:
                reply = error
            with reply:
                answer = json.load(reply)
            if "errorType" not in answer:
                return answer["data"]
            kind, text = answer["errorType"], answer["error"]
        except OSError as error:
            raise Unavailable(
                f"{self._url} does not answer: {getattr(error, 'reason', error)}",
                field="prometheus",
                fix="is it running, and is the URL right?",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"what answers at {self._url} is no Prometheus",
                field="prometheus",
                fix="give Prometheus' own URL, not a target's or Grafana's",
            ) from None
        if kind == "bad_data":
            fix = "are Prometheus and the dashboards of one age?"
            raise InvalidArgument(f"{self._url} refuses the query: {text}", field=field, fix=fix)
        raise Unavailable(f"{self._url} cannot answer: {text}", field=field, fix="ask for less, or later")

    def lines(self, expr: str, window: Window, field: str = "query") -> list[Series]:
        """A query over a range; points that are not a number are left out, and so are lines without any."""
        times = {"start": f"{window.start:.3f}", "end": f"{window.end:.3f}", "step": f"{window.step:.3f}"}
        timeout = f"{max(1, math.ceil(self._deadline.remaining()))}s"
        lines = []
        for line in self.ask("query_range", field, query=expr, timeout=timeout, **times)["result"]:
            points = tuple((float(at), float(value)) for at, value in line["values"] if value != "NaN")
            if points:
                lines.append(Series(line["metric"], points))
        return lines

    def jobs(self, window: Window) -> list[str]:
        """The jobs that were seen in a range."""
        times = {"start": f"{window.start:.3f}", "end": f"{window.end:.3f}"}
        return list(self.ask("label/job/values", **{"match[]": "adamserve_clock", **times}))

    def scrape_interval(self) -> float:
        """Seconds between two scrapes of adamserve's slowest target."""
        ours = {
            one["metric"].get("instance")
            for one in self.ask("query", query="group by (instance) (adamserve_build_info)")["result"]
        }
        intervals = [
            seconds_of(target["scrapeInterval"])
            for target in self.ask("targets", state="active")["activeTargets"]
            if target["labels"].get("instance") in ours and "scrapeInterval" in target
        ]
        return max(intervals, default=SCRAPE_S)


def variables(window: Window, scrape_s: float, jobs: Sequence[str]) -> dict[str, str]:
    """What Grafana puts in place of a dashboard's variables; without jobs, all of them."""
    interval = max(window.step + scrape_s, 4 * scrape_s)
    return {
        "job": "|".join(re.escape(job).replace("\\", "\\\\") for job in jobs) or ".*",
        "__rate_interval": f"{math.ceil(1000 * interval)}ms",
    }


def time_range(start: str | None, end: str | None, last: str, now: float) -> tuple[float, float]:
    """The range that `--from`, `--to` and `--last` mean, in seconds since 1970."""
    until = now if end is None else seconds_since_1970(end, "--to")
    since = until - seconds_of(last) if start is None else seconds_since_1970(start, "--from")
    if not since < until:
        raise InvalidArgument("is not before --to", field="--from", fix="give an earlier time")
    return since, until


def seconds_of(text: str) -> float:
    """A duration as Prometheus writes it, such as 30m or 1h30m."""
    parts = re.findall(r"(\d+)(ms|[wdhms])", text)
    seconds = sum(int(number) * UNITS_S[unit] for number, unit in parts)
    if not seconds > 0 or "".join(map("".join, parts)) != text:
        raise InvalidArgument(f"{text!r} is no duration", field="last", fix="give one such as 30m or 1h30m")
    return seconds


def seconds_since_1970(text: str, field: str) -> float:
    """A time: ISO 8601, in UTC where it names no zone, or seconds since 1970."""
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            f"{text!r} is no time", field=field, fix="give one such as 2026-11-25T14:30 or seconds since 1970"
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
