"""The networks of the Adam paper, in plain torch.

A further network is a function that makes it, a row in `NETWORKS`, and a recipe in `workers.task` that an entry point
in pyproject.toml names.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from adamserve.errors import InvalidArgument, unknown
from workers.data.bags import Bags


def classified(logits: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The sum of the examples' cross-entropies, and how many are classified right."""
    right = int((logits.argmax(dim=1) == y).sum())
    return float(functional.cross_entropy(logits, y, reduction="sum")), right


@dataclass(frozen=True, slots=True)
class Network:
    """A network that can be built for a data set.

    Attributes:
        make: from the number of features and of classes; draws its weights from torch's generator.
        make_sparse: the same network for `Bags`, where there is one; it is told too whether gradients are by rows.
        loss: the mean loss of a batch, from the network's outputs and the labels.
        measure: the sum of a batch's losses, and how many examples are classified right, NaN where none is.
        convex: whether its loss on dense examples is convex, and may have a penalty.
    """

    make: Callable[[int, int], nn.Module]
    make_sparse: Callable[[int, int, bool], nn.Module] | None = None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.cross_entropy
    measure: Callable[[torch.Tensor, torch.Tensor], tuple[float, float]] = classified
    convex: bool = False


def mlp(features: int, classes: int, *, hidden: int = 1000, dropout: float = 0.5) -> nn.Module:
    """Two hidden layers of ReLU units with dropout; takes [batch, features] and gives logits [batch, classes].

    The network of Kingma & Ba 2015, section 6.2 (https://arxiv.org/abs/1412.6980). Weights start as He et al.
    2015 (https://arxiv.org/abs/1502.01852) derive for ReLU: normal with variance 2/inputs, biases 0. The
    paper names no dropout rate; 0.5 is the usual one for hidden layers (Srivastava et al. 2014).

    Raises:
        InvalidArgument: a size is below 1, or dropout is not in [0, 1).
    """
    for name, value in (("features", features), ("classes", classes), ("hidden", hidden)):
        if not value >= 1:
            raise InvalidArgument(f"must be at least 1, got {value}", field=name)
    if not 0 <= dropout < 1:
        raise InvalidArgument(f"must be in [0, 1), got {dropout}", field="dropout")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        hidden1=nn.Linear(features, hidden),
        relu1=nn.ReLU(),
        dropout1=nn.Dropout(dropout),
        hidden2=nn.Linear(hidden, hidden),
        relu2=nn.ReLU(),
        dropout2=nn.Dropout(dropout),
        output=nn.Linear(hidden, classes),
    )
    return _started(nn.Sequential(layers))


def _started(network: nn.Sequential) -> nn.Sequential:
    """The network with its weights drawn as He et al. say, and biases 0."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def cnn(features: int, classes: int) -> nn.Module:
    """Three stages of 5x5 convolution and 3x3 pooling of stride 2 (64, 64, 128 channels), and 1,000 hidden units.

    The network of Kingma & Ba 2015, section 6.3, with ReLU units, and dropout on the input and the fully connected
    layers. The paper names neither padding nor rates: convolutions are padded to keep their size, pooling is not (32,
    15, 7, 3), and the rates are those of Srivastava et al. 2014.

    Raises:
        InvalidArgument: `features` is not 3,072, three planes of 32 by 32.
    """
    if features != 3 * 32 * 32:
        raise InvalidArgument(f"cnn takes 3072 features, got {features}", field="network", fix="use cifar10")
    layers: list[tuple[str, nn.Module]] = [
        ("image", nn.Unflatten(1, (3, 32, 32))),
        ("dropout0", nn.Dropout(0.2)),
    ]
    channels = 3
    for stage, width in enumerate((64, 64, 128), start=1):
        layers += [
            (f"conv{stage}", nn.Conv2d(channels, width, kernel_size=5, padding=2)),
            (f"relu{stage}", nn.ReLU()),
            (f"pool{stage}", nn.MaxPool2d(kernel_size=3, stride=2)),
        ]
        channels = width
    layers += [
        ("flat", nn.Flatten()),
        ("dropout1", nn.Dropout(0.5)),
        ("hidden", nn.Linear(channels * 3 * 3, 1000)),
        ("relu4", nn.ReLU()),
        ("dropout2", nn.Dropout(0.5)),
        ("output", nn.Linear(1000, classes)),
    ]
    return _started(nn.Sequential(OrderedDict(layers)))


KEEP = 0.5
"""Share of the words that a training step of `BagOfWords` keeps."""


class BagOfWords(nn.Module):
    """Logistic regression on `Bags`: logits of the sum of an example's words' rows, and a bias.

    The sparse experiment of Kingma & Ba 2015, section 6.1, with dropout on the features (Wang & Manning 2013, "Fast
    dropout training"): a training step leaves words out and scales the others up. Weights start at 0.

    Attributes:
        weight: [features, classes]; its gradient has the rows of the words seen.
        by_rows: False gives a dense gradient.
    """

    def __init__(self, features: int, classes: int, by_rows: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, classes))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.by_rows = by_rows

    def forward(self, bags: Bags) -> torch.Tensor:
        """Logits [examples, classes]; in training of bags that have lost all but `KEEP` of their words already."""
        words, starts = (torch.from_numpy(a).to(self.weight.device) for a in (bags.words, bags.starts[:-1]))
        total = functional.embedding_bag(words.long(), self.weight, starts, mode="sum", sparse=self.by_rows)
        return (total / KEEP if self.training else total) + self.bias


class Logistic(nn.Linear):
    """Logistic regression, weights and biases 0 at the start: a convex job.

    The experiment of Kingma & Ba 2015, section 6.1; its loss may have a penalty.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class VariationalAutoencoder(nn.Module):
    """A variational auto-encoder: softplus units each way, Gaussian latent variables, Bernoulli output.

    The network of Kingma & Ba 2015, section 6.4, after Kingma & Welling 2014 (https://arxiv.org/abs/1312.6114).
    Features in [0, 1] are taken as the probabilities of a pixel being on. Weights start as Glorot & Bengio 2010 derive,
    biases 0.
    """

    def __init__(self, features: int, hidden: int = 500, latent: int = 50) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decoder = nn.Linear(latent, hidden)
        self.output = nn.Linear(hidden, features)
        for layer in (self.encoder, self.mean, self.log_variance, self.decoder, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The negative lower bound of each example's log-likelihood in nats, [batch], from one draw of the latents."""
        hidden = functional.softplus(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        logits = self.output(functional.softplus(self.decoder(latent)))
        likelihood = functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
        bound: torch.Tensor = likelihood + divergence
        return bound


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(mlp),
    "cnn": Network(cnn),
    "logreg": Network(Logistic, BagOfWords, convex=True),
    # The auto-encoder works out its losses itself, without labels, and classifies nothing.
    "vae": Network(
        lambda features, _: VariationalAutoencoder(features),
        loss=lambda losses, _: losses.mean(),
        measure=lambda losses, _: (float(losses.sum()), math.nan),
    ),
}
"""Every network by name."""


def lookup(name: str) -> Network:
    """The network of that name; an InvalidArgument lists them where there is none."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS, field="network")
    return NETWORKS[name]
