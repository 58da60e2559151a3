"""A shard applies a push wholly, once, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from adamserve import optim
from adamserve.errors import (
    AdamServeError,
    BadSequence,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from adamserve.shard.consistency import BSP, SSP, Async, Consistency, Decision
from adamserve.shard.events import Event
from adamserve.shard.geometry import partition
from adamserve.shard.gradients import borrow
from adamserve.shard.ledger import RECEIPTS_KEPT
from adamserve.shard.shard import Shard
from adamserve.shard.statistics import PusherStatistics
from adamserve.values import (
    Array,
    Gradient,
    Outcome,
    Push,
    PusherState,
    Receipt,
    Segment,
    ShardState,
    SparseRows,
    Stamp,
    TensorSpec,
)
from tests.shard.test_consistency import ManualClock

TENSORS = [
    TensorSpec("w", (3, 4)),
    TensorSpec("scalar", ()),
    TensorSpec("none", (0, 5)),
    TensorSpec("d", (5,), "float64"),
]
LEASE_S = 10.0


def make(
    *,
    rule: optim.Rule | None = None,
    consistency: Consistency | None = None,
    tensors: Sequence[TensorSpec] = TENSORS,
    now: Callable[[], float] | None = None,
    wall: Callable[[], float] | None = None,
    incarnation: int = 1,
    state: ShardState | None = None,
    pushers: Sequence[str] = ("a",),
    **options: Any,
) -> Shard:
    """One shard that owns everything, its parameters counting up from 0."""
    initial = {spec.name: np.arange(spec.numel, dtype=spec.dtype) for spec in tensors}
    shard = Shard(
        partition=partition(tensors, 1),
        state=state or ShardState(0, Stamp(incarnation, 0), (), {"w": initial}),
        rule=rule or optim.SGD(lr=1.0, momentum=0.0),
        consistency=consistency or Async(),
        now=now or ManualClock(),
        wall=wall or ManualClock(),
        **options,
    )
    for pusher in pushers:
        shard.join(pusher, lease_s=LEASE_S)
    return shard


def ones(value: float = 1.0, tensors: Sequence[TensorSpec] = TENSORS) -> dict[str, Array]:
    return {spec.name: np.full(spec.numel, value, dtype=spec.dtype) for spec in tensors}


def offer(
    shard: Shard, seq: int, clock: int, gradients: Mapping[str, Array], **fields: Any
) -> Receipt | Decision:
    pulled = Stamp(fields.pop("incarnation", shard.stamp.incarnation), clock)
    push = Push(fields.pop("pusher", "a"), seq, pulled, gradients, **fields)
    answer = shard.offer(shard.check(push))
    return answer if isinstance(answer, Decision) else answer.receipt


def contents(shard: Shard) -> dict[str, bytes]:
    """Every byte of the state, and the clock."""
    state = shard.state()
    held = {
        f"{slot}/{name}": a.tobytes() for slot, arrays in state.arrays.items() for name, a in arrays.items()
    }
    return {**held, "stamp": str(state.stamp).encode(), "segments": str(state.segments).encode()}


def test_a_push_moves_every_tensor_and_the_clock() -> None:
    shard = make()
    receipt = offer(shard, 1, 0, ones(0.5))
    assert receipt == Receipt(Outcome.APPLIED, Stamp(1, 1), 0, "stale by 0 updates")
    arrays = shard.state().arrays["w"]
    for spec in TENSORS:
        np.testing.assert_array_equal(arrays[spec.name], np.arange(spec.numel) - 0.5)


@pytest.mark.parametrize("consistency", [Async(), BSP(), Async(delay_compensation=2.0)], ids=str)
def test_a_gradient_in_bfloat16_is_the_numbers_that_it_stands_for(consistency: Consistency) -> None:
    rng = np.random.default_rng(0)
    shards = [make(rule=optim.Adam(lr=0.1), consistency=consistency, pushers="ab") for _ in range(2)]
    for seq in range(1, 5):
        bits = {
            spec.name: (rng.standard_normal(spec.numel, np.float32).view("<u4") >> 16).astype("<u2")
            for spec in TENSORS
        }
        wide = {name: (b.astype("<u4") << 16).view("<f4") for name, b in bits.items()}
        wide["d"] = wide["d"].astype("<f8")
        for shard, gradients in zip(
            shards, ({name: b.view(bfloat16) for name, b in bits.items()}, wide), strict=True
        ):
            clock = shard.stamp.clock
            for pusher in "ab":
                shard.note_pull(pusher)
            offer(shard, seq, clock, gradients, pusher="a")
            offer(shard, seq, clock, wide, pusher="b")
    assert shards[0].stamp.clock == (4 if isinstance(consistency, BSP) else 8)
    assert contents(shards[0]) == contents(shards[1])


def test_an_update_fills_a_narrow_copy_where_it_writes_everything() -> None:
    """Two pushers and a rule with a look-ahead point, so that the copy is neither w nor of the push alone."""
    tensors = [TensorSpec("w", (3, 4)), TensorSpec("none", (0, 5)), TensorSpec("b", (7,))]
    rng = np.random.default_rng(0)

    def drawn(*names: str) -> dict[str, Array]:
        return {
            spec.name: rng.standard_normal(spec.numel, np.float32)
            for spec in tensors
            if spec.name in (names or ("w", "b"))
        }

    def pushed(shard: Shard, seq: int, gradients: Mapping[str, Gradient], pusher: str = "a") -> Array | None:
        checked = shard.check(Push(pusher, seq, shard.stamp, gradients), copied="bfloat16")
        answer = shard.offer(checked, lambda size: np.full(size, 0x7FC0, "<u2"))
        return None if isinstance(answer, Decision) else answer.copy

    def expected(shard: Shard) -> Array:
        read = torch.from_numpy(shard.read(training=True)["float32"])
        return read.bfloat16().view(torch.int16).numpy().view("<u2")

    shard = make(rule=optim.Nesterov(lr=0.1), tensors=tensors, consistency=BSP(), pushers="ab")
    first, last = pushed(shard, 1, drawn()), pushed(shard, 1, drawn("w", "b", "none"), "b")
    assert first is None
    assert last is not None
    assert shard.stamp == Stamp(1, 1)
    np.testing.assert_array_equal(last, expected(shard))
    w = torch.cat([torch.from_numpy(values) for values in shard.state().arrays["w"].values()])
    assert not np.array_equal(expected(shard), w.bfloat16().view(torch.int16).numpy().view("<u2"))
    assert pushed(shard, 1, drawn()) is None, "a duplicate writes nothing"

    shard = make(rule=optim.Adam(lr=0.1), tensors=tensors)
    halves = {name: (g.view("<u4") >> 16).astype("<u2").view(bfloat16) for name, g in drawn().items()}
    filled = pushed(shard, 1, halves)
    assert filled is not None
    np.testing.assert_array_equal(filled, expected(shard))
    rows = SparseRows(np.array([1]), np.ones((1, 4), np.float32))
    partly: list[Mapping[str, Gradient]] = [drawn("w"), {**drawn(), "w": rows}, {}]
    for seq, gradients in enumerate(partly, start=2):
        assert pushed(shard, seq, gradients) is None, "some elements would be missing"
        assert shard.stamp == Stamp(1, seq)

    mixed = make(pushers="a")
    assert pushed(mixed, 1, ones()) is None, "float64 parameters do not travel narrow"


def test_a_tensor_left_out_does_not_move_and_keeps_its_own_count() -> None:
    shard = make(rule=optim.Adam(lr=0.1))
    offer(shard, 1, 0, {"w": np.ones(12, np.float32)})
    offer(shard, 2, 1, ones())
    counts = {segment.tensor: segment.updates for segment in shard.state().segments}
    assert counts == {"w": 2, "scalar": 1, "none": 1, "d": 1}
    assert shard.stamp.clock == 2


def test_a_push_that_was_refused_stays_refused_when_it_is_sent_again() -> None:
    shard = make(consistency=Async(max_staleness=0), pushers="ab")
    offer(shard, 1, 0, ones(), pusher="b")
    first = offer(shard, 1, 0, ones())
    assert isinstance(first, Receipt)
    assert first.outcome is Outcome.STALE
    assert offer(shard, 1, 0, ones()) == first
    assert shard.statistics().pushes == {"APPLIED": 1, "STALE": 1, "DUPLICATE": 1}


def test_a_push_that_runs_ahead_waits_by_itself() -> None:
    """In ssp another pusher's update is its own: nothing is averaged."""
    shard = make(consistency=SSP(bound=0), pushers="ab")
    offer(shard, 1, 0, ones(1.0), pusher="a")
    assert isinstance(offer(shard, 2, 1, ones(8.0), pusher="a"), Decision)
    offer(shard, 1, 0, ones(2.0), pusher="b")
    assert shard.stamp.clock == 2
    assert shard.ledger["a"].receipts.get(2) is None
    assert float(shard.state().arrays["w"]["scalar"][0]) == -3.0
    receipt = offer(shard, 2, 1, ones(8.0), pusher="a")
    assert isinstance(receipt, Receipt)
    assert float(shard.state().arrays["w"]["scalar"][0]) == -11.0


