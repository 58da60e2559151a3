"""The networks of the Adam paper, in plain torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from adamserve.errors import InvalidArgument
from workers.data import Dataset


@dataclass(frozen=True, slots=True)
class Network:
    """A network that can be built for a data set.

    Attributes:
        make: from the number of features and of classes.
        parameters: how many parameters that gives.
    """

    make: Callable[[int, int], nn.Module]
    parameters: Callable[[int, int], int]


def mlp(features: int, classes: int, *, hidden: int = 1000, dropout: float = 0.5) -> nn.Module:
    """Two hidden layers of ReLU units with dropout (Kingma & Ba 2015, section 6.2).

    Args:
        features: inputs; the module takes [batch, features].
        classes: outputs, as logits [batch, classes].
        hidden: units of each hidden layer.
        dropout: share of each hidden layer's units that a training step leaves out.
    """
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


def mlp_parameters(features: int, classes: int, hidden: int = 1000) -> int:
    """Weights and biases of `mlp`."""
    return (features + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * classes


NETWORKS: Mapping[str, Network] = {"mlp": Network(mlp, mlp_parameters)}
"""Every network by name."""


def lookup(name: str) -> Network:
    """The network of that name.

    Raises:
        InvalidArgument: there is none.
    """
    network = NETWORKS.get(name)
    if network is None:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidArgument(
            f"there is no network {name!r}", field="network", fix=f"{hint}choose {' or '.join(NETWORKS)}"
        )
    return network


def build(name: str, data: Dataset, *, seed: int) -> nn.Module:
    """Build a network for a data set, its initial weights a function of the seed alone."""
    network = lookup(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.make(data.features, data.classes)
