"""Deleting a job: its name is free, its checkpoints are in the trash or gone, and a crash changes neither."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from adamserve import checkpoint
from adamserve.checkpoint.lock import LOCK
from adamserve.cli import main
from adamserve.cluster import trash
from adamserve.errors import CheckpointError, InvalidArgument, NotFound, Unavailable
from tests.cluster.conftest import Start
from tests.cluster.test_controller import ONES, ZEROS, clocks, config, push
from tests.conftest import Refused


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []


@pytest.mark.parametrize("purge", [False, True], ids=["kept", "purged"])
def test_a_deleted_job_s_name_can_be_used_again(start: Start, tmp_path: Path, purge: bool) -> None:
    service = start(shards=2)
    for _ in range(2):
        assert service.create(config(), ZEROS)
        with service.client("job", pusher="a") as client:
            assert clocks(client) == [(1, 0)] * 2
            push(client)
        service.checkpoint("job")
        assert service.delete("job", purge=purge)
        assert service.status() == []
        assert entries(tmp_path) == [".trash"]
    assert entries(tmp_path / ".trash") == ([] if purge else ["job-1", "job-2"])
    assert not service.delete("job"), "there is none any more"
    with pytest.raises(NotFound, match="no job 'job'"):
        service.controller.topology("job")


def test_what_is_in_the_trash_is_whole(start: Start, tmp_path: Path) -> None:
    service = start()
    service.create(config(), ZEROS)
    with service.client("job", pusher="a") as client:
        push(client)
    service.checkpoint("job")
    service.delete("job")
    kept = tmp_path / ".trash" / "job-1"
    folder, manifest = checkpoint.newest(kept)
    np.testing.assert_array_equal(checkpoint.load_tensors(folder, manifest)["w"]["w"], -ONES["w"])
    assert checkpoint.list_jobs(tmp_path) == []
    shutil.move(kept, tmp_path / "job")
    (tmp_path / "job" / trash.TOMBSTONE).unlink()
    service.resume("job")
    with service.client("job") as client:
        assert clocks(client) == [(2, 1)], "moved back, it goes on"


def test_other_jobs_and_calls_under_way(start: Start) -> None:
    service = start(shards=2)
    for name in ("job", "other"):
        service.create(config(name), ZEROS)
    with (
        service.client("job", pusher="a", timeout_s=1.0) as client,
        service.client("other", pusher="a") as other,
    ):
        push(client)
        push(other)
        _, clock = client.pull()
        service.delete("job")
        with pytest.raises((NotFound, Unavailable)):
            client.push(ONES, clock)
        push(other)
        assert clocks(other) == [(1, 2)] * 2


def test_without_checkpoints_and_with_a_dead_shard(start: Start) -> None:
    service = start(shards=2, checkpoint_dir=None, watch_every_s=None)
    service.create(config(), ZEROS)
    service.kill(0)
    assert service.delete("job")
    service.controller.step()
    assert service.status() == []
    assert service.create(config(), ZEROS)


@pytest.mark.parametrize("name", ["../job", ".trash", "", "a/b"])
def test_only_a_job_s_name_is_taken(start: Start, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a job name"):
        start().delete(name, purge=True)


# ---- crashes


@pytest.mark.parametrize("purge", [False, True], ids=["kept", "purged"])
def test_a_crash_after_the_tombstone_is_finished_at_the_next_start(
    start: Start, tmp_path: Path, purge: bool
) -> None:
    start().create(config(), ZEROS)
    trash.mark(tmp_path / "job", purge=purge)
    service = start()
    assert entries(tmp_path) == [".trash"]
    assert entries(tmp_path / ".trash") == ([] if purge else ["job-1"])
    assert service.create(config(), ZEROS)


def test_a_crash_while_purging_is_finished_at_the_next_start(start: Start, tmp_path: Path) -> None:
    start().create(config(), ZEROS)
    trash.mark(tmp_path / "job", purge=True)
    (tmp_path / ".trash").mkdir()
    (tmp_path / "job").rename(tmp_path / ".trash" / "job-1")
    shutil.rmtree(tmp_path / ".trash" / "job-1" / "00000001")
    start()
    assert entries(tmp_path / ".trash") == []


def test_a_job_whose_tombstone_cannot_be_written_goes_on(start: Start, tmp_path: Path) -> None:
    service = start()
    service.create(config(), ZEROS)
    (tmp_path / "job" / f"{trash.TOMBSTONE}.tmp").mkdir()
    with pytest.raises(CheckpointError, match=r"job/deleted: cannot be written"):
        service.delete("job")
    with service.client("job", pusher="a") as client:
        push(client)


def test_a_folder_that_the_disk_does_not_let_go_is_never_taken_up_again(start: Start, tmp_path: Path) -> None:
    """Until it is let go: then the next call, or the next start, finishes."""
    service = start()
    service.create(config(), ZEROS)
    (tmp_path / ".trash").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be deleted"):
        service.delete("job")
    assert service.status() == []
    with pytest.raises(Unavailable, match="is being deleted"):
        service.create(config(), ZEROS)
    again = start()
    with pytest.raises(NotFound, match="was deleted"):
        again.resume("job")
    (tmp_path / ".trash").unlink()
    assert again.delete("job")
    assert entries(tmp_path / ".trash") == ["job-1"]
    assert again.create(config(), ZEROS)


# ---- the call


def test_a_client_is_told_whether_there_was_one(start: Start, tmp_path: Path) -> None:
    service = start()
    service.create(config(), ZEROS)
    with service.client("job") as client:
        assert [client.delete(purge=True) for _ in range(2)] == [True, False]
    assert entries(tmp_path / ".trash") == []


@pytest.mark.parametrize("options", [[], ["--purge"]], ids=["kept", "purged"])
def test_the_command(
    start: Start,
    tmp_path: Path,
    options: list[str],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = start()
    service.create(config(), ZEROS)
    arguments = ["delete", "job", service.target, *options]
    monkeypatch.setattr("sys.argv", ["adamserve", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert capsys.readouterr().out.startswith("deleted job")
    assert entries(tmp_path / ".trash") == ([] if options else ["job-1"])
    assert refused(*arguments).startswith("JOB: the service has no job 'job'")