@pytest.mark.parametrize("how", ["another session", "a seq that was given up"])
def test_a_push_that_waits_is_given_up_when_its_pusher_joins_again(how: str) -> None:
    clock = ManualClock()
    shard = make(consistency=BSP(), pushers=(), now=clock)
    shard.join("a", lease_s=LEASE_S, session="first")
    shard.join("b", lease_s=100 * LEASE_S)
    assert isinstance(offer(shard, 1, 0, ones(100.0), session="first"), Decision)
    if how == "another session":
        clock.seconds += 2 * LEASE_S
        assert shard.join("a", lease_s=LEASE_S, session="second").last_seq == 0
        session, seq = "second", 1
    else:
        assert shard.join("a", lease_s=LEASE_S, session="first", last_seq=1).last_seq == 1
        session, seq = "first", 2
        with pytest.raises(BadSequence, match="given up before, and its outcome is no longer known"):
            offer(shard, 1, 0, ones(100.0), session="first")
    assert isinstance(offer(shard, 1, 0, ones(2.0), pusher="b"), Decision), "it waits for a's next push"
    receipt = offer(shard, seq, 0, ones(4.0), session=session)
    assert isinstance(receipt, Receipt)
    assert receipt.outcome is Outcome.APPLIED
    assert float(shard.state().arrays["w"]["scalar"][0]) == -3.0


