"""The status page during a real training, in a real browser."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import pytest

from tests.browser import visit
from tests.service.test_train import Running

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

MOVES = """
(async () => {
  const clock = () => Number(document.querySelector('td:nth-child(4)').innerText);
  const texts = selector => [...document.querySelectorAll(selector)].map(found => found.innerText);
  const line = () => document.querySelector('polyline').getAttribute('points');
  const first = [clock(), line()];
  for (let i = 0; i < 200 && (clock() <= first[0] || line() === first[1]); i++)
    await new Promise(done => setTimeout(done, 100));
  return {first: first[0], last: clock(), moved: line() !== first[1],
          heading: document.querySelector('h2').innerText, figures: texts('figcaption'),
          bars: document.querySelectorAll('rect').length, tables: texts('table'), title: document.title};
})()
"""


def test_curves_move_and_nothing_leaves_the_origin(tmp_path: Path, cluster: str) -> None:
    running = Running(
        "train", "logreg", "--l2", "0.01", "--regret", "--epochs", "100000", "--run-dir", tmp_path / "run",
        "--metrics-port", "0", "--format", "json", "--address", cluster,
    )  # fmt: skip
    origin = running.until(r"status at (http://127\.0\.0\.1:\d+/)").group(1)
    running.until(r"epoch +[1-9]\d*\.")
    reader = threading.Thread(target=lambda: [None for _ in running.lines()])
    reader.start()
    try:
        seen = visit(origin, MOVES)
    finally:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=120) == 0
        reader.join()
        for pipe in (running.process.stdout, running.process.stderr):
            assert pipe is not None
            pipe.close()
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
