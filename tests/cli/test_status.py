"""`adamserve status`, against a service."""

from __future__ import annotations

import json
import re
import time

import pytest

from adamserve import optim
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready
from tests.conftest import Command, Refused
from tests.served import Connect, ones, zeros


def test_status_shows_every_job_and_one(
    service: Ready, counting: Client, connect: Connect, command: Command
) -> None:
    other = connect(job="another")
    other.create(zeros(), optim.Adam())
    _, clock = counting.pull()
    counting.push(ones(), clock)
    counting.report(0.5, comparator_loss=0.25)
    counting.status()  # which sends the loss
    found = {
        state["job"]: state for state in json.loads(command("status", service.target, "--format", "json").out)
    }
    assert {counting.job, "another"} <= set(found)
    mine = found[counting.job]
    assert mine["state"] == "healthy"
    assert mine["updates_per_s"] >= 0
    [pusher] = mine["pushers"]
    assert (pusher["name"], pusher["seq"]) == ("a", 1)
    assert 0 <= time.time() - pusher["pushed_at"] < 60
    assert mine["staleness"] == {"0": 2}
    assert (mine["rule"], mine["rate"], mine["events"]) == ("SGD", 1.0, [])
    assert [shard["pushes"] for shard in mine["shards"]] == [{"APPLIED": 1}] * 2
    assert [shard["stamp"]["clock"] for shard in mine["shards"]] == [1, 1]
    assert (mine["loss"], mine["regret"], mine["regret_steps"], mine["average_regret"]) == (
        0.5,
        0.25,
        1,
        0.25,
    )
    assert found["another"]["regret"] is None
    [only] = json.loads(command("status", service.target, "--job", "another", "--format", "json").out)
    assert only["job"] == "another"
    table = command("status", service.target, "--job", counting.job).out
    for text in (
        "state healthy",
        "rule SGD at rate 1",
        "loss 0.5",
        "updates/s ",
        "R(T)/T 0.25",
        "1 pusher",
        "staleness",
    ):
        assert text in table, table
    assert re.search(r"^a +\d+\.\d s ago +1 *$", table, re.MULTILINE), table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1:1", "--timeout-s", "1"], "gave up after 1 s: UNAVAILABLE"),
        (["TARGET", "--job", "no-such-job"], "the service has no job 'no-such-job' (create it first)"),
        (["TARGET", "--token-file", "/nowhere"], "--token-file: /nowhere cannot be read"),
        (["TARGET", "--tls-ca", "/nowhere"], "--tls-ca: /nowhere cannot be read"),
        (["TARGET", "--timeout-s", "nan"], "--timeout-s: must be a positive number of seconds, got nan"),
        (["http://127.0.0.1:1"], "TARGET: http://127.0.0.1:1 does not answer: "),
        (["ftp://127.0.0.1"], "TARGET: 'ftp://127.0.0.1' is no URL of a page (begin it with http://)"),
        (["PAGE", "--job", "no-such-job"], "--job: there is no job 'no-such-job'"),
        (["PAGE", "--token-file", "/nowhere"], "--token-file: /nowhere cannot be read"),
        (["METRICS"], "answers 404 (give the URL that was printed)"),
    ],
)
def test_what_goes_wrong_is_one_line(
    service: Ready, arguments: list[str], message: str, refused: Refused
) -> None:
    names = {"TARGET": service.target, "PAGE": service.status, "METRICS": service.metrics}
    assert message in refused("status", *(names.get(a, a) for a in arguments))