def test_a_copy_for_delay_compensation_ends_with_the_lease() -> None:
    clock = ManualClock()
    shard = make(consistency=Async(delay_compensation=1.0), pushers=(), now=clock)
    for name in ("a", "b", "c"):
        shard.join(name, lease_s=LEASE_S)
        shard.note_pull(name)
        offer(shard, 1, shard.stamp.clock, ones(), pusher=name)
        clock.seconds += 2 * LEASE_S
    shard.statistics()
    assert not shard._pulled


@pytest.mark.parametrize("seqs", [[1, 1], [1, 2, 1], [1, 2, 2, 2]])
def test_a_repeated_seq_is_answered_with_its_first_receipt(seqs: list[int]) -> None:
    shard = make()
    first: dict[int, Receipt] = {}
    for seq in seqs:
        answer = offer(shard, seq, 0, ones())
        assert isinstance(answer, Receipt)
        if seq in first:
            assert answer.outcome is Outcome.DUPLICATE
            assert (answer.stamp, answer.staleness, answer.reason) == (
                first[seq].stamp,
                first[seq].staleness,
                first[seq].reason,
            )
        first.setdefault(seq, answer)
    assert shard.stamp.clock == len(set(seqs))


def test_an_outcome_that_is_no_longer_known_is_never_said_to_be_applied() -> None:
    shard = make()
    for seq in range(1, RECEIPTS_KEPT + 3):
        offer(shard, seq, 0, {})
    before = contents(shard)
    with pytest.raises(BadSequence, match="its outcome is no longer known") as error:
        offer(shard, 2, 0, ones())
    assert (error.value.field, contents(shard)) == ("seq", before)
    kept = offer(shard, 3, 0, ones())
    assert isinstance(kept, Receipt)
    assert (kept.outcome, kept.clock) == (Outcome.DUPLICATE, 3)


