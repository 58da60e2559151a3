"""Contrast normalisation and whitening of images, fitted on a training set.

What Kingma & Ba 2015, section 6.3, did to CIFAR-10 before training on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import InvalidArgument
from workers.data import Dataset, Progress
from workers.data.bags import Bags
from workers.data.cache import Arrays, kept

Images = NDArray[np.float32]

CONTRAST_FLOOR = 10 / 255**2
"""Added to an image's variance: flat images are not blown up (Coates, Lee & Ng 2011, for pixels from 0 to 255)."""

EPSILON = 0.1
"""Added to the variance along each principal axis (Coates, Lee & Ng 2011)."""


def contrast_normalised(x: Images) -> Images:
    """Images of mean 0 and standard deviation 1 each, [examples, features]."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + CONTRAST_FLOOR)
    return np.asarray(centred / deviation, np.float32)


def fit(x: Images) -> tuple[Images, Images]:
    """The mean image, [features], and the symmetric (ZCA) whitening matrix, [features, features].

    (x - mean) @ matrix has unit covariance but for `EPSILON`; of all such matrices it changes an image least.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    centred = (x - mean.astype(np.float32)).astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(x)
    variances, axes = np.linalg.eigh(covariance)
    matrix = (axes / np.sqrt(np.maximum(variances, 0.0) + EPSILON)) @ axes.T
    return mean.astype(np.float32), matrix.astype(np.float32)


def whitened(data: Dataset, *, progress: Progress = lambda message: None) -> Dataset:
    """The data set normalised and whitened by its training set; the matrix is kept in the cache by that set's hash."""
    if isinstance(data.train_x, Bags) or isinstance(data.test_x, Bags):
        raise InvalidArgument(f"{data.name} holds bags of words, not images", field="whiten")
    train, test = contrast_normalised(data.train_x), contrast_normalised(data.test_x)
    digest = hashlib.sha256(train.tobytes() + repr((train.shape, EPSILON)).encode()).hexdigest()

    def made() -> Arrays:
        progress(f"fitting the whitening of {train.shape[1]} features")
        return dict(zip(("mean", "matrix"), fit(train), strict=True))

    mean, matrix = kept("whitening", digest, made, lambda found: (found["mean"], found["matrix"]), progress)
    train, test = (np.asarray((x - mean) @ matrix, np.float32) for x in (train, test))
    return replace(data, train_x=train, test_x=test)
