"""The status page: every number is there, hostile names are harmless, and only a token's holder may look."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from adamserve.edge.security import Tokens, _digest
from adamserve.observe.exporter import Exporter
from adamserve.observe.page import POINTS, PUSHERS_SHOWN, Board, pages
from adamserve.observe.plain import from_plain
from adamserve.observe.state import JobState
from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics
from tests.observe.test_exporter import JOB, SHARD


def board(*jobs: JobState) -> Board:
    made = Board(now=lambda: 100.0)
    made.show(*jobs)
    return made


class Tags(HTMLParser):
    """Opened and closed in order, and nothing from elsewhere."""

    VOID = ("meta", "link", "rect", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.outside += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_has_the_numbers() -> None:
    html = board(JOB).html()
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.outside == ["data:,"]
    for text in (
        "Adam at rate 0.125",
        "updates/s <b>12.5</b>",
        "<b>0.75</b>",
        "<b>0.25</b>",
        "test accuracy <b>90.00%</b>",
        "F1 <b>0.875</b>",
        "2 pushers",
        "<td>a</td><td>1.5 s ago</td><td>39</td>",
        "<td>b</td><td>none yet</td><td>0</td>",
        "<td>00:00:50</td><td>invalid</td><td>1</td><td>a</td><td>7</td><td>w: the gradient holds NaN or infinity</td>",
        "<td>00:01:00</td><td>rollback</td><td>1</td><td></td><td>1</td><td>restored from checkpoint 3: killed</td>",
        '<td>1</td><td class="good">up</td><td>2</td><td>40</td><td>39</td><td>0</td><td>1</td><td>0</td><td>5</td>',
    ):
        assert text in html, text
    assert "staleness in updates: 0 to 700" in html


def test_names_cannot_write_html() -> None:
    nasty = "<script>alert(1)</script>"
    job = replace(
        JOB,
        job=nasty,
        numbers={nasty: 1.0},
        shards=(replace(SHARD, pushers=(PusherStatistics(nasty, 1, 99.0),)),),
        rule=nasty,
        failed=nasty,
        events=(Event(50.0, "stale", (0,), nasty, nasty),),
    )
    html = board(job).html()
    assert nasty not in html
    assert html.count("<script>") == 1


def test_json_has_the_same_numbers() -> None:
    [found] = json.loads(board(JOB).json())
    assert (found["loss"], found["best_loss"], found["average_regret"]) == (0.75, 0.25, 0.125)
    assert found["shards"][0]["stamp"] == {"incarnation": 2, "clock": 40}
    assert (found["state"], found["down"]) == ("restoring", [3])
    assert found["curves"]["loss"] == [[100.0, 0.75]]
    assert found["staleness"] == {"0": 30, "1": 7, "5": 2, "700": 1}
    assert found["pushers"][0] == {"name": "a", "seq": 39, "pushed_at": 98.5}
    assert found["events"][0]["reason"] == "w: the gradient holds NaN or infinity"
    assert from_plain(JobState, found) == JOB


def test_a_job_that_has_not_begun_and_no_job() -> None:
    assert "No job yet." in board().html()
    html = board(JobState(job="new")).html()
    assert "<h2>new</h2>" in html


def test_curves_keep_their_ends_in_little_room() -> None:
    made = Board(now=lambda: float(clock))
    for clock in range(10 * POINTS):
        made.show(JobState(job="job", loss=1.0 + clock))
    [found] = json.loads(made.json())
    points = found["curves"]["loss"]
    assert len(points) <= POINTS + 1
    assert points[0] == [0.0, 1.0]
    assert points[-1][0] > 0.95 * 10 * POINTS
    assert all(value == at + 1.0 for at, value in points)


def test_many_pushers_are_counted_and_the_silent_ones_are_named() -> None:
    """The higher the number, the longer ago was the last push; one has not pushed at all."""
    seen = [PusherStatistics(f"p{i:03}", 1, 90.0 - i / 10) for i in range(199)] + [
        PusherStatistics("new", 0, None)
    ]
    html = board(replace(JOB, shards=(replace(SHARD, pushers=tuple(seen)),))).html()
    assert "<h3>200 pushers</h3>" in html
    named = re.findall(r"<tr><td>(p\d+|new)</td><td>([^<]*)</td>", html)
    assert [name for name, _ in named] == ["new", *(f"p{i:03}" for i in range(198, 149, -1))]
    assert (named[0][1], named[1][1], len(named)) == ("none yet", "29.8 s ago", PUSHERS_SHOWN)
    assert f"and {200 - PUSHERS_SHOWN} more" in html


TOKENS = Tokens((("", _digest("good")), ("one-job", _digest("narrow"))))


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("given", "may"),
    [
        ("Bearer good", True),
        ("bearer good", True),
        (basic("good"), True),
        ("", False),
        ("Bearer", False),
        ("Bearer bad", False),
        ("Bearer narrow", False),  # good for one job, and the page shows all
        (basic("bad"), False),
        ("Basic !!!", False),
        ("Basic /w==", False),
        ("Digest good", False),
        ("good", False),
    ],
)
def test_only_a_token_for_every_job_may_look(given: str, may: bool) -> None:
    guard = TOKENS.guard()
    assert guard is not None
    assert guard(given) is may


def get(port: int, path: str, **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_routes_and_their_guard() -> None:
    exporter = Exporter("127.0.0.1", 0, pages(board(JOB)), TOKENS.guard())
    try:
        port = exporter.port
        assert get(port, "/metrics")[0] == 200
        assert get(port, "/metrics/")[0] == get(port, "/../etc/passwd")[0] == 404
        for path in ("/", "/status.json"):
            refused, text, headers = get(port, path)
            assert (refused, text) == (401, "a token is needed\n")
            assert headers["WWW-Authenticate"].startswith("Basic ")
            allowed, text, headers = get(port, path, Authorization="Bearer good")
            assert allowed == 200
            assert re.search("0.75", text)
            assert headers["Cache-Control"] == "no-store"
    finally:
        exporter.close()
