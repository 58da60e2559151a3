"""Every rule in every mode gives the bits that an earlier version gave.

`digests.json` holds what the commit named in it computed for each case of the schedule. A change that is meant to
leave the arithmetic alone leaves the table alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bits import schedule
from tests.bits.shards import Replay

TABLE = json.loads(Path(__file__).with_name("digests.json").read_text())
CASES = {(rule, entry): case for rule, entry, case in schedule.cases()}


def test_every_case_has_its_digest() -> None:
    assert {(rule, entry) for rule, entries in TABLE["digests"].items() for entry in entries} == set(CASES)


@pytest.mark.skipif(
    schedule.library() != TABLE["library"],
    reason="this machine's mathematical library rounds otherwise than that of the table",
)
@pytest.mark.parametrize(("rule", "entry"), CASES)
def test_the_bits_are_those_of_the_table(rule: str, entry: str) -> None:
    case = CASES[rule, entry]
    replay = Replay(case)
    for pusher in schedule.PUSHERS:
        replay.join(pusher)
    replay.run(case.steps)
    assert replay.digest() == TABLE["digests"][rule][entry]
