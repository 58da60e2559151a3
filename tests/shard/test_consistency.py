"""Admission is decided from clocks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamserve.errors import InvalidArgument
from adamserve.shard import consistency
from adamserve.shard.consistency import (
    BSP,
    SSP,
    Async,
    Consistency,
    Verdict,
    admit,
    parse,
)
from adamserve.shard.ledger import SILENT_S, Ledger
from adamserve.values import Stamp

MODES: list[Consistency] = [Async(), Async(max_staleness=2), SSP(bound=1), BSP()]


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("mode", "pulled", "now", "verdict", "reason"),
    [
        (Async(), 3, 3, Verdict.APPLY, "stale by 0 updates"),
        (Async(), 0, 900, Verdict.APPLY, "stale by 900 updates"),
        (Async(max_staleness=2), 3, 5, Verdict.APPLY, "stale by 2 updates"),
        (Async(max_staleness=2), 2, 5, Verdict.STALE, "stale by 3 updates, at most 2 are allowed"),
        (Async(max_staleness=0), 5, 5, Verdict.APPLY, "stale by 0 updates"),
        (Async(max_staleness=0), 4, 5, Verdict.STALE, "stale by 1 updates, at most 0 are allowed"),
        (BSP(), 4, 5, Verdict.STALE, "round 4 is over, the shard is at 5"),
    ],
)
def test_staleness(mode: Consistency, pulled: int, now: int, verdict: Verdict, reason: str) -> None:
    decision = admit(mode, pulled=Stamp(1, pulled), now=Stamp(1, now), pusher="a", steps={"a": 0})
    assert (decision.verdict, decision.reason) == (verdict, reason)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_older_incarnation_is_stale_whatever_its_clock_says(mode: Consistency) -> None:
    for clock in (0, 7, 50):
        decision = admit(mode, pulled=Stamp(1, clock), now=Stamp(2, 7), pusher="a", steps={"a": 0})
        assert decision.verdict is Verdict.STALE
        assert "incarnation 2 at clock 7" in decision.reason


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("pulled", [Stamp(1, 8), Stamp(2, 0)])
def test_the_future_is_invalid(mode: Consistency, pulled: Stamp) -> None:
    decision = admit(mode, pulled=pulled, now=Stamp(1, 7), pusher="a", steps={"a": 0})
    assert decision.verdict is Verdict.INVALID


@given(staleness=st.integers(0, 1000))
def test_inverse_staleness_divides_the_rate(staleness: int) -> None:
    mode = Async(staleness_lr="inverse")
    decision = admit(mode, pulled=Stamp(1, 0), now=Stamp(1, staleness), pusher="a", steps={"a": 0})
    assert decision.lr_scale == 1.0 / max(1, staleness)


@pytest.mark.parametrize(
    ("bound", "steps", "verdict"),
    [
        (0, {"a": 0, "b": 0}, Verdict.APPLY),
        (0, {"a": 1, "b": 0}, Verdict.WAIT),
        (2, {"a": 2, "b": 0}, Verdict.APPLY),
        (2, {"a": 3, "b": 0}, Verdict.WAIT),
        (2, {"a": 3}, Verdict.APPLY),
        (2, {"a": 3, "b": 9}, Verdict.APPLY),
        (2, {"a": 13, "b": 11, "c": 10}, Verdict.WAIT),
    ],
)
def test_ssp_holds_back_the_one_that_runs_ahead(
    bound: int, steps: Mapping[str, int], verdict: Verdict
) -> None:
    mode = SSP(bound=bound)
    pushed = admit(mode, pulled=Stamp(1, 0), now=Stamp(1, 50), pusher="a", steps=steps)
    started = mode.may_start("a", steps)
    assert pushed.verdict is started.verdict is verdict
    assert pushed.reason == started.reason


@pytest.mark.parametrize("mode", [Async(), BSP()], ids=str)
def test_only_ssp_holds_a_start_back(mode: Consistency) -> None:
    assert mode.may_start("a", {"a": 99, "b": 0}).verdict is Verdict.APPLY


@pytest.mark.parametrize(
    ("steps", "waiting", "verdict", "reason"),
    [
        ({"a": 0, "b": 0}, set(), Verdict.WAIT, "round 5 waits for b"),
        ({"a": 0, "b": 0, "c": 0}, {"b"}, Verdict.WAIT, "round 5 waits for c"),
        ({"a": 0, "b": 0}, {"b"}, Verdict.APPLY, "mean of 2 pushes"),
        ({"a": 0}, set(), Verdict.APPLY, "mean of 1 push"),
        ({"a": 0}, {"gone"}, Verdict.APPLY, "mean of 2 pushes"),
    ],
)
def test_bsp_waits_for_every_live_pusher(
    steps: Mapping[str, int], waiting: set[str], verdict: Verdict, reason: str
) -> None:
    decision = admit(BSP(), pulled=Stamp(1, 5), now=Stamp(1, 5), pusher="a", steps=steps, waiting=waiting)
    assert (decision.verdict, decision.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("text", "options", "mode"),
    [
        ("async", {}, Async()),
        (" ASYNC ", {"max_staleness": 4}, Async(max_staleness=4)),
        (
            "async",
            {"staleness_lr": "inverse", "delay_compensation": 0.04},
            Async(staleness_lr="inverse", delay_compensation=0.04),
        ),
        ("async", {"max_staleness": None}, Async()),
        ("ssp:2", {}, SSP(bound=2)),
        ("ssp:0", {}, SSP(bound=0)),
        ("bsp", {}, BSP()),
    ],
)
def test_parse(text: str, options: dict[str, Any], mode: Consistency) -> None:
    assert parse(text, **options) == mode
    assert consistency.from_dict(consistency.to_dict(mode)) == mode


@pytest.mark.parametrize(
    ("text", "options", "field"),
    [
        ("ssp", {}, "consistency"),
        ("ssp:-1", {}, "consistency"),
        ("ssp:2.5", {}, "consistency"),
        ("bsp:2", {}, "consistency"),
        ("async:1", {}, "consistency"),
        ("", {}, "consistency"),
        ("bsp", {"max_staleness": 3}, "max_staleness"),
        ("ssp:1", {"delay_compensation": 0.1}, "delay_compensation"),
        ("async", {"max_staleness": -1}, "max_staleness"),
        ("async", {"staleness_lr": "log"}, "staleness_lr"),
        ("async", {"delay_compensation": math.nan}, "delay_compensation"),
        ("async", {"delay_compensation": math.inf}, "delay_compensation"),
        ("async", {"delay_compensation": -0.1}, "delay_compensation"),
    ],
)
def test_bad_modes_name_the_field(text: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text, **options)
    assert caught.value.field == field


def leased(now: ManualClock, **lengths: float) -> Ledger:
    """Pushers with leases of so many seconds."""
    ledger = Ledger({}, now, lambda name: None)
    for name, lease_s in lengths.items():
        ledger.enter(name)
        ledger.renew(name, lease_s)
    return ledger


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    clock = ManualClock()
    leases = leased(clock, a=10.0, b=30.0)
    assert leases.live() == ["a", "b"]
    assert leases.next_expiry_s() == 10.0
    clock.seconds += 9.999
    assert leases.live() == ["a", "b"]
    clock.seconds += 0.001
    assert leases.live() == ["b"]
    assert leases.next_expiry_s() == 20.0


def test_a_lease_is_renewed_even_after_it_ran_out_but_not_after_it_was_dropped() -> None:
    clock = ManualClock()
    leases = leased(clock, a=10.0)
    clock.seconds += 60.0
    leases.renew("a")
    assert leases.live() == ["a"]
    leases.drop("a")
    leases.renew("a")
    assert leases.live() == []
    assert leases.next_expiry_s() is None


def test_a_pusher_is_silent_from_the_end_of_its_lease_until_it_comes_back_or_is_forgotten() -> None:
    now = ManualClock()
    leases = leased(now, a=1.0, b=2.0, c=3.0, d=SILENT_S * 2)
    assert leases.silent() == []
    now.seconds += 2.0
    assert leases.silent() == ["a", "b"]
    leases.renew("a")
    leases.drop("b")
    assert leases.silent() == []
    now.seconds += 1.0
    assert leases.silent() == ["a", "c"]
    now.seconds += SILENT_S - 0.5
    assert leases.silent() == ["a", "c"]
    now.seconds += 0.5
    assert leases.silent() == []
    assert leases.live() == ["d"]
