"""What is asked of a Prometheus, and the pictures that come of its lines."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from string import Template

import matplotlib.image
import numpy as np
import pytest

from adamserve.errors import AdamServeError, InvalidArgument
from adamserve.observe.dashboards import DASHBOARDS, Panel
from adamserve.observe.render.figure import named, png, text, with_gaps
from adamserve.observe.render.prometheus import (
    Prometheus,
    Series,
    Window,
    seconds_of,
    seconds_since_1970,
    time_range,
    variables,
)
from adamserve.values import Deadline
from tests.shard.test_consistency import ManualClock

DAY = Window(0.0, 86_400.0, 288.0)


def test_every_variable_of_every_panel_is_known() -> None:
    known = variables(DAY, 15.0, ["a"])
    assert known == {"job": "a", "__rate_interval": "303000ms"}
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels.values():
            for query in panel.queries.values():
                assert "$" not in Template(query).substitute(known)


def test_jobs_are_names_and_no_patterns() -> None:
    """In PromQL's text a backslash is written twice."""
    assert variables(DAY, 15.0, ["a.b", "c|d"])["job"] == r"a\\.b|c\\|d"


@pytest.mark.parametrize(
    ("step", "scrape_s", "interval"),
    [(1.0, 1.0, "4000ms"), (6.0, 1.0, "7000ms"), (15.0, 15.0, "60000ms"), (300.0, 15.0, "315000ms")],
)
def test_a_rate_sees_four_scrapes_or_a_step_and_one(step: float, scrape_s: float, interval: str) -> None:
    assert variables(Window(0.0, 100.0, step), scrape_s, [])["__rate_interval"] == interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1d1h1m1s", 90_061),
        ("1w", 604_800),
        ("250ms", 0.25),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-1m", "1m30", "0s", "1.5h", "5 m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"last: .* is no duration"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1000.5", 1000.5),
        ("1970-01-02", 86_400.0),
        ("1970-01-01T00:01", 60.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
    ],
)
def test_times(text: str, at: float) -> None:
    assert seconds_since_1970(text, "from") == at


def test_windows() -> None:
    assert time_range(None, None, "30m", 10_000.0) == (8200.0, 10_000.0)
    assert time_range(None, "9000", "30m", 10_000.0) == (7200.0, 9000.0)
    assert time_range("100", "9000", "30m", 10_000.0) == (100.0, 9000.0)
    for start, end in (("9000", "9000"), ("10001", None)):
        with pytest.raises(InvalidArgument, match="--from: is not before --to"):
            time_range(start, end, "30m", 10_000.0)
    for wrong in ("yesterday", "nan", "-5", "inf"):
        with pytest.raises(InvalidArgument, match=r"--to: .* is no time"):
            time_range(None, wrong, "30m", 10_000.0)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"<html>", "prometheus: what answers at .* is no Prometheus"),
        (200, b'{"status": "success"}', "prometheus: what answers at .* is no Prometheus"),
        (200, b"[]", "prometheus: what answers at .* is no Prometheus"),
        (404, b"no such page", "prometheus: what answers at .* is no Prometheus"),
        (
            503,
            json.dumps({"status": "error", "errorType": "timeout", "error": "took too long"}).encode(),
            "the panel: .* cannot answer: took too long",
        ),
    ],
)
def test_what_is_no_prometheus_is_said(status: int, body: bytes, says: str) -> None:
    with answering(status, body) as url, pytest.raises(AdamServeError, match=says):
        Prometheus(url, Deadline.after(10.0)).lines("up", DAY, field="the panel")


def test_the_deadline_is_for_all_questions_together() -> None:
    clock = ManualClock()
    deadline = Deadline.after(10.0, now=clock)
    with answering(200, b'{"data": {"result": []}}') as url:
        prometheus = Prometheus(url, deadline)
        assert prometheus.ask("query", query="up") == {"result": []}
        clock.seconds += 11.0
        with pytest.raises(AdamServeError, match="the deadline passed while waiting for"):
            prometheus.ask("query", query="up")


def test_a_legend_is_the_line_s_labels() -> None:
    line = Series({"job": "a", "shard": "1"}, ())
    assert named("{{job}} shard {{ shard }}{{none}}", line) == "a shard 1"


def test_a_gap_is_drawn_as_one() -> None:
    line = Series({}, ((100.0, 1.0), (110.0, 2.0), (140.0, 3.0)))
    values = with_gaps(line, Window(90.0, 150.0, 10.0))
    np.testing.assert_array_equal(values, [math.nan, 1.0, 2.0, math.nan, math.nan, 3.0, math.nan])


@pytest.mark.parametrize(
    ("unit", "value", "written"),
    [
        ("short", 0.25, "0.25"),
        ("short", 1_250_000, "1.25M"),
        ("ops", 0.25, "0.25/s"),
        ("ops", 1500, "1.5k/s"),
        ("s", 0.0025, "2.5ms"),
        ("s", 0, "0s"),
        ("s", 90, "1.5 min"),
        ("s", 5400, "1.5 h"),
        ("bytes", 3e6, "3MB"),
        ("Bps", 2000, "2kB/s"),
        ("percentunit", 0.5, "50 %"),
    ],
)
def test_an_axis_has_the_panel_s_unit(unit: str, value: float, written: str) -> None:
    assert text(unit, value) == written


def test_every_panel_s_unit_can_be_written() -> None:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels.values():
            assert text(panel.unit, 0.5)


def pixels(panel: Panel, lines: list[tuple[str, Series]], missing: tuple[str, ...] = ()) -> np.ndarray:
    found: np.ndarray = matplotlib.image.imread(
        io.BytesIO(png("Loss", panel, lines, missing, DAY)), format="png"
    )
    return found[..., :3]


@pytest.mark.parametrize("log", [False, True])
def test_a_picture_shows_its_lines_and_says_where_there_are_none(log: bool) -> None:
    panel = Panel("short", "", {"{{job}}": "x"}, log=log)
    falling = Series({}, tuple((288.0 * i, 2.0 ** (-i / 30)) for i in range(300)))
    blue = np.array([0x1F, 0x77, 0xB4]) / 255  # the first line's colour
    drawn = np.abs(pixels(panel, [("a", falling)]) - blue).max(axis=2) < 0.02
    assert drawn.shape == (340, 640)
    rows, columns = np.nonzero(drawn[:290])  # above the legend
    assert np.ptp(columns) > 400
    left, right = (rows[columns <= columns.min() + 40].mean(), rows[columns >= columns.max() - 40].mean())
    assert right - left > 120  # it falls
    empty = pixels(panel, [])
    assert not (np.abs(empty - blue).max(axis=2) < 0.02).any()
    middle = empty[140:200, 240:400]
    assert (middle < 0.2).all(axis=2).sum() > 100  # "no data", in black
    zeros = Series({}, ((0.0, 0.0), (288.0, 0.0)))
    assert pixels(panel, [("a", zeros)], ("{{job}} best",)).shape == (340, 640, 3)