def test_a_retry_gets_the_first_outcome_across_a_restore() -> None:
    """A refused push, sent again after a restore from a later checkpoint, must not pass for an applied one."""
    shard = make(consistency=Async(max_staleness=0), pushers=())
    for pusher in "ab":
        shard.join(pusher, lease_s=LEASE_S, session=f"of {pusher}", kind="worker")
    send = {"session": "of a", "incarnation": 1}
    offer(shard, 1, 0, ones(), pusher="b", session="of b")
    refused = offer(shard, 1, 0, ones(), **send)
    applied = offer(shard, 2, 1, ones(), **send)
    shard.join("a", lease_s=LEASE_S, last_seq=3, session="of a")  # push 3 was given up
    assert isinstance(refused, Receipt)
    assert isinstance(applied, Receipt)
    assert (refused.outcome, applied.outcome) == (Outcome.STALE, Outcome.APPLIED)

    restored = make(state=replace(shard.state(), stamp=Stamp(2, 2)), pushers=())
    assert offer(restored, 1, 0, ones(), **send) == refused
    assert offer(restored, 2, 1, ones(), **send) == replace(applied, outcome=Outcome.DUPLICATE)
    with pytest.raises(BadSequence, match="push 3 was decided or given up before"):
        offer(restored, 3, 1, ones(), **send)
    with pytest.raises(Conflict, match="another client's session"):
        offer(restored, 1, 0, ones(), session="of b", incarnation=1)
    assert restored.stamp == Stamp(2, 2)


def test_gradients_that_wait_for_their_round_are_bounded_in_memory() -> None:
    tensors = [TensorSpec("w", (100,))]
    shard = make(consistency=BSP(), tensors=tensors, pushers="abc", waiting_bytes=400)
    gradients = ones(tensors=tensors)
    for _ in range(2):
        assert isinstance(offer(shard, 1, 0, gradients, pusher="a"), Decision), "sent again, it takes no more"
    with pytest.raises(
        LimitExceeded, match="800 bytes of gradients would wait for their round, at most 400 may"
    ):
        offer(shard, 1, 0, gradients, pusher="b")
    shard.leave("b")
    answer = offer(shard, 1, 0, gradients, pusher="c")
    assert isinstance(answer, Receipt)
    assert (answer.outcome, answer.reason) == (Outcome.APPLIED, "mean of 2 pushes")


@given(order=st.lists(st.integers(1, 6), max_size=40))
def test_any_order_and_repetition_applies_each_seq_once(order: list[int]) -> None:
    shard = make(tensors=[TensorSpec("w", ())])
    decided: set[int] = set()
    for seq in order:
        try:
            offer(shard, seq, 0, {"w": np.full(1, 10.0**seq, np.float32)})
        except BadSequence:
            assert seq > max(decided, default=0) + 1
        else:
            decided.add(seq)
    assert shard.stamp.clock == len(decided)
    assert float(shard.state().arrays["w"]["w"][0]) == pytest.approx(-sum(10.0**seq for seq in decided))


