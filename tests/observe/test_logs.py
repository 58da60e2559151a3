"""One line an event; of many alike some are counted instead; secrets are struck out."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from adamserve.errors import InvalidArgument
from adamserve.observe.logs import BURST, WINDOW_S, Handler, LogConfig, fields, set_up
from adamserve.observe.news import News
from adamserve.observe.state import JobState
from adamserve.shard.events import Event
from tests.shard.test_consistency import ManualClock

log = logging.getLogger("adamserve.test")

Lines = tuple[logging.Logger, ManualClock, io.StringIO, Handler]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """`set_up` changes loggers of the whole process."""
    kept = {n: logging.getLogger(n) for n in ("adamserve", "grpc")}
    state = {name: (logger.level, logger.propagate) for name, logger in kept.items()}
    yield
    for name, logger in kept.items():
        for handler in list(logger.handlers):
            if isinstance(handler, Handler):
                logger.removeHandler(handler)
        logger.level, logger.propagate = state[name]


def written(config: LogConfig) -> io.StringIO:
    stream = io.StringIO()
    set_up(config, stream)
    return stream


def test_text_is_one_line_that_can_be_split() -> None:
    stream = written(LogConfig())
    log.warning("shard was\nrestored %d", 7, extra=fields(job="a", shard=1, reason='it "died"', path="x=y"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning adamserve\.test: shard was restored 7"
        r' job=a shard=1 reason="it \\"died\\"" path="x=y"\n',
        stream.getvalue(),
    )


def test_json_is_one_object_a_line() -> None:
    stream = written(LogConfig("json"))
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed", extra=fields(job="a", pusher="p"))
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert {k: found[k] for k in ("level", "logger", "event", "job", "pusher")} == {
        "level": "error",
        "logger": "adamserve.test",
        "event": "failed",
        "job": "a",
        "pusher": "p",
    }
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ValueError: first\nsecond")


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, lines: int) -> None:
    stream = written(LogConfig("text", level))
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert len(stream.getvalue().splitlines()) == lines


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (("xml", "info"), "log_format: must be text or json, got 'xml'"),
        (("text", "loud"), "log_level: must be debug, info, warning, error, got 'loud'"),
    ],
)
def test_what_is_no_configuration(config: tuple[str, str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        LogConfig(*config)  # type: ignore[arg-type] # wrong on purpose


@pytest.fixture
def lines() -> Lines:
    """A logger of its own, in JSON, with a clock."""
    clock, stream = ManualClock(), io.StringIO()
    handler = Handler(LogConfig("json"), stream, now=clock)
    logger = logging.Logger("adamserve.own")
    logger.addHandler(handler)
    return logger, clock, stream, handler


def test_repeats_are_counted_in_the_last_of_them(lines: Lines) -> None:
    logger, clock, stream, _ = lines
    for i in range(100):
        logger.warning("refused %d", i, extra=fields(job="a", shard=0))
    logger.warning("refused %d", 0, extra=fields(job="a", shard=1))  # of another shard: not alike
    logger.warning("other", extra=fields(job="a", shard=0))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in found] == [*(f"refused {i}" for i in range(BURST)), "refused 0", "other"]
    assert not any("left_out" in one for one in found)
    clock.seconds += WINDOW_S
    logger.info("later")
    more = [json.loads(line) for line in stream.getvalue().splitlines()][len(found) :]
    assert [(one["event"], one.get("left_out")) for one in more] == [
        ("refused 99", 100 - BURST - 1),
        ("later", None),
    ]
    logger.warning("refused %d", 100, extra=fields(job="a", shard=0))
    assert "refused 100" in stream.getvalue()


def test_what_was_left_out_is_told_at_the_end(lines: Lines) -> None:
    logger, _, stream, handler = lines
    for i in range(BURST + 3):
        logger.warning("refused %d", i)
    handler.close()
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["event"], last["left_out"]) == (f"refused {BURST + 2}", 2)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer s3cret-token",
        "Authorization=basic s3cret-token",
        "-----BEGIN EC PRIVATE KEY-----\ns3cret\ns3cret\n-----END EC PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\ns3cret",
    ],
)
def test_secrets_are_struck_out(form: str, text: str) -> None:
    stream = written(LogConfig(form))  # type: ignore[arg-type] # one of the two
    log.error("%s", text, extra=fields(job="a", said=text))
    log.error(text)
    assert "s3cret" not in stream.getvalue()
    assert stream.getvalue().count("***") >= 2
    assert len(stream.getvalue().splitlines()) == 2


def test_news_are_told_once() -> None:
    stream = written(LogConfig("json"))
    news = News()
    stale = Event(10.0, "stale", (0, 1), "p", "stale by 9 updates", 3)
    job = JobState(job="a", rule="Adam", events=(stale,))
    for one in (
        job,
        job,
        replace(
            job, events=(replace(stale, at=12.0, count=5), Event(11.0, "rollback", (1,), "", "restored"))
        ),
        replace(job, failed="no checkpoints"),
        replace(job, failed="no checkpoints"),
    ):
        news.show(one)
    news.show()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    kept = [{k: v for k, v in one.items() if k not in ("at", "logger")} for one in found]
    warning = {"level": "warning", "job": "a"}
    assert kept == [
        {"level": "info", "event": "job is served", "job": "a", "rule": "Adam"},
        {**warning, "event": "stale: stale by 9 updates", "shard": [0, 1], "pusher": "p", "times": 3},
        {**warning, "event": "stale: stale by 9 updates", "shard": [0, 1], "pusher": "p", "times": 2},
        {**warning, "event": "rollback: restored", "shard": 1},
        {"level": "error", "event": "job cannot go on: no checkpoints", "job": "a"},
        {"level": "info", "event": "job has gone", "job": "a"},
    ]
