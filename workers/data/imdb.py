"""The Large Movie Review Dataset (Maas et al. 2011) as bags of its most frequent words.

https://ai.stanford.edu/~amaas/data/sentiment/: 25,000 reviews to train on and 25,000 to test on, half of each positive.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adamserve.errors import DataError
from workers.data import Dataset, Progress
from workers.data.bags import Bags
from workers.data.cache import Arrays, kept

ARCHIVE = "aclImdb_v1.tar.gz"
FOLDER = "aclImdb"
WORDS = 10_000
"""Most frequent words of the training set that are kept."""

VERSION = 2
"""Of what is cached; another tokenizer needs another number."""

FIX = f"give --data-dir a folder that holds {ARCHIVE} or {FOLDER}/"

_BREAK = re.compile(r"<br\s*/?>")
_TOKEN = re.compile(r"[a-z0-9']+")
_MEMBER = re.compile(r"(?:.*/)?(train|test)/(pos|neg)/\d+_(\d+)\.txt$")
_RATINGS = {"neg": range(1, 5), "pos": range(7, 11)}


def tokens(text: str) -> list[str]:
    """The words of a review: runs of letters, digits and apostrophes, in lower case, without HTML's line breaks."""
    return _TOKEN.findall(_BREAK.sub(" ", text.lower()))


def load_imdb(
    data_dir: Path | None, *, progress: Progress = lambda message: None, words: int = WORDS
) -> Dataset:
    """Load the reviews; label 1 is positive. Made once, and kept in the cache under the hash of its source.

    Args:
        data_dir: folder that holds the archive or the folder `aclImdb`; the official layout.
        words: how many of the training set's most frequent words to keep.

    Raises:
        DataError: there is no such file; it is damaged; a review is empty, no UTF-8, or in the wrong folder for its
            rating; or a part of the data set is empty. Names the file, and the byte where there is one.
    """
    source = _find(data_dir)
    digest = _digest(source, words)
    return kept(
        "imdb", digest, lambda: _read(source, words, progress), lambda found: _dataset(found, words), progress
    )


def _find(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise DataError("IMDB is not fetched from the network", field="data_dir", fix=FIX)
    for name in (ARCHIVE, FOLDER):
        if (data_dir / name).exists():
            return data_dir / name
    if (data_dir / "train" / "pos").is_dir():
        return data_dir
    raise DataError(f"holds neither {ARCHIVE} nor {FOLDER}", field=str(data_dir), fix=FIX)


def _digest(source: Path, words: int) -> str:
    """What the cached arrays depend on: an archive's bytes, or the names and bytes of a folder's files."""
    found = hashlib.sha256(f"{VERSION} {words} ".encode())
    if source.is_file():
        with source.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    else:
        for name, content in _reviews(source):
            found.update(f"{name} {len(content)} ".encode())
            found.update(content)
    return found.hexdigest()[:32]


def _reviews(source: Path) -> Iterator[tuple[str, bytes]]:
    """Every review: its path and its bytes."""
    if source.is_dir():
        for path in sorted(source.glob("t*/[pn]*/*.txt")):
            try:
                yield str(path.relative_to(source)), path.read_bytes()
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror}", field=str(path)) from None
        return
    try:
        # tarfile's own gzip reader takes an archive that is cut short for one that ends there.
        with gzip.open(source) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and _MEMBER.match(member.name):
                    yield member.name, file.read()
            while unpacked.read(1 << 20):
                pass  # to its checksum
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", field=str(source)) from None


def _text(path: str, content: bytes) -> str:
    if not content:
        raise DataError("at byte 0: expected a review, found the end of the file", field=path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"0x{content[error.start]:02x}"
        raise DataError(f"at byte {error.start}: expected UTF-8, found {found}", field=path) from None


def _read(source: Path, words: int, progress: Progress) -> Arrays:
    """Tokenise everything; the order of the examples is that of their names."""
    reviews: dict[tuple[str, str], list[tuple[str, set[str]]]] = {}
    frequency: Counter[str] = Counter()
    for count, (path, content) in enumerate(_reviews(source)):
        found = _MEMBER.match("/" + path)
        if found is None:
            continue
        part, label, rating = found.groups()
        if int(rating) not in _RATINGS[label]:
            raise DataError(f"a rating of {rating} is not {label}", field=f"{source}/{path}", fix=FIX)
        all_words = tokens(_text(f"{source}/{path}", content))
        if part == "train":
            frequency.update(all_words)
        reviews.setdefault((part, label), []).append((path, set(all_words)))
        if count % 5000 == 0:
            progress(f"reading {source.name}: {count} reviews")
    # Ties are broken by the word itself, so that the order of files does not matter.
    best = sorted(frequency.items(), key=lambda pair: (-pair[1], pair[0]))[:words]
    numbers = {word: number for number, (word, _) in enumerate(best)}
    arrays: Arrays = {}
    for part in ("train", "test"):
        bags, labels = [], []
        for label in ("neg", "pos"):
            for _, present in sorted(reviews.get((part, label), [])):
                bags.append(sorted(numbers[word] for word in present if word in numbers))
                labels.append(int(label == "pos"))
        if len(set(labels)) < 2:
            raise DataError(f"has no reviews in {part}/pos or {part}/neg", field=str(source), fix=FIX)
        arrays[f"{part}_starts"] = np.cumsum([0, *map(len, bags)], dtype=np.int64)
        arrays[f"{part}_words"] = np.array([word for bag in bags for word in bag], np.int32)
        arrays[f"{part}_labels"] = np.array(labels, np.int64)
    return arrays


def _dataset(arrays: Arrays, words: int) -> Dataset:
    train, test = (
        Bags(arrays[f"{part}_starts"], arrays[f"{part}_words"], words) for part in ("train", "test")
    )
    return Dataset("imdb", train, arrays["train_labels"], test, arrays["test_labels"], classes=2)