BAD_PUSHES: list[tuple[str, dict[str, Any], type[AdamServeError], str]] = [
    ("unknown tensor", {"gradients": {"v": np.ones(3, np.float32)}}, NotFound, "v"),
    ("short", {"gradients": {"w": np.ones(11, np.float32)}}, InvalidArgument, "w"),
    ("wrong rank", {"gradients": {"w": np.ones((3, 4), np.float32)}}, InvalidArgument, "w"),
    ("int gradient", {"gradients": {"w": np.ones(12, np.int32)}}, InvalidArgument, "w"),
    ("double for float", {"gradients": {"w": np.ones(12, np.float64)}}, InvalidArgument, "w"),
    ("strided", {"gradients": {"w": np.ones(24, np.float32)[::2]}}, InvalidArgument, "w"),
    ("NaN last", {"gradients": {**ones(), "d": np.array([1, 1, 1, 1, math.nan])}}, InvalidArgument, "d"),
    ("infinity", {"gradients": {"scalar": np.array([math.inf], np.float32)}}, InvalidArgument, "scalar"),
    ("minus infinity", {"gradients": {"d": np.full(5, -math.inf)}}, InvalidArgument, "d"),
    ("half NaN", {"gradients": {"w": np.full(12, math.nan, np.float16)}}, InvalidArgument, "w"),
    ("bfloat16 NaN", {"gradients": {"w": np.full(12, 0x7FC0, "<u2").view(bfloat16)}}, InvalidArgument, "w"),
    ("seq 0", {"seq": 0}, BadSequence, "seq"),
    ("negative seq", {"seq": -3}, BadSequence, "seq"),
    ("skipped seq", {"seq": 4}, BadSequence, "seq"),
    ("future clock", {"clock": 2}, InvalidArgument, "clock"),
    ("future incarnation", {"incarnation": 9}, InvalidArgument, "clock"),
    ("NaN rate", {"lr": math.nan}, InvalidArgument, "lr"),
    ("infinite rate", {"lr": math.inf}, InvalidArgument, "lr"),
    ("negative rate", {"lr": -1.0}, InvalidArgument, "lr"),
    ("unknown pusher", {"pusher": "stranger"}, NotFound, "pusher"),
]


@pytest.mark.parametrize(
    ("fields", "error", "field"), [b[1:] for b in BAD_PUSHES], ids=[b[0] for b in BAD_PUSHES]
)
def test_a_refused_push_changes_no_byte(
    fields: dict[str, Any], error: type[AdamServeError], field: str
) -> None:
    shard = make(rule=optim.Adam(lr=0.1))
    offer(shard, 1, 0, ones(0.3))
    before = contents(shard)
    with pytest.raises(error) as caught:
        offer(shard, **{"seq": 2, "clock": 1, "gradients": ones(), **fields})
    assert caught.value.field == field
    assert contents(shard) == before
    assert isinstance(offer(shard, 2, 1, ones()), Receipt), "the seq was not used up"


def test_a_stale_push_changes_no_byte_but_uses_its_seq() -> None:
    shard = make(consistency=Async(max_staleness=0))
    offer(shard, 1, 0, ones())
    before = contents(shard)
    answer = offer(shard, 2, 0, ones())
    assert answer == Receipt(Outcome.STALE, Stamp(1, 1), 1, "stale by 1 updates, at most 0 are allowed")
    assert contents(shard) == before
    assert offer(shard, 3, 1, ones()) == Receipt(Outcome.APPLIED, Stamp(1, 2), 0, "stale by 0 updates")


def test_an_older_incarnation_is_refused_whatever_seq_it_carries() -> None:
    shard = make(incarnation=3)
    before = contents(shard)
    for seq in (1, 40):
        answer = offer(shard, seq, 0, ones(), incarnation=2)
        assert isinstance(answer, Receipt)
        assert answer.outcome is Outcome.STALE
    assert contents(shard) == before


def test_a_rate_sent_with_a_push_takes_the_place_of_the_rules() -> None:
    shard = make()
    offer(shard, 1, 0, ones(), lr=0.25)
    assert float(shard.state().arrays["w"]["scalar"][0]) == -0.25


def test_inverse_staleness_scales_the_step() -> None:
    shard = make(consistency=Async(staleness_lr="inverse"), pushers=("a", "b"))
    for seq in range(1, 5):
        offer(shard, seq, shard.stamp.clock, {}, pusher="b")
    offer(shard, 1, 0, ones())
    assert float(shard.state().arrays["w"]["scalar"][0]) == -0.25


def test_delay_compensation_adds_its_term() -> None:
    weight = 0.5
    shard = make(consistency=Async(delay_compensation=weight), pushers=("a", "b"))
    shard.note_pull("a")
    offer(shard, 1, 0, ones(3.0), pusher="b")
    offer(shard, 1, 0, ones(2.0))
    drift = -3.0
    expected = np.arange(12) - 3.0 - (2.0 + weight * 2.0 * 2.0 * drift)
    np.testing.assert_allclose(shard.state().arrays["w"]["w"], expected, rtol=1e-6)


