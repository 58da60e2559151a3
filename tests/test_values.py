"""Receipts of several shards become one; errors survive a process boundary; deadlines end."""

from __future__ import annotations

import pickle

import pytest

from adamserve import errors
from adamserve.errors import AdamServeError, BadSequence, InvalidArgument, RolledBack, Unavailable
from adamserve.values import Clocks, Deadline, JobReceipt, Outcome, Receipt, Stamp


def receipt(outcome: Outcome, clock: int = 1, staleness: int = 0, reason: str = "why") -> Receipt:
    return Receipt(outcome, Stamp(1, clock), staleness, reason)


@pytest.mark.parametrize(
    ("outcomes", "together"),
    [
        ("APPLIED APPLIED", "APPLIED"),
        ("APPLIED DUPLICATE", "DUPLICATE"),
        ("DUPLICATE STALE APPLIED", "STALE"),
        ("", "APPLIED"),
    ],
)
def test_a_jobs_outcome_is_the_worst_of_its_shards(outcomes: str, together: str) -> None:
    assert JobReceipt(tuple(receipt(Outcome(o)) for o in outcomes.split())).outcome is Outcome(together)


def test_a_jobs_receipt_says_which_shard_and_why() -> None:
    both = JobReceipt((receipt(Outcome.APPLIED, 5, 2), receipt(Outcome.STALE, 9, 7, "too old")))
    assert both.clock == Clocks([Stamp(1, 5), Stamp(1, 9)])
    assert str(both.clock) == "1:5 1:9"
    assert (both.clock.newest, both.staleness, both.reason) == (9, 7, "shard 1: too old")


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, AdamServeError)]
)
def test_errors_survive_pickling(kind: type[AdamServeError]) -> None:
    error = kind("is wrong", field="lr", fix="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.problem, again.field, again.fix) == ("is wrong", "lr", "mend it")
    assert str(again) == "lr: is wrong (mend it)"


def test_a_rollbacks_clocks_survive_pickling() -> None:
    error = RolledBack("a shard was restored")
    error.before, error.after = ((1, 3),), ((2, 0),)
    again = pickle.loads(pickle.dumps(error))
    assert (again.before, again.after) == (((1, 3),), ((2, 0),))


def test_errors_are_sorted_by_whose_fault() -> None:
    assert issubclass(BadSequence, InvalidArgument)
    assert issubclass(InvalidArgument, ValueError)
    assert str(InvalidArgument("is wrong")) == "is wrong"


def test_a_deadline_is_a_fixed_point_in_time() -> None:
    now = [10.0]
    deadline = Deadline.after(2.5, now=lambda: now[0])
    assert deadline.remaining() == 2.5
    deadline.check("x")
    now[0] = 12.5
    assert deadline.remaining() == 0.0
    with pytest.raises(Unavailable, match="waiting for the moon"):
        deadline.check("the moon")
    now[0] = 99.0
    assert deadline.remaining() == 0.0
