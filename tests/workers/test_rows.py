"""The IMDB experiment, which lives on gradients and pulls by rows, through a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.test_command import record_of, run

pytestmark = pytest.mark.ray


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_imdb_by_rows_reaches_86_per_cent_for_a_twentieth_of_the_bytes(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logistic regression on 10,000 words with half of each review's words left out; 2 shards, 2 workers."""
    job = [
        "train",
        "logreg",
        "--dataset",
        "imdb",
        "--data-dir",
        shared_data,
        "--batch",
        4,
        "--format",
        "json",
    ]
    steps = 2000
    by_rows = record_of(run(*job, "--max-steps", steps, "--run-dir", tmp_path / "rows"))
    dense = record_of(run(*job, "--max-steps", 50, "--sparse", "dense", "--run-dir", tmp_path / "dense"))
    ratio = (
        sum(by_rows["bytes"].values()) / by_rows["steps"] / (sum(dense["bytes"].values()) / dense["steps"])
    )
    with capsys.disabled():
        print(f"\nIMDB by rows: test accuracy {by_rows['test_accuracy']:.4f}, bytes {ratio:.4f} of dense")
    assert by_rows["test_accuracy"] >= 0.86
    assert ratio <= 0.05