def test_delay_compensation_leaves_a_fresh_gradient_alone() -> None:
    shard = make(consistency=Async(delay_compensation=0.5))
    shard.note_pull("a")
    offer(shard, 1, 0, ones(2.0))
    assert float(shard.state().arrays["w"]["scalar"][0]) == -2.0


def test_bsp_averages_one_push_of_every_live_pusher() -> None:
    shard = make(consistency=BSP(), pushers=("a", "b", "c"))
    assert isinstance(offer(shard, 1, 0, ones(1.0), pusher="b"), Decision)
    assert isinstance(offer(shard, 1, 0, ones(2.0), pusher="a"), Decision)
    last = offer(shard, 1, 0, ones(6.0), pusher="c")
    assert last == Receipt(Outcome.APPLIED, Stamp(1, 1), 0, "mean of 3 pushes")
    assert shard.ledger["a"].receipts.get(1) == shard.ledger["b"].receipts.get(1) == last
    np.testing.assert_array_equal(shard.state().arrays["w"]["w"], np.arange(12) - 3.0)


def test_the_mean_does_not_depend_on_the_order_of_arrival() -> None:
    rng = np.random.default_rng(0)
    pushers = ("a", "b", "c", "d", "e")
    gradients = {name: {"w": rng.normal(size=12).astype(np.float32)} for name in pushers}
    results = set()
    for order in (pushers, pushers[::-1], ("c", "a", "e", "b", "d")):
        shard = make(consistency=BSP(), pushers=pushers)
        for name in order:
            offer(shard, 1, 0, gradients[name], pusher=name)
        results.add(contents(shard)["w/w"])
    assert len(results) == 1


def test_a_pusher_whose_lease_ran_out_no_longer_holds_a_round_up() -> None:
    clock = ManualClock()
    shard = make(consistency=BSP(), pushers=("a", "b"), now=clock)
    gradients = shard.check(Push("a", 1, Stamp(1, 0), ones()))
    assert isinstance(shard.offer(gradients), Decision)
    clock.seconds += LEASE_S
    shard.renew("a")
    assert not isinstance(shard.offer(gradients), Decision)


def test_a_withdrawn_push_is_no_part_of_the_round() -> None:
    shard = make(consistency=BSP(), pushers=("a", "b"))
    offer(shard, 1, 0, ones(100.0), pusher="a")
    shard.withdraw("a")
    assert isinstance(offer(shard, 1, 0, ones(1.0), pusher="b"), Decision)
    offer(shard, 1, 0, ones(3.0), pusher="a")
    assert float(shard.state().arrays["w"]["scalar"][0]) == -2.0


def test_ssp_counts_steps_and_a_newcomer_starts_level() -> None:
    shard = make(consistency=SSP(bound=1), pushers=("a", "b"))
    offer(shard, 1, 0, {})
    offer(shard, 2, 0, {})
    assert isinstance(offer(shard, 3, 0, {}), Decision)
    offer(shard, 1, 0, {}, pusher="b")
    assert isinstance(offer(shard, 3, 0, {}), Receipt)
    shard.join("c", lease_s=LEASE_S)
    assert shard.state().pushers["c"] == PusherState(0, 1)


def test_a_refused_pusher_leaves_nothing() -> None:
    shard = make()
    for lease_s in (-1.0, 0.0, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="lease_s"):
            shard.join("new", lease_s=lease_s)
    assert "new" not in shard.state().pushers


def test_joining_again_goes_on_counting() -> None:
    shard = make()
    offer(shard, 1, 0, {})
    assert shard.join("a", lease_s=LEASE_S).last_seq == 1
    assert shard.join("a", lease_s=LEASE_S, last_seq=7).last_seq == 7
    assert isinstance(offer(shard, 8, 0, {}), Receipt)


def test_a_shard_restored_from_its_state_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    gradients = [{s.name: rng.normal(size=s.numel).astype(s.dtype) for s in TENSORS} for _ in range(6)]
    whole = make(rule=optim.Adam(lr=0.1))
    half = make(rule=optim.Adam(lr=0.1))
    for seq, gradient in enumerate(gradients, start=1):
        if seq == 4:
            half = make(rule=optim.Adam(lr=0.1), state=half.state())
        offer(whole, seq, seq - 1, gradient)
        offer(half, seq, seq - 1, gradient)
    assert contents(half) == contents(whole)


