"""The movie reviews: what is read, and how bags of words behave."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamserve.errors import DataError, InvalidArgument
from workers.data import Dataset, load
from workers.data.bags import Bags
from workers.data.imdb import ARCHIVE, WORDS, load_imdb, tokens
from workers.networks import BagOfWords
from workers.task import NetworkTask

REVIEWS = {
    "train/pos/0_9.txt": "Good good film!<br /><br />A treat.",
    "train/pos/1_8.txt": "It's a treat, a film.",
    "train/neg/0_2.txt": "bad film",
    "train/neg/1_1.txt": "BAD, bad.",
    "test/pos/0_10.txt": "a good unseen treat",
    "test/neg/0_3.txt": "bad",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMSERVE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(path: Path, reviews: dict[str, str] = REVIEWS) -> Path:
    for name, text in reviews.items():
        file = path / "aclImdb" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def archive(path: Path) -> Path:
    with tarfile.open(path / ARCHIVE, "w:gz") as made:
        for name, text in reversed(REVIEWS.items()):
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
        noise = tarfile.TarInfo("aclImdb/train/urls_pos.txt")
        made.addfile(noise, io.BytesIO(b""))
    return path


def bags(data: Any, part: str) -> list[list[int]]:
    x: Bags = getattr(data, f"{part}_x")
    return [x.words[a:b].tolist() for a, b in zip(x.starts[:-1], x.starts[1:], strict=True)]


@pytest.mark.parametrize("make", [folder, archive])
def test_words_are_numbered_by_frequency_in_the_training_set(make: Any, tmp_path: Path, cache: Path) -> None:
    data = load_imdb(make(tmp_path), words=5)
    # a, bad and film three times each, then good and treat; ties by the word.
    assert bags(data, "train") == [[1, 2], [1], [0, 2, 3, 4], [0, 2, 4]]
    assert bags(data, "test") == [[1], [0, 3, 4]]
    assert (data.train_y.tolist(), data.test_y.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert (data.features, data.classes, data.sparse) == (5, 2, True)


def test_tokens_are_lower_case_runs_without_line_breaks() -> None:
    assert tokens("It's GOOD<br />good-ish... 10/10") == ["it's", "good", "good", "ish", "10", "10"]


def test_what_was_read_is_kept_under_its_content(tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    folder(tmp_path)
    first = load_imdb(tmp_path, words=5, progress=said.append)
    assert said
    said.clear()
    assert bags(load_imdb(tmp_path, words=5, progress=said.append), "train") == bags(first, "train")
    assert not said
    [kept] = (cache / "data" / "imdb").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert bags(load_imdb(tmp_path, words=5, progress=said.append), "train") == bags(first, "train")
    assert said
    (tmp_path / "aclImdb/train/pos/2_9.txt").write_text("good")
    assert len(load_imdb(tmp_path, words=5).train_y) == 5


def test_another_text_of_the_same_size_and_time_is_read_anew(tmp_path: Path, cache: Path) -> None:
    folder(tmp_path)
    load_imdb(tmp_path, words=5)
    review = tmp_path / "aclImdb/test/neg/0_3.txt"
    before = review.stat()
    review.write_text("wow")  # was "bad"; the vocabulary is the training set's
    os.utime(review, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bags(load_imdb(tmp_path, words=5), "test") == [[], [0, 3, 4]]


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path, "holds neither"),
        (lambda path: folder(path, {"train/pos/0_9.txt": "good"}), "no reviews in train"),
        (lambda path: (path / ARCHIVE).write_bytes(b"\x1f\x8bnot an archive"), "cannot be read"),
        (
            lambda path: (path / ARCHIVE).write_bytes((archive(path) / ARCHIVE).read_bytes()[:200]),
            "cannot be read",
        ),
        (lambda path: (path / ARCHIVE).write_bytes(b""), "cannot be read"),
    ],
    ids=["nothing there", "one class", "not an archive", "cut short", "empty archive"],
)
def test_a_damaged_source_is_named(prepare: Any, problem: str, tmp_path: Path, cache: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=problem) as caught:
        load_imdb(tmp_path)
    assert str(tmp_path) in caught.value.field


BAD_REVIEWS = {
    "mislabelled, positive": ("train/pos/2_4.txt", b"good", "a rating of 4 is not pos"),
    "mislabelled, negative": ("test/neg/2_7.txt", b"bad", "a rating of 7 is not neg"),
    "empty": ("train/neg/2_1.txt", b"", "at byte 0: expected a review, found the end of the file"),
    "not a text": ("train/neg/2_1.txt", b"bad \xff", "at byte 4: expected UTF-8, found 0xff"),
}


@pytest.mark.parametrize(("name", "content", "problem"), BAD_REVIEWS.values(), ids=BAD_REVIEWS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_a_bad_review_is_named(
    name: str, content: bytes, problem: str, packed: bool, tmp_path: Path, cache: Path
) -> None:
    source = folder(tmp_path) / "aclImdb"
    (source / name).write_bytes(content)
    if packed:
        with tarfile.open(tmp_path / ARCHIVE, "w:gz") as made:
            made.add(source, "aclImdb")
    with pytest.raises(DataError) as caught:
        load_imdb(tmp_path)
    assert caught.value.field == (f"{tmp_path / ARCHIVE}/aclImdb/{name}" if packed else str(source / name))
    assert caught.value.problem == problem


def test_without_a_folder_the_fix_is_said() -> None:
    with pytest.raises(DataError, match="--data-dir"):
        load("imdb")


def test_choosing_and_thinning_bags() -> None:
    x = Bags(np.array([0, 2, 2, 5]), np.array([1, 4, 0, 2, 3], np.int32), 6)
    some = x[np.array([2, 1, 0, 2])]
    assert (some.starts.tolist(), some.words.tolist()) == ([0, 3, 3, 5, 8], [0, 2, 3, 1, 4, 0, 2, 3])
    assert x[1:3].words.tolist() == [0, 2, 3]
    wide = Bags(np.arange(0, 20_001, 100), np.tile(np.arange(100, dtype=np.int32), 200), 100)
    thin = wide.thinned(0.25, np.random.default_rng(0))
    assert abs(len(thin.words) / len(wide.words) - 0.25) < 0.01  # four standard deviations
    for i in range(200):
        kept = thin.words[thin.starts[i] : thin.starts[i + 1]]
        assert len(set(kept.tolist())) == len(kept)
    with pytest.raises(DataError, match="words run"):
        Bags(np.array([0, 1]), np.array([6], np.int32), 6)
    with pytest.raises(DataError, match="before it starts"):
        Bags(np.array([0, 2, 1]), np.array([0], np.int32), 6)


def test_the_sparse_network_is_the_dense_one() -> None:
    """Logits and gradients against a matrix of ones and zeros."""
    x = Bags(np.array([0, 2, 2, 5]), np.array([1, 4, 0, 2, 3], np.int32), 6)
    dense = torch.zeros(3, 6)
    dense[0, [1, 4]] = dense[2, [0, 2, 3]] = 1.0
    torch.manual_seed(0)
    model = BagOfWords(6, 3)
    torch.nn.init.normal_(model.weight)
    model.eval()
    torch.testing.assert_close(model(x), dense @ model.weight + model.bias)
    model.train()
    torch.testing.assert_close(model(x), 2 * dense @ model.weight + model.bias)
    model(x).square().sum().backward()
    found = model.weight.grad
    assert found is not None
    assert found.layout is torch.sparse_coo
    reference = model.weight.detach().clone().requires_grad_()
    (2 * dense @ reference + model.bias.detach()).square().sum().backward()
    torch.testing.assert_close(found.to_dense(), reference.grad)


def test_networks_for_bags() -> None:
    data = Dataset(
        "tiny", Bags(np.array([0, 1]), np.array([2], np.int32), 4), np.array([1]),
        Bags(np.array([0, 1]), np.array([0], np.int32), 4), np.array([0]), classes=2,
    )  # fmt: skip
    model = NetworkTask(network="logreg", data=data).model()
    assert isinstance(model, BagOfWords)
    assert sum(p.numel() for p in model.parameters()) == 10
    assert sum(p.numel() for p in BagOfWords(WORDS, 2).parameters()) == 20_002
    with pytest.raises(InvalidArgument, match=r"takes no bags of words.*choose logreg"):
        NetworkTask(network="mlp", data=data)
