"""The status page during a training, in a real browser."""

from __future__ import annotations

import queue
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adamserve import testing
from adamserve.train.config import TrainConfig
from adamserve.train.progress import Progress
from adamserve.train.run import train
from tests.browser import visit
from workers.task import NetworkRecipe

pytestmark = pytest.mark.timeout(240)

MOVES = """
(async () => {
  const clock = () => Number(document.querySelector('td:nth-child(4)').innerText);
  const texts = selector => [...document.querySelectorAll(selector)].map(found => found.innerText);
  const line = () => document.querySelector('polyline').getAttribute('points');
  const pause = () => new Promise(done => setTimeout(done, 100));
  for (let i = 0; i < 200 && !(document.querySelector('td:nth-child(4)') && document.querySelector('polyline')); i++)
    await pause();
  const first = [clock(), line()];
  for (let i = 0; i < 200 && (clock() <= first[0] || line() === first[1]); i++)
    await pause();
  return {first: first[0], last: clock(), moved: line() !== first[1],
          heading: document.querySelector('h2').innerText, figures: texts('figcaption'),
          bars: document.querySelectorAll('rect').length, tables: texts('table'), title: document.title};
})()
"""


def test_curves_move_and_nothing_leaves_the_origin(tmp_path: Path) -> None:
    config = TrainConfig(
        run_dir=tmp_path / "run",
        recipe=NetworkRecipe(network="logreg", l2=0.01, regret=True),
        epochs=100_000,
        metrics_port=0,
    )
    told: queue.SimpleQueue[Progress] = queue.SimpleQueue()
    stop = threading.Event()

    def training() -> dict[str, Any]:
        return train(config, on_progress=told.put, stop=stop, start=testing.Service.start)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(training)
        try:
            while not (
                status := re.fullmatch(r"status at (http://127\.0\.0\.1:\d+/), .*", told.get(timeout=60).note)
            ):
                pass
            while told.get(timeout=60).epoch < 1:
                pass
            origin = status[1]
            seen = visit(origin, MOVES)
        finally:
            stop.set()
        assert done.result(timeout=60)["status"] == "stopped"
    assert seen.answer["heading"] == "train"
    assert seen.answer["last"] > seen.answer["first"] > 0
    assert seen.answer["moved"]
    kinds = [caption.partition(":")[0] for caption in seen.answer["figures"]]
    assert kinds == ["loss", "average regret", "staleness in updates"]
    assert seen.answer["bars"] >= 1
    shards, pushers = seen.answer["tables"]
    assert [line.split("\t")[:2] for line in shards.splitlines()[1:]] == [["0", "up"], ["1", "up"]]
    named = sorted(line.split("\t") for line in pushers.splitlines()[1:])
    assert [name for name, _, _ in named] == ["worker-0", "worker-1"]
    assert all(re.fullmatch(r"\d+\.\d s ago", last) and int(seq) > 0 for _, last, seq in named)
    assert seen.answer["title"] == "adamserve"
    assert seen.errors == []
    assert seen.requests
    assert all(request == origin for request in seen.requests)