def test_pieces_with_different_counts_keep_their_own_bias_correction() -> None:
    tensors = [TensorSpec("w", (4,))]
    state = ShardState(
        0, Stamp(2, 9), (Segment("w", 0, 2, 0), Segment("w", 2, 4, 9)), {"w": {"w": np.zeros(4, np.float32)}}
    )
    shard = make(rule=optim.Adam(lr=0.1), tensors=tensors, state=state)
    offer(shard, 1, 9, {"w": np.ones(4, np.float32)})
    moved = shard.state().arrays["w"]["w"]
    assert moved[0] == pytest.approx(-0.1, rel=1e-5)
    assert abs(moved[2]) < 0.9 * abs(moved[0])
    assert [s.updates for s in shard.state().segments] == [1, 10]


def test_a_training_pull_of_nesterov_looks_ahead_and_an_evaluation_does_not() -> None:
    shard = make(rule=optim.Nesterov(lr=1.0, momentum=0.5), tensors=[TensorSpec("w", ())])
    offer(shard, 1, 0, {"w": np.ones(1, np.float32)})
    assert shard.read(training=False)["float32"].tolist() == [-1.0]
    assert shard.read(training=True)["float32"].tolist() == [-1.5]


def test_statistics_count_outcomes_and_staleness() -> None:
    shard = make(consistency=Async(max_staleness=1))
    for seq, clock in [(1, 0), (2, 0), (3, 0), (3, 0)]:
        offer(shard, seq, clock, ones())
    statistics = shard.statistics()
    assert statistics.pushes == {"APPLIED": 2, "STALE": 1, "DUPLICATE": 1}
    assert statistics.staleness == {0: 1, 1: 1, 2: 1}
    assert statistics.bytes_in == 2 * sum(spec.nbytes for spec in TENSORS)
    assert statistics.live == ("a",)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (3, 4)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_a_borrowed_array_is_the_same_memory_in_the_same_shape(shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    for writeable in (True, False):
        array.flags.writeable = writeable
        tensor = borrow(array)
        assert tuple(tensor.shape) == shape
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert array.size == 0 or tensor.data_ptr() == array.ctypes.data


def test_statistics_name_each_live_pusher_with_its_last_push() -> None:
    wall, clock = ManualClock(), ManualClock()
    shard = make(now=clock, wall=wall, pushers=("b", "a", "gone"))
    wall.seconds = 50.0
    offer(shard, 1, 0, ones())
    wall.seconds = 60.0
    offer(shard, 2, 1, ones())
    offer(shard, 2, 1, ones())  # sent again: decided once
    shard.leave("gone")
    assert shard.statistics().pushers == (PusherStatistics("a", 2, 60.0), PusherStatistics("b", 0, None))
    clock.seconds += LEASE_S + 1
    shard.renew("a")
    found = shard.statistics()
    assert found.pushers == (PusherStatistics("a", 2, 60.0),)
    assert found.live == ("a",)


def test_refusals_and_lost_leases_are_events_with_their_reason() -> None:
    wall, clock = ManualClock(), ManualClock()
    shard = make(now=clock, wall=wall, consistency=Async(max_staleness=0), pushers=("a", "b", "c"))
    wall.seconds = 50.0
    offer(shard, 1, 0, ones())
    for seq in (1, 2):
        offer(shard, seq, 0, ones(), pusher="b")
    shard.refuse("a", "w: the gradient holds NaN or infinity")
    clock.seconds += LEASE_S / 2
    shard.renew("a")
    clock.seconds += LEASE_S / 2 + 1
    shard.leave("a")
    wall.seconds = 60.0
    assert shard.statistics().events[:2] == (
        Event(50.0, "stale", (0,), "b", "stale by 1 updates, at most 0 are allowed", 2),
        Event(50.0, "invalid", (0,), "a", "w: the gradient holds NaN or infinity", 1),
    )
    assert [(e.kind, e.pusher) for e in shard.statistics().events[2:]] == [("silent", "b"), ("silent", "c")]
    assert shard.statistics().pushes["INVALID"] == 1
