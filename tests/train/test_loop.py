"""The loop against a service without Ray: one exchange a step, the rule's own numbers, and what a restore costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamserve import optim, testing
from adamserve.errors import NotFinite
from adamserve.job import JobConfig
from adamserve.shard import consistency
from adamserve.train.loop import EpochReport, Mirror, Report, gradient, run
from adamserve.train.task import Part, Step, Task, arrays, initial_model, tensor_specs
from adamserve.values import Outcome
from tests.train.line import Line
from workers.task import NetworkRecipe

SEED = 3


@pytest.fixture
def service(tmp_path: Path) -> Iterator[testing.Service]:
    with testing.Service(shards=2, checkpoint_dir=tmp_path) as service:
        yield service


def start(
    service: testing.Service,
    task: Task[Any],
    *,
    rule: optim.Rule | None = None,
    mode: str = "async",
    job: str = "line",
) -> None:
    model = initial_model(task, SEED)
    config = JobConfig(
        name=job,
        tensors=tensor_specs(task, model),
        rule=optim.to_dict(rule or optim.Adam(lr=0.05)),
        consistency=consistency.to_dict(consistency.parse(mode)),
    )
    service.create(config, arrays(model))


def train(
    service: testing.Service,
    task: Task[Any],
    *,
    rank: int = 0,
    workers: int = 1,
    job: str = "line",
    watch: Callable[[Report], None] = lambda report: None,
    stopped: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> list[Report]:
    """One worker's whole loop; returns its reports."""
    part = Part(**{"batch": 4, "epochs": 4, "seed": SEED, **changes}, rank=rank, workers=workers)
    reports: list[Report] = []

    def report(one: Report) -> None:
        reports.append(one)
        watch(one)

    with service.client(job, pusher=f"worker-{rank}") as client:
        client.join()
        run(Mirror(client, initial_model(task, SEED)), task, part, report=report, stopped=stopped)
    return reports


def steps(reports: list[Report]) -> list[Step]:
    return [report for report in reports if isinstance(report, Step)]


def alone(task: Line, rule: optim.Rule, count: int) -> list[float]:
    """The losses of one worker with the rule by itself."""
    model = initial_model(task, SEED)
    part = Part(rank=0, workers=1, batch=4, seed=SEED)
    w = {name: torch.from_numpy(array.copy()).view(-1) for name, array in arrays(model).items()}
    slots = {name: rule.init(tensor) for name, tensor in w.items()}
    losses = []
    for step in range(count):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.view(-1).copy_(w[name])
        losses.append(gradient(task, model, task.batches(part)(step), seed=part.random(step)))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            rule.step_(w[name], parameter.grad.view(-1), slots[name], step + 1)
    return losses


@pytest.mark.parametrize("mode", ["async", "ssp:1", "bsp"])
def test_one_worker_goes_where_the_rule_goes_by_itself(service: testing.Service, mode: str) -> None:
    start(service, Line(), mode=mode)
    losses = [step.loss for step in steps(train(service, Line()))]
    assert losses == alone(Line(), optim.Adam(lr=0.05), 12)


def test_an_evaluation_leaves_the_training_as_it_is(service: testing.Service) -> None:
    """It is of w, where training with momentum's look-ahead is elsewhere."""
    rule = optim.Nesterov(lr=0.05, momentum=0.9)
    found = {}
    for task in (Line(evaluated=False), Line(evaluated=True)):
        job = f"line-{task.evaluated}"
        start(service, task, rule=rule, job=job)
        found[task.evaluated] = train(service, task, job=job, evaluate=task.evaluated)
    assert [step.loss for step in steps(found[True])] == [step.loss for step in steps(found[False])]
    tests = [report for report in found[True] if isinstance(report, EpochReport)]
    assert [(test.epoch, test.clock) for test in tests] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert tests[-1].numbers["test_loss"] < tests[0].numbers["test_loss"]


def test_a_step_is_one_exchange_but_for_the_first(
    service: testing.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(service, Line())
    calls: list[str] = []

    with service.client("line", pusher="worker-0") as client:
        for name in ("pull", "push", "push_pull"):
            method = getattr(client, name)

            def counted(*args: Any, name: str = name, method: Any = method, **options: Any) -> Any:
                calls.append(name)
                return method(*args, **options)

            monkeypatch.setattr(client, name, counted)
        part = Part(rank=0, workers=1, batch=4, seed=SEED, evaluate=False)
        mirror = Mirror(client, initial_model(Line(), SEED))
        run(mirror, Line(), part, report=lambda report: None, stopped=lambda: False)
    assert calls == ["pull", "push_pull", "push_pull", "push"]
    assert mirror.steps == 3
    assert all(seconds > 0 for seconds in mirror.seconds.values())


@pytest.mark.parametrize("mode", ["async", "ssp:1", "bsp"])
def test_workers_make_every_step_of_theirs(service: testing.Service, mode: str) -> None:
    start(service, Line(), mode=mode)
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda rank: train(service, Line(), rank=rank, workers=3), range(3)))
    assert [[step.step for step in steps(reports)] for reports in done] == [[1, 2, 3, 4]] * 3
    [state] = service.status()
    assert [stamp.clock for stamp in state.clocks] == [4 if mode == "bsp" else 12] * 2


def test_rows_are_pulled_for_the_batch_that_follows(service: testing.Service) -> None:
    """Pushing and pulling by rows gives the losses of whole tensors, also where a step's pull comes with a push."""
    losses = {}
    for sparse in ("exact", "dense"):
        task = NetworkRecipe(network="logreg", dataset="zipf", sparse=sparse).load(lambda message: None)
        start(service, task, job=sparse)
        losses[sparse] = [
            s.loss for s in steps(train(service, task, job=sparse, max_steps=8, evaluate=False))
        ]
    np.testing.assert_allclose(losses["exact"], losses["dense"], rtol=1e-5)


def test_a_restored_shard_costs_the_push_under_way_and_no_more(service: testing.Service) -> None:
    start(service, Line())

    def watch(report: Report) -> None:
        if isinstance(report, Step) and report.step == 4:
            service.checkpoint("line")
        if isinstance(report, Step) and report.step == 6:
            service.kill(1)

    made = steps(train(service, Line(), watch=watch))
    assert [step.step for step in made] == list(range(1, 13))
    outcomes = [step.outcome for step in made]
    assert outcomes.count(Outcome.STALE) <= 2
    assert outcomes[:6] + outcomes[-3:] == [Outcome.APPLIED] * 9
    [state] = service.status()
    assert [rollback.clock_after for rollback in state.rollbacks] == [4]
    assert all(math.isfinite(step.loss) for step in made)


def test_a_worker_goes_on_after_its_last_push(service: testing.Service) -> None:
    start(service, Line())
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(len(asked))
        return len(asked) > 5

    first = steps(train(service, Line(), stopped=stopped))
    rest = steps(train(service, Line()))
    assert [step.step for step in first + rest] == list(range(1, 13))
    assert [step.loss for step in first + rest] == alone(Line(), optim.Adam(lr=0.05), 12)


def test_a_target_ends_the_loop(service: testing.Service) -> None:
    start(service, Line())
    assert len(steps(train(service, Line(), epochs=100, target_loss=100.0))) == 20


def test_a_loss_that_is_no_number_is_not_pushed(service: testing.Service) -> None:
    start(service, Line())
    with pytest.raises(NotFinite, match="the loss of step 1 is nan"):
        train(service, Line(slope=math.nan))
    [state] = service.status()
    assert [stamp.clock for stamp in state.clocks] == [0, 0]
